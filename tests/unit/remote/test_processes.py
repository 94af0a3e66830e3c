"""Processes that share a cache, and processes that are killed while they judge."""

import dataclasses
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

from blip3o.core.files import write_atomic
from blip3o.remote.cache import CachedModel
from blip3o.remote.chat import ChatRequest
from blip3o.remote.client import ChatClient
from blip3o.remote.cost import Budget
from blip3o.remote.http import ServerSettings

Server = Any  # the class in conftest.py
NUM_QUESTIONS, NUM_KILLS, IN_FLIGHT = 120, 4, 4
KEY = "sk-never-on-disk-42"
SCRIPT = """
import sys
from pathlib import Path
from blip3o.core.errors import PreemptedError
from blip3o.remote.cache import CachedModel
from blip3o.remote.chat import ChatImage, ChatRequest
from blip3o.remote.client import ChatClient
from blip3o.remote.http import ServerSettings
from blip3o.remote.cost import Budget

url, folder, count, in_flight, cap = sys.argv[1:]
settings = ServerSettings(
    model="judge", url=url, key_variable="JUDGE_KEY", max_in_flight=int(in_flight), pause_s=0.01
)
budget = Budget(Path(folder), max_requests=int(cap) or None)
requests = [ChatRequest(parts=(f"question {k}",)) for k in range(int(count))]
print("ready", flush=True)
try:
    for number, answer in CachedModel(ChatClient(settings, budget), Path(folder)).answers(requests):
        print(number, answer.text, flush=True)
except PreemptedError as error:
    print(error, file=sys.stderr)
    sys.exit(75)
"""


def start(server: Server, folder: Path, cap: int = 0) -> subprocess.Popen[str]:
    """Starts a process that judges, and waits until it begins."""
    arguments = [server.url, str(folder), str(NUM_QUESTIONS), str(IN_FLIGHT), str(cap)]
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"JUDGE_KEY": KEY},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def stored(folder: Path) -> set[str]:
    """Returns the prompts whose answers are on the disk."""
    entries = [json.loads(file.read_bytes()) for file in folder.glob("answers/*/*.json")]
    return {entry["request"]["parts"][0]["text"] for entry in entries}


def test_a_killed_process_asks_nothing_again_that_is_stored(server: Server, tmp_path: Path) -> None:
    chance = random.Random(25)
    server.reply = lambda call: server.text(f"answer to {call.prompt}", wait_s=0.05)
    for _ in range(NUM_KILLS):
        known, before = stored(tmp_path), len(server.calls)
        with start(server, tmp_path) as process:
            wanted = before + chance.randrange(1, 20)
            while len(server.calls) < wanted:
                time.sleep(0.001)
            time.sleep(chance.uniform(0, 0.03))
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        asked = {call.prompt for call in server.calls[before:]}
        assert not asked & known
        assert len(stored(tmp_path)) < NUM_QUESTIONS
    known, before = stored(tmp_path), len(server.calls)
    with start(server, tmp_path) as process:
        lines = process.communicate(timeout=60)[0].splitlines()
    assert sorted(lines) == sorted(f"{k} answer to question {k}" for k in range(NUM_QUESTIONS))
    assert not {call.prompt for call in server.calls[before:]} & known
    time.sleep(0.1)
    answered: Counter[str] = server.answered
    repeated = sum(answered.values()) - NUM_QUESTIONS
    assert repeated <= NUM_KILLS * IN_FLIGHT
    assert len(server.calls) - NUM_QUESTIONS <= NUM_KILLS * IN_FLIGHT
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and holds_key(file)]


def holds_key(file: Path) -> bool:
    return KEY.encode() in file.read_bytes()


def test_a_key_on_the_disk_would_be_found(tmp_path: Path) -> None:
    write_atomic(tmp_path / "x", f"..{KEY}..")
    assert holds_key(tmp_path / "x")


def test_two_processes_share_the_answers_and_the_cap(server: Server, tmp_path: Path) -> None:
    server.reply = lambda call: server.text(call.prompt, wait_s=0.01)
    cap = 50
    processes = [start(server, tmp_path, cap) for _ in range(2)]
    errors = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [75, 75]
    assert all("raise max_requests" in error for error in errors)
    assert len(server.calls) == cap
    assert Budget(tmp_path).spent().num_requests == cap
    known = stored(tmp_path)
    assert known == set(server.answered)
    with start(server, tmp_path, cap) as process:  # nothing more is sent
        process.communicate(timeout=60)
    assert process.returncode == 75
    assert len(server.calls) == cap
    with start(server, tmp_path) as process:
        process.communicate(timeout=60)
    assert process.returncode == 0
    assert not {call.prompt for call in server.calls[cap:]} & known
    assert len(server.calls) == cap + NUM_QUESTIONS - len(known)


def test_no_key_is_stored_even_if_the_server_repeats_it(
    server: Server, settings: ServerSettings, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    server.reply = lambda call: server.text(
        f"you sent {call.headers['authorization']}", whole={"system_fingerprint": KEY}
    )
    client = ChatClient(dataclasses.replace(settings, key_variable="JUDGE_KEY"), Budget(tmp_path))
    ((_, answer),) = CachedModel(client, tmp_path).answers([ChatRequest(parts=("x",))])
    assert answer.text == "you sent Bearer [key]"
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) >= 3
    assert not [file for file in files if holds_key(file)]
