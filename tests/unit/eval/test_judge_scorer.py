"""The scorer of benchmarks with a judge, its texts and its remarks."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from blip3o.core.errors import UsageError
from blip3o.eval.benchmark import Item, Outcome, Row, Sample, Verdict
from blip3o.eval.judges.asking import Reading, ask_each
from blip3o.eval.judges.scorer import JudgeScorer, judge_notes, judge_text
from blip3o.remote.chat import Answer, ChatRequest


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


class Adder(JudgeScorer[int]):
    """Asks twice about each sample and adds the answers."""

    def __init__(self, model: FakeModel, attempts: int = 2) -> None:
        super().__init__(model, ["own-1"])
        self._attempts = attempts

    def requests(self, sample: Sample) -> list[ChatRequest]:
        return [ChatRequest(parts=(f"{sample.item.id}{number}",)) for number in (0, 1)]

    def ask(
        self, requests: Sequence[Sequence[ChatRequest]]
    ) -> Iterator[tuple[int, list[Reading[int]]]]:
        def read(text: str) -> int | None:
            return int(text) if text.isdigit() else None

        return ask_each(self.model, requests, read, attempts=self._attempts)

    def conclude(
        self, sample: Sample, readings: Sequence[Reading[int]]
    ) -> tuple[float, dict[str, object]]:
        texts = [text for one in readings for text in one.texts]
        return sum(one.value or 0 for one in readings), {"answers": texts}


def test_a_sample_is_judged_when_all_its_requests_are_answered() -> None:
    good, bad = Answer(outcome="answered", text="3"), Answer(outcome="refusal", text="No.")
    lost = Answer(outcome="transport", text="refused connection")
    table = {"a0": [good], "a1": [bad, good], "b0": [good], "b1": [bad, bad]}
    table |= {"c0": [lost], "c1": [good]}
    model = FakeModel(table)
    verdicts = {one.item: one for one in Adder(model).verdicts([sample(key) for key in "abc"])}
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
    kept = Reading(outcome="unreadable", value=None, answers=answers).recorded()
    assert kept[0] == {"outcome": "empty", "text": "", "model": "", "fingerprint": ""}
    assert kept[1]["fingerprint"] == "f"


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


def test_another_judge_is_remarked() -> None:
    assert judge_notes([row("judged", judge="m+own-1")], ["m"], []) == []
    [note] = judge_notes([row("judged", judge="m-2+own-1")], ["m"], [])
    assert "another judge makes another benchmark" in note
    mixed = [row("judged", judge="m+own-1"), row("judged", judge="m+text-2")]
    assert "several judges are mixed" in judge_notes(mixed, ["m"], [])[0]
    [note] = judge_notes([row("judged")], ["m"], ["answers"])
    assert "the server states that m-9 answered" in note
