"""Chat requests in batches: the same set, one upload of each request, and caps to the request."""

import itertools
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blip3o.core.errors import PreemptedError, UsageError
from blip3o.curate.run import Curation

Server = Any  # the class in tests/unit/conftest.py
Lab = Any  # the class in conftest.py
FAST = {"batch": True, "batch_wait_s": 0.3, "batch_poll_s": 0.1}


def chats(server: Server) -> list[Any]:
    """Returns the requests that can be in batches."""
    return [one for one in server.calls if "messages" in one.body]


def keys_of(server: Server) -> list[list[str]]:
    """Returns the keys of the requests in each batch that the server has made."""
    files = [server.batches.files[one["input_file_id"]] for one in server.batches.all]
    return [[json.loads(line)["custom_id"] for line in file.splitlines()] for file in files]


def rows_of(server: Server) -> Counter[str]:
    """Returns how often each request was in a batch."""
    return Counter(itertools.chain.from_iterable(keys_of(server)))


def spent(out: Path) -> Any:
    return json.loads((out / "requests" / "spent.json").read_bytes())


def wait_for_batches(out: Path) -> None:
    """Waits until no process works on a batch."""
    ends = time.monotonic() + 60
    while any((out / "requests" / "senders").glob("batch-*")):
        assert time.monotonic() < ends, "a batch does not end"
        time.sleep(0.05)


def kill_broker(out: Path) -> None:
    senders = (out / "requests" / "senders").iterdir()
    sender = next(one for one in senders if not one.name.startswith("batch-"))
    os.kill(json.loads(sender.read_bytes())["pid"], signal.SIGKILL)


def test_a_run_through_batches_is_the_direct_one_to_the_byte(
    lab: Lab, server: Server, tmp_path: Path
) -> None:
    lab.finish(lab.config(), tmp_path / "direct")
    direct = Counter(map(lab.key_of, server.calls))
    server.calls.clear()
    config = lab.config(FAST, unit_size=12)
    lab.finish(config, tmp_path / "batched")
    assert Counter(map(lab.key_of, server.calls)) == direct
    assert set(rows_of(server).values()) == {1}
    assert rows_of(server).total() == len(chats(server)), "none went by itself"
    assert len(server.batches.all) <= 8, "two units and two judges, in two attempts at most"
    assert not list((tmp_path / "batched" / "requests" / "batches").iterdir())
    assert spent(tmp_path / "batched") == spent(tmp_path / "direct")
    lab.finish(lab.config(unit_size=12), tmp_path / "direct")
    assert lab.content_of(tmp_path / "batched") == lab.content_of(tmp_path / "direct")
    num_calls = len(server.calls)
    lab.finish(lab.config(unit_size=12), tmp_path / "batched")
    assert len(server.calls) == num_calls, "the answers of batches are those of requests"


def test_a_full_batch_does_not_wait_and_is_never_larger(
    lab: Lab, server: Server, tmp_path: Path
) -> None:
    served = {**FAST, "batch_size": 3, "batch_wait_s": 2.0}
    stages = list(lab.config().stages[:3])
    config = lab.config(served, unit_size=24, stages=[dict(vars(one)) for one in stages])
    assert Curation(config, tmp_path / "run").run() is not None
    sizes = [
        len(server.batches.files[one["input_file_id"]].splitlines()) for one in server.batches.all
    ]
    assert sizes == [3] * 8


STEPS = ("upload", "create", "look", "content")


