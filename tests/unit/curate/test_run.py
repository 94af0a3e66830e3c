"""Whole curations with a real server: order, caps, faults, changed settings, and killed workers."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from blip3o.core.errors import PreemptedError, UsageError
from blip3o.core.shard import Shard
from blip3o.curate.run import Curation

Server = Any  # the class in tests/unit/conftest.py
Lab = Any  # the class in conftest.py
NUM_DRAFTS, UNIT = 24, 4  # of the fixture `lab`


def test_a_run_asks_each_request_once_and_repeats_to_the_byte(
    lab: Lab, server: Server, tmp_path: Path
) -> None:
    config = lab.config()
    drafts = lab.finish(config, tmp_path / "one")
    first = Counter(map(lab.key_of, server.calls))
    assert set(first.values()) == {1}
    lab.finish(config, tmp_path / "one")
    assert Counter(map(lab.key_of, server.calls)) == first, "a finished run asks nothing"
    lab.finish(config, tmp_path / "two")
    assert lab.content_of(tmp_path / "one") == lab.content_of(tmp_path / "two")
    rejected = [one for one in drafts if one.failures]
    assert 0 < len(rejected) < NUM_DRAFTS
    pairs = (tmp_path / "one" / "preferences.jsonl").read_text("utf-8").splitlines()
    repaired = [one for one in rejected if one.image]
    assert len(pairs) == len(repaired) > 0
    for one in map(json.loads, pairs):
        assert (tmp_path / "one" / one["chosen"]).exists()
        assert (tmp_path / "one" / one["rejected"]).exists()
        assert one["chosen_scores"]["Alignment"] > one["rejected_scores"]["Alignment"]


def test_a_changed_stage_keeps_the_answers_before_it(
    lab: Lab, server: Server, tmp_path: Path
) -> None:
    config = lab.config()
    lab.finish(config, tmp_path / "run")
    num_calls = len(server.calls)
    stages = [dict(vars(one)) for one in config.stages]
    criteria = [{"name": "Alignment", "question": "q", "least": 9.5}]
    criteria.append({"name": "Quality", "question": "q", "least": 1.0})
    stages[4]["criteria"] = criteria
    changed = lab.config(stages=stages)
    drafts = Curation(changed, tmp_path / "run").run()
    assert drafts is not None
    images = [one for one in server.calls[num_calls:] if "prompt" in one.body]
    assert not images, "the images are there"
    assert len(server.calls) > num_calls, "the second judge is asked anew"
    assert sum(bool(one.image) for one in drafts) < NUM_DRAFTS


FAULTS = {
    "429": lambda server: server.error(429, Retry_After="0"),
    "500": lambda server: server.error(500),
    "cut": lambda server: server.raw(b'{"choices": [{"mess', is_cut=True),
    "hang": lambda server: server.text("late", wait_s=2.5),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_of_the_server_change_nothing(
    name: str, lab: Lab, server: Server, tmp_path: Path
) -> None:
    config = lab.config(num_drafts=4)
    lab.finish(config, tmp_path / "calm")
    server.calls.clear()
    seen: Counter[str] = Counter()

    def reply(call: Any) -> Any:
        seen[lab.key_of(call)] += 1
        is_faulty = seen[lab.key_of(call)] == 1 and len(seen) % 3 == 0
        return FAULTS[name](server) if is_faulty else lab.answer(call)

    server.reply = reply
    lab.finish(config, tmp_path / "stormy")
    assert max(seen.values()) == 2
    assert lab.content_of(tmp_path / "calm") == lab.content_of(tmp_path / "stormy")


def test_refusals_are_data(lab: Lab, server: Server, tmp_path: Path) -> None:
    def reply(call: Any) -> Any:
        if "cat" in call.body.get("prompt", ""):
            return server.error(400, "not cats", code="content_policy_violation")
        return lab.answer(call)

    server.reply = reply
    config = lab.config()
    drafts = lab.finish(config, tmp_path / "run")
    refused = [one for one in drafts if "cat" in one.prompt]
    assert refused
    assert {one.dropped for one in refused} == {"the model gave no image: not cats"}
    num_calls = len(server.calls)
    lab.finish(config, tmp_path / "run")
    assert len(server.calls) == num_calls, "a refusal is not asked again"


def test_the_further_fields_of_a_model_are_in_each_request(
    lab: Lab, server: Server, tmp_path: Path
) -> None:
    lab.finish(lab.config({"extra": {"style": "vivid"}}, num_drafts=4), tmp_path / "run")
    assert {one.body.get("style") for one in server.calls} == {"vivid"}


def num_calls_at_rest(server: Server) -> int:
    """Returns the number of calls when none has come for a while: some may be on their way."""
    count = -1
    while count != len(server.calls):
        count = len(server.calls)
        time.sleep(0.5)
    return count


@pytest.mark.parametrize("cap", [1, 7, 20])
def test_a_cap_is_kept_to_the_request_and_the_run_goes_on_after_it(
    cap: int, lab: Lab, server: Server, tmp_path: Path
) -> None:
    with pytest.raises(PreemptedError, match="stopped at the cap"):
        lab.finish(lab.config(max_requests=cap), tmp_path / "run")
    assert num_calls_at_rest(server) == cap
    lab.finish(lab.config(), tmp_path / "run")
    assert set(Counter(map(lab.key_of, server.calls)).values()) == {1}


def test_a_cap_of_money_is_kept(lab: Lab, server: Server, tmp_path: Path) -> None:
    with pytest.raises(PreemptedError, match="stopped at the cap"):
        lab.finish(lab.config(max_cost=5.0), tmp_path / "run")
    num_calls_at_rest(server)
    assert sum("prompt" in one.body for one in server.calls) == 5
    spent = json.loads((tmp_path / "run" / "requests" / "spent.json").read_bytes())
    assert spent["cost"] == pytest.approx(5.0)
    by_stage = {name: one["cost"] for name, one in spent["accounts"].items()}
    assert sum(by_stage.values()) == pytest.approx(5.0)
    assert by_stage["draw"] >= UNIT


def test_an_unknown_licence_is_refused_unless_allowed(lab: Lab, tmp_path: Path) -> None:
    models = [{**vars(one), "license": "unknown"} for one in lab.config().models]
    with pytest.raises(UsageError, match="licence of the answers of painter, judge is unknown"):
        Curation(lab.config(models=models), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    Curation(lab.config(models=models, allow_unknown_license=True), tmp_path / "run")


def test_shards_share_the_units(lab: Lab, server: Server, tmp_path: Path) -> None:
    config = lab.config()
    lab.finish(config, tmp_path / "whole")
    assert Curation(config, tmp_path / "parts").run(Shard(1, 2)) is None
    drafts = Curation(config, tmp_path / "parts").run(Shard(2, 2))
    assert drafts == Curation(config, tmp_path / "whole").drafts()


# -- killed workers --

NUM_WORKERS, NUM_KILLS = 3, 6


def start(file: Path, out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "blip3o", "data", "curate", str(file), "--out", str(out)]
    log = subprocess.DEVNULL
    return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


@pytest.mark.slow
def test_killed_workers_repeat_no_request_and_change_no_byte(
    lab: Lab, server: Server, tmp_path: Path
) -> None:
    from blip3o.core.config import save_yaml

    config = lab.config()
    save_yaml(config, tmp_path / "run.yaml")
    lab.finish(config, tmp_path / "calm")
    server.calls.clear()

    def reply(call: Any) -> Any:
        time.sleep(0.15)  # so that workers are killed while they wait for answers
        return lab.answer(call)

    server.reply = reply
    chance = random.Random(27)
    out = tmp_path / "killed"
    workers = [start(tmp_path / "run.yaml", out) for _ in range(NUM_WORKERS)]
    for _ in range(NUM_KILLS):
        wanted = len(server.calls) + chance.randrange(1, 6)
        ends = time.monotonic() + 30
        while len(server.calls) < wanted and time.monotonic() < ends:
            time.sleep(0.002)
        victim = chance.randrange(NUM_WORKERS)
        os.killpg(workers[victim].pid, signal.SIGKILL)
        workers[victim].wait()
        workers[victim] = start(tmp_path / "run.yaml", out)
    for one in workers:
        one.wait()
    assert start(tmp_path / "run.yaml", out).wait() == 0
    assert set(Counter(map(lab.key_of, server.calls)).values()) == {1}
    assert lab.content_of(out) == lab.content_of(tmp_path / "calm")


@pytest.mark.slow
def test_requests_of_a_killed_broker_are_asked_again_only_on_demand(
    lab: Lab, server: Server, tmp_path: Path
) -> None:
    config = lab.config()

    def killing(call: Any) -> Any:
        if len(server.calls) == 5:
            senders = (tmp_path / "run" / "requests" / "senders").iterdir()
            sender = next(one for one in senders if one.suffix != ".part")
            os.kill(json.loads(sender.read_bytes())["pid"], signal.SIGKILL)
        return lab.answer(call)

    server.reply = killing
    with pytest.raises(UsageError, match="--lost ask"):
        lab.finish(config, tmp_path / "run")
    num_calls = len(server.calls)
    with pytest.raises(UsageError, match="--lost ask"):
        lab.finish(config, tmp_path / "run")
    once = Counter(map(lab.key_of, server.calls))
    assert set(once.values()) == {1}
    assert len(server.calls) >= num_calls
    drafts = Curation(config, tmp_path / "run", lost="ask").run()
    assert drafts is not None
    assert set(Counter(map(lab.key_of, server.calls)).values()) == {1, 2}
    assert all(not one.dropped for one in drafts)
