"""The batch protocol: lines of requests, pages of lists, and results in two files."""

import json
from typing import Any

import pytest

from blip3o.core.errors import UsageError
from blip3o.remote.batches import BatchClient, UnknownBatchError
from blip3o.remote.chat import Answer, ChatRequest
from blip3o.remote.http import ServerSettings, TransientError

Server = Any  # the class in tests/unit/conftest.py


@pytest.fixture
def client(server: Server) -> BatchClient:
    settings = {"model": "m", "key_variable": "", "retries": 1, "pause_s": 0.01}
    return BatchClient(ServerSettings(url=f"{server.url}/chat/completions", **settings))


def lines(client: BatchClient, count: int) -> list[bytes]:
    texts = [f"question {number}" for number in range(count)]
    return [client.line(text, ChatRequest(parts=(text,))) for text in texts]


def test_a_line_holds_the_body_of_the_request(client: BatchClient) -> None:
    request = ChatRequest(parts=("why?",), system="be brief", extra={"top_p": 0.5})
    line = client.line("key", request)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert json.loads(line) == {
        "custom_id": "key",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {
            "model": "m",
            "messages": [
                {"role": "system", "content": "be brief"},
                {"role": "user", "content": "why?"},
            ],
            "max_tokens": 512,
            "temperature": 0.0,
            "top_p": 0.5,
        },
    }


def test_answers_come_back_by_their_keys(client: BatchClient, server: Server) -> None:
    server.reply = lambda call: (
        server.error(429) if call.prompt == "question 1" else server.text(call.prompt.upper())
    )
    batch = client.start(client.upload(lines(client, 3)), may_exist=False)
    assert not batch.is_over
    while not batch.is_over:
        batch = client.look(batch.id)
    keys = ["question 0", "question 1", "question 2", "question 3"]
    results = client.results(batch, keys)
    assert list(results) == keys
    texts = [one.text for one in results.values() if isinstance(one, Answer)]
    assert texts == ["QUESTION 0", "QUESTION 2"]
    failed, missing = results["question 1"], results["question 3"]
    assert isinstance(failed, TransientError)
    assert not failed.is_charged
    assert isinstance(missing, TransientError)
    assert missing.is_charged, "a completed batch may have answered it"


def test_a_client_lists_all_batches_before_it_creates_a_second_one(
    client: BatchClient, server: Server
) -> None:
    files = [client.upload(lines(client, 1)) for _ in range(6)]
    first = client.start(files[0], may_exist=True)
    for file in files[1:5]:
        client.start(file, may_exist=False)
    assert client.start(files[0], may_exist=True) == first, "it is on the third page"
    assert len(server.batches.all) == 5
    assert client.start(files[5], may_exist=True).file == files[5]
    assert len(server.batches.all) == 6


def test_without_a_list_no_second_batch_is_created(client: BatchClient, server: Server) -> None:
    file = client.upload(lines(client, 1))
    server.batches.before = lambda step: server.error(404) if step == "list" else None
    with pytest.raises(UnknownBatchError, match="it is unknown whether"):
        client.start(file, may_exist=True)
    assert not server.batches.all


@pytest.mark.parametrize("reply", [b"{}", b"[]", b"no", b'{"id": 3}'])
def test_a_broken_answer_is_asked_again(reply: bytes, client: BatchClient, server: Server) -> None:
    server.batches.before = lambda step: server.raw(reply)
    with pytest.raises(TransientError):
        client.upload(lines(client, 1))
    assert server.batches.steps["upload"] == 2


def test_a_server_that_is_not_there_is_named(server: Server) -> None:
    settings = ServerSettings(
        model="m", url="http://127.0.0.1:9/v1", key_variable="", retries=0, pause_s=0.01
    )
    with pytest.raises(UsageError, match="cannot reach"):
        BatchClient(settings).upload([b"{}\n"])
