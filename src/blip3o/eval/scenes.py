"""The scenes benchmark: exact, offline, on compositions that are held out from training.

Text to image has the six categories of GenEval. A second axis, the wording, repeats prompts,
questions and edits in sentences that training never uses. Answers and captions are compared with
the attributes of the scene. A detector judges generated, edited and reconstructed images; it is
independent of the model and is tested on renders of known scenes.
"""

import dataclasses
import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from PIL import Image

from blip3o.core.bounds import Count, Seed, Whole
from blip3o.core.rng import numpy_rng
from blip3o.data.scenes.edits import Edit, sample_edit
from blip3o.data.scenes.frames import Wording
from blip3o.data.scenes.prompts import CATEGORIES, WORDING_CATEGORIES, EvalPrompt, eval_prompts
from blip3o.data.scenes.questions import questions
from blip3o.data.scenes.render import render
from blip3o.data.scenes.scene import arrange, sample_scene
from blip3o.data.scenes.things import BACKGROUNDS, COLORS, THINGS, plural
from blip3o.data.scenes.types import Scene
from blip3o.data.scenes.words import pick
from blip3o.data.scenes.world import FULL, World
from blip3o.eval.benchmark import Benchmark, Item, Row, Sample, Scores, Verdict
from blip3o.eval.scene_detector import VERSION as DETECTOR_VERSION
from blip3o.eval.scene_detector import detect
from blip3o.eval.scene_rules import (
    SceneDetection,
    WantedThing,
    attribute_accuracy,
    judge_scene,
    same_objects,
)

_COUNTED = ("counting", "two_counts")
"""Categories of prompts whose numbers are exact."""
_CAPTION_REQUEST = "Describe the image in detail."


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Axis:
    """Wordings of prompts, questions and edits, and the names of these parts."""

    wording: Wording
    categories: tuple[str, ...]
    prompts: str
    questions: str
    edits: str
    prefix: str = ""
    """Begins the ids of items."""


