"""Settings that the studies of the pocket model share: their world, measurements and arms."""

from collections.abc import Callable
from pathlib import Path

from blip3o.eval.scenes import ScenesBenchmark
from blip3o.recipes.pocket_methods import PROMPTS
from blip3o.recipes.pocket_parts import SMALL_WORLD
from blip3o.study.grid import Arm, Evaluation, StudySettings
from blip3o.train.config import RunConfig

SETTINGS = StudySettings(
    seeds=(0, 1, 2),
    evaluation=Evaluation(
        num_points=4,
        benchmark=ScenesBenchmark(
            world=SMALL_WORLD,
            prompts_per_category=24,
            images_per_prompt=2,
            num_questions=300,
            num_captions=0,
            num_edits=0,
            num_reconstructions=0,
        ),
        curve_prompts=12,
        sample_prompts=PROMPTS,
    ),
)


def arm(name: str, title: str, recipe: Callable[[], RunConfig], **changes: object) -> Arm:
    """Returns an arm that trains a recipe without earlier stages.

    Args:
        name: name of the arm's folder.
        title: heading of the arm in the report.
        recipe: the recipe.
        **changes: changed settings; "__" in a name stands for the dot of a path.
    """

    def config(shared: Path) -> RunConfig:
        del shared
        return recipe()

    overrides = {path.replace("__", "."): value for path, value in changes.items()}
    return Arm(name=name, title=title, config=config, overrides=overrides)
