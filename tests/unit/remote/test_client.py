"""The client against a real server: outcomes, attempts, pauses, limits, and the requests."""

import base64
import dataclasses
import email.utils
import json
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from blip3o.core.errors import UsageError
from blip3o.remote.chat import Answer, ChatImage, ChatRequest
from blip3o.remote.client import ChatClient, read_answer
from blip3o.remote.http import ServerSettings, retry_after_s

Questions = Callable[[int], list[ChatRequest]]
Server = Any  # the class in conftest.py
YES = ChatRequest(parts=("is it a cat?",))


def ask_all(model: ChatClient, requests: Sequence[ChatRequest]) -> list[Answer]:
    """Returns the answers in the order of the requests, and checks that each came once."""
    found = list(model.answers(requests))
    assert sorted(number for number, _ in found) == list(range(len(requests)))
    return [answer for _, answer in sorted(found, key=lambda pair: pair[0])]


def ask_one(settings: ServerSettings, request: ChatRequest = YES) -> Answer:
    (answer,) = ask_all(ChatClient(settings), [request])
    return answer


def test_an_answer_keeps_what_the_server_states(server: Server, settings: ServerSettings) -> None:
    assert ask_one(settings) == Answer(
        outcome="answered",
        text="answer to is it a cat?",
        model="judge-1-0613",
        fingerprint="fp_1",
        prompt_tokens=100,
        completion_tokens=10,
    )
    assert len(server.calls) == 1


@pytest.mark.parametrize(
    ("content", "finish", "message", "outcome", "text"),
    [
        ("Well, I think it is.", "stop", {}, "answered", "Well, I think it is."),
        (None, "stop", {"refusal": "I cannot help."}, "refusal", "I cannot help."),
        ("I cannot", "content_filter", {}, "refusal", "I cannot"),
        ("", "stop", {}, "empty", ""),
        (" \n", "stop", {}, "empty", " \n"),
        (None, "stop", {}, "empty", ""),
        ("Consistency: 1\nReal", "length", {}, "cut", "Consistency: 1\nReal"),
        (None, "length", {"reasoning_content": "hm"}, "cut", ""),
        ([{"text": "ye"}, {"type": "text", "text": "s"}], "stop", {}, "answered", "yes"),
        ("half \ud83d", "stop", {}, "answered", "half \ufffd"),
    ],
)  # fmt: skip
def test_outcomes_of_complete_answers(
    server: Server,
    settings: ServerSettings,
    content: object,
    finish: str,
    message: dict[str, object],
    outcome: str,
    text: str,
) -> None:
    server.reply = lambda call: server.text(content, finish, message=message)
    answer = ask_one(settings)
    assert (answer.outcome, answer.text) == (outcome, text)
    assert len(server.calls) == 1  # none of these is asked again


@pytest.mark.parametrize(
    "body",
    [
        b"<html>busy</html>",
        b"",
        b"{}",
        b"[]",
        b"null",
        b'{"choices": []}',
        b'{"choices": [{"message": {"content": 3}}]}',
        b'{"choices": [{"message": "yes"}]}',
        b'{"error": {"message": "overloaded"}}',
        b"[" * 100_000,
        b'{"choices": [{"message": {"content": "y',
    ],
)
def test_a_broken_body_is_asked_again_and_then_a_fault_of_the_transport(
    server: Server, settings: ServerSettings, body: bytes
) -> None:
    server.reply = lambda call: server.raw(body)
    answer = ask_one(settings)
    assert answer.outcome == "transport"
    assert "3 attempts" in answer.text
    assert len(server.calls) == 3
    server.reply = lambda call: server.raw(body) if call.earlier < 4 else server.text()
    assert ask_one(settings).outcome == "answered"


@pytest.mark.parametrize("trouble", ["500", "503", "429", "408", "cut", "hang"])
def test_a_passing_trouble_is_overcome(
    server: Server, settings: ServerSettings, trouble: str
) -> None:
    limit_s = 1.0

    def reply(call: Any) -> Any:
        if call.earlier:
            return server.text("at last")
        if trouble.isdecimal():
            return server.error(int(trouble))
        if trouble == "cut":
            return server.text(is_cut=True)
        return server.text(wait_s=2 * limit_s)

    server.reply = reply
    answer = ask_one(dataclasses.replace(settings, timeout_s=limit_s))
    assert (answer.outcome, answer.text) == ("answered", "at last")
    assert len(server.calls) == 2