_TEMPLATES = _Axis(
    wording="template",
    categories=CATEGORIES,
    prompts="text_to_image",
    questions="vqa",
    edits="edit",
)
_WORDINGS = _Axis(
    wording="heldout",
    categories=WORDING_CATEGORIES,
    prompts="wording_prompts",
    questions="wording_questions",
    edits="wording_edits",
    prefix="wording-",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScenesBenchmark(Benchmark):
    """Scenes: compositions that no training scene shows, judged exactly and offline.

    Args:
        prompts_per_category: prompts of each of the six categories; 0 skips text to image.
        images_per_prompt: images of each prompt.
        num_questions: questions about unseen images; 0 skips them.
        num_captions: detailed captions of unseen images; 0 skips them.
        num_edits: edits of unseen images; 0 skips them.
        num_reconstructions: unseen images that are encoded and decoded; 0 skips them.
        wording_prompts_per_category: prompts of each category in wordings that training never
            uses; 0 skips them.
        num_wording_questions: questions in such wordings; 0 skips them.
        num_wording_edits: edits in such wordings; 0 skips them.
        image_px: side of the unseen images.
        seed: seed of prompts, scenes and noise.
        world: vocabulary of prompts and scenes: world.things, world.colors, world.max_objects.
    """

    prompts_per_category: Whole = 100
    images_per_prompt: Count = 4
    num_questions: Whole = 1000
    num_captions: Whole = 200
    num_edits: Whole = 200
    num_reconstructions: Whole = 200
    wording_prompts_per_category: Whole = 50
    num_wording_questions: Whole = 500
    num_wording_edits: Whole = 200
    image_px: Count = 96
    seed: Seed = 2025
    world: World = FULL

    def items(self) -> list[Item]:
        """Returns all items; see `Benchmark`."""
        return [
            *self._prompts(self.prompts_per_category, _TEMPLATES),
            *self._questions(self.num_questions, _TEMPLATES),
            *self._captions(),
            *self._edits(self.num_edits, _TEMPLATES),
            *self._reconstructions(),
            *self._prompts(self.wording_prompts_per_category, _WORDINGS),
            *self._questions(self.num_wording_questions, _WORDINGS),
            *self._edits(self.num_wording_edits, _WORDINGS),
        ]

    def sources(self, item: Item) -> list[Image.Image]:
        """Returns the scene of a question, an edit or a reconstruction as an image."""
        if item.task == "text_to_image":
            return []
        if item.task == "edit":
            return [render(self.edit_of(item).source, self.image_px)]
        return [render(self._scene(item.data["scene"]), self.image_px)]

    def scorer(self) -> "SceneScorer":
        """Returns the scorer."""
        return SceneScorer(self)

    def reduce(self, rows: Sequence[Row]) -> Scores:
        """Returns the shares of right samples.

        `overall` is the mean of the six categories of text to image, as in GenEval. The figures
        hold the other parts; a part that is skipped has none. `wording_prompts`,
        `wording_questions` and `wording_edits` are those of the second axis.
        """
        by_part: dict[str, list[Row]] = defaultdict(list)
        for row in rows:
            by_part[row.item.data["part"]].append(row)
        by_category = _by_category(by_part[_TEMPLATES.prompts])
        figures: dict[str, object] = {}
        for part in (_TEMPLATES.questions, _TEMPLATES.edits):
            if by_part[part]:
                figures[f"{part}_accuracy"] = _mean(by_part[part])
                figures[f"{part}_by_kind"] = _by_category(by_part[part])
        if by_part["caption"]:
            figures["caption_attribute_accuracy"] = _mean(by_part["caption"])
        if by_part["reconstruct"]:
            figures["reconstruct_kept"] = _mean(by_part["reconstruct"])
        for part in (_WORDINGS.prompts, _WORDINGS.questions, _WORDINGS.edits):
            if by_part[part]:
                shares = _by_category(by_part[part])
                is_drawn = part == _WORDINGS.prompts  # each category counts the same, as above
                figures[part] = _average(shares.values()) if is_drawn else _mean(by_part[part])
                figures[f"{part}_by_category"] = shares
        overall = _average(by_category.values()) if by_category else None
        return Scores(overall=overall, by_category=by_category, figures=figures)

    def _prompts(self, count: int, axis: "_Axis") -> Iterator[Item]:
        prompts = [
            prompt
            for category in (axis.categories if count else ())
            for prompt in eval_prompts(category, count, self.seed, self.world, wording=axis.wording)
        ]
        for number, prompt in enumerate(prompts):
            yield self.prompt_item(prompt, number, f"{axis.prefix}prompt", axis.prompts)

    def prompt_item(self, prompt: EvalPrompt, number: int, name: str, part: str) -> Item:
        """Returns the item of a prompt.

        Args:
            prompt: the prompt.
            number: keys the noise.
            name: begins the id.
            part: the part of the benchmark.
        """
        return Item(
            id=f"{name}-{number:04}",
            number=number,
            prompt=prompt.prompt,
            category=prompt.category,
            num_samples=self.images_per_prompt,
            data={
                "part": part,
                "include": list(prompt.include),
                "relation": prompt.relation and list(prompt.relation),
            },
        )

    def _questions(self, count: int, axis: "_Axis") -> Iterator[Item]:
        number = 0
        for index in itertools.count():
            if number >= count:
                return
            rng = numpy_rng(self.seed, f"eval {axis.prefix}questions", index)
            asked = questions(self._scene(index), rng, wording=axis.wording)
            for qa in asked[: count - number]:
                yield Item(
                    id=f"{axis.prefix}question-{number:04}",
                    number=number,
                    task="question",
                    prompt=qa.question,
                    category=qa.kind,
                    data={"part": axis.questions, "scene": index, "truth": qa.answer},
                )
                number += 1

    def _captions(self) -> Iterator[Item]:
        for index in range(self.num_captions):
            truth = [[one.color, one.thing] for one in self._scene(index).objects]
            yield Item(
                id=f"caption-{index:04}",
                number=index,
                task="question",
                prompt=_CAPTION_REQUEST,
                max_new_tokens=128,
                data={"part": "caption", "scene": index, "truth": truth},
            )

    def _edits(self, count: int, axis: "_Axis") -> Iterator[Item]:
        for index in range(count):
            edit = sample_edit(self.seed, index, "heldout", self.world, axis.wording)
            yield Item(
                id=f"{axis.prefix}edit-{index:04}",
                number=index,
                task="edit",
                prompt=edit.instruction,
                category=edit.kind,
                data={"part": axis.edits},
            )

    def _reconstructions(self) -> Iterator[Item]:
        for index in range(self.num_reconstructions):
            yield Item(
                id=f"reconstruction-{index:04}",
                number=index,
                task="reconstruction",
                data={"part": "reconstruct", "scene": index},
            )

    def edit_of(self, item: Item) -> Edit:
        """Returns the edit that an item asks for."""
        wording = _WORDINGS.wording if item.data["part"] == _WORDINGS.edits else _TEMPLATES.wording
        return sample_edit(self.seed, item.number, "heldout", self.world, wording)

    def scene_of(self, item: Item) -> Scene:
        """Returns the scene of a question or a reconstruction."""
        return self._scene(item.data["scene"])

    def _scene(self, index: int) -> Scene:
        return sample_scene(self.seed, index, "heldout", self.world)


class SceneScorer:
    """Judges samples of the scenes benchmark by rules and by the detector of scenes.

    Args:
        benchmark: gives the true scenes of edits and reconstructions.
    """

    judge = f"scene-detector-{DETECTOR_VERSION}"
    batch_size = 32

    def __init__(self, benchmark: ScenesBenchmark) -> None:
        self._benchmark = benchmark

    def verdicts(self, samples: Sequence[Sample]) -> Iterator[Verdict]:
        """Yields the verdict of each sample; see `Scorer`."""
        for sample in samples:
            score, data = self._judge(sample)
            yield Verdict(
                item=sample.item.id,
                number=sample.number,
                sha256=sample.sha256,
                judge=self.judge,
                score=float(score),
                data=data,
            )

    def _judge(self, sample: Sample) -> tuple[float, dict[str, object]]:
        item, part = sample.item, sample.item.data["part"]
        if item.task == "question" and part != "caption":
            is_right = _plain(sample.text or "") == _plain(item.data["truth"])
            return is_right, {"answer": sample.text, "truth": item.data["truth"]}
        if part == "caption":
            truth = Counter((color, thing) for color, thing in item.data["truth"])
            score = attribute_accuracy(objects_named(sample.text or ""), truth)
            named = [f"{color} {thing}" for color, thing in truth.elements()]
            return score, {"caption": sample.text, "truth": named}
        image = sample.drawing
        if image.width != image.height:
            return 0.0, {"reason": f"the image is not square: {image.size}"}
        found = detect(image)
        if item.task == "text_to_image":
            is_right = judge_scene(
                found,
                [WantedThing(**one) for one in item.data["include"]],
                item.data["relation"],
                exact_count=item.category in _COUNTED,
            )
        elif item.task == "edit":
            # An added or moved object may be anywhere that the instruction allows, so only the
            # places that the instruction names are checked.
            edit = self._benchmark.edit_of(item)
            is_right = edit.accepts([(one.thing, one.color, one.x, one.y) for one in found])
        else:
            is_right = same_objects(found, truth_of(self._benchmark.scene_of(item)))
        return is_right, {"found": [dataclasses.asdict(one) for one in found]}


def _mean(rows: Sequence[Row]) -> float:
    return sum(row.score_or(ScenesBenchmark.worst_score) for row in rows) / len(rows)


def _average(shares: Iterable[float]) -> float:
    values = list(shares)
    return sum(values) / len(values)


def _by_category(rows: Sequence[Row]) -> dict[str, float]:
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.item.category].append(row)
    return {name: _mean(group) for name, group in groups.items()}


