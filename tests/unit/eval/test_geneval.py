import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image

from blip3o.core.config import override
from blip3o.core.errors import UsageError
from blip3o.eval.benchmark import Item, Row, Sample, Verdict
from blip3o.eval.detectors import Detections
from blip3o.eval.geneval.benchmark import GenEvalBenchmark, GenEvalScorer
from blip3o.eval.geneval.colors import ColorClassifier
from blip3o.eval.geneval.prompts import PROMPTS, TAGS, class_names
from blip3o.eval.geneval.rules import COLORS, Rules
from blip3o.eval.prompt_files import BUNDLED

PUBLISHED = BUNDLED / PROMPTS.name
Finding = tuple[str, tuple[float, float, float, float], float]


class TableDetector:
    """Finds what a table says; the red level of the first pixel is the number of the image."""

    name = "table"

    def __init__(
        self, table: Sequence[Sequence[Finding]], classes: Sequence[str] | None = None
    ) -> None:
        self.classes = class_names() if classes is None else classes
        self._table = table

    def detect(self, images: Sequence[Image.Image]) -> list[Detections]:
        return [self._found(image) for image in images]

    def _found(self, image: Image.Image) -> Detections:
        findings = self._table[np.asarray(image)[0, 0, 0]]
        masks = np.zeros((len(findings), image.height, image.width), bool)
        for mask, (_, (x_0, y_0, x_1, y_1), _) in zip(masks, findings, strict=True):
            mask[int(y_0) : int(y_1), int(x_0) : int(x_1) - 1] = True  # without its last column
        return Detections(
            labels=np.array([self.classes.index(name) for name, _, _ in findings], np.int64),
            boxes=np.array([box for _, box, _ in findings], np.float32).reshape(-1, 4),
            scores=np.array([score for _, _, score in findings], np.float32),
            masks=masks,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableConfig:
    kind: Literal["mask2former", "table"] = "mask2former"

    def build(self, device: str = "auto") -> TableDetector:
        del device
        return TableDetector([[]])


class LevelEncoder:
    """Embeds colors by name: an image is the color whose number is its mean green level / 10."""

    name = "levels"

    def __init__(self) -> None:
        self.seen: list[np.ndarray] = []

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        rows = [[color in text.replace("-", " ").split() for color in COLORS] for text in texts]
        return np.array(rows, np.float32)

    def embed_images(self, images: Sequence[Image.Image]) -> np.ndarray:
        self.seen += [np.asarray(image) for image in images]
        numbers = [round(np.median(np.asarray(image)[..., 1]) / 10) for image in images]
        return np.eye(len(COLORS), dtype=np.float32)[numbers]


def benchmark(**settings: Any) -> GenEvalBenchmark:
    settings.setdefault("detector", TableConfig())
    return GenEvalBenchmark(**settings)


def test_items_are_the_published_prompts() -> None:
    items = benchmark().items()
    lines = [json.loads(line) for line in PUBLISHED.read_text(encoding="utf-8").splitlines()]
    assert [item.data for item in items] == lines
    assert [item.prompt for item in items] == [line["prompt"] for line in lines]
    assert [item.number for item in items] == list(range(553))
    assert items[7].id == "00007"
    assert Counter(item.category for item in items) == {
        "single_object": 80,
        "two_object": 99,
        "counting": 80,
        "colors": 94,
        "position": 100,
        "color_attr": 100,
    }
    assert {item.num_samples for item in items} == {4}
    assert benchmark().sources(items[0]) == []


def test_defaults_are_published() -> None:
    settings = benchmark()
    assert settings.remarks() == []
    assert settings.rules == Rules()
    assert settings.seed == 42


@pytest.mark.parametrize(
    ("change", "remark"),
    [
        ("images_per_prompt=1", "images: 1 for each prompt in place of 4"),
        ("prompts_per_tag=2", "prompts: only the first 2 of each tag"),
        ("tags=[colors, counting]", "prompts: only the tags colors, counting"),
        ("clip_name=metaclip", "colors: metaclip in place of openai-clip-vit-l-14"),
        ("threshold=0.4", "rules: threshold 0.4 in place of 0.3"),
        ("counting_threshold=0.8", "rules: counting_threshold 0.8 in place of 0.9"),
        ("max_objects=15", "rules: max_objects 15 in place of 16"),
        ("max_overlap=0.5", "rules: max_overlap 0.5 in place of 1.0"),
        ("position_threshold=0", "rules: position_threshold 0.0 in place of 0.1"),
    ],
)
def test_deviations_are_stated(change: str, remark: str) -> None:
    assert override(Plain(), [change]).remarks() == [remark]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plain(GenEvalBenchmark):
    """Settings whose detector needs no table."""

    detector: TableConfig = TableConfig()


def test_another_detector_is_stated() -> None:
    remarks = benchmark(detector=TableConfig(kind="table")).remarks()
    assert remarks == ["detector: table in place of GenEval's mask2former"]


def test_a_subset_keeps_names_and_noise() -> None:
    every = {item.id: item for item in benchmark().items()}
    some = benchmark(prompts_per_tag=2).items()
    assert Counter(item.category for item in some) == dict.fromkeys(TAGS, 2)
    assert all(every[item.id] == item for item in some)
    tagged = benchmark(tags=("position",)).items()
    assert [item.id for item in tagged] == [f"{number:05d}" for number in range(353, 453)]


def test_a_changed_prompt_file_is_refused_or_stated(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(PUBLISHED.read_bytes())
    assert benchmark(prompts=str(file)).remarks() == []
    first, *rest = PUBLISHED.read_text(encoding="utf-8").splitlines()
    rewritten = json.loads(first) | {"prompt": "A crisp studio photo of one wooden bench"}
    file.write_text("\n".join([json.dumps(rewritten), *rest]), encoding="utf-8")
    with pytest.raises(UsageError, match="not the published"):
        benchmark(prompts=str(file)).items()
    settings = benchmark(prompts=str(file), changed_prompts=True)
    assert settings.items()[0].prompt == rewritten["prompt"]
    (remark,) = settings.remarks()
    assert "1 of its 553 prompts are not GenEval's 553" in remark
    file.write_text(f"{first}\n{first}\n", encoding="utf-8")
    with pytest.raises(UsageError, match="line 2 repeats line 1"):
        settings.items()


BENCH = {"tag": "t", "prompt": "p", "include": [{"class": "bench", "count": 1}]}


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ([], "must be an object"),
        ({"tag": "t"}, "must have a text 'prompt'"),
        (BENCH | {"include": {}}, "'include' must be a list"),
        (BENCH | {"include": ["bench"]}, "it must be an object"),
        (BENCH | {"include": [{"class": "mouse", "count": 1}]}, "'mouse' is not one of"),
        (BENCH | {"exclude": [{"class": "bench", "count": 0}]}, "count must be"),
        (BENCH | {"include": [{"class": "bench", "count": 1, "color": "gray"}]}, "color must be"),
        (
            BENCH | {"include": [{"class": "bench", "count": 1, "position": ["above", 0]}]},
            "position must be",
        ),
        (
            BENCH
            | {
                "include": [
                    BENCH["include"][0],
                    {"class": "dog", "count": 1, "position": ["on", 0]},
                ]
            },
            "position must be",
        ),
    ],
)
def test_metadata_that_cannot_be_judged_are_refused(metadata: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        benchmark().item_of(metadata)


def test_items_of_metadata_have_names_of_their_own() -> None:
    one = benchmark().item_of(BENCH)
    assert one == benchmark().item_of(BENCH | {"prompt": "p"})
    assert one.id != benchmark().item_of(BENCH | {"prompt": "q"}).id
    assert (one.prompt, one.category, one.num_samples) == ("p", "t", 4)
    red = BENCH | {"include": [{"class": "bench", "count": 1, "color": "red"}]}
    with pytest.raises(UsageError, match="clip=FOLDER"):
        benchmark().item_of(red)
    assert benchmark(clip="folder").item_of(red).data == red


def test_colors_need_clip() -> None:
    with pytest.raises(UsageError, match="clip=FOLDER"):
        benchmark().scorer()
    assert benchmark(tags=("counting", "position")).scorer().judge == "table"


@pytest.mark.parametrize("classes", [["person"], [*"abcdefgh"] * 10, [f"{n}" for n in range(133)]])
def test_a_detector_with_other_classes_is_refused(classes: list[str]) -> None:
    with pytest.raises(UsageError, match=f"has {len(classes)} classes that are not"):
        GenEvalScorer("judge", TableDetector([[]], classes), None, Rules())


def sample(item: Item, number: int, green: int = 0) -> Sample:
    image = Image.new("RGB", (40, 30), (number, green, 0))
    return Sample(item=item, number=number, sha256=f"hash{number}", image=image)


def test_verdicts_state_what_was_found() -> None:
    table: list[list[Finding]] = [
        [
            ("dog", (1, 2, 3, 4), 0.2),
            ("bench", (4, 5, 14, 16), 0.5),
            ("bench", (20, 5, 30, 15), 0.75),
        ],
        [("dog", (0, 0, 9, 9), 0.875)],
        [],
    ]
    encoder = LevelEncoder()
    scorer = GenEvalScorer("name", TableDetector(table), ColorClassifier(encoder), Rules())
    entry = {"class": "bench", "count": 1, "color": "yellow"}
    item = benchmark(clip="folder").item_of(BENCH | {"include": [entry]})
    samples = [sample(item, 0, 20), sample(item, 1), sample(item, 2)]
    right, wrong, empty = scorer.verdicts(samples)
    assert (right.item, right.number, right.sha256) == (item.id, 0, "hash0")
    assert (right.judge, right.outcome, right.score) == ("name", "judged", 1.0)
    assert right.data == {
        "tag": "t",
        "correct": True,
        "reason": "",
        "details": {"bench": [[20, 5, 30, 15, 0.75], [4, 5, 14, 16, 0.5]]},
        "colors": [["bench", 1, "yellow"]],
        "best_score": 0.75,
    }
    # The crop of the more certain bench, with grey where its mask ends.
    (crop,) = encoder.seen
    assert crop.shape == (10, 10, 3)
    assert (crop[:, :-1] == [0, 20, 0]).all()
    assert (crop[:, -1] == 0x99).all()
    assert wrong.score == 0
    assert wrong.data["reason"] == "expected bench>=1, found 0"
    assert wrong.data["details"] == {"dog": [[0, 0, 9, 9, 0.875]]}
    assert (empty.score, empty.data["best_score"]) == (0, 0)
    for verdict in (right, wrong, empty):
        json.dumps(verdict.data, allow_nan=False)


def test_more_samples_than_a_batch_are_all_judged() -> None:
    item = benchmark().item_of(BENCH)
    table: list[list[Finding]] = [[("bench", (0, 0, 5, 5), n / 10)] for n in range(10)]
    scorer = GenEvalScorer("name", TableDetector(table), None, Rules())
    verdicts = list(scorer.verdicts([sample(item, number) for number in range(10)]))
    assert [one.number for one in verdicts] == list(range(10))
    assert [one.score for one in verdicts] == [0.0] * 4 + [1.0] * 6


def row(item: Item, number: int, score: float | None, **data: object) -> Row:
    if score is None:
        return Row(item, number, None)
    verdict = Verdict(
        item=item.id,
        number=number,
        sha256="",
        judge="j",
        score=score,
        data={"best_score": 0.9, **data},
    )
    return Row(item, number, verdict)


def test_the_score_is_the_mean_of_the_tags() -> None:
    first, other, third = (
        benchmark().item_of(BENCH | {"tag": tag, "prompt": prompt})
        for tag, prompt in [("colors", "a"), ("colors", "b"), ("counting", "c")]
    )
    rows = [row(first, 0, 1), row(first, 1, 0), row(other, 0, 0), row(third, 0, 1)]
    scores = benchmark().reduce(rows)
    assert scores.overall == pytest.approx((1 / 3 + 1) / 2)
    assert scores.by_category == {"colors": pytest.approx(1 / 3), "counting": 1}
    assert scores.figures["correct_images"] == 0.5
    assert scores.figures["correct_prompts"] == pytest.approx(2 / 3)
    assert scores.figures["by_tag"] == {
        "colors": {"correct": 1, "total": 3},
        "counting": {"correct": 1, "total": 1},
    }
    assert scores.notes == []
    assert benchmark().reduce([]).overall is None


def test_missing_images_are_wrong() -> None:
    items = [benchmark().item_of(BENCH | {"prompt": name}) for name in "abcd"]
    broken = Verdict(item="", number=0, sha256="", judge="", outcome="broken", score=1.0)
    rows = [row(items[0], 0, 1), row(items[1], 0, 1), row(items[2], 0, None)]
    rows.append(Row(items[3], 0, broken))
    scores = benchmark().reduce(rows)
    assert scores.overall == 0.5
    assert (scores.figures["num_images"], scores.figures["num_judged"]) == (4, 2)
    assert scores.figures["official"]["overall"] == 1.0
    assert scores.notes == []  # `settled` writes them
    nothing = benchmark().reduce(rows[2:])
    assert nothing.overall == 0
    assert "official" not in nothing.figures


@pytest.mark.parametrize(
    ("number", "best", "is_noted"), [(20, 0.3, True), (19, 0.3, False), (20, 0.31, False)]
)
def test_a_detector_that_finds_nothing_is_noted(number: int, best: float, is_noted: bool) -> None:
    item = benchmark().item_of(BENCH)
    rows = [row(item, n, 0, best_score=0.1) for n in range(number - 1)]
    rows.append(row(item, number, 0, best_score=best))
    notes = benchmark().reduce(rows).notes
    assert any("wrong weights?" in note for note in notes) == is_noted
