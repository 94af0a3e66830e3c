"""The scenes benchmark: exact, offline, on compositions that are held out from training.

Text to image has the six categories of GenEval. Answers and captions are compared with the
attributes of the scene. A detector judges generated, edited and reconstructed images; it is
independent of the model and is tested on renders of known scenes.
"""

import dataclasses
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from PIL import Image

from blip3o.core.log import progress
from blip3o.core.rng import image_generator, numpy_rng
from blip3o.data.scenes.edits import sample_edit
from blip3o.data.scenes.prompts import CATEGORIES, eval_prompts
from blip3o.data.scenes.questions import questions
from blip3o.data.scenes.render import render
from blip3o.data.scenes.scene import Scene, sample_scene
from blip3o.data.scenes.things import COLORS, THINGS, plural
from blip3o.data.scenes.world import FULL, World
from blip3o.eval import WriteRow
from blip3o.eval.scene_detector import detect
from blip3o.eval.scene_rules import (
    SceneDetection,
    WantedThing,
    attribute_accuracy,
    judge_scene,
    same_objects,
)
from blip3o.generate.pipeline import Blip3oPipeline
from blip3o.imaging.sheet import contact_sheet

T = TypeVar("T")

_CAPTION_REQUEST = "Describe the image in detail."
_PARTS = ("num_questions", "num_captions", "num_edits", "num_reconstructions")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScenesBenchmark:
    """Settings of the benchmark.

    Args:
        prompts_per_category: prompts of each of the six categories; 0 skips text to image.
        images_per_prompt: images of each prompt.
        num_questions: questions about unseen images; 0 skips them.
        num_captions: detailed captions of unseen images; 0 skips them.
        num_edits: edits of unseen images; 0 skips them.
        num_reconstructions: unseen images that are encoded and decoded; 0 skips them.
        seed: seed of prompts, scenes and noise.
        batch_size: images in a batch; affects only speed and memory.
        num_inference_steps: DiT steps; None means the default of the model.
        guidance_scale: guidance scale; None means the default of the model.
        world: vocabulary of prompts and scenes: world.things, world.colors, world.max_objects.

    Raises:
        ValueError: for a number that is too small.
    """

    prompts_per_category: int = 100
    images_per_prompt: int = 4
    num_questions: int = 1000
    num_captions: int = 200
    num_edits: int = 200
    num_reconstructions: int = 200
    seed: int = 2025
    batch_size: int = 32
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    world: World = FULL

    def __post_init__(self) -> None:
        least = {"images_per_prompt": 1, "batch_size": 1, "prompts_per_category": 0}
        for name, limit in (least | dict.fromkeys(_PARTS, 0)).items():
            if vars(self)[name] < limit:
                raise ValueError(f"{name} must be at least {limit}, got {vars(self)[name]}")

    def run(self, pipe: Blip3oPipeline, out: Path, write: WriteRow) -> dict[str, object]:
        """Returns the scores and passes the verdict on each sample to `write`; see `Benchmark`."""
        results: dict[str, object] = {"overall": None, "by_category": {}, "num_samples": 0}
        if self.prompts_per_category:
            results |= self._text_to_image(pipe, out, write)
        if self.num_questions:
            results |= self._questions(pipe, write)
        if self.num_captions:
            results |= self._captions(pipe, write)
        if self.num_edits:
            results |= self._edits(pipe, out, write)
        if self.num_reconstructions:
            results |= self._reconstructions(pipe, out, write)
        return results

    def _text_to_image(self, pipe: Blip3oPipeline, out: Path, write: WriteRow) -> dict[str, object]:
        prompts = [
            prompt
            for category in CATEGORIES
            for prompt in eval_prompts(category, self.prompts_per_category, self.seed, self.world)
        ]
        jobs = [(p, k) for p in range(len(prompts)) for k in range(self.images_per_prompt)]
        right: dict[str, list[bool]] = defaultdict(list)
        shown: dict[str, list[tuple[Image.Image, str]]] = defaultdict(list)
        for batch in _batches(jobs, self.batch_size, "text to image"):
            images = pipe(
                [prompts[p].prompt for p, _ in batch],
                generator=[image_generator(self.seed, p, k) for p, k in batch],
                num_inference_steps=self.num_inference_steps,
                guidance_scale=self.guidance_scale,
            ).images
            for (p, k), image in zip(batch, images, strict=True):
                prompt = prompts[p]
                found = detect(image)
                verdict = judge_scene(
                    found,
                    [WantedThing(**item) for item in prompt.include],
                    prompt.relation,
                    exact_count=prompt.category == "counting",
                )
                right[prompt.category].append(verdict)
                if len(shown[prompt.category]) < 8 and k == 0:
                    mark = "right" if verdict else "wrong"
                    shown[prompt.category].append((image, f"{mark}: {prompt.prompt}"))
                write(
                    {
                        "part": "text_to_image",
                        "category": prompt.category,
                        "prompt": prompt.prompt,
                        "image_number": k,
                        "right": verdict,
                        "found": [dataclasses.asdict(one) for one in found],
                    }
                )
        _save_sheet([pair for pairs in shown.values() for pair in pairs], out / "text_to_image.png")
        by_category = {name: _share(marks) for name, marks in right.items()}
        return {
            "overall": sum(by_category.values()) / len(by_category),
            "by_category": by_category,
            "num_samples": len(jobs),
        }

    def _questions(self, pipe: Blip3oPipeline, write: WriteRow) -> dict[str, object]:
        rows: list[tuple[int, str, str, str]] = []
        index = 0
        while len(rows) < self.num_questions:
            rng = numpy_rng(self.seed, "eval questions", index)
            drawn = questions(self._scene(index), rng)
            rows += [(index, qa.kind, qa.question, qa.answer) for qa in drawn]
            index += 1
        rows = rows[: self.num_questions]
        right: dict[str, list[bool]] = defaultdict(list)
        for batch in _batches(rows, self.batch_size, "questions"):
            sources = [self._image(pipe, index) for index, *_ in batch]
            answers = pipe.answer_batch(sources, [question for _, _, question, _ in batch])
            for (index, kind, question, truth), answer in zip(batch, answers, strict=True):
                verdict = _plain(answer) == _plain(truth)
                right[kind].append(verdict)
                row = {"question": question, "answer": answer, "truth": truth, "right": verdict}
                write({"part": "vqa", "kind": kind, "scene": index, **row})
        return _shares("vqa", right)

    def _captions(self, pipe: Blip3oPipeline, write: WriteRow) -> dict[str, object]:
        scores: list[float] = []
        for batch in _batches(range(self.num_captions), self.batch_size, "captions"):
            sources = [self._image(pipe, index) for index in batch]
            captions = pipe.answer_batch(
                sources, [_CAPTION_REQUEST] * len(batch), max_new_tokens=128
            )
            for index, caption in zip(batch, captions, strict=True):
                truth = Counter((one.color, one.thing) for one in self._scene(index).objects)
                score = attribute_accuracy(objects_named(caption), truth)
                scores.append(score)
                named = [f"{color} {thing}" for color, thing in truth.elements()]
                row = {"scene": index, "caption": caption, "truth": named, "score": score}
                write({"part": "caption", **row})
        return {"caption_attribute_accuracy": _share(scores)}

    def _edits(self, pipe: Blip3oPipeline, out: Path, write: WriteRow) -> dict[str, object]:
        side = pipe.model.config.image_encoder.image_px
        right: dict[str, list[bool]] = defaultdict(list)
        shown: list[tuple[Image.Image, str]] = []
        for batch in _batches(range(self.num_edits), self.batch_size, "edits"):
            edits = [sample_edit(self.seed, index, "heldout", self.world) for index in batch]
            sources = [render(edit.source, side) for edit in edits]
            images = pipe.edit(
                sources,
                [edit.instruction for edit in edits],
                generator=[image_generator(self.seed, index, 0) for index in batch],
                num_inference_steps=self.num_inference_steps,
                guidance_scale=self.guidance_scale,
            ).images
            for index, edit, source, image in zip(batch, edits, sources, images, strict=True):
                found = detect(image)
                # An added or moved object may be anywhere that the instruction allows, so only
                # the places that the instruction names are checked.
                verdict = edit.accepts([(one.thing, one.color, one.x, one.y) for one in found])
                right[edit.kind].append(verdict)
                if len(shown) < 32:
                    mark = "right" if verdict else "wrong"
                    shown += [(source, edit.instruction), (image, mark)]
                row = {"kind": edit.kind, "instruction": edit.instruction, "right": verdict}
                write({"part": "edit", "index": index, **row})
        _save_sheet(shown, out / "edits.png")
        return _shares("edit", right)

    def _reconstructions(
        self, pipe: Blip3oPipeline, out: Path, write: WriteRow
    ) -> dict[str, object]:
        kept: list[bool] = []
        shown: list[Image.Image] = []
        for batch in _batches(range(self.num_reconstructions), self.batch_size, "reconstructions"):
            sources = [self._image(pipe, index) for index in batch]
            generators = [image_generator(self.seed, index, 0) for index in batch]
            images = pipe.reconstruct(sources, generator=generators).images
            for index, before, after in zip(batch, sources, images, strict=True):
                verdict = same_objects(detect(after), truth_of(self._scene(index)))
                kept.append(verdict)
                write({"part": "reconstruct", "scene": index, "right": verdict})
                if len(shown) < 32:
                    shown += [before, after]
        contact_sheet(shown, columns=8).save(out / "reconstructions.png")
        return {"reconstruct_kept": _share(kept)}

    def _scene(self, index: int) -> Scene:
        return sample_scene(self.seed, index, "heldout", self.world)

    def _image(self, pipe: Blip3oPipeline, index: int) -> Image.Image:
        return render(self._scene(index), pipe.model.config.image_encoder.image_px)


def _share(marks: Sequence[float]) -> float:
    return sum(marks) / len(marks)


def _shares(part: str, right: Mapping[str, Sequence[bool]]) -> dict[str, object]:
    """Returns the share of right answers, of all kinds together and of each kind."""
    return {
        f"{part}_accuracy": _share([mark for marks in right.values() for mark in marks]),
        f"{part}_by_kind": {kind: _share(marks) for kind, marks in sorted(right.items())},
    }


def _save_sheet(shown: Sequence[tuple[Image.Image, str]], file: Path) -> None:
    images, captions = [image for image, _ in shown], [caption for _, caption in shown]
    contact_sheet(images, captions, columns=8).save(file)


def truth_of(scene: Scene) -> list[SceneDetection]:
    """Returns the detections that a perfect detector would make in a scene."""
    return [
        SceneDetection(thing=one.thing, color=one.color, x=one.x, y=one.y, size=one.size)
        for one in scene.objects
    ]


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


def _batches(items: Sequence[T], size: int, what: str) -> Iterator[Sequence[T]]:
    starts = range(0, len(items), size)
    for start in progress(starts, what=what):
        yield items[start : start + size]
