"""Curates with workers that are killed at random, and compares the result with a calm run.

A real server on this machine draws and judges. It fails on order: a part of the requests gets 429,
500, a body that is cut, or no answer before the time is up, the first time that they come; others
are refused. One to eight workers run at a time; every few seconds one is killed (SIGKILL), and now
and then another joins. The case fails unless no request was answered twice and all bytes of the
finished set are those of one undisturbed process.
"""

import base64
import hashlib
import http.server
import io
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

from measure import Case, Options, main
from PIL import Image

DRAFTS, WORKERS, SEED = 23_000, 8, 27
FAULTS = ("429", "500", "cut", "hang")
GRAMMAR = """
words:
  thing: [cat, dog, bird, boat, lamp, chair, tree, clock, drum, kite, shoe, spoon, ball, bell, cup]
  color: [red, green, blue, black, white, brown, pink, gray, orange, purple, yellow, golden]
  place: [on a beach, in a kitchen, under a bridge, near a lake, on a shelf, in a park, at a market]
categories:
  plain: ["a {color:1} {thing:1} beside a {color:2} {thing:2} {place}"]
"""


def digest_of(*parts: object) -> bytes:
    """Returns random bytes that depend on the arguments only."""
    return hashlib.sha256(repr(parts).encode()).digest()


def image_of(prompt: str, seed: int) -> bytes:
    """Returns the file of an image that other prompts and seeds do not have."""
    digest = digest_of(prompt, seed)
    image = Image.new("RGB", (32, 32), tuple(digest[:3]))
    image.paste(tuple(digest[3:6]), (4, 4, 12 + digest[6] % 16, 12 + digest[7] % 16))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def grades_of(body: dict[str, Any]) -> str:
    """Returns grades with which about a third of the images fail."""
    parts = body["messages"][-1]["content"]
    url = next(part["image_url"]["url"] for part in parts if part["type"] == "image_url")
    grade = 3 if digest_of(url)[0] < 85 else 9
    return f"No fault.\nAlignment: {grade}\nSoundness: 9\nQuality: 9"


