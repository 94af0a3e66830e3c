"""Tuning on prompts of a benchmark, or on prompts of its shape: how much a score is inflated."""

import dataclasses
import functools
from pathlib import Path
from typing import Literal

from blip3o.core.config import evolve
from blip3o.data.mixture import DataConfig, MixtureEntry
from blip3o.data.sources.jsonl import JsonlConfig
from blip3o.recipes import pocket
from blip3o.recipes.pocket_methods import START
from blip3o.recipes.pocket_parts import muon, training
from blip3o.study.claims import Claim, Test
from blip3o.study.grid import Arm, Grid, Study, StudySettings
from blip3o.study.inflation import inflation_section
from blip3o.study.leaks import CLEAN, LeakEvaluation
from blip3o.study.run import SEED, seeded
from blip3o.study.tuning_sets import Leak, TuningSets, write_prompts, write_tuning_set
from blip3o.train.config import InitConfig, RunConfig
from blip3o.weights.folder import open_model

STEPS, BATCH, LR = 75, 32, 1e-3
"""Each of the 2,400 records is seen once, so 1 % of them are exactly 24."""
LEAKS = {
    CLEAN: Leak(kind="shape", rate=0.0),
    "shape_1": Leak(kind="shape", rate=0.01),
    "shape_10": Leak(kind="shape", rate=0.1),
    "shape_100": Leak(kind="shape", rate=1.0),
    "exact_100": Leak(kind="exact", rate=1.0),
}
"""Leaks by the name of their arm."""
TUNING = "tuning"
"""Folder of the tuning sets, in the folder of the shared runs."""
_PROMPTS = (
    "a red cat",
    "three purple hearts",
    "a blue car and a green tree",
    "a yellow star above a pink fish",
)


def contamination() -> Study:
    """Tuning the bundled model with 0, 1, 10 and 100 % of benchmark-shaped prompts."""
    return Study(
        name="contamination",
        title="Contamination of a benchmark",
        arms=tuple(
            Arm(name=name, title=_title(name, leak), config=functools.partial(_tuned, name))
            for name, leak in LEAKS.items()
        ),
        settings=StudySettings(evaluation=LeakEvaluation(sample_prompts=_PROMPTS)),
        claims=(
            Claim(
                name="L1",
                text="Tuning on a benchmark's very prompts raises their score more than twins'.",
                held_if=(_inflation("exact_100", "above"),),
                refuted_if=(_inflation("exact_100", "within", 0.03),),
            ),
            Claim(
                name="L2",
                text="Tuning on other sentences of a benchmark's shape does so, too.",
                held_if=(_inflation("shape_100", "above"),),
                refuted_if=(_inflation("shape_100", "within", 0.03),),
            ),
            Claim(
                name="L3",
                text="Tuning on a benchmark's shape raises also the score of twins.",
                held_if=(_change("twin", "shape_100", "above"),),
                refuted_if=(_change("twin", "shape_100", "within", 0.03),),
            ),
            Claim(
                name="L4",
                text="One percent of benchmark-shaped prompts inflates a score by less than 0.05.",
                held_if=(_inflation("shape_1", "below", 0.05),),
                refuted_if=(_inflation("shape_1", "above", 0.05),),
            ),
        ),
        write_data=_write_data,
        section=functools.partial(inflation_section, leaks=LEAKS),
    )


def _title(name: str, leak: Leak) -> str:
    return "no leak" if name == CLEAN else f"{leak.kind}, {leak.rate:.0%}"


def _inflation(arm: str, is_: Literal["above", "below", "within"], limit: float = 0.0) -> Test:
    return _change("inflation", arm, is_, limit)


def _change(
    score: str, arm: str, is_: Literal["above", "below", "within"], limit: float = 0.0
) -> Test:
    """Returns a test of a score against the same seeds without a leak."""
    return Test(score=score, arm=arm, minus=CLEAN, is_=is_, limit=limit, over="pairs")


def _tuned(name: str, shared: Path) -> RunConfig:
    """Returns the tuning of the bundled model's image layers on a tuning set, seen once."""
    base = pocket.generation()
    source = JsonlConfig(path=str(shared / TUNING / SEED / f"{name}.jsonl"), name=TUNING)
    train = training("generator", steps=STEPS, batch=BATCH, optimizer=muon(LR), sample_every=0)
    return dataclasses.replace(
        base,
        model=open_model(START).config,
        init=(InitConfig(folder=START),),
        data=DataConfig(mixture=(MixtureEntry(source=source, task="text_to_image"),)),
        # As in `pocket.finish`: a short run has no time to recover from a hot start.
        train=evolve(train, {"optimizer.decay_share": 1.0, "optimizer.warmup_steps": 10}),
    )


def _write_data(grid: Grid, shared: Path) -> None:
    """Writes the tuning sets of all seeds and arms, as many records as a run sees."""
    evaluation = grid.settings.evaluation
    train = next(iter(grid.arms.values())).train  # all arms have as many samples
    for seed in grid.settings.seeds:
        sets = TuningSets(evaluation.benchmark, seed, train.steps * train.global_batch_size)
        write_prompts(evaluation.benchmark, shared / TUNING / str(seed))
        for name, arm in grid.arms.items():
            config = seeded(arm, seed, evaluation.num_points)
            file = Path(config.data.mixture[0].source.path)
            write_tuning_set(sets, LEAKS[name], config.model.image_encoder.image_px, file)