@pytest.mark.slow
@pytest.mark.parametrize("is_done", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_a_killed_broker_goes_on_with_its_batch(
    step: str, is_done: bool, lab: Lab, server: Server, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    kills: list[str] = []

    def kill(now: str) -> None:
        if now == step and not kills:
            kills.append(now)
            kill_broker(out)

    setattr(server.batches, "after" if is_done else "before", kill)
    served = {**FAST, "prompt_price": 1.0, "completion_price": 1.0}
    drafts = lab.finish(lab.config(served, unit_size=12), out)
    assert kills
    assert all(not one.dropped for one in drafts)
    assert set(rows_of(server).values()) == {1}
    num_uploads = server.batches.steps["upload"] - (step == "upload")
    assert num_uploads == len(server.batches.all)
    # The id of a batch is on the disk before it is looked at; only without one a list is needed.
    assert bool(server.batches.steps["list"]) == (step == "create")
    # The answers cost the same as if nobody had been killed: a file without a batch is paid back.
    num_answers = len(chats(server))
    painted = len(server.calls) - num_answers
    assert spent(out)["num_requests"] == len(server.calls)
    assert spent(out)["cost"] == pytest.approx(painted + num_answers * 110 / 1e6)


FAULTS: dict[str, Callable[[Any], Any]] = {
    "429": lambda server: server.error(429),
    "500": lambda server: server.error(500),
    "cut": lambda server: server.raw(b'{"choices": [{"mess', is_cut=True),
    "no completion": lambda server: server.raw(b'{"choices": []}'),
}


@pytest.mark.parametrize("name", FAULTS)
def test_failed_rows_go_into_a_further_batch(
    name: str, lab: Lab, server: Server, tmp_path: Path
) -> None:
    lab.finish(lab.config(num_drafts=4), tmp_path / "calm")
    server.calls.clear()
    seen: Counter[str] = Counter()

    def reply(call: Any) -> Any:
        seen[lab.key_of(call)] += 1
        is_faulty = "messages" in call.body and seen[lab.key_of(call)] == 1 and len(seen) % 2
        return FAULTS[name](server) if is_faulty else lab.answer(call)

    server.reply = reply
    lab.finish(lab.config(FAST, num_drafts=4), tmp_path / "stormy")
    assert max(seen.values()) == 2
    assert lab.content_of(tmp_path / "calm") == lab.content_of(tmp_path / "stormy")
    assert spent(tmp_path / "stormy")["num_requests"] == len(server.calls)


def test_a_request_that_always_fails_is_tried_later(
    lab: Lab, server: Server, tmp_path: Path
) -> None:
    server.reply = lambda call: (
        server.error(500, "busy") if "messages" in call.body else lab.answer(call)
    )
    served = {**FAST, "retries": 1, "prompt_price": 1.0}
    with pytest.raises(PreemptedError, match=r"did not answer: HTTP 500: busy \(2 batches\)"):
        lab.finish(lab.config(served, unit_size=24), tmp_path / "run")
    assert set(rows_of(server).values()) == {2}
    assert spent(tmp_path / "run")["cost"] == 24, "failed rows cost nothing, images do"
    server.reply = lab.answer
    drafts = lab.finish(lab.config(served, unit_size=24), tmp_path / "run")
    assert all(not one.dropped for one in drafts)


def test_refusals_in_a_batch_are_answers(lab: Lab, server: Server, tmp_path: Path) -> None:
    def reply(call: Any) -> Any:
        if "messages" in call.body and call.earlier == 0 and len(chats(server)) == 1:
            return server.error(400, "no", code="content_filter")
        return lab.answer(call)

    server.reply = reply
    stages = [dict(vars(one)) for one in lab.config().stages[:3]]
    config = lab.config(FAST, unit_size=24, stages=stages)
    assert Curation(config, tmp_path / "run").run() is not None
    entries = [
        json.loads(one.read_bytes()) for one in (tmp_path / "run/requests").glob("??/*.json")
    ]
    refused = [one["text"] for one in entries if one["outcome"] == "refusal"]
    assert refused == ["no"]
    assert len(server.calls) == 24 + 24 + 1, "the judge asks once more in other words"
    Curation(config, tmp_path / "run").run()
    assert len(server.calls) == 49, "a refusal is not asked again"


@pytest.mark.parametrize("end", ["expired", "cancelled", "failed"])
def test_what_a_batch_does_not_answer_goes_into_another(
    end: str, lab: Lab, server: Server, tmp_path: Path
) -> None:
    server.batches.end, server.batches.num_answered = end, 0 if end == "failed" else 5
    if end == "failed":
        server.batches.errors = [{"code": "token_limit_exceeded", "message": "full", "line": None}]

    def recover(step: str) -> None:
        if step == "create" and len(server.batches.all) == 2:
            server.batches.end, server.batches.errors = "completed", []

    server.batches.after = recover
    served = {**FAST, "prompt_price": 1.0, "completion_price": 1.0}
    drafts = lab.finish(lab.config(served, unit_size=24), tmp_path / "run")
    assert all(not one.dropped for one in drafts)
    assert set(Counter(map(lab.key_of, server.calls)).values()) == {1}, "none is answered twice"
    assert rows_of(server).total() == len(chats(server)) + 24 - server.batches.num_answered
    cost = len(server.calls) - len(chats(server)) + len(chats(server)) * 110 / 1e6
    assert spent(tmp_path / "run")["cost"] == pytest.approx(cost)


def test_a_batch_that_the_server_finds_wrong_stops_the_run(
    lab: Lab, server: Server, tmp_path: Path
) -> None:
    server.batches.end = "failed"
    server.batches.errors = [{"code": "model_not_found", "message": "no such model", "line": 1}]
    served = {**FAST, "prompt_price": 1.0}
    with pytest.raises(UsageError, match="no such model"):
        lab.finish(lab.config(served, unit_size=24), tmp_path / "run")
    assert len(server.batches.all) == 1
    assert spent(tmp_path / "run")["cost"] == 24, "nothing was asked"


@pytest.mark.parametrize("cap", [25, 31])
def test_a_cap_holds_in_batches(cap: int, lab: Lab, server: Server, tmp_path: Path) -> None:
    with pytest.raises(PreemptedError, match="stopped at the cap"):
        lab.finish(lab.config(FAST, unit_size=24, max_requests=cap), tmp_path / "run")
    wait_for_batches(tmp_path / "run")
    assert len(server.calls) == cap
    assert rows_of(server).total() == cap - 24
    lab.finish(lab.config(FAST, unit_size=24), tmp_path / "run")
    assert set(rows_of(server).values()) == {1}
    assert set(Counter(map(lab.key_of, server.calls)).values()) == {1}


def test_an_answer_that_is_lost_on_its_way_creates_no_second_batch(
    lab: Lab, server: Server, tmp_path: Path
) -> None:
    def drop(step: str) -> Any:
        is_first = step == "create" and server.batches.steps["create"] == 1
        return server.raw(b'{"id": "batch_', is_cut=True) if is_first else None

    server.batches.after = drop
    lab.finish(lab.config(FAST, unit_size=24), tmp_path / "run")
    assert server.batches.steps["list"] >= 1
    assert set(rows_of(server).values()) == {1}


def test_a_refused_batch_is_paid_back(lab: Lab, server: Server, tmp_path: Path) -> None:
    server.batches.before = lambda step: (
        server.error(400, "no batches here") if step == "create" else None
    )
    served = {**FAST, "prompt_price": 1.0}
    with pytest.raises(UsageError, match="no batches here"):
        lab.finish(lab.config(served, unit_size=24), tmp_path / "run")
    assert spent(tmp_path / "run") == {
        "num_requests": 24,
        "cost": 24.0,
        "accounts": {
            "draw": {"num_requests": 24, "cost": 24.0},
            "judge": {"num_requests": 0, "cost": 0.0},
        },
    }


def test_a_batch_that_the_server_has_forgotten_is_asked_again_only_on_demand(
    lab: Lab, server: Server, tmp_path: Path
) -> None:
    out = tmp_path / "run"

    def forget(step: str) -> None:
        if step == "create" and len(server.batches.all) == 1:
            kill_broker(out)
            server.batches.before = lambda step: (
                server.error(404, "no such batch") if step in ("look", "list") else None
            )

    server.batches.after = forget
    config = lab.config(FAST, unit_size=24)
    for _ in range(2):
        with pytest.raises(UsageError, match=r"no such batch.*--lost ask"):
            lab.finish(config, out)
    assert set(rows_of(server).values()) == {1}
    server.batches.before = lambda step: (
        server.error(404, "no such batch") if step == "list" else None
    )
    drafts = Curation(config, out, lost="ask").run()
    assert drafts is not None
    assert all(not one.dropped for one in drafts)
    assert max(rows_of(server).values()) == 2