class Server(http.server.ThreadingHTTPServer):
    """Counts the requests and the complete answers by their content.

    Args:
        is_faulty: whether requests fail on order.
    """

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, *, is_faulty: bool) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.is_faulty = is_faulty
        self.mutex = threading.Lock()
        self.arrived: Counter[bytes] = Counter()
        self.answered: Counter[bytes] = Counter()

    @property
    def url(self) -> str:
        """The address of the server."""
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers one request."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: ANN401
        """Says nothing."""

    def do_POST(self) -> None:
        """Answers, or fails on order."""
        server = cast("Server", self.server)
        data = self.rfile.read(int(self.headers["content-length"]))
        key = hashlib.sha256(data).digest()
        with server.mutex:
            server.arrived[key] += 1
            is_first = server.arrived[key] == 1
        body = json.loads(data)
        status, reply = 200, b""
        if body.get("prompt") and key[1] < 3:  # about 1 %
            status, reply = 400, b'{"error": {"message": "no", "code": "content_policy_violation"}}'
        elif "prompt" in body:
            file = base64.b64encode(image_of(body["prompt"], body["seed"])).decode()
            reply = json.dumps({"data": [{"b64_json": file}]}).encode()
        else:
            message = {"role": "assistant", "content": grades_of(body)}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            usage = {"prompt_tokens": 300, "completion_tokens": 20}
            reply = json.dumps({"model": "j", "choices": [choice], "usage": usage}).encode()
        fault = FAULTS[key[3] % 4] if server.is_faulty and is_first and key[2] < 5 else ""
        if fault == "hang":
            time.sleep(4)
        elif fault in ("429", "500"):
            status, reply = int(fault), b'{"error": {"message": "later"}}'
        length = len(reply)
        if fault == "cut":
            reply = reply[: length // 2]
        try:
            self.send_response(status)
            self.send_header("content-length", str(length))
            self.end_headers()
            self.wfile.write(reply)
        except OSError:
            fault = "gone"
        if fault:
            self.close_connection = True
        else:
            with server.mutex:
                server.answered[key] += 1


def write_settings(file: Path, url: str, drafts: int) -> None:
    """Writes the settings of a run whose server has an address."""
    grammar = file.with_name("grammar.yaml")
    grammar.write_text(GRAMMAR, encoding="utf-8")
    served = {"kind": "openai", "url": url, "key_variable": "", "license": "MIT"}
    served |= {"pause_s": 0.05, "timeout_s": 2.0, "max_in_flight": 16}
    settings = {
        "name": "killed",
        "num_drafts": drafts,
        "unit_size": 100 if drafts > 1000 else 5,
        "categories": {"plain": 1.0},
        "models": [
            {**served, "name": "painter", "model": "p"},
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
    file.write_text(json.dumps(settings), encoding="utf-8")  # JSON is YAML


def start(settings: Path, out: Path) -> subprocess.Popen[bytes]:
    """Starts a worker."""
    command = [sys.executable, "-m", "blip3o", "data", "curate", str(settings), "--out", str(out)]
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )


def kill_at_random(settings: Path, out: Path, most: int, chance: random.Random) -> int:
    """Lets one to `most` workers run and kills one every few seconds; returns the kills."""
    workers, kills = [start(settings, out)], 0
    while True:
        time.sleep(chance.uniform(1, 6))
        if any(one.poll() == 0 for one in workers):  # the run is complete
            for one in workers:
                one.wait()
            return kills
        workers = [one for one in workers if one.poll() is None]
        wanted = chance.randint(1, most)
        if workers:
            victim = workers.pop(chance.randrange(len(workers)))
            os.killpg(victim.pid, signal.SIGKILL)
            victim.wait()
            kills += 1
        while len(workers) < wanted:
            workers.append(start(settings, out))


def content_of(out: Path) -> dict[str, str]:
    """Returns the hash of each file of a finished set."""
    files = [out / "records.jsonl", out / "preferences.jsonl", out / "data" / "README.md"]
    files += [out / "data" / "scores.parquet", *sorted((out / "data").glob("*.tar"))]
    return {one.name: hashlib.sha256(one.read_bytes()).hexdigest() for one in files}


class Curated(NamedTuple):
    """A finished run: the hashes of its files, and counts of kills, requests and records."""

    content: dict[str, str]
    figures: dict[str, float]


def curate(folder: Path, drafts: int, workers: int) -> Curated:
    """Runs once.

    Args:
        folder: new folder for the settings and the run.
        drafts: number of drafts.
        workers: most workers; 0 for one undisturbed process and a server without faults.

    Raises:
        RuntimeError: if a process fails on its own, or a request was answered twice.
    """
    folder.mkdir()
    server = Server(is_faulty=workers > 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    settings, out = folder / "run.yaml", folder / "run"
    write_settings(settings, server.url, drafts)
    kills = 0
    if workers:
        kills = kill_at_random(settings, out, workers, random.Random(SEED))
    elif start(settings, out).wait():
        raise RuntimeError("the calm run failed: run its command by hand")
    server.shutdown()
    if any(count > 1 for count in server.answered.values()):
        raise RuntimeError("a request was answered twice")
    figures: dict[str, float] = {
        "kills": kills,
        "requests": sum(server.arrived.values()),
        "different_requests": len(server.arrived),
        "records": len((out / "records.jsonl").read_text("utf-8").splitlines()),
    }
    return Curated(content_of(out), figures)


def killed(options: Options) -> Iterator[Case]:
    """One undisturbed process, and workers that are killed."""
    drafts = options.pick(DRAFTS, 20)
    with tempfile.TemporaryDirectory() as name:
        yield Case(
            unit="draft",
            work=drafts,
            variants={
                "calm": lambda: curate(Path(name) / "calm", drafts, 0),
                "killed": lambda: curate(Path(name) / "killed", drafts, WORKERS),
            },
            difference=lambda one, other: float(one.content != other.content),
            figures=lambda one: one.figures,
            is_long=True,
            most_rounds=1,
        )


if __name__ == "__main__":
    main(__doc__, {"killed": killed})
