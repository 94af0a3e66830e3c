"""A small benchmark, and folders of finished evaluations of it."""

import dataclasses
import hashlib
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from blip3o.eval.benchmark import Benchmark, Item, Outcome, Row, Scorer, Scores, Verdict
from blip3o.eval.plan import Plan
from blip3o.eval.report.doubts import doubts, settled
from blip3o.eval.report.evaluation import outcomes_of
from blip3o.eval.report.intervals import bootstrap_intervals
from blip3o.eval.report.results import Results, title_of

JUDGE = "mask2former-tiny-00000000"


@dataclasses.dataclass(frozen=True, kw_only=True)
class FakeBenchmark(Benchmark):
    """The mean of the mean scores of the categories; a sample without a score counts 0."""

    categories: tuple[str, ...] = ("colors", "counting", "position")
    items_per_category: int = 6
    samples_per_item: int = 4

    def items(self) -> list[Item]:
        return [
            Item(
                id=f"{number:05}",
                number=number,
                prompt=f"prompt {number} about {category}",
                category=category,
                num_samples=self.samples_per_item,
            )
            for number, category in enumerate(
                name for name in self.categories for _ in range(self.items_per_category)
            )
        ]

    def scorer(self) -> Scorer:
        raise NotImplementedError

    def reduce(self, rows: Sequence[Row]) -> Scores:
        values: dict[str, list[float]] = {}
        for row in rows:
            score = row.verdict.score if row.verdict else None
            values.setdefault(row.item.category, []).append(score or 0.0)
        by_category = {name: statistics.fmean(scores) for name, scores in values.items()}
        return Scores(
            overall=statistics.fmean(by_category.values()) if by_category else None,
            by_category=by_category,
            figures={"correct": sum(map(sum, values.values()))},
        )


def color_of(*key: object) -> tuple[int, int, int]:
    red, green, blue, *_ = hashlib.sha256(repr(key).encode()).digest()
    return red, green, blue


def draw_noise(item: Item, number: int, px: int = 96) -> Image.Image:
    """Returns another image for each sample."""
    image = Image.new("RGB", (2, 2))
    for place in range(4):
        image.putpixel((place % 2, place // 2), color_of(item.id, number, place))
    return image.resize((px, px), Image.Resampling.NEAREST)


def half_right(item: Item, number: int) -> float:
    return float((item.number + number) % 2)


def all_judged(item: Item, number: int) -> Outcome:
    return "judged"


@pytest.fixture
def fake_benchmark() -> FakeBenchmark:
    return FakeBenchmark()


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """Returns a function that writes the folder of an evaluation as the stages do.

    Its arguments give the score, outcome and image of each (item, number of the sample), and
    changes of the results.
    """

    def make(
        name: str = "run",
        *,
        items_per_category: int = 6,
        samples_per_item: int = 4,
        score: Callable[[Item, int], float | None] = half_right,
        outcome: Callable[[Item, int], Outcome] = all_judged,
        draw: Callable[[Item, int], Image.Image] = draw_noise,
        judge: str = JUDGE,
        remarks: Sequence[str] = (),
        changes: Mapping[str, Any] = {},
    ) -> Path:
        benchmark = FakeBenchmark(
            items_per_category=items_per_category, samples_per_item=samples_per_item
        )
        folder = tmp_path / name
        folder.mkdir()
        items = benchmark.items()
        plan = Plan(tuple(items))
        (folder / "items.jsonl").write_text(plan.text)
        rows, lines = [], []
        for item in items:
            for number in range(item.num_samples):
                ending = outcome(item, number)
                if ending == "missing":  # neither a sample nor a verdict
                    rows.append(Row(item, number, None))
                    continue
                file = folder / "samples" / item.id / f"{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                draw(item, number).save(file)
                value = score(item, number) if ending == "judged" else None
                verdict = Verdict(
                    item=item.id,
                    number=number,
                    sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
                    judge=judge,
                    outcome=ending,
                    score=value,
                    data={"reason": "" if value else f"no {item.category} in sample {number}"},
                )
                lines.append(json.dumps(dataclasses.asdict(verdict)) + "\n")
                rows.append(Row(item, number, verdict))
        (folder / "verdicts.jsonl").write_text("".join(lines))
        scores = settled(benchmark.reduce, rows)
        results = Results(
            benchmark="fake",
            title=title_of("fake", judge, remarks),
            judge=judge,
            overall=scores.overall,
            by_category=scores.by_category,
            num_samples=len(rows),
            outcomes=outcomes_of(rows),
            items_sha256=plan.sha256,
            model={"name": "tiny", "weights_sha256": "5e" * 32},
            sampler={"num_inference_steps": 30, "guidance_scale": 3.0},
            seed=42,
            version="1.0",
            commit="0123abcd",
            settings=dataclasses.asdict(benchmark),
            intervals=bootstrap_intervals(benchmark.reduce, rows, scores, num_resamples=20),
            figures=scores.figures,
            notes=[*scores.notes, *doubts(folder, rows)],
        )
        data = results.to_dict() | dict(changes)
        Results.from_dict(json.loads(json.dumps(data))).write(folder)
        return folder

    return make
