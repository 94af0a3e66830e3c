"""Judges as settings: a server, recorded answers, and one of our own models."""

import dataclasses
import http.server
import io
import json
import re
import shlex
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from blip3o import Blip3oPipeline
from blip3o.core.config import component, override, to_dict
from blip3o.core.errors import PreemptedError, UsageError
from blip3o.eval.judges import JUDGES, JudgeConfig
from blip3o.eval.judges.asking import ask
from blip3o.eval.judges.local import LocalJudge, LocalModel
from blip3o.eval.judges.openai import OpenAIJudge
from blip3o.eval.judges.recorded import RecordedJudge
from blip3o.remote.cache import export_answers
from blip3o.remote.chat import Answer, ChatImage, ChatRequest

DOCS = Path(__file__).parents[3] / "docs" / "judges.md"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bench:
    """Stands for the settings of a benchmark with a judge."""

    judge: JudgeConfig = component(
        "blip3o.eval.judges:JUDGES", default=OpenAIJudge(model="gpt-4o-2024-05-13")
    )


def image(color: str, size: int = 12) -> ChatImage:
    data = io.BytesIO()
    Image.new("RGB", (size, size), color).save(data, "PNG")
    return ChatImage(data.getvalue())


@pytest.fixture
def server() -> Iterator[Any]:
    """Answers each prompt with itself and remembers the bodies."""
    bodies: list[dict[str, Any]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            bodies.append(body)
            text = f"{len(bodies)}: {body['messages'][-1]['content']}"
            choice = {"message": {"content": text}, "finish_reason": "stop"}
            reply = json.dumps({"choices": [choice]}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

    made: Any = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.bodies, made.url = bodies, f"http://127.0.0.1:{made.server_port}/v1"
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def test_every_judge_is_in_the_table() -> None:
    kinds = {
        "openai": OpenAIJudge(model="m"),
        "recorded": RecordedJudge(path="x"),
        "local": LocalJudge(model="pocket"),
    }
    assert sorted(JUDGES.names()) == sorted(kinds)
    for kind, config in kinds.items():
        assert JUDGES.get(kind) is type(config)
        assert config.kind == kind


def test_settings_of_a_benchmark_choose_the_judge(tmp_path: Path) -> None:
    changed = override(Bench(), ["judge.url=http://x:1/v1", "judge.max_in_flight=2"])
    assert changed.judge == OpenAIJudge(
        model="gpt-4o-2024-05-13", url="http://x:1/v1", max_in_flight=2
    )
    other = override(Bench(), ["judge={kind: recorded}", f"judge.path={tmp_path}/a b.jsonl"])
    assert other.judge == RecordedJudge(path=f"{tmp_path}/a b.jsonl")
    own = override(Bench(), ["judge={kind: local, model: pocket}", "judge.batch_size=3"])
    assert own.judge == LocalJudge(model="pocket", batch_size=3)
    extra = ["judge.extra={chat_template_kwargs: {enable_thinking: false}, max_tokens: null}"]
    judge = override(Bench(), extra).judge
    assert isinstance(judge, OpenAIJudge)
    assert judge.extra == {
        "chat_template_kwargs": {"enable_thinking": False},
        "max_tokens": None,
    }


def test_commands_of_the_page_have_valid_settings() -> None:
    blocks = re.findall(r"```console\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    given = [[word for word in shlex.split(one) if word.startswith("judge")] for one in lines]
    assert sum(map(bool, given)) >= 7
    for assignments in given:
        override(Bench(), assignments)


def test_results_name_the_variable_and_never_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-secret")
    settings = to_dict(OpenAIJudge(model="m"))
    assert settings["key_variable"] == "OPENAI_API_KEY"
    assert "secret" not in json.dumps(settings)


@pytest.mark.parametrize(
    ("assignments", "words"),
    [
        (["judge.model="], "model is empty"),
        (["judge.prompt_price=1"], "belong together"),
        (["judge.max_cost=1"], "max_cost needs prompt_price"),
        (["judge.max_cost=0"], "judge.max_cost must be above 0"),
        (["judge.max_requests=0"], "judge.max_requests must be at least 1"),
        (["judge.retries=-1"], "judge.retries must be at least 0"),
        (["judge={kind: recorded}"], "judge.path is required"),
        (["judge={kind: openai}"], "judge.model is required"),
    ],
)
def test_wrong_settings_are_refused(assignments: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        override(Bench(), assignments)


def test_a_server_is_asked_once_and_then_played(server: Any, tmp_path: Path) -> None:
    cache = tmp_path / "new" / "answers"
    judge = OpenAIJudge(
        model="m", url=server.url, key_variable="", cache=str(cache), extra={"seed": 3}
    )
    requests = [ChatRequest(parts=(f"question {k}",)) for k in range(3)]
    first = sorted(ask(judge.build(), requests, str.upper), key=lambda pair: pair[0])
    assert len(server.bodies) == 3
    assert {body["seed"] for body in server.bodies} == {3}
    again = sorted(ask(judge.build(), requests, str.upper), key=lambda pair: pair[0])
    assert again == first
    file = tmp_path / "answers.jsonl"
    export_answers(cache, file)
    played = RecordedJudge(path=str(file), extra={"seed": 3}).build()
    assert played.name == judge.build().name == "m"
    assert sorted(ask(played, requests, str.upper), key=lambda pair: pair[0]) == first
    other = RecordedJudge(path=str(file)).build()  # other requests: without the field
    assert [one.outcome for _, one in ask(other, requests, str.upper)] == ["transport"] * 3
    assert len(server.bodies) == 3


def test_an_unreadable_answer_is_asked_again_and_kept_for_each_attempt(
    server: Any, tmp_path: Path
) -> None:
    def read(text: str) -> int | None:
        return 1 if text.startswith("2") else None

    judge = OpenAIJudge(model="m", url=server.url, key_variable="", cache=str(tmp_path))
    request = ChatRequest(parts=("question",))
    for _ in range(2):
        ((_, reading),) = ask(judge.build(), [request], read, attempts=3)
        assert (reading.outcome, reading.value) == ("judged", 1)
        assert reading.texts == ["1: question", "2: question"]
    assert len(server.bodies) == 2


def test_caps_hold_over_several_builds(server: Any, tmp_path: Path) -> None:
    judge = OpenAIJudge(
        model="m", url=server.url, key_variable="", cache=str(tmp_path), max_requests=2
    )
    requests = [ChatRequest(parts=(f"question {k}",)) for k in range(5)]
    for _ in range(2):
        with pytest.raises(PreemptedError, match="2 of 2 requests"):
            list(judge.build().answers(requests))
    assert len(server.bodies) == 2


def test_without_a_folder_the_answers_are_in_the_users_cache(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    judge = OpenAIJudge(model="org/model:1", url=server.url, key_variable="")
    list(judge.build().answers([ChatRequest(parts=("question",))]))
    assert list(tmp_path.glob("blip3o/judges/org-model-1/answers/*/*.json"))


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    judge = OpenAIJudge(
        model="m", url="http://127.0.0.1:1", key_variable="", cache=str(tmp_path / "file")
    )
    with pytest.raises(UsageError, match="is a file"):
        judge.build()


def in_order(model: LocalModel, requests: list[ChatRequest]) -> list[Answer]:
    return [one for _, one in sorted(model.answers(requests), key=lambda pair: pair[0])]


def test_an_own_model_answers_like_its_pipeline(tiny_folder: Path) -> None:
    model = LocalJudge(model=str(tiny_folder), dtype="fp32", device="cpu", batch_size=2).build()
    pipe = Blip3oPipeline.from_pretrained(tiny_folder, dtype="fp32", device="cpu")
    colors = ("red", "blue", "green")
    plain = [
        ChatRequest(parts=(image(color), f"{color}?"), max_tokens=4 + (color == "blue"))
        for color in colors
    ]
    several = ChatRequest(parts=(image("red"), "and", image("blue"), "same?"), max_tokens=4)
    none = ChatRequest(parts=("a dog?",), max_tokens=4)
    answers = in_order(model, [*plain, several, none])
    expected = [
        pipe.ask(Image.new("RGB", (12, 12), color), f"{color}?", max_new_tokens=one.max_tokens)
        for color, one in zip(colors, plain, strict=True)
    ]
    assert [one.text for one in answers[:3]] == expected
    assert answers[4].text == pipe.ask(None, "a dog?", max_new_tokens=4)
    assert all(one.outcome in {"answered", "cut", "empty"} for one in answers)
    assert {one.model for one in answers} == {model.name}


def test_the_name_of_an_own_model_states_its_weights(
    tiny_folder: Path, tmp_path: Path, tiny_pipe: Blip3oPipeline
) -> None:
    copy = tmp_path / tiny_folder.name
    shutil.copytree(tiny_folder, copy)
    name = LocalJudge(model=str(tiny_folder), device="cpu").build().name
    assert re.fullmatch(rf"{tiny_folder.name}-[0-9a-f]{{8}}", name)
    assert LocalJudge(model=str(copy), device="cpu").build().name == name
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config, indent=4))
    assert LocalJudge(model=str(copy), device="cpu").build().name != name


def test_outcomes_of_an_own_model(
    tiny_pipe: Blip3oPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = iter([["yes", ""]])
    monkeypatch.setattr(tiny_pipe, "answer_batch", lambda *given, **named: next(said))
    requests = [ChatRequest(parts=(image("red"), "cat?"), max_tokens=30)] * 2
    answers = in_order(LocalModel(tiny_pipe, "tiny"), requests)
    assert [one.outcome for one in answers] == ["answered", "empty"]
    monkeypatch.setattr(tiny_pipe, "answer_batch", lambda *given, **named: ["yes, a cat"])
    short = ChatRequest(parts=(image("red"), "cat?"), max_tokens=2)
    (answer,) = in_order(LocalModel(tiny_pipe, "tiny"), [short])
    assert answer.outcome == "cut"


def test_an_own_model_has_no_probabilities_and_no_fields_of_servers(
    tiny_pipe: Blip3oPipeline,
) -> None:
    model = LocalModel(tiny_pipe, "tiny")
    with pytest.raises(UsageError, match="no probabilities"):
        list(model.answers([ChatRequest(parts=("cat?",), top_logprobs=5)]))
    with pytest.raises(UsageError, match="no setting 'top_p'"):
        list(model.answers([ChatRequest(parts=("cat?",), extra={"top_p": 0.5})]))
    thinking = {"chat_template_kwargs": {"enable_thinking": False}}
    assert len(in_order(model, [ChatRequest(parts=("cat?",), max_tokens=2, extra=thinking)])) == 1


def test_a_missing_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        LocalJudge(model=str(tmp_path / "none")).build()
