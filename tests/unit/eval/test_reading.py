"""Readers of the grades in the answers of a judge."""

import time

import pytest

from blip3o.eval.judges.reading import Numbers, line_numbers, named_numbers, spoken

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