@pytest.mark.parametrize("trouble", ["500", "429", "cut", "hang"])
def test_a_lasting_trouble_is_a_fault_of_the_transport(
    server: Server, settings: ServerSettings, trouble: str
) -> None:
    server.reply = lambda call: (
        server.error(int(trouble), "too busy")
        if trouble.isdecimal()
        else server.text(is_cut=trouble == "cut", wait_s=0.6 if trouble == "hang" else 0.0)
    )
    answer = ask_one(dataclasses.replace(settings, timeout_s=0.2 if trouble == "hang" else 5.0))
    assert answer.outcome == "transport"
    assert {"500": "HTTP 500: too busy", "cut": "connection", "hang": "0.2 s"}.get(
        trouble, "HTTP 429"
    ) in answer.text
    assert len(server.calls) == 3


def test_an_answer_byte_by_byte_ends_at_the_time_limit(settings: ServerSettings) -> None:
    """Some servers send spaces while their model works, so each single wait is short."""
    listener = socket.create_server(("127.0.0.1", 0))

    def drip() -> None:
        while True:
            try:
                connection, _ = listener.accept()
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n")
                for _ in range(60):
                    connection.sendall(b" ")
                    time.sleep(0.05)
            except OSError:
                return

    threading.Thread(target=drip, daemon=True).start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    start = time.monotonic()
    answer = ask_one(dataclasses.replace(settings, url=url, timeout_s=0.3, retries=0))
    listener.close()
    assert answer.outcome == "transport"
    assert time.monotonic() - start < 2.5


def test_retry_after_is_honored_by_all_requests(
    server: Server, settings: ServerSettings, questions: Questions
) -> None:
    both_there = threading.Event()

    def reply(call: Any) -> Any:
        if call is server.calls[0]:
            both_there.wait(5)
            return server.error(429, retry_after="1.2")
        both_there.set()
        return server.text(wait_s=0.6 if len(server.calls) == 2 else 0.0)

    server.reply = reply
    answers = ask_all(ChatClient(dataclasses.replace(settings, max_in_flight=2)), questions(6))
    assert {one.outcome for one in answers} == {"answered"}
    times = sorted(call.at for call in server.calls)
    assert len(times) == 7
    assert times[2] - times[0] >= 1.2


def test_retry_after_takes_seconds_and_dates() -> None:
    def pause(after: str, date: str | None = None) -> float | None:
        import httpx

        headers = {"retry-after": after} | ({"date": date} if date else {})
        return retry_after_s(httpx.Response(429, headers=headers).headers)

    now = time.time()
    own_clock = email.utils.formatdate(now, usegmt=True)
    assert pause("7") == 7
    assert pause("0.25") == 0.25
    assert pause("-3") == 0
    assert pause("nan") is None
    assert pause("soon") is None
    assert pause("") is None
    assert pause(email.utils.formatdate(now + 20, usegmt=True), own_clock) == 20
    assert pause(email.utils.formatdate(now + 20, usegmt=True)) == pytest.approx(20, abs=3)
    assert pause(email.utils.formatdate(now - 20, usegmt=True), own_clock) == 0
    wrong_clock = email.utils.formatdate(now + 3600, usegmt=True)
    assert pause(email.utils.formatdate(now + 3605, usegmt=True), wrong_clock) == 5


def test_a_pause_beyond_the_limit_ends_the_request(
    server: Server, settings: ServerSettings
) -> None:
    server.reply = lambda call: server.error(429, "daily limit", retry_after="86400")
    start = time.monotonic()
    answer = ask_one(settings)
    assert answer.outcome == "transport"
    assert "86400 s" in answer.text
    assert "longest_pause_s" in answer.text
    assert len(server.calls) == 1
    assert time.monotonic() - start < 2


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (lambda s: s.error(401, "wrong key"), ["HTTP 401: wrong key", "key"]),
        (lambda s: s.error(404, "no such model"), ["HTTP 404: no such model", "'judge'"]),
        (lambda s: s.error(400, "max_tokens\nis old"), ["HTTP 400: max_tokens;", "extra"]),
        (lambda s: s.error(429, "pay", "insufficient_quota"), ["credit"]),
        (lambda s: s.raw(b"", status=302, headers={"location": "http://x/v1"}), ["http://x/v1"]),
    ],
)
def test_a_refused_client_stops_at_once(
    server: Server,
    settings: ServerSettings,
    questions: Questions,
    reply: Callable[[Any], Any],
    words: list[str],
) -> None:
    server.reply = lambda call: reply(server)
    with pytest.raises(UsageError) as caught:
        list(ChatClient(dataclasses.replace(settings, max_in_flight=2)).answers(questions(20)))
    assert all(word in str(caught.value) for word in words), caught.value
    assert "\n" not in str(caught.value)
    assert len(server.calls) <= 2  # those in flight


