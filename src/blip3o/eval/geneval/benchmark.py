"""GenEval: six tasks of counting, coloring and placing objects (arXiv 2310.11513).

The published scores are the mean of the six tags over four images for each of 553 prompts, judged
by the rules of `blip3o.eval.geneval.rules`.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from blip3o.core.bounds import Count, NotNegative, Share
from blip3o.core.config import LocalPath
from blip3o.core.errors import UsageError, shown
from blip3o.eval.benchmark import Benchmark, Item, Row, Sample, Scores, Verdict
from blip3o.eval.clip import OPENAI_VIT_L_14, load_clip
from blip3o.eval.detectors import DETECTORS, Detections, Detector, DetectorConfig
from blip3o.eval.geneval.colors import ColorClassifier, crop_of
from blip3o.eval.geneval.layout import GenEvalLayout
from blip3o.eval.geneval.prompts import (
    TAGS,
    Prompts,
    checked_metadata,
    class_names,
    identity,
    item_of_metadata,
    read_prompts,
)
from blip3o.eval.geneval.rules import Rules, judge
from blip3o.eval.geneval.summary import ResultLine, Summary, summarize

Tag = Literal["single_object", "two_object", "counting", "colors", "position", "color_attr"]

_DETECTOR = "mask2former"
_OFFICIAL_WEIGHTS = "mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco_20220504_001756-743b7d99.pth"
_IMAGES_PER_PROMPT = 4
_MANY = 20
"""Images in which a working detector finds something."""
_CERTAIN = 0.3


def _official_detector() -> DetectorConfig:
    """Returns the settings of the official detector, with its file in the current folder."""
    make: Callable[..., DetectorConfig] = DETECTORS.get(_DETECTOR)
    return make(weights=_OFFICIAL_WEIGHTS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenEvalBenchmark(Benchmark):
    """GenEval: 553 prompts about objects, counts, colors and places, judged by detector and CLIP.

    Args:
        images_per_prompt: images of each prompt.
        prompts: a prompt file in place of the bundled one.
        changed_prompts: accepts a prompt file that is not the published one; results then say so.
        prompts_per_tag: only the first prompts of each tag, for a quick trial; None for all.
        tags: only these tags, for a trial; empty for all.
        detector: finds the objects, a config from `DETECTORS`.
        clip: folder of OpenAI's CLIP ViT-L/14 in the form of transformers, which reads the colors.
        clip_name: name of the CLIP in `clip` in the results, if it is another one.
        threshold: see `Rules`.
        counting_threshold: see `Rules`.
        max_objects: see `Rules`.
        max_overlap: see `Rules`.
        position_threshold: see `Rules`.
    """

    images_per_prompt: Count = _IMAGES_PER_PROMPT
    prompts: LocalPath | None = None
    changed_prompts: bool = False
    prompts_per_tag: Count | None = None
    tags: tuple[Tag, ...] = ()
    detector: DetectorConfig = dataclasses.field(
        default_factory=_official_detector,
        metadata={"registry": "blip3o.eval.detectors:DETECTORS"},
    )
    clip: LocalPath | None = None
    clip_name: str = OPENAI_VIT_L_14
    threshold: Share = 0.3
    counting_threshold: Share = 0.9
    max_objects: Count = 16
    max_overlap: Share = 1.0
    position_threshold: NotNegative = 0.1

    @property
    def rules(self) -> Rules:
        """The five numbers of the rules."""
        return Rules(
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(Rules)}
        )

    def items(self) -> Sequence[Item]:
        """Returns the prompts; see `Benchmark.items`."""
        return self._split(self._read())[0]

    def item_of(self, metadata: object) -> Item:
        """Returns an item for any object in the form of a line of the prompt file.

        Args:
            metadata: an object with `tag`, `include`, `exclude` and `prompt`.

        Raises:
            UsageError: if it cannot be judged, or asks for a color and no CLIP is set.
        """
        checked = checked_metadata(metadata, "metadata")
        item = dataclasses.replace(item_of_metadata(checked), num_samples=self.images_per_prompt)
        if self.clip is None and _asks_for_color(item):
            raise _no_clip()
        return item

    def scorer(self) -> "GenEvalScorer":
        """Loads and returns the scorer.

        Raises:
            UsageError: if weights are missing or wrong, or a prompt asks for a color and no CLIP is
                set.
        """
        classifier, names = None, []
        if self.clip is not None:
            encoder = load_clip(self.clip, name=self.clip_name)
            classifier, names = ColorClassifier(encoder), [encoder.name]
        elif any(_asks_for_color(item) for item in self.items()):
            raise _no_clip()
        detector = self.detector.build()
        judge_name = "+".join([detector.name, *names])
        return GenEvalScorer(judge_name, detector, classifier, self.rules)

    def reduce(self, rows: Sequence[Row]) -> Scores:
        """Returns the figures; an image without a judgement is wrong."""
        if not rows:
            return Scores(overall=None, by_category={})
        in_order = sorted(rows, key=lambda row: (row.item.number, row.number))
        summary = _summary(in_order)
        judged = [row for row in in_order if row.judgement is not None]
        figures: dict[str, object] = {
            "correct_images": summary.correct_images,
            "correct_prompts": summary.correct_prompts,
            "num_images": len(rows),
            "num_judged": len(judged),
            "by_tag": {
                tag: {"correct": right, "total": total}
                for tag, (right, total) in summary.tasks.items()
            },
        }
        official = _summary(judged) if judged else None
        if official is not None:
            figures["official"] = {
                "overall": official.overall,
                "correct_images": official.correct_images,
                "correct_prompts": official.correct_prompts,
                "text": official.text,
            }
        return Scores(
            overall=summary.overall,
            by_category=summary.by_task,
            figures=figures,
            notes=_detector_notes(judged),
        )

    def layout(self) -> GenEvalLayout:
        """Returns the folder form of GenEval's own program."""
        return GenEvalLayout(self._split(self._read())[1])

    def remarks(self) -> Sequence[str]:
        """Returns the deviations from the published benchmark."""
        remarks: list[str] = []
        prompts = self._read()
        if not prompts.is_published:
            known = {identity(line) for line in read_prompts().lines}
            changed = sum(identity(line) not in known for line in prompts.lines)
            remarks.append(
                f"prompts: {self.prompts} is not GenEval's file: {changed} of its "
                f"{len(prompts.lines)} prompts are not GenEval's {len(known)}"
            )
        if self.prompts_per_tag is not None:
            remarks.append(f"prompts: only the first {self.prompts_per_tag} of each tag")
        if set(self.tags) and set(self.tags) != set(TAGS):
            remarks.append(f"prompts: only the tags {', '.join(self.tags)}")
        if self.images_per_prompt != _IMAGES_PER_PROMPT:
            remarks.append(f"images: {self.images_per_prompt} for each prompt in place of 4")
        remarks += [
            f"rules: {field.name} {getattr(self, field.name)} in place of {field.default}"
            for field in dataclasses.fields(Rules)
            if getattr(self, field.name) != field.default
        ]
        if self.detector.kind != _DETECTOR:
            remarks.append(f"detector: {self.detector.kind} in place of GenEval's {_DETECTOR}")
        if self.clip_name != OPENAI_VIT_L_14:
            remarks.append(f"colors: {self.clip_name} in place of {OPENAI_VIT_L_14}")
        return remarks

    def _read(self) -> Prompts:
        return read_prompts(self.prompts, allow_changed=self.changed_prompts)

    def _split(self, prompts: Prompts) -> tuple[list[Item], list[Item]]:
        """Returns the items, and those that `tags` and `prompts_per_tag` leave out."""
        taken: list[Item] = []
        others: list[Item] = []
        numbers: dict[str, int] = defaultdict(int)
        for number, line in enumerate(prompts.lines):
            item = item_of_metadata(line, number)
            item = dataclasses.replace(item, num_samples=self.images_per_prompt)
            numbers[item.category] += 1
            is_taken = (not self.tags or item.category in self.tags) and (
                self.prompts_per_tag is None or numbers[item.category] <= self.prompts_per_tag
            )
            (taken if is_taken else others).append(item)
        if not taken:
            raise UsageError(f"no prompt has one of the tags {shown(self.tags)}")
        return taken, others


