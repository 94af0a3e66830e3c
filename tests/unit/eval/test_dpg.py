"""DPG-Bench: the corrected reading by hand-computed numbers, and the way from images to figures."""

import csv
import dataclasses
import io
import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from PIL import Image

from blip3o.core.errors import UsageError
from blip3o.eval.benchmark import Item, Row, Sample, Scores, Verdict
from blip3o.eval.dpg.benchmark import DPGBenchmark, DPGScorer
from blip3o.eval.dpg.table import read_table, zeroed
from blip3o.remote.chat import Answer, ChatImage, ChatRequest

COLUMNS = (
    "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,"
    "question_natural_language"
)


class Judge:
    """Answers by a function of the color of the image and the text."""

    name = "a-judge"

    def __init__(self, answer: Callable[[tuple[int, ...], str], str]) -> None:
        self._answer = answer
        self.requests: list[ChatRequest] = []

    def answers(self, requests: Sequence[ChatRequest]) -> Iterator[tuple[int, Answer]]:
        for place in reversed(range(len(requests))):
            self.requests.append(requests[place])
            image, text = requests[place].parts
            assert isinstance(image, ChatImage)
            assert isinstance(text, str)
            color = Image.open(io.BytesIO(image.data)).getpixel((0, 0))
            assert isinstance(color, tuple)
            yield place, Answer(outcome="answered", text=self._answer(color, text))


def table(*rows: tuple[str, int, str, str, str]) -> str:
    """Returns a table of (item, proposition, parents, tuple, question)."""
    file = io.StringIO()
    writer = csv.writer(file)
    for item, proposition, parents, name, question in rows:
        writer.writerow([item, "", "", proposition, parents, "", "", name, question])
    return f"{COLUMNS}\n{file.getvalue()}"


ROWS = (
    ("a1", 1, "0", "entity - whole (cat)", "A cat?"),
    ("a1", 2, "1", "attribute - color (cat, red)", "Red?"),
    ("b2", 1, "0", "entity - whole (dog)", "A dog?"),
    ("b2", 2, "0,1", "relation - spatial (dog, left)", "Left?"),
)


@pytest.fixture
def benchmark(tmp_path: Path) -> DPGBenchmark:
    (tmp_path / "questions.csv").write_text(table(*ROWS))
    prompts = [{"item_id": name, "prompt": f"prompt of {name}"} for name in ("a1", "b2")]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    return DPGBenchmark(
        questions=str(tmp_path / "questions.csv"),
        prompts=str(tmp_path / "prompts.jsonl"),
        changed_prompts=True,
        images_per_prompt=2,
    )


def verdict(item: Item, number: int, **answers: str) -> Row:
    data = {"answers": {key.removeprefix("q"): [text] for key, text in answers.items()}}
    return Row(
        item,
        number,
        Verdict(item=item.id, number=number, sha256="", judge="j", data={**data, "outcomes": {}}),
    )


def rows_of(benchmark: DPGBenchmark) -> list[Row]:
    a, b = benchmark.items()
    return [
        verdict(a, 0, q1="yes", q2="Yes."),  # corrected 1, 1; official 1, 0
        verdict(a, 1, q1="no", q2="yes"),  # corrected 0, 0; official 0, 0; raw 0, 1
        verdict(b, 0, q1="yes", q2="no"),  # 1, 0
        verdict(b, 1, q1="yes", q2="yes"),  # 1, 1
    ]


def reduced(benchmark: DPGBenchmark, rows: Sequence[Row]) -> Scores:
    scores = benchmark.reduce(rows)
    json.dumps(dataclasses.asdict(scores))
    return scores


def test_the_headline_counts_all_tiles_and_accepts_other_forms_of_yes(
    benchmark: DPGBenchmark,
) -> None:
    scores = reduced(benchmark, rows_of(benchmark))
    # a1: (1 + 0) / 2, b2: (0.5 + 1) / 2
    assert scores.overall == pytest.approx(100 * (0.5 + 0.75) / 2)
    assert scores.by_category == {"attribute": 50, "entity": 75, "relation": 50}
    figures = scores.figures
    assert figures["level_1_all_tiles_raw"] == {"attribute": 100, "entity": 75, "relation": 50}
    assert figures["level_2_all_tiles_zeroed"]["entity - whole"] == 75
    assert figures["num_answers_yes_in_another_form"] == 1