def test_answers_in_flight_come_before_the_error(
    server: Server, settings: ServerSettings, questions: Questions
) -> None:
    server.reply = lambda call: (
        server.error(401) if call.prompt == "question 0" else server.text(wait_s=1.0)
    )
    answers = ChatClient(dataclasses.replace(settings, max_in_flight=4)).answers(questions(20))
    found = sorted(next(answers)[0] for _ in range(3))
    assert found == [1, 2, 3]
    with pytest.raises(UsageError, match="401"):
        next(answers)
    assert len(server.calls) == 4


def test_a_filter_of_the_server_is_a_refusal(server: Server, settings: ServerSettings) -> None:
    server.reply = lambda call: server.error(400, "not this", "content_filter")
    answer = ask_one(settings)
    assert (answer.outcome, answer.text) == ("refusal", "not this")


def test_a_server_that_is_not_there_is_said_once(settings: ServerSettings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(UsageError, match=r"cannot reach .*check the url"):
        ask_one(dataclasses.replace(settings, url=url))


def test_a_server_that_goes_away_is_a_fault_of_the_transport(
    server: Server, settings: ServerSettings
) -> None:
    client = ChatClient(settings)
    assert ask_all(client, [YES])[0].outcome == "answered"
    server.shutdown()
    server.socket.close()
    client._server._http.close()
    client._server._http = ChatClient(settings)._server._http  # without the open connection
    assert ask_all(client, [YES])[0].outcome == "transport"
    server.socket = socket.create_server(("127.0.0.1", 0))  # for the end of the fixture


def test_several_requests_are_in_flight_and_answers_come_as_they_are_there(
    server: Server, settings: ServerSettings, questions: Questions
) -> None:
    server.reply = lambda call: server.text(
        call.prompt, wait_s=1.5 if call.prompt == "question 0" else 0.1
    )
    client = ChatClient(dataclasses.replace(settings, max_in_flight=3))
    order = [number for number, _ in client.answers(questions(8))]
    assert order[-1] == 0
    assert sorted(order) == list(range(8))
    assert server.most_at_once == 3


def test_no_request_starts_before_an_answer_is_taken(
    server: Server, settings: ServerSettings, questions: Questions
) -> None:
    client = ChatClient(dataclasses.replace(settings, max_in_flight=3))
    answers = client.answers(questions(10))
    next(answers)
    time.sleep(0.5)
    assert len(server.calls) == 3  # so a kill here loses two answers
    answers.close()  # type: ignore[attr-defined]
    time.sleep(0.1)
    assert len(server.calls) == 3


def test_requests_per_minute(
    server: Server, settings: ServerSettings, questions: Questions
) -> None:
    client = ChatClient(dataclasses.replace(settings, requests_per_minute=1200.0))
    start = time.monotonic()
    ask_all(client, questions(9))
    assert max(call.at for call in server.calls) - start >= 8 * 0.05


def test_the_body_of_a_request(server: Server, settings: ServerSettings) -> None:
    images = [ChatImage(b"first"), ChatImage(b"second", "image/jpeg")]
    request = ChatRequest(
        parts=("before", images[0], "between", images[1]),
        system="Be strict.",
        temperature=0.5,
        max_tokens=20,
        extra={"chat_template_kwargs": {"enable_thinking": False}},
    )
    ask_one(settings, request)
    (call,) = server.calls
    urls = [f"data:{one.media_type};base64,{base64.b64encode(one.data).decode()}" for one in images]
    assert call.body == {
        "model": "judge",
        "messages": [
            {"role": "system", "content": "Be strict."},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "before"},
                    {"type": "image_url", "image_url": {"url": urls[0]}},
                    {"type": "text", "text": "between"},
                    {"type": "image_url", "image_url": {"url": urls[1]}},
                ],
            },
        ],
        "max_tokens": 20,
        "temperature": 0.5,
        "chat_template_kwargs": {"enable_thinking": False},
    }
    assert "authorization" not in call.headers


