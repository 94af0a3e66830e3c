"""Doubts: open headlines, failures that count, and patterns of faulty measurements."""

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from PIL import Image

from blip3o.eval.benchmark import Item, Outcome, Row, Scores, Task, Verdict
from blip3o.eval.report.doubts import doubts, doubts_on_rows, doubts_on_sizes, settled
from blip3o.eval.report.evaluation import Evaluation, Place

DETECTOR, CHAT = "mask2former-swin-s-743b7d99+clip", "gpt-4o-2024-05-13"


def row(
    item: int,
    number: int,
    score: float | None,
    *,
    outcome: Outcome = "judged",
    category: str = "a",
    sha256: str | None = None,
    judge: str = CHAT,
    task: Task = "text_to_image",
    prompt: str | None = None,
) -> Row:
    one = Item(
        id=f"i{item}",
        number=item,
        category=category,
        task=task,
        prompt=f"p{item}" if prompt is None else prompt,
    )
    verdict = Verdict(
        item=one.id,
        number=number,
        sha256=f"{item}-{number}" if sha256 is None else sha256,
        judge=judge,
        outcome=outcome,
        score=score,
    )
    return Row(one, number, verdict)


def reduce(rows: Sequence[Row]) -> Scores:
    values: dict[str, list[float]] = {}
    for one in rows:
        score = one.verdict.score if one.verdict else None
        values.setdefault(one.item.category, []).append(score or 0.0)
    by_category = {name: statistics.fmean(found) for name, found in values.items()}
    overall = statistics.fmean(by_category.values())
    return Scores(overall=overall, by_category=by_category, notes=["own note"], figures={"f": 1})


def test_judged_samples_keep_their_figures() -> None:
    rows = [row(k, 0, float(k % 2)) for k in range(4)]
    assert settled(reduce, rows) == dataclasses.replace(reduce(rows), notes=["own note"])


@pytest.mark.parametrize("outcome", ["refusal", "empty", "cut", "unreadable", "transport"])
def test_a_fault_of_the_judge_opens_the_headline_and_states_its_bounds(outcome: Outcome) -> None:
    rows = [row(k, 0, 1.0) for k in range(6)]
    rows += [row(6, 0, 0.0), row(7, 0, None, outcome=outcome)]
    rows += [row(8 + k, 0, 1.0, category="b") for k in range(2)]
    found = settled(reduce, rows)
    assert found.overall is None
    assert found.by_category == {"a": None, "b": 1.0}
    assert found.figures == {"f": 1}
    assert found.notes == [
        "own note",
        f"1 of 10 samples have no judgement (1 {outcome}): the headline is open, at least 0.875; "
        "a program that leaves them out says 0.9286.",
    ]


def test_a_fault_of_the_judge_opens_categories_that_are_not_those_of_items() -> None:
    def by_kind(rows: Sequence[Row]) -> Scores:
        return Scores(overall=0.5, by_category={"entity": 0.5})

    found = settled(by_kind, [row(0, 0, 1.0), row(1, 0, None, outcome="cut")])
    assert found.by_category == {"entity": None}


def test_missing_and_broken_samples_count_and_the_note_says_the_other_figure() -> None:
    rows = [row(k, 0, 1.0) for k in range(2)]
    rows.append(Row(rows[0].item, 1, None))
    rows.append(row(1, 1, None, outcome="broken"))
    rows.append(row(1, 2, None, outcome="missing"))
    found = settled(reduce, rows)
    assert found.overall == pytest.approx(0.4)
    assert found.notes == [
        "own note",
        "2 missing and 1 broken of 5 samples count as failures; a program that leaves them out "
        "says 1.",
    ]


def test_nothing_judged_at_all() -> None:
    rows = [row(0, 0, None, outcome="transport"), Row(row(1, 0, 1.0).item, 0, None)]
    found = settled(reduce, rows)
    assert found.overall is None
    assert found.notes == [
        "own note",
        "1 missing of 2 samples count as failures.",
        "1 of 2 samples have no judgement (1 transport): the headline is open, at least 0.",
    ]


@pytest.mark.parametrize(
    ("judge", "cause"), [(DETECTOR, "weights of the detector"), (CHAT, "a broken judge")]
)
def test_scores_that_are_all_zero_are_noted(judge: str, cause: str) -> None:
    rows = [row(k, 0, 0.0, judge=judge) for k in range(5)]
    (note,) = doubts_on_rows(rows)
    assert "All 5 judged samples score 0" in note
    assert cause in note
    assert not doubts_on_rows([*rows, row(5, 0, 0.1)])
    assert not doubts_on_rows(rows[:3])


def test_items_whose_samples_are_all_one_image_are_noted() -> None:
    rows = [row(k, n, 1.0, sha256=f"image{k}") for k in range(5) for n in range(4)]
    rows += [row(9, n, 1.0) for n in range(4)]
    (note,) = doubts_on_rows(rows)
    assert "same image in 5 of 6 items (i0/0, i1/0, i2/0, ...)" in note


def test_one_image_for_different_prompts_is_noted() -> None:
    rows = [row(k, 0, 1.0, sha256="one" if k < 3 else None) for k in range(9)]
    (note,) = doubts_on_rows(rows)
    assert note.startswith("3 samples of different prompts are the same image")
    assert "i0/0, i1/0, i2/0" in note


def test_equal_answers_and_images_of_equal_prompts_are_not_noted() -> None:
    answers = [row(k, n, 1.0, sha256="yes", task="question") for k in range(3) for n in range(2)]
    twins = [row(9 + k, 0, 1.0, sha256="twin", prompt="one prompt") for k in range(2)]
    lost = [row(20 + k, 0, None, outcome="missing", sha256="") for k in range(3)]
    assert doubts_on_rows([*answers, *twins, *lost]) == []


def doubts_of(folder: Path) -> list[str]:
    evaluation = Evaluation.read(folder)
    return doubts(folder, evaluation.rows())


def one_px(item: Item, number: int, px: int = 96) -> Image.Image:
    return Image.new("RGB", (px, px), (item.number, number, 0))


def test_a_normal_folder_raises_no_doubt(make_folder: Callable[..., Path]) -> None:
    assert doubts_of(make_folder()) == []


def test_tiny_images_and_images_of_another_size_are_noted(
    make_folder: Callable[..., Path],
) -> None:
    folder = make_folder(draw=lambda item, n: one_px(item, n, 32 if item.number == 7 else 96))
    assert doubts_of(folder) == [
        "4 images have a side under 64 pixels (00007/0, 00007/1, 00007/2, ...): judges are not "
        "made for such images.",
        "4 of 72 images have another size than 96 x 96 (00007/0, 00007/1, 00007/2, ...: 32 x 32).",
    ]


def test_a_tile_has_its_own_size(tmp_path: Path) -> None:
    Image.new("RGB", (128, 128)).save(tmp_path / "grid.png")
    Image.new("RGB", (80, 80)).save(tmp_path / "single.png")
    rows = [row(0, number, 1.0) for number in range(3)]
    places = [Place(tmp_path / "grid.png", (k, 0, 2, 2)) for k in range(2)]
    places.append(Place(tmp_path / "single.png"))
    keys = [(one.item.id, one.number) for one in rows]
    (note,) = doubts_on_sizes(rows, dict(zip(keys, places, strict=True)))
    assert note == "1 of 3 images have another size than 64 x 64 (i0/2: 80 x 80)."


def test_files_that_are_no_images_are_left_to_the_scorer(make_folder: Callable[..., Path]) -> None:
    folder = make_folder()
    (folder / "samples/00000/0.png").write_bytes(b"")
    assert doubts_of(folder) == []