def test_the_official_figures_come_from_the_same_answers(benchmark: DPGBenchmark) -> None:
    compat = reduced(benchmark, rows_of(benchmark)).figures["compat_ella"]
    # The first row of the table is proposition 1 of a1, whose child then fails.
    assert compat["left_out"] == ["a1"]
    assert compat["score"] == pytest.approx(75)
    assert compat["level_1"] == {"entity": 100, "relation": 100}  # of the last tile only
    assert compat["num_items"] == 1


def test_the_order_of_the_rows_changes_nothing(benchmark: DPGBenchmark) -> None:
    rows = rows_of(benchmark)
    expected = benchmark.reduce(rows)
    for seed in range(5):
        shuffled = list(rows)
        random.Random(seed).shuffle(shuffled)
        found = benchmark.reduce(shuffled)
        assert found == expected
        assert list(found.by_category) == list(expected.by_category)


def test_a_tile_without_a_verdict_counts_as_no_and_leaves_the_official_figures(
    benchmark: DPGBenchmark,
) -> None:
    rows = rows_of(benchmark)
    rows[3] = Row(rows[3].item, 1, None)
    scores = reduced(benchmark, rows)
    assert scores.overall == pytest.approx(100 * (0.5 + 0.25) / 2)
    assert scores.figures["num_tiles_without_answers"] == 1
    assert scores.figures["compat_ella"]["left_out"] == ["a1", "b2"]
    assert scores.figures["compat_ella"]["score"] is None


def test_a_broken_file_is_not_scored_officially(benchmark: DPGBenchmark) -> None:
    rows = rows_of(benchmark)
    broken = Verdict(item="b2", number=1, sha256="", judge="j", outcome="broken")
    rows[3] = Row(rows[3].item, 1, broken)
    figures = reduced(benchmark, rows).figures
    assert figures["compat_ella"]["left_out"] == ["a1", "b2"]
    assert figures["num_answers_neither_yes_nor_no"] == 0


def test_the_official_reading_has_the_first_answer_and_ours_the_last(
    benchmark: DPGBenchmark,
) -> None:
    rows = rows_of(benchmark)
    data = {"answers": {"1": ["yes"], "2": ["perhaps", "yes"]}, "outcomes": {}}
    again = Verdict(item="b2", number=1, sha256="", judge="j", data=data)
    rows[3] = Row(rows[3].item, 1, again)
    scores = reduced(benchmark, rows)
    assert scores.overall == pytest.approx(100 * (0.5 + 0.75) / 2)
    assert scores.figures["compat_ella"]["score"] == 50


def test_an_answer_that_is_neither_yes_nor_no_is_counted(benchmark: DPGBenchmark) -> None:
    rows = rows_of(benchmark)
    rows[3] = verdict(rows[3].item, 1, q1="yes", q2="a dog")
    scores = reduced(benchmark, rows)
    assert scores.overall == pytest.approx(100 * (0.5 + 0.5) / 2)
    assert scores.figures["num_answers_neither_yes_nor_no"] == 1


def test_a_no_runs_down_whatever_the_order_of_the_table() -> None:
    text = table(
        ("c", 3, "2", "entity - whole (x)", "3?"),
        ("c", 2, "1", "entity - whole (x)", "2?"),
        ("c", 1, "0", "entity - whole (x)", "1?"),
        ("c", 4, "9", "entity - whole (x)", "4?"),
    )
    questions = read_table(text).questions["c"]
    answers = {"1": False, "2": True, "3": True, "4": True}
    assert zeroed(questions, answers) == {"1": False, "2": False, "3": False, "4": True}


def test_a_parent_that_the_table_lacks_is_reported(benchmark: DPGBenchmark) -> None:
    rows = table(*ROWS, ("b2", 3, "7", "other - text (x)", "3?"))
    Path(str(benchmark.questions)).write_text(rows)
    scores = benchmark.reduce([Row(item, 0, None) for item in benchmark.items()])
    assert scores.figures["num_questions_without_their_parent"] == 1


