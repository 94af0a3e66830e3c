"""Whole curations with a real server: order, caps, faults, changed settings, and killed workers."""

import base64
import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from blip3o.core.config import from_dict
from blip3o.core.errors import PreemptedError, UsageError
from blip3o.core.shard import Shard
from blip3o.curate.config import CurateConfig
from blip3o.curate.draft import Draft
from blip3o.curate.publish import publish
from blip3o.curate.run import Curation

Server = Any  # the class in tests/unit/conftest.py
NUM_DRAFTS, UNIT = 24, 4
GRAMMAR = """
words:
  thing: [cat, dog, bird, boat, lamp, chair, tree, clock, drum, kite, shoe, spoon]
  color: [red, green, blue, black, white, brown, pink, gray]
categories:
  plain: ["a {color:1} {thing:1} beside a {color:2} {thing:2}"]
"""


def image_of(prompt: str, seed: int) -> bytes:
    """Returns the image of a prompt: other colors for other prompts and seeds."""
    digest = hashlib.sha256(f"{prompt} {seed}".encode()).digest()
    image = Image.new("RGB", (64, 64), tuple(digest[:3]))
    image.paste(tuple(digest[3:6]), (8 + digest[6] % 16, 8, 40, 30 + digest[7] % 30))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def grades_of(body: Mapping[str, Any]) -> str:
    """Returns grades that depend on the image: about a third of the images fail."""
    content = body["messages"][-1]["content"]
    url = next(part["image_url"]["url"] for part in content if part["type"] == "image_url")
    data = base64.b64decode(url.partition(",")[2])
    grade = 3 if hashlib.sha256(data).digest()[0] < 85 else 9
    return f"Fine.\nAlignment: {grade}\nSoundness: 9\nQuality: 9"


def answer(server: Server, call: Any) -> Any:
    if "prompt" in call.body:
        return server.image(image_of(call.body["prompt"], call.body["seed"]))
    return server.text(grades_of(call.body))


def key_of(call: Any) -> str:
    """Returns a name of a request's whole content."""
    return hashlib.sha256(json.dumps(call.body, sort_keys=True).encode()).hexdigest()


@pytest.fixture
def make_config(server: Server, tmp_path: Path) -> Callable[..., CurateConfig]:
    """Returns a function that makes the settings of a run with this server."""
    grammar = tmp_path / "grammar.yaml"
    grammar.write_text(GRAMMAR, encoding="utf-8")
    server.reply = lambda call: answer(server, call)

    def make(**changes: Any) -> CurateConfig:
        served = {"kind": "openai", "url": server.url, "key_variable": "", "license": "MIT"}
        served |= {"pause_s": 0.01, "timeout_s": 2.0, "max_in_flight": 4}
        data = {
            "name": "tiny",
            "num_drafts": NUM_DRAFTS,
            "unit_size": UNIT,
            "categories": {"plain": 1.0},
            "models": [
                {**served, "name": "painter", "model": "p", "image_price": 1.0},
                {**served, "name": "judge", "model": "j"},
            ],
            "stages": [
                {"kind": "templates", "grammar": str(grammar)},
                {"kind": "draw", "model": "painter"},
                {"kind": "judge", "model": "judge"},
                {"kind": "draw", "name": "draw_again", "model": "painter"},
                {"kind": "judge", "name": "judge_again", "model": "judge"},
                {"kind": "dedup", "image": None},
            ],
        }
        return from_dict(CurateConfig, {**data, **changes})

    return make


def finish(config: CurateConfig, out: Path) -> list[Draft]:
    curation = Curation(config, out)
    drafts = curation.run()
    assert drafts is not None
    publish(config, drafts, curation.images, out)
    return drafts


def content_of(out: Path) -> dict[str, str]:
    """Returns the hash of each file of a finished set, but not of the settings and indices."""
    files = [out / "records.jsonl", out / "preferences.jsonl", *(out / "data").glob("*.tar")]
    files += [out / "data" / "scores.parquet", out / "data" / "README.md"]
    return {one.name: hashlib.sha256(one.read_bytes()).hexdigest() for one in files}


def test_a_run_asks_each_request_once_and_repeats_to_the_byte(
    make_config: Callable[..., CurateConfig], server: Server, tmp_path: Path
) -> None:
    config = make_config()
    drafts = finish(config, tmp_path / "one")
    first = Counter(map(key_of, server.calls))
    assert set(first.values()) == {1}
    finish(config, tmp_path / "one")
    assert Counter(map(key_of, server.calls)) == first, "a finished run asks nothing"
    finish(config, tmp_path / "two")
    assert content_of(tmp_path / "one") == content_of(tmp_path / "two")
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
    make_config: Callable[..., CurateConfig], server: Server, tmp_path: Path
) -> None:
    config = make_config()
    finish(config, tmp_path / "run")
    num_calls = len(server.calls)
    stages = [dict(vars(one)) for one in config.stages]
    criteria = [{"name": "Alignment", "question": "q", "least": 9.5}]
    criteria.append({"name": "Quality", "question": "q", "least": 1.0})
    stages[4]["criteria"] = criteria
    changed = make_config(stages=stages)
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
    name: str, make_config: Callable[..., CurateConfig], server: Server, tmp_path: Path
) -> None:
    config = make_config(num_drafts=4)
    finish(config, tmp_path / "calm")
    server.calls.clear()
    seen: Counter[str] = Counter()

    def reply(call: Any) -> Any:
        seen[key_of(call)] += 1
        is_faulty = seen[key_of(call)] == 1 and len(seen) % 3 == 0
        return FAULTS[name](server) if is_faulty else answer(server, call)

    server.reply = reply
    finish(config, tmp_path / "stormy")
    assert max(seen.values()) == 2
    assert content_of(tmp_path / "calm") == content_of(tmp_path / "stormy")


