"""Files of decisions, and defect rates."""

import json
from pathlib import Path
from typing import Any

import pytest

from blip3o.core.errors import UsageError
from blip3o.curate.decisions import Decision, defect_rates, read_decisions, wilson_interval
from blip3o.curate.draft import Draft

A, B = "a" * 64, "b" * 64


def line(**changes: Any) -> str:
    return json.dumps({"slot": 3, "image": A, "decision": "accept", **changes}) + "\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "decisions.jsonl"


def test_reads_decisions_by_slot_and_image(file: Path) -> None:
    reject = line(slot=4, decision="reject", reason="unsafe", reviewer="Mia \u05d0")
    file.write_text(line() + "\n" + line(image=B) + reject, encoding="utf-8")
    decisions = read_decisions(file)
    assert list(decisions) == [(3, A), (3, B), (4, A)]
    assert decisions[4, A] == Decision(
        slot=4, image=A, decision="reject", reason="unsafe", reviewer="Mia \u05d0"
    )


def test_of_contradicting_lines_the_later_one_counts(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(line() + line(decision="reject", reason="other") + line(image=B))
    assert read_decisions(file)[3, A].reason == "other"
    assert "1 line contradicts an earlier one" in capsys.readouterr().err
    file.write_text(line() + line(reviewer="Mia"))
    assert read_decisions(file)[3, A].reviewer == "Mia"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('{"slot": 3', "not JSON"),
        (line().strip() + line(), "not JSON"),  # no line end between two files
        ("[1]", r"a decision must be a JSON object, got \[1\]"),
        ('{"slot": 1, "slot": 2}', "the key 'slot' appears twice"),
        (line(decision="acept"), "unknown decision 'acept'; did you mean accept"),
        (line(decision=["accept"]), "decision must be a text"),
        (line(slot=-1), "slot must be a whole number from 0, got -1"),
        (line(slot=True), "slot must be a whole number from 0, got True"),
        (line(image="a"), "image must be the sha256 of a file, got 'a'"),
        (line(reason=None), "reason must be a text, got None"),
        (line(resaon="unsafe"), "unknown key 'resaon'; did you mean reason"),
        (json.dumps({"slot": 3, "decision": "accept"}), "the key 'image' is missing"),
    ],
)
def test_a_damaged_line_is_named(file: Path, text: str, fault: str) -> None:
    file.write_text(line() + text)
    with pytest.raises(UsageError, match=rf"decisions\.jsonl, line 2: {fault}") as caught:
        read_decisions(file)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(file: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read decisions from .*: no such file"):
        read_decisions(file)


@pytest.mark.parametrize(
    ("num_rejected", "number", "low", "high"),
    [
        # Newcombe (1998), table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        # 1 - z**2 / (n + z**2)
        (10, 10, 0.7225, 1.0),
    ],
)
def test_wilson_intervals_equal_published_ones(
    num_rejected: int, number: int, low: float, high: float
) -> None:
    assert wilson_interval(num_rejected / number, number) == pytest.approx((low, high), abs=5e-5)


def drafts(*sizes: int) -> list[Draft]:
    """Returns finished drafts; their categories are letters."""
    letters = [letter for letter, size in zip("abcdef", sizes, strict=False) for _ in range(size)]
    return [
        Draft(slot=slot, category=letter, prompt="a moat", image=f"{slot:064x}")
        for slot, letter in enumerate(letters)
    ]


def decided(*verdicts: str, first: int = 0) -> dict[tuple[int, str], Decision]:
    """Returns decisions about the drafts from `first` on."""
    lines = [
        line(slot=slot, image=f"{slot:064x}", decision=verdict)
        for slot, verdict in enumerate(verdicts, first)
    ]
    made = [Decision(**json.loads(one)) for one in lines]
    return {(one.slot, one.image): one for one in made}


def test_the_overall_rate_is_weighted_by_the_sizes_of_the_categories() -> None:
    found = defect_rates(
        drafts(30, 10, 5), {**decided("reject", "accept"), **decided("accept", first=30)}
    )
    a, b, c = found.by_category.values()
    assert (a.num_drafts, a.num_reviewed, a.num_rejected, a.rate) == (30, 2, 1, 0.5)
    assert (b.num_drafts, b.num_reviewed, b.num_rejected, b.rate) == (10, 1, 0, 0.0)
    assert a.interval == wilson_interval(0.5, 2)
    assert (c.num_reviewed, c.rate, c.interval) == (0, None, (0.0, 1.0))
    assert (found.overall.num_drafts, found.overall.num_reviewed) == (40, 3)
    assert found.overall.rate == pytest.approx(0.375)
    effective = 40**2 / (30**2 / 2 + 10**2)
    assert found.overall.interval == pytest.approx(wilson_interval(0.375, effective))


def test_a_sample_in_proportion_counts_fully_in_the_overall_interval() -> None:
    some = {**decided("reject", "accept", "accept"), **decided("accept", first=30)}
    assert defect_rates(drafts(30, 10), some).overall.interval == pytest.approx(
        wilson_interval(0.25, 4)
    )


def test_only_decisions_about_the_images_of_finished_drafts_count() -> None:
    some = drafts(4)
    some[0] = some[0].drop("judge", "no moat")
    some[1] = some[1].reject_image("judge", "no moat")
    stale = decided("accept", "accept", "reject")
    stale[3, A] = Decision(slot=3, image=A, decision="reject")
    rate = defect_rates(some, stale).by_category["a"]
    assert (rate.num_drafts, rate.num_reviewed, rate.num_rejected) == (2, 1, 1)
    assert defect_rates([], stale).overall.rate is None