def truth_of(scene: Scene) -> list[SceneDetection]:
    """Returns the detections that a perfect detector would make in a scene."""
    return [
        SceneDetection(thing=one.thing, color=one.color, x=one.x, y=one.y, size=one.size)
        for one in scene.objects
    ]


def right_scene(prompt: EvalPrompt, rng: np.random.Generator, world: World = FULL) -> Scene:
    """Returns a scene that shows only the objects of a prompt, otherwise as in the data."""
    wanted = [WantedThing(**item) for item in prompt.include]
    while True:
        looks = [
            (one.thing, one.color or pick(rng, world.colors))
            for one in wanted
            for _ in range(one.count)
        ]
        background = prompt.background or pick(rng, BACKGROUNDS)
        scene = Scene(background=background, objects=arrange(rng, looks))
        if judge_scene(truth_of(scene), wanted, prompt.relation):
            return scene


_NUMBERS = {"a": 1, "an": 1, "one": 1, "two": 2, "three": 3, "four": 4}
_THING_OF = {word: thing for thing in THINGS for word in (thing, plural(thing))}
_OBJECT = re.compile(
    rf"\b(?:({'|'.join(_NUMBERS)})\s+)?(?:(?:small|medium|large)\s+)?({'|'.join(COLORS)})\s+"
    rf"({'|'.join(sorted(map(re.escape, _THING_OF), key=len, reverse=True))})\b"
)


def objects_named(caption: str) -> Counter[tuple[str, str]]:
    """Returns the number of objects of each (color, thing) in a caption; "two red cats" is 2."""
    named: Counter[tuple[str, str]] = Counter()
    for number, color, thing in _OBJECT.findall(caption.lower()):
        named[color, _THING_OF[thing]] += _NUMBERS.get(number, 1)
    return named


def _plain(answer: str) -> str:
    return re.sub(r"[^\w ]", "", answer.lower()).strip()
