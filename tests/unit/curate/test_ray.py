"""Workers on a real Ray do what one process does, also if they are killed."""

import contextlib
import hashlib
import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from blip3o.cli import main

needs_ray = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None, reason="needs Ray: pip install 'blip3o[ray]'"
    ),
]
SETTINGS = """
name: moats
num_drafts: 24
unit_size: 3
categories: {castles: 0.5, boats: 0.5}
models:
  - {kind: openai, name: chat, license: mit, url: "URL", model: c, max_in_flight: 4}
  - {kind: openai, name: painter, license: mit, url: "URL", model: p, max_in_flight: 4}
stages:
  - {kind: scenes}
  - {kind: write, model: chat}
  - {kind: draw, model: painter}
  - {kind: dedup}
"""


def start(settings: Path, out: Path, *words: str, **environment: str) -> subprocess.Popen[str]:
    """Starts the command in a process of its own: Ray looks for the network."""
    command = [sys.executable, "-m", "blip3o", "data", "curate", str(settings), "--out", str(out)]
    return subprocess.Popen(
        [*command, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={
            **os.environ,
            "SOURCE_DATE_EPOCH": "0",
            **environment,
        },
    )


def finish(process: subprocess.Popen[str], status: int = 0) -> str:
    text, _ = process.communicate(timeout=300)
    assert process.returncode == status, text
    return text


def holders(out: Path) -> set[int]:
    """Returns the processes that hold units."""
    found = set()
    for file in (out / "work" / "locks").glob("*"):
        with contextlib.suppress(OSError, ValueError):  # removed or not yet written
            found.add(json.loads(file.read_text())["pid"])
    return found


def wait_for_holders(process: subprocess.Popen[str], out: Path, *, but: set[int]) -> set[int]:
    """Returns two processes that hold units and are not among others."""
    while process.poll() is None:
        found = holders(out) - but
        if len(found) == 2:
            return found
        time.sleep(0.02)
    raise AssertionError(finish(process))


def result(out: Path) -> Mapping[str, bytes]:
    """Returns the files of a run except the index of its shards, which holds their time."""
    files = [*out.glob("data/*"), *out.glob("work/*/*.jsonl"), *out.glob("*.jsonl")]
    return {str(one.relative_to(out)): one.read_bytes() for one in files if one.suffix != ".npz"}


def sent(server: Any) -> Counter[str]:
    """Returns the number of times that each request arrived."""
    return Counter(json.dumps(call.body, sort_keys=True) for call in server.calls)


@pytest.fixture
def settings(server: Any, tmp_path: Path) -> Path:
    """A curation whose server answers slowly, and alike to equal requests."""

    def reply(call: Any) -> Any:
        seed = hashlib.sha256(call.prompt.encode())
        if "messages" in call.body:
            return server.text(f"a moat of the form {seed.hexdigest()}", wait_s=0.3)
        pixels = np.random.default_rng(list(seed.digest())).integers(256, size=(32, 32, 3))
        file = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
        return server.image(file.getvalue(), wait_s=0.3)

    server.reply = reply
    file = tmp_path / "moats.yaml"
    file.write_text(SETTINGS.replace("URL", server.url))
    return file


def test_ray_is_named_if_it_is_missing(
    settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    run = ["data", "curate", str(settings), "--out", str(tmp_path / "out"), "--ray", "2"]
    assert main(run) == 2
    assert "pip install 'blip3o[ray]'" in capsys.readouterr().err


class TestOnRay:
    pytestmark = needs_ray

    def test_killed_workers_are_replaced_and_change_no_byte(
        self, server: Any, settings: Path, tmp_path: Path
    ) -> None:
        alone, shared = tmp_path / "alone", tmp_path / "shared"
        finish(start(settings, alone))
        once = sent(server)
        server.calls.clear()
        process = start(settings, shared, "--ray", "2", RAY_ADDRESS="local")
        first = wait_for_holders(process, shared, but=set())
        for pid in first:
            os.kill(pid, signal.SIGKILL)
        second = wait_for_holders(process, shared, but=first)
        os.kill(min(second), signal.SIGKILL)
        finish(process)
        assert result(shared) == result(alone)
        assert len(result(shared)) > 24
        assert sent(server) == once, "no answer is paid twice"
        assert set(once.values()) == {1}

    def test_an_interrupted_run_goes_on_without_ray_and_pays_nothing_twice(
        self, server: Any, settings: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "out"
        process = start(settings, out, "--ray", "2", RAY_ADDRESS="local")
        while len(server.calls) < 3 and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)  # while answers are on their way
        assert "Traceback" not in finish(process, 130)
        finish(start(settings, out))
        assert set(sent(server).values()) == {1}

    def test_the_error_of_a_worker_is_one_line(
        self, server: Any, settings: Path, tmp_path: Path
    ) -> None:
        server.reply = lambda call: server.error(401, "no such key")
        text = finish(start(settings, tmp_path / "out", "--ray", "2", RAY_ADDRESS="local"), 2)
        (line,) = [one for one in text.splitlines() if "no such key" in one]
        assert "stage write: " in line
        assert "Traceback" not in text

    def test_a_cluster_that_is_not_there_is_a_usage_error(
        self, settings: Path, tmp_path: Path
    ) -> None:
        text = finish(start(settings, tmp_path / "out", "--ray", "2", RAY_ADDRESS="127.0.0.1:9"), 2)
        assert "no Ray cluster at RAY_ADDRESS=127.0.0.1:9" in text
        assert "Traceback" not in text