def test_refusals_are_data(
    make_config: Callable[..., CurateConfig], server: Server, tmp_path: Path
) -> None:
    def reply(call: Any) -> Any:
        if "cat" in call.body.get("prompt", ""):
            return server.error(400, "not cats", code="content_policy_violation")
        return answer(server, call)

    server.reply = reply
    config = make_config()
    drafts = finish(config, tmp_path / "run")
    refused = [one for one in drafts if "cat" in one.prompt]
    assert refused
    assert {one.dropped for one in refused} == {"the model gave no image: not cats"}
    num_calls = len(server.calls)
    finish(config, tmp_path / "run")
    assert len(server.calls) == num_calls, "a refusal is not asked again"


def num_calls_at_rest(server: Server) -> int:
    """Returns the number of calls when none has come for a while: some may be on their way."""
    count = -1
    while count != len(server.calls):
        count = len(server.calls)
        time.sleep(0.5)
    return count


@pytest.mark.parametrize("cap", [1, 7, 20])
def test_a_cap_is_kept_to_the_request_and_the_run_goes_on_after_it(
    cap: int, make_config: Callable[..., CurateConfig], server: Server, tmp_path: Path
) -> None:
    with pytest.raises(PreemptedError, match="stopped at the cap"):
        finish(make_config(max_requests=cap), tmp_path / "run")
    assert num_calls_at_rest(server) == cap
    finish(make_config(), tmp_path / "run")
    assert set(Counter(map(key_of, server.calls)).values()) == {1}


def test_a_cap_of_money_is_kept(
    make_config: Callable[..., CurateConfig], server: Server, tmp_path: Path
) -> None:
    with pytest.raises(PreemptedError, match="stopped at the cap"):
        finish(make_config(max_cost=5.0), tmp_path / "run")
    num_calls_at_rest(server)
    assert sum("prompt" in one.body for one in server.calls) == 5
    spent = json.loads((tmp_path / "run" / "requests" / "spent.json").read_bytes())
    assert spent["cost"] == pytest.approx(5.0)
    by_stage = {name: one["cost"] for name, one in spent["accounts"].items()}
    assert sum(by_stage.values()) == pytest.approx(5.0)
    assert by_stage["draw"] >= UNIT


def test_an_unknown_licence_is_refused_unless_allowed(
    make_config: Callable[..., CurateConfig], tmp_path: Path
) -> None:
    models = [{**vars(one), "license": "unknown"} for one in make_config().models]
    with pytest.raises(UsageError, match="licence of the answers of painter, judge is unknown"):
        Curation(make_config(models=models), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    Curation(make_config(models=models, allow_unknown_license=True), tmp_path / "run")


def test_shards_share_the_units(
    make_config: Callable[..., CurateConfig], server: Server, tmp_path: Path
) -> None:
    config = make_config()
    finish(config, tmp_path / "whole")
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
    make_config: Callable[..., CurateConfig], server: Server, tmp_path: Path
) -> None:
    from blip3o.core.config import save_yaml

    config = make_config()
    save_yaml(config, tmp_path / "run.yaml")
    finish(config, tmp_path / "calm")
    server.calls.clear()

    def reply(call: Any) -> Any:
        time.sleep(0.15)  # so that workers are killed while they wait for answers
        return answer(server, call)

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
    assert set(Counter(map(key_of, server.calls)).values()) == {1}
    assert content_of(out) == content_of(tmp_path / "calm")


@pytest.mark.slow
def test_requests_of_a_killed_broker_are_asked_again_only_on_demand(
    make_config: Callable[..., CurateConfig], server: Server, tmp_path: Path
) -> None:
    config = make_config()

    def killing(call: Any) -> Any:
        if len(server.calls) == 5:
            senders = (tmp_path / "run" / "requests" / "senders").iterdir()
            sender = next(one for one in senders if one.suffix != ".part")
            os.kill(json.loads(sender.read_bytes())["pid"], signal.SIGKILL)
        return answer(server, call)

    server.reply = killing
    with pytest.raises(UsageError, match="--lost ask"):
        finish(config, tmp_path / "run")
    num_calls = len(server.calls)
    with pytest.raises(UsageError, match="--lost ask"):
        finish(config, tmp_path / "run")
    once = Counter(map(key_of, server.calls))
    assert set(once.values()) == {1}
    assert len(server.calls) >= num_calls
    drafts = Curation(config, tmp_path / "run", lost="ask").run()
    assert drafts is not None
    assert set(Counter(map(key_of, server.calls)).values()) == {1, 2}
    assert all(not one.dropped for one in drafts)