def test_extra_fields_replace_and_remove(server: Server, settings: ServerSettings) -> None:
    request = dataclasses.replace(
        YES, temperature=None, extra={"max_tokens": None, "max_completion_tokens": 9}
    )
    ask_one(settings, request)
    assert server.calls[0].body == {
        "model": "judge",
        "messages": [{"role": "user", "content": "is it a cat?"}],
        "max_completion_tokens": 9,
    }
    with pytest.raises(UsageError, match="extra cannot hold 'messages'"):
        ask_one(settings, dataclasses.replace(YES, extra={"messages": []}))


def test_log_probabilities_of_the_first_token(server: Server, settings: ServerSettings) -> None:
    likeliest = [{"token": "yes", "logprob": -0.1}, {"token": " no", "logprob": -2.5}]
    later = [{"token": "!", "logprob": -0.0}]
    content = [{"token": "yes", "logprob": -0.1, "top_logprobs": likeliest}]
    content.append({"token": "!", "logprob": 0.0, "top_logprobs": later})
    server.reply = lambda call: server.text(choice={"logprobs": {"content": content}})
    request = dataclasses.replace(YES, top_logprobs=2)
    assert ask_one(settings, request).first_token == (("yes", -0.1), (" no", -2.5))
    assert server.calls[0].body["logprobs"] is True
    assert server.calls[0].body["top_logprobs"] == 2
    server.reply = lambda call: server.text()
    with pytest.raises(UsageError, match="gives no log probabilities"):
        ask_one(settings, request)
    assert ask_one(settings).first_token == ()


def test_the_key_comes_from_the_environment_and_is_never_repeated(
    server: Server, settings: ServerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "sk-very-secret-123"
    monkeypatch.setenv("MY_KEY", f" {key}\n")
    settings = dataclasses.replace(settings, key_variable="MY_KEY")
    server.reply = lambda call: server.text(f"your key is {key}")
    assert ask_one(settings).text == "your key is [key]"
    assert server.calls[0].headers["authorization"] == f"Bearer {key}"
    server.reply = lambda call: server.error(401, f"Incorrect API key: {key}")
    with pytest.raises(UsageError) as caught:
        ask_one(settings)
    assert key not in str(caught.value)
    assert "MY_KEY" in str(caught.value)
    server.reply = lambda call: server.error(500, f"Incorrect API key: {key}")
    assert key not in ask_one(settings).text
    assert key not in repr(vars(ChatClient(settings))["_settings"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"url": "127.0.0.1:8000"}, "is not an address"),
        ({"url": "ftp://host/v1"}, "is not an address"),
        ({"url": "http://host:port/v1"}, "is not an address"),
        ({"url": "http://me:secret@host/v1"}, "holds a password"),
        ({"url": "https://api.openai.com/v1", "key_variable": "NO_SUCH"}, "NO_SUCH"),
        ({"key_variable": "BAD_KEY"}, "BAD_KEY does not hold a key"),
    ],
)
def test_wrong_settings_are_refused_at_once(
    settings: ServerSettings, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], words: str
) -> None:
    monkeypatch.setenv("BAD_KEY", "sk-12 34")
    with pytest.raises(UsageError, match=words) as caught:
        ChatClient(dataclasses.replace(settings, **change))
    assert "secret" not in str(caught.value)
    assert "sk-12" not in str(caught.value)


@pytest.mark.parametrize("end", ["", "/", "/chat/completions", "/chat/completions/", "?version=2"])
def test_forms_of_the_address(server: Server, settings: ServerSettings, end: str) -> None:
    assert ask_one(dataclasses.replace(settings, url=server.url + end)).outcome == "answered"


def test_the_name_states_the_revision(settings: ServerSettings) -> None:
    assert ChatClient(settings).name == "judge"
    assert ChatClient(dataclasses.replace(settings, revision="2026-01")).name == "judge@2026-01"


def test_no_requests(server: Server, settings: ServerSettings) -> None:
    assert ask_all(ChatClient(settings), []) == []
    assert server.calls == []


def test_a_completion_without_usage_is_read() -> None:
    body = {"choices": [{"message": {"content": "yes"}}], "usage": None}
    assert read_answer(json.dumps(body).encode()) == Answer(outcome="answered", text="yes")
