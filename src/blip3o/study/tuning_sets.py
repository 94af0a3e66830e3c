"""Tuning sets of which an exact share repeats a benchmark, or its shape.

All sets of a seed have the same clean records at the same places, and the leaked records of a small
rate are among those of a larger one. They are lists in the study's own folder: no recipe of the
bundled model reads them.
"""

import dataclasses
import functools
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from blip3o.core.files import write_atomic
from blip3o.core.rng import numpy_rng
from blip3o.data.scenes.captions import caption_texts, group_texts
from blip3o.data.scenes.heldout import heldout_of
from blip3o.data.scenes.prompts import WORDING_CATEGORIES, EvalPrompt, eval_prompts
from blip3o.data.scenes.render import render
from blip3o.data.scenes.scene import sample_groups, sample_pair, sample_scene
from blip3o.data.scenes.types import Scene
from blip3o.data.scenes.words import pick
from blip3o.eval.scenes import ScenesBenchmark, right_scene
from blip3o.study.leaks import LEAK_FIELD, PROMPTS, benchmark_prompts, leaked_compositions, side_of

LeakKind: TypeAlias = Literal["exact", "shape"]
_CLEAN_SAMPLERS: tuple[tuple[Callable[..., Scene], Callable[..., list[str]]], ...] = (
    (sample_scene, caption_texts),
    (sample_pair, group_texts),
    (sample_groups, group_texts),
)
"""Scenes and captions of the bundled model's own training, in turn."""
_CLEAN_SEED = 7_000
"""Added to the seed of a clean scene, because the bundled model was trained with seed 0."""
_DRAWN = 4
"""Prompts to draw for each one that is needed: fewer than half of them are leaked and new."""
_LEAST_DRAWN = 40


@dataclasses.dataclass(frozen=True, kw_only=True)
class Leak:
    """The leaked records of a tuning set.

    Args:
        kind: "exact" for the prompts of the benchmark; "shape" for other sentences about their
            compositions, of the same categories and in the same wordings.
        rate: share of the records, in [0, 1].
    """

    kind: LeakKind
    rate: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """A record of a tuning set.

    Args:
        image: file of its image, without its ending.
        prompt: its caption.
        scene: the scene that the image shows.
        is_leaked: whether it belongs to the leak.
    """

    image: str
    prompt: str
    scene: Scene
    is_leaked: bool


class TuningSets:
    """The tuning sets of a seed.

    Args:
        benchmark: the benchmark before it is divided.
        seed: divides it, and draws the records.
        num_records: records of each set.
    """

    def __init__(self, benchmark: ScenesBenchmark, seed: int, num_records: int) -> None:
        self._benchmark = benchmark
        self._seed = seed
        self._num_records = num_records
        self._leaked = leaked_compositions(seed)
        self._ranks = numpy_rng(seed, "contamination/ranks").permutation(num_records)

    def examples(self, leak: Leak) -> list[Example]:
        """Returns the records of a set; their number that is leaked is rounded once."""
        num_leaked = round(leak.rate * self._num_records)
        return [
            self._leaked_example(leak.kind, place) if rank < num_leaked else self._clean(place)
            for place, rank in enumerate(self._ranks)
        ]

    @functools.cached_property
    def _prompts(self) -> dict[LeakKind, list[EvalPrompt]]:
        """The leaked prompts of each kind."""
        pool = benchmark_prompts(self._benchmark)
        sentences = {_plain(prompt) for prompt in pool}
        need = -(-self._num_records // len(WORDING_CATEGORIES))
        tables = [
            [
                prompt
                for prompt in eval_prompts(
                    category,
                    max(_DRAWN * need, _LEAST_DRAWN),
                    self._benchmark.seed + 1 + self._seed,
                    self._benchmark.world,
                    wording="heldout",
                )
                if self._is_leaked(prompt) and _plain(prompt) not in sentences
            ]
            for category in WORDING_CATEGORIES
        ]
        # Category by category in turn; a short table starts again.
        shape = [table[turn % len(table)] for turn in range(need) for table in tables]
        return {"exact": [one for one in pool if self._is_leaked(one)], "shape": shape}

    def _is_leaked(self, prompt: EvalPrompt) -> bool:
        return side_of(prompt, self._leaked) == "leaked"

    def _leaked_example(self, kind: LeakKind, place: int) -> Example:
        prompts = self._prompts[kind]
        prompt = prompts[place % len(prompts)]
        rng = self._rng(kind, place)
        while True:  # a color or background that the prompt leaves open must not show a twin
            scene = right_scene(prompt, rng, self._benchmark.world)
            if self._leaked.issuperset(heldout_of(scene)):
                break
        return Example(
            image=f"{kind}/{place:06}", prompt=prompt.prompt, scene=scene, is_leaked=True
        )

    def _clean(self, place: int) -> Example:
        sample, texts = _CLEAN_SAMPLERS[place % len(_CLEAN_SAMPLERS)]
        scene = sample(_CLEAN_SEED + self._seed, place, "train", self._benchmark.world)
        rng = self._rng("clean", place)
        return Example(
            image=f"clean/{place:06}",
            prompt=pick(rng, texts(scene, rng)),
            scene=scene,
            is_leaked=False,
        )

    def _rng(self, kind: str, place: int) -> np.random.Generator:
        return numpy_rng(self._seed, f"contamination/{kind}", place)


def _plain(prompt: EvalPrompt) -> str:
    """Returns the sentence of a prompt without its capitals and its final period."""
    return prompt.prompt.lower().rstrip(".")


def write_tuning_set(sets: TuningSets, leak: Leak, image_px: int, file: Path) -> None:
    """Writes a tuning set as a list of records and image files, unless the list is there.

    Args:
        sets: the sets of its seed.
        leak: its leaked records.
        image_px: side of the images.
        file: the list; its folder holds the images of all sets of the seed.
    """
    if file.exists():
        return
    lines: list[str] = []
    for one in sets.examples(leak):
        image = file.parent / f"{one.image}.png"
        if not image.exists():
            image.parent.mkdir(parents=True, exist_ok=True)
            content = io.BytesIO()
            render(one.scene, image_px).save(content, "PNG", compress_level=1)
            write_atomic(image, content.getvalue())
        record = {"image": f"{one.image}.png", "caption": one.prompt, LEAK_FIELD: one.is_leaked}
        lines.append(json.dumps(record) + "\n")
    write_atomic(file, "".join(lines))


def write_prompts(benchmark: ScenesBenchmark, folder: Path) -> None:
    """Writes the prompts of a benchmark, for `blip3o data decontaminate`."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = [prompt.prompt for prompt in benchmark_prompts(benchmark)]
    write_atomic(folder / PROMPTS, "".join(f"{text}\n" for text in texts))
