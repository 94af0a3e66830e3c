"""Answers on the disk: nothing is asked twice, and recorded answers are played."""

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from blip3o.core.errors import UsageError
from blip3o.remote.cache import (
    CachedModel,
    RecordedModel,
    describe,
    export_answers,
    import_answers,
    read_entry,
    request_key,
)
from blip3o.remote.chat import Answer, AnswerOutcome, ChatImage, ChatRequest

Questions = Callable[[int], list[ChatRequest]]
IMAGE = ChatImage(b"the bytes of an image")
REQUEST = ChatRequest(parts=(IMAGE, "is it a cat?"), system="Be strict.", extra={"seed": 1})


class Scripted:
    """A `ChatModel` that answers by a function, backwards, and remembers the requests."""

    def __init__(
        self, reply: Callable[[ChatRequest], Answer] | None = None, name: str = "judge"
    ) -> None:
        self.name = name
        self.asked: list[ChatRequest] = []
        self.reply = reply or (lambda request: answer(f"to {request.parts[-1]}"))

    def answers(self, requests: Sequence[ChatRequest]) -> Iterator[tuple[int, Answer]]:
        for number in reversed(range(len(requests))):
            self.asked.append(requests[number])
            yield number, self.reply(requests[number])


def answer(
    text: str, outcome: AnswerOutcome = "answered", *, model: str = "m-1", fingerprint: str = "f"
) -> Answer:
    return Answer(
        outcome=outcome,
        text=text,
        model=model,
        fingerprint=fingerprint,
        first_token=(("yes", -0.5), ("no", float("-inf"))),
        prompt_tokens=7,
        completion_tokens=2,
    )


def in_order(model: CachedModel | RecordedModel, requests: Sequence[ChatRequest]) -> list[Answer]:
    found = sorted(model.answers(requests), key=lambda pair: pair[0])
    assert [number for number, _ in found] == list(range(len(requests)))
    return [one for _, one in found]


def test_a_second_time_nothing_is_asked(tmp_path: Path, questions: Questions) -> None:
    first, second = Scripted(), Scripted()
    given = in_order(CachedModel(first, tmp_path), questions(5))
    again = CachedModel(second, tmp_path)
    assert again.missing(questions(7)) == questions(7)[5:]
    assert in_order(again, questions(7))[:5] == given
    assert [one.parts for one in first.asked] == [(f"question {k}",) for k in reversed(range(5))]
    assert [one.parts[0] for one in second.asked] == ["question 6", "question 5"]


@pytest.mark.parametrize("outcome", ["answered", "refusal", "empty", "cut"])
def test_every_answer_of_the_model_is_kept(tmp_path: Path, outcome: AnswerOutcome) -> None:
    model = Scripted(lambda request: answer("half \ufffd \u732b", outcome))
    (given,) = in_order(CachedModel(model, tmp_path), [REQUEST])
    assert given == answer("half \ufffd \u732b", outcome)
    assert in_order(CachedModel(Scripted(), tmp_path), [REQUEST]) == [given]


def test_faults_of_the_transport_are_not_kept(tmp_path: Path) -> None:
    model = Scripted(lambda request: Answer(outcome="transport", text="HTTP 500"))
    assert in_order(CachedModel(model, tmp_path), [REQUEST])[0].outcome == "transport"
    assert not list(tmp_path.rglob("*.json"))
    assert in_order(CachedModel(Scripted(), tmp_path), [REQUEST])[0].outcome == "answered"


@pytest.mark.parametrize(
    "change",
    [
        {"parts": (IMAGE, "is it a dog?")},
        {"parts": ("is it a cat?", IMAGE)},
        {"parts": (ChatImage(b"other bytes"), "is it a cat?")},
        {"parts": (ChatImage(IMAGE.data, "image/jpeg"), "is it a cat?")},
        {"parts": (IMAGE.sha256, "is it a cat?")},
        {"system": ""},
        {"temperature": 1.0},
        {"temperature": None},
        {"max_tokens": 3},
        {"top_logprobs": 5},
        {"attempt": 1},
        {"extra": {}},
        {"extra": {"seed": 2}},
    ],
)
def test_each_part_of_a_request_has_its_own_answer(
    tmp_path: Path, change: dict[str, object]
) -> None:
    other = dataclasses.replace(REQUEST, **change)  # type: ignore[arg-type]
    model = Scripted()
    in_order(CachedModel(model, tmp_path), [REQUEST])
    in_order(CachedModel(model, tmp_path), [other])
    assert model.asked == [REQUEST, other]


def test_another_model_has_its_own_answers(tmp_path: Path) -> None:
    in_order(CachedModel(Scripted(), tmp_path), [REQUEST])
    other = Scripted(name="judge@2")
    in_order(CachedModel(other, tmp_path), [REQUEST])
    assert len(other.asked) == 1


def test_equal_requests_are_asked_once(tmp_path: Path) -> None:
    model = Scripted()
    answers = in_order(CachedModel(model, tmp_path), [REQUEST, REQUEST, REQUEST])
    assert len(model.asked) == 1
    assert answers == [answer("to is it a cat?")] * 3


def test_extra_fields_are_sent_and_belong_to_the_key(tmp_path: Path) -> None:
    model = Scripted()
    in_order(CachedModel(model, tmp_path, extra={"seed": 5, "top_p": 0.5}), [REQUEST])
    assert model.asked[0].extra == {"seed": 5, "top_p": 0.5}
    in_order(CachedModel(model, tmp_path), [REQUEST])
    assert len(model.asked) == 2


def test_an_answer_is_on_the_disk_before_it_is_used(tmp_path: Path, questions: Questions) -> None:
    for number, given in CachedModel(Scripted(), tmp_path).answers(questions(3)):
        key = request_key("judge", describe(questions(3)[number]))
        assert read_entry(tmp_path, key) == given