def test_a_repeated_proposition_is_asked_in_both_wordings() -> None:
    text = table(
        ("c", 1, "0", "entity - whole (x)", "first?"),
        ("c", 1, "0", "entity - whole (x)", "second?"),
        ("c", 2, "1,1", "entity - whole (x)", "child?"),
    )
    questions = read_table(text).questions["c"]
    assert [one.key for one in questions] == ["1", "1.2", "2"]
    marks = zeroed(questions, {"1": True, "1.2": False, "2": True})
    assert not marks["2"]


def test_every_question_is_asked_about_every_tile(benchmark: DPGBenchmark) -> None:
    judge = Judge(lambda color, text: "yes" if color[0] or "cat" in text else "No, it is not.")
    scorer = DPGScorer(judge, instruction="Yes or no?", attempts=1, tile_px=None)
    item = benchmark.items()[0]
    samples = [
        Sample(item=item, number=k, sha256=str(k), image=Image.new("RGB", (4, 4), (255 * k, 0, 0)))
        for k in range(2)
    ]
    found = {one.number: one for one in scorer.verdicts(samples)}
    assert [one.parts[1] for one in judge.requests[:2]] == ["Red? Yes or no?", "A cat? Yes or no?"]
    assert found[0].data["answers"] == {"1": ["yes"], "2": ["No, it is not."]}
    assert (found[0].score, found[1].score) == (0.5, 1)
    assert found[1].judge == "a-judge"
    json.dumps(dataclasses.asdict(found[0]))


def test_an_unreadable_answer_gives_no_score_and_keeps_its_text(benchmark: DPGBenchmark) -> None:
    judge = Judge(lambda _, text: "yes" if "cat" in text else "perhaps")
    scorer = DPGScorer(judge, instruction="", attempts=2, tile_px=None)
    item = benchmark.items()[0]
    sample = Sample(item=item, number=0, sha256="", image=Image.new("RGB", (4, 4)))
    (one,) = scorer.verdicts([sample])
    assert (one.outcome, one.score) == ("unreadable", None)
    assert one.data["answers"] == {"1": ["yes"], "2": ["perhaps", "perhaps"]}
    assert one.data["outcomes"] == {"2": "unreadable"}
    scores = benchmark.reduce([Row(item, 0, one)])
    assert scores.figures["num_answers_neither_yes_nor_no"] == 1
    assert scores.overall == 0  # though one answer is yes: the image was not judged


def test_an_image_of_another_size_than_the_resolution_is_refused(benchmark: DPGBenchmark) -> None:
    scorer = DPGScorer(Judge(lambda *_: "yes"), instruction="", attempts=1, tile_px=8)
    sample = Sample(item=benchmark.items()[0], number=0, sha256="", image=Image.new("RGB", (4, 4)))
    with pytest.raises(UsageError, match="4 x 4, and resolution=8"):
        list(scorer.verdicts([sample]))


def test_only_the_published_files_are_accepted_without_a_remark(
    benchmark: DPGBenchmark, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert len(benchmark.remarks()) == 3
    with pytest.raises(UsageError, match="is not the published"):
        dataclasses.replace(benchmark, changed_prompts=False).items()
    with pytest.raises(UsageError, match=r"dpg_bench\.csv is not part of blip3o"):
        DPGBenchmark().items()
    with pytest.raises(UsageError, match="OPENAI_API_KEY"):
        benchmark.scorer()
    with pytest.raises(ValueError, match="from 1 to 4"):
        DPGBenchmark(images_per_prompt=5)


def test_the_bundled_prompts_are_the_published_ones(tmp_path: Path) -> None:
    (tmp_path / "q.csv").write_text(table(("0", 1, "0", "entity - whole (x)", "cabbages?")))
    settings = DPGBenchmark(questions=str(tmp_path / "q.csv"), changed_prompts=True)
    (item,) = settings.items()
    assert item.prompt.startswith("An expansive field")
    assert item.num_samples == 4
    assert not [remark for remark in settings.remarks() if "prompts" in remark]
    everything = dataclasses.replace(settings, questions=None)
    with pytest.raises(UsageError):
        everything.items()


def test_the_layout_is_a_grid_of_two_by_two(benchmark: DPGBenchmark) -> None:
    assert (benchmark.layout().columns, benchmark.layout().rows) == (2, 2)
    assert dataclasses.replace(benchmark, images_per_prompt=1).layout().columns == 1
