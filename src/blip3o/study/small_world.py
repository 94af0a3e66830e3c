"""Settings that the studies of the pocket model share: their world and measurements."""

from blip3o.eval.scenes import ScenesBenchmark
from blip3o.recipes.pocket_methods import PROMPTS
from blip3o.recipes.pocket_parts import SMALL_WORLD
from blip3o.study.grid import StudySettings
from blip3o.study.measures import MethodEvaluation

SETTINGS = StudySettings(
    seeds=(0, 1, 2),
    evaluation=MethodEvaluation(
        num_points=4,
        benchmark=ScenesBenchmark(
            world=SMALL_WORLD,
            prompts_per_category=24,
            images_per_prompt=2,
            num_questions=300,
            num_captions=0,
            num_edits=0,
            num_reconstructions=0,
            wording_prompts_per_category=0,
            num_wording_questions=0,
            num_wording_edits=0,
        ),
        curve_prompts=12,
        sample_prompts=PROMPTS,
    ),
)