class GenEvalScorer:
    """Judges images; see `Scorer`.

    Args:
        judge: name of detector and CLIP.
        detector: finds the objects; its classes are those of GenEval.
        classifier: reads colors; None if no item asks for one.
        rules: the numbers of the rules.

    Raises:
        UsageError: if the detector has other classes.
    """

    batch_size = 4  # the masks of one image of 1024 x 1024 pixels take 100 MB

    def __init__(
        self, judge: str, detector: Detector, classifier: ColorClassifier | None, rules: Rules
    ) -> None:
        if set(detector.classes) != set(class_names()) or len(detector.classes) != 80:
            raise UsageError(
                f"the detector {detector.name} has {len(detector.classes)} classes that are not "
                "GenEval's 80: use one of COCO's 80 things"
            )
        self.judge = judge
        self._detector = detector
        self._classifier = classifier
        self._rules = rules

    def verdicts(self, samples: Sequence[Sample]) -> Iterator[Verdict]:
        """Yields the verdict of each sample; see `Scorer.verdicts`."""
        for start in range(0, len(samples), self.batch_size):
            batch = samples[start : start + self.batch_size]
            images = [sample.drawing for sample in batch]
            for sample, image, found in zip(
                batch, images, self._detector.detect(images), strict=True
            ):
                yield self._verdict(sample, image, found)

    def _verdict(self, sample: Sample, image: Image.Image, found: Detections) -> Verdict:
        rows = np.column_stack([found.boxes, found.scores]).astype(np.float32)
        places = {
            name: np.flatnonzero(found.labels == label)
            for label, name in enumerate(self._detector.classes)
        }

        def color_of(name: str, numbers: Sequence[int]) -> list[str]:
            if self._classifier is None:
                raise _no_clip()
            chosen = [int(places[name][number]) for number in numbers]
            crops = [crop_of(image, rows[one], _mask_of(found, one)) for one in chosen]
            return self._classifier.colors(name, crops)

        of_class = {name: rows[numbers] for name, numbers in places.items() if len(numbers)}
        result = judge(sample.item.data, of_class, color_of, self._rules)
        data: dict[str, object] = {
            "tag": sample.item.category,
            "correct": result.is_correct,
            "reason": "\n".join(result.reasons),
            "details": {name: boxes.tolist() for name, boxes in result.objects.items()},
            "colors": [list(one) for one in result.colors],
            "best_score": float(found.scores.max()) if len(found.scores) else 0.0,
        }
        return Verdict(
            item=sample.item.id,
            number=sample.number,
            sha256=sample.sha256,
            judge=self.judge,
            score=float(result.is_correct),
            data=data,
        )


def _mask_of(found: Detections, number: int) -> NDArray[np.bool_] | None:
    return None if found.masks is None else found.masks[number]


def _asks_for_color(item: Item) -> bool:
    return any("color" in entry for entry in item.data.get("include", []))


def _no_clip() -> UsageError:
    return UsageError(
        "colors are read by OpenAI's CLIP ViT-L/14: set clip=FOLDER to the files of "
        "openai/clip-vit-large-patch14"
    )


def _summary(rows: Sequence[Row]) -> Summary:
    return summarize(
        ResultLine(
            tag=row.item.category,
            metadata=identity(row.item.data),
            is_correct=row.score_or(0.0) == 1,
        )
        for row in rows
    )


def _detector_notes(judged: Sequence[Row]) -> list[str]:
    """Returns a warning if the detector seems not to work."""
    best = [row.judgement.data.get("best_score", 1.0) for row in judged if row.judgement]
    if len(best) < _MANY or max(best) > _CERTAIN:
        return []
    return [
        f"The detector found nothing with a score above {_CERTAIN} in any of {len(best)} images: "
        "wrong weights? The score says nothing about the model."
    ]