def test_the_answer_of_a_faster_process_wins(tmp_path: Path) -> None:
    def reply(request: ChatRequest) -> Answer:
        in_order(CachedModel(Scripted(lambda _: answer("faster")), tmp_path), [request])
        return answer("slower")

    assert in_order(CachedModel(Scripted(reply), tmp_path), [REQUEST])[0].text == "faster"


@pytest.mark.parametrize("damage", ["", "[1]", "{}", '{"key": "x"}', "\x00"])
def test_a_damaged_file_is_asked_again(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    in_order(CachedModel(Scripted(), tmp_path), [REQUEST])
    (file,) = tmp_path.glob("answers/*/*.json")
    file.write_text(damage)
    model = Scripted()
    in_order(CachedModel(model, tmp_path), [REQUEST])
    assert len(model.asked) == 1
    assert "is damaged" in capsys.readouterr().err
    in_order(CachedModel(model, tmp_path), [REQUEST])
    assert len(model.asked) == 1


def test_no_image_is_in_the_cache(tmp_path: Path) -> None:
    in_order(CachedModel(Scripted(), tmp_path), [REQUEST])
    (file,) = tmp_path.glob("answers/*/*.json")
    text = file.read_text()
    assert IMAGE.sha256 in text
    assert "bytes of an image" not in text
    assert json.loads(text)["answer"]["fingerprint"] == "f"


def test_another_version_of_the_server_is_said_in_one_line(
    tmp_path: Path, questions: Questions, capsys: pytest.CaptureFixture[str]
) -> None:
    in_order(CachedModel(Scripted(), tmp_path), questions(2))
    assert capsys.readouterr().err == ""
    for changed in (answer("x", model="m-2"), answer("x", fingerprint="g")):
        requests = [dataclasses.replace(one, system=repr(changed)) for one in questions(4)]
        in_order(CachedModel(Scripted(lambda _, c=changed: c), tmp_path), requests)
        (line,) = capsys.readouterr().err.splitlines()
        assert f"judge is now answered by {changed.model} ({changed.fingerprint})" in line
        assert "m-1 (f)" in line
    other = [dataclasses.replace(one, system="other") for one in questions(4)]
    in_order(CachedModel(Scripted(name="other judge"), tmp_path), other)
    in_order(CachedModel(Scripted(), tmp_path), other)  # an earlier version again
    assert capsys.readouterr().err == ""


def test_recorded_answers_are_played(tmp_path: Path, questions: Questions) -> None:
    given = in_order(CachedModel(Scripted(), tmp_path / "cache"), [REQUEST, *questions(3)])
    file = tmp_path / "answers.jsonl"
    assert export_answers(tmp_path / "cache", file) == 4
    played = RecordedModel(file)
    assert played.name == "judge"
    assert in_order(played, [REQUEST, *questions(3)]) == given
    (unknown,) = in_order(played, [dataclasses.replace(REQUEST, attempt=1)])
    assert unknown.outcome == "transport"
    assert "not recorded in" in unknown.text


def test_recorded_answers_fill_a_cache(tmp_path: Path, questions: Questions) -> None:
    in_order(CachedModel(Scripted(), tmp_path / "a"), questions(3))
    in_order(CachedModel(Scripted(lambda _: answer("own")), tmp_path / "b"), questions(1))
    file = tmp_path / "answers.jsonl"
    export_answers(tmp_path / "a", file)
    assert import_answers(file, tmp_path / "b") == 2
    assert import_answers(file, tmp_path / "b") == 0
    model = Scripted()
    answers = in_order(CachedModel(model, tmp_path / "b"), questions(3))
    assert [one.text for one in answers] == ["own", "to question 1", "to question 2"]
    assert model.asked == []
    import_answers(file, tmp_path / "c")
    export_answers(tmp_path / "c", tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == file.read_bytes()


def test_one_model_of_several_is_exported_and_played(tmp_path: Path) -> None:
    for name in ("one", "two"):
        model = Scripted(lambda _, n=name: answer(f"by {n}"), name=name)
        in_order(CachedModel(model, tmp_path), [REQUEST])
    file = tmp_path / "answers.jsonl"
    assert export_answers(tmp_path, file) == 2
    with pytest.raises(UsageError, match="one or two"):
        RecordedModel(file)
    with pytest.raises(UsageError, match="not of three"):
        RecordedModel(file, "three")
    assert in_order(RecordedModel(file, "two"), [REQUEST])[0].text == "by two"
    assert export_answers(tmp_path, file, model="one") == 1
    assert RecordedModel(file).name == "one"


def test_wrong_records_are_refused(tmp_path: Path) -> None:
    in_order(CachedModel(Scripted(), tmp_path / "cache"), [REQUEST])
    file = tmp_path / "answers.jsonl"
    export_answers(tmp_path / "cache", file)
    text = file.read_text()
    for changed, words in (
        (text.replace("a cat", "a dog"), "line 1: the request was changed"),
        (text + text[:50], "line 2 is not a recorded answer"),
        (text.replace('"answered"', '"transport"'), "line 1 is not a recorded answer"),
        ("", "holds no recorded answers"),
    ):
        file.write_text(changed)
        with pytest.raises(UsageError, match=words):
            RecordedModel(file)
    file.write_text(text + "{}\n")
    with pytest.raises(UsageError, match="line 2"):
        import_answers(file, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with pytest.raises(UsageError, match="no such file"):
        RecordedModel(tmp_path / "none.jsonl")
    with pytest.raises(UsageError, match="holds no answers"):
        export_answers(tmp_path / "new", tmp_path / "none.jsonl")
    assert not (tmp_path / "none.jsonl").exists()
