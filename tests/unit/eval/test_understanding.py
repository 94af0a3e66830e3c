"""Questions about the user's images: files, comparisons and figures."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from PIL import Image

from blip3o.core.errors import UsageError
from blip3o.eval.benchmark import Item, Row, Sample, Scores
from blip3o.eval.understanding import AnswerMetric, UnderstandingBenchmark
from blip3o.eval.vqa import MME_COGNITION, MME_PERCEPTION


def write(folder: Path, lines: Sequence[Mapping[str, object]]) -> str:
    for line in lines:
        Image.new("RGB", (3, 3), (9, 8, 7)).save(folder / str(line["image"]))
    file = folder / "questions.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return str(file)


def line(image: str, *answers: str, category: str = "") -> dict[str, object]:
    return {"image": image, "question": "What?", "answers": answers, "category": category}


def score(benchmark: UnderstandingBenchmark, texts: Sequence[str | None]) -> Scores:
    items = benchmark.items()
    scorer = benchmark.scorer()

    def row(item: Item, text: str | None) -> Row:
        if text is None:
            return Row(item, 0, None)
        (one,) = scorer.verdicts([Sample(item=item, number=0, sha256="", text=text)])
        return Row(item, 0, one)

    return benchmark.reduce([row(*pair) for pair in zip(items, texts, strict=True)])


def test_items_hold_the_question_and_the_hash_of_the_image(tmp_path: Path) -> None:
    benchmark = UnderstandingBenchmark(questions=write(tmp_path, [line("a.png", "cat")]))
    (item,) = benchmark.items()
    assert (item.task, item.prompt, item.max_new_tokens) == ("question", "What?", 128)
    assert len(item.sources[0]) == 64
    assert item.data == {"image": "a.png", "answers": ["cat"]}  # no path of this machine
    assert benchmark.sources(item)[0].getpixel((0, 0)) == (9, 8, 7)
    assert "questions.jsonl" in benchmark.remarks()[0]
    assert benchmark.layout() is None


def test_exact_accepts_any_answer_in_normal_form(tmp_path: Path) -> None:
    lines = [line("a.png", "two dogs", "dogs", category=name) for name in ("x", "x", "y", "y")]
    benchmark = UnderstandingBenchmark(questions=write(tmp_path, lines))
    scores = score(benchmark, ["The dogs.", "2 dogs", "many dogs", None])
    assert scores.by_category == {"x": 100, "y": 0}
    assert scores.overall == 50
    assert scores.figures["num_unread"] == 1


def test_vqa_is_the_soft_accuracy(tmp_path: Path) -> None:
    answers = ["cat"] * 3 + ["dog"] * 7
    benchmark = UnderstandingBenchmark(
        questions=write(tmp_path, [line("a.png", *answers)]), metric="vqa"
    )
    assert score(benchmark, ["cat"]).overall == pytest.approx(90)


def test_yes_no_counts_unreadable_answers_as_wrong(tmp_path: Path) -> None:
    lines = [line("a.png", answer) for answer in ("yes", "No", "no", "no", "no")]
    benchmark = UnderstandingBenchmark(questions=write(tmp_path, lines), metric="yes_no")
    scores = score(benchmark, ["Yes, it is.", "No.", "perhaps", "  ", "yes"])
    assert scores.overall == pytest.approx(40)
    assert scores.figures["num_unread"] == 2
    assert "2 questions have no readable answer" in scores.notes[0]


def test_mme_needs_both_answers_of_an_image(tmp_path: Path) -> None:
    lines = [
        line(image, answer, category="count")
        for image in ("a.png", "b.png")
        for answer in ("Yes", "No")
    ]
    benchmark = UnderstandingBenchmark(questions=write(tmp_path, lines), metric="mme")
    scores = score(benchmark, ["Yes", "No", "Y", "yes"])
    assert scores.by_category == {"count": 75 + 50}
    assert scores.figures["perception"] is None


def test_mme_sums_complete_groups_of_categories(tmp_path: Path) -> None:
    names = (*MME_PERCEPTION, *MME_COGNITION)
    lines = [line("a.png", "yes", category=name) for name in names]
    benchmark = UnderstandingBenchmark(questions=write(tmp_path, lines), metric="mme")
    scores = score(benchmark, ["yes"] * len(lines))
    assert (scores.figures["perception"], scores.figures["cognition"]) == (2000, 800)
    assert scores.overall == 2800


@pytest.mark.parametrize(
    ("metric", "text", "fault"),
    [
        ("exact", '{"image": "a.png"', "line 1: not JSON"),
        ("exact", '{"image": "a.png", "question": "?"}', "needs image, question and answers"),
        ("exact", '{"image": "a.png", "question": "?", "answers": []}', "a list of texts"),
        ("vqa", '{"image": "a.png", "question": "?", "answers": ["x"]}', "all annotators"),
        ("mme", '{"image": "a.png", "question": "?", "answers": ["x"]}', "yes or no"),
        ("exact", '{"image": "b.png", "question": "?", "answers": ["x"]}', "cannot read"),
        ("exact", "\n", "no questions"),
    ],
)
def test_faults_of_the_file_are_named(
    metric: AnswerMetric, text: str, fault: str, tmp_path: Path
) -> None:
    benchmark = UnderstandingBenchmark(
        questions=write(tmp_path, [line("a.png", "cat")]), metric=metric
    )
    (tmp_path / "questions.jsonl").write_text(text)
    with pytest.raises(UsageError, match=fault) as error:
        benchmark.items()
    assert "\n" not in str(error.value)


def test_a_file_of_questions_must_be_given() -> None:
    with pytest.raises(UsageError, match="questions=FILE"):
        UnderstandingBenchmark().items()
    assert (
        dataclasses.replace(UnderstandingBenchmark(), metric="vqa").scorer().judge == "answers-vqa"
    )
