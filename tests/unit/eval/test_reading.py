"""The parts that benchmarks with a judge share."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from PIL import Image

from blip3o.core.errors import UsageError
from blip3o.eval.benchmark import Item, Outcome, Row, Sample, Verdict
from blip3o.eval.judges.asking import Reading
from blip3o.eval.reading import (
    FlatLayout,
    JudgeScorer,
    Numbers,
    judge_notes,
    judge_text,
    line_numbers,
    named_numbers,
    outcome_notes,
    png,
    recorded,
    score_of,
    source_file,
    spoken,
)
from blip3o.remote.chat import Answer, ChatRequest

NAMES = ["Consistency", "Realism", "Aesthetic Quality"]


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("Consistency: 1\nRealism: 2\nAesthetic Quality: 0", "plain"),
        ("**Consistency:** 1\n**Realism:** 2\n**Aesthetic Quality:** 0", "bold"),
        ("Consistency (0-2): 1\nRealism (0-2): 2\nAesthetic Quality (0-2): 0", "range"),
        ("Consistency\uff1a1\nRealism\uff1a2\nAesthetic Quality\uff1a0", "wide"),
        ("| Consistency | 1 |\n| Realism | 2 |\n| Aesthetic Quality | 0 |", "table"),
        ('```json\n{"consistency": 1, "realism": "2", "aesthetic_quality": 0.0}\n```', "json"),
        ('{"scores": {"Consistency": 1, "Realism": 2, "Aesthetic Quality": 0}}', "json"),
        ("Consistency: 1/2\nRealism: 2 out of 2\nAesthetic Quality: 0", "over"),
        ("Consistency - 1\nRealism - 2\nAesthetic Quality - 0", "dash"),
        ("<think>Consistency: 2?</think>Consistency: 1 Realism: 2 Aesthetic Quality: 0", "plain"),
        ("Consistency: 1\nRealism: 2\nAesthetic Quality: 0\nSo: Consistency: 1", "plain"),
        ("1\n\n**2**\n0", "bare"),
    ],
)
def test_named_numbers_are_read_in_many_forms(text: str, form: str) -> None:
    assert named_numbers(text, NAMES, 2) == Numbers((1, 2, 0), form)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I'm sorry, I can't help with that.",
        "Consistency: 3\nRealism: 2\nAesthetic Quality: 0",
        "Consistency: -1\nRealism: 2\nAesthetic Quality: 0",
        "Consistency: 10\nRealism: 2\nAesthetic Quality: 0",
        "Consistency: 1.5\nRealism: 2\nAesthetic Quality: 0",
        "Consistency: 1 or 2\nRealism: 2\nAesthetic Quality: 0",
        "Consistency: 0, 1 or 2\nRealism: 2\nAesthetic Quality: 0",
        "Consistency: 1-2\nRealism: 2\nAesthetic Quality: 0",
        "Consistency: 1 -> 2\nRealism: 2\nAesthetic Quality: 0",
        "Consistency: 1/5\nRealism: 2/5\nAesthetic Quality: 0/5",
        "Consistency: 1\nRealism: 2\nAesthetic Quality: 0\nOn reflection, Consistency: 2",
        "Inconsistency: 1\nRealism: 2\nAesthetic Quality: 0",
        "1. Consistency\n2. Realism\n3. Aesthetic Quality",
        "Consistency\n1) Realism: 2\n2) Aesthetic Quality: 0",
        "Consistency: 1\nRealism: 2",
        "1\n2\n0\n1",
        "3\n1\n2",
        '{"Consistency": 1, "Realism": 2}',
        '{"Consistency": true, "Realism": 2, "Aesthetic Quality": 0}',
        '{"Consistency": 1, "Realism": 2, "Aesthetic Quality": 0, "Consistency": 2}',
        '{"Consistency": 1, "Realism": 2, "Aesthetic Quality": 0} Realism: 1',
        '{"Consistency": 1, "Realism": 2, "Aesthetic',
        "<think>Consistency: 1\nRealism: 2\nAesthetic Quality: 0",
    ],
)
def test_unclear_named_numbers_are_refused(text: str) -> None:
    assert named_numbers(text, NAMES, 2) is None


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("Brief reasoning: good.\nA: 4\nB: 2\nC: 5", "plain"),
        ("**A**: 4\n**B:** 2\nC: **5**", "bold"),
        ("A (1-5): 4/5\n- B: 2/5.\n3. C: 5 points", "over+range"),
        ('{"a": 4, "b": 2, "c": 5, "why": "x"}', "json"),
    ],
)
def test_three_lines_of_numbers_are_read(text: str, form: str) -> None:
    found = line_numbers(text, 3, 1, 5)
    assert found is not None
    assert found.values == (4, 2, 5)
    assert form in found.form


@pytest.mark.parametrize(
    "text",
    [
        "A: 4\nB: 2",
        "A: 4\nB: 2\nC: 5\nD: 1",
        "Brief reasoning: 4\nA: 4\nB: 2\nC: 5",
        "A: 4\nB: 2\nC: 6",
        "A: 4\nB: 2\nC: 0",
        "A: 4.5\nB: 2\nC: 5",
        "A: \u00b2\nB: 2\nC: 5",
        '{"a": 4, "b": NaN, "c": 5}',
        '{"a": 4, "b": 1e300, "c": 5}',
        "no",
    ],
)
def test_other_lines_of_numbers_are_refused(text: str) -> None:
    assert line_numbers(text, 3, 1, 5) is None


@pytest.mark.parametrize("filler", [" ", "\n", "*", "9", "(", "|", "<think>", "A: "])
def test_a_judge_that_repeats_itself_is_read_fast(filler: str) -> None:
    start = time.process_time()
    for text in (f"Consistency{filler * 8000}", f"Realism: 1 {filler * 8000}", filler * 8000):
        assert named_numbers(text, NAMES, 2) is None
        assert line_numbers(text, 3, 1, 5) is None
    assert time.process_time() - start < 5


def test_thoughts_are_not_read() -> None:
    assert spoken("<think>a</think> b <think>c</think>") == "b"
    assert spoken("a</think>b") == "b"
    assert spoken("<think>a") is None


def test_texts_of_users_are_checked_filled_and_named(tmp_path: Path) -> None:
    own = judge_text(None, "Own {a}", "judge_text", ["{a}"])
    assert own.mark.startswith("own-")
    assert "own wording" in own.remark
    file = tmp_path / "text.txt"
    file.write_text("{a} and {b}, {'json': 1}", encoding="utf-8")
    text = judge_text(str(file), "Own", "judge_text", ["{a}", "{b}"])
    assert text.filled({"{a}": "{b}", "{b}": "x"}) == "{b} and x, {'json': 1}"
    assert text.mark != own.mark
    assert "text.txt" in text.remark
    with pytest.raises(UsageError, match=r"lacks \{c\}"):
        judge_text(str(file), "Own", "judge_text", ["{c}"])


# ---------------------------------------------------------------------------------------------


class FakeModel:
    """Gives the answers of a table, by text and attempt, in reverse order."""

    name = "fake-1"

    def __init__(self, answers: dict[str, list[Answer]]) -> None:
        self.table = answers
        self.asked: list[ChatRequest] = []

    def answers(self, requests: Sequence[ChatRequest]) -> Iterator[tuple[int, Answer]]:
        self.asked += requests
        for number in reversed(range(len(requests))):
            request = requests[number]
            yield number, self.table[str(request.parts[0])][request.attempt]


def sample(key: str) -> Sample:
    return Sample(item=Item(id=key, number=0), number=0, sha256=f"hash {key}")


def scorer(model: FakeModel, attempts: int = 2) -> JudgeScorer[int]:
    def conclude(readings: Sequence[Reading[int]]) -> tuple[float | None, dict[str, object]]:
        values = [one.value or 0 for one in readings]
        return sum(values), {"answers": [text for one in readings for text in one.texts]}

    return JudgeScorer(
        model,
        ["own-1"],
        lambda one: [ChatRequest(parts=(f"{one.item.id}{n}",)) for n in (0, 1)],
        lambda text: int(text) if text.isdigit() else None,
        conclude,
        attempts=attempts,
    )


def test_a_sample_is_judged_when_all_its_requests_are_answered() -> None:
    good, bad = Answer(outcome="answered", text="3"), Answer(outcome="refusal", text="No.")
    lost = Answer(outcome="transport", text="refused connection")
    table = {"a0": [good], "a1": [bad, good], "b0": [good], "b1": [bad, bad]}
    table |= {"c0": [lost], "c1": [good]}
    model = FakeModel(table)
    verdicts = {one.item: one for one in scorer(model).verdicts([sample(key) for key in "abc"])}
    assert {key: (one.outcome, one.score) for key, one in verdicts.items()} == {
        "a": ("judged", 6),
        "b": ("refusal", None),
        "c": ("transport", None),
    }
    assert all(one.judge == "fake-1+own-1" for one in verdicts.values())
    assert verdicts["b"].sha256 == "hash b"
    assert verdicts["b"].data["answers"] == ["3", "No.", "No."]
    assert len(model.asked) == 6 + 2  # each refusal is asked again once, the lost one is not


def test_all_answers_of_a_request_are_kept() -> None:
    answers = (
        Answer(outcome="empty", text=""),
        Answer(outcome="answered", text="x", model="m", fingerprint="f"),
    )
    kept = recorded(Reading(outcome="unreadable", value=None, answers=answers))
    assert kept[0] == {"outcome": "empty", "text": "", "model": "", "fingerprint": ""}
    assert kept[1]["fingerprint"] == "f"


# ---------------------------------------------------------------------------------------------


def row(outcome: Outcome | None, score: float | None = None, judge: str = "m+own-1") -> Row:
    item = Item(id="1", number=0)
    if outcome is None:
        return Row(item, 0, None)
    verdict = Verdict(
        item="1",
        number=0,
        sha256="",
        judge=judge,
        outcome=outcome,
        score=score,
        data={"answers": [{"model": "m-9"}]},
    )
    return Row(item, 0, verdict)


def test_missing_samples_count_as_worst_and_faults_of_the_judge_do_not_count() -> None:
    lost: list[Outcome | None] = [None, "missing", "broken"]
    unjudged: list[Outcome | None] = ["refusal", "empty", "cut", "unreadable", "transport"]
    rows = [row(one) for one in lost + unjudged] + [row("judged", 0.7)]
    assert [score_of(one, 0.1) for one in rows] == [0.1] * 3 + [None] * 5 + [0.7]
    notes = outcome_notes(rows, 0.1, (0.25, 0.5))
    assert "3 of 9 samples are missing or broken" in notes[0]
    assert "5 of 9 samples have no judgement (refusal 1, empty 1, cut 1" in notes[1]
    assert "0.25..0.5" in notes[1]
    assert outcome_notes([row("judged", 1.0)], 0, (1, 1)) == []


def test_another_judge_is_remarked() -> None:
    assert judge_notes([row("judged", judge="m+own-1")], ["m"], []) == []
    [note] = judge_notes([row("judged", judge="m-2+own-1")], ["m"], [])
    assert "another judge makes another benchmark" in note
    mixed = [row("judged", judge="m+own-1"), row("judged", judge="m+text-2")]
    assert "several judges are mixed" in judge_notes(mixed, ["m"], [])[0]
    [note] = judge_notes([row("judged")], ["m"], ["answers"])
    assert "the server states that m-9 answered" in note


# ---------------------------------------------------------------------------------------------


def test_source_files_stay_in_their_folder(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(Image.new("RGB", (2, 2))).data)
    assert source_file(tmp_path, "a.png", "x") == tmp_path / "a.png"
    for name in ("../a.png", "/etc/passwd", "b.png", "", None):
        with pytest.raises(UsageError, match="x"):
            source_file(tmp_path, name, "x")


def drawn(key: str) -> Sample:
    image = Image.new("RGB", (4, 4), (int(key), 2, 3))
    return Sample(item=Item(id=key, number=0), number=0, sha256="", image=image)


def test_the_flat_layout_is_written_and_read(tmp_path: Path) -> None:
    layout, samples = FlatLayout(), [drawn("1"), drawn("20")]
    for one in samples:
        layout.write(tmp_path, [one])
    assert sorted(one.name for one in tmp_path.iterdir()) == ["1.png", "20.png"]
    items = [one.item for one in samples] + [Item(id="3", number=0)]
    found = {one.item: one for one in layout.read(tmp_path, items)}
    assert set(found) == {"1", "20"}  # the third one is missing
    for one in samples:
        assert one.image is not None
        with Image.open(found[one.item.id].file) as image:
            assert image.tobytes() == one.image.tobytes()


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("0001.png", "save it as 1.png"),
        ("1.jpg", "save it as 1.png"),
        ("2.png.part", "they are named 1.png"),
        ("1.txt", "they are named 1.png"),
    ],
)
def test_files_that_the_official_programs_do_not_read_are_refused(
    tmp_path: Path, name: str, remedy: str
) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(UsageError, match=remedy):
        list(FlatLayout().read(tmp_path, [drawn("1").item]))
    with pytest.raises(UsageError, match="no such folder"):
        list(FlatLayout().read(tmp_path / "none", [drawn("1").item]))
