"""An evaluation that is killed again and again ends like an unbroken one, with a faulty judge.

The server of the judge is a process of its own. It answers each question with the same words;
before some of them it fails once, and to one question it always fails.
"""

import contextlib
import dataclasses
import hashlib
import http.server
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any, cast

import pytest
from PIL import Image

from blip3o.eval.benchmark import Task
from blip3o.eval.judges.openai import OpenAIJudge
from blip3o.eval.models import Asked, Output
from blip3o.eval.stages import evaluate
from blip3o.eval.wise.benchmark import WiseBenchmark
from blip3o.eval.wise.versions import LEGACY

NUM_KILLS = 20
IN_FLIGHT = 4
TIMEOUT_S = 1.0

_CATEGORIES = list(LEGACY.categories.values())
NUMBERS = [one.first + place for one in _CATEGORIES for place in range(5)]
"""Ids of five prompts of each category: 30 samples."""

_GOOD = "Consistency: 2\nRealism: 1\nAesthetic Quality: 2"
FAULTS = ("wait", "error", "hang", "cut connection", "no JSON", "no choices")
FIRST_FAULT = dict(zip(NUMBERS, FAULTS, strict=False))
"""What the first answer about some prompts is; the second one is as for the others."""
ENDS = {
    NUMBERS[10]: "refusal",
    NUMBERS[11]: "empty",
    NUMBERS[12]: "cut",
    NUMBERS[13]: "prose",
    NUMBERS[14]: "wrong JSON",
    NUMBERS[15]: "always an error",
    NUMBERS[16]: "refused by the server",
}
"""What all answers about some prompts are; the others get grades."""
OUTCOMES = {
    "judged": 23,
    "refusal": 2,
    "empty": 1,
    "cut": 1,
    "unreadable": 2,
    "transport": 1,
}


class Judge(http.server.ThreadingHTTPServer):
    """Counts the requests about each prompt, and those that it has answered completely."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.mutex = threading.Lock()
        self.asked: Counter[int] = Counter()
        self.answered: Counter[int] = Counter()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def handle(self) -> None:
        with contextlib.suppress(OSError):  # the client was killed
            super().handle()

    def do_GET(self) -> None:
        """Returns the counts; "/new" forgets them first."""
        judge = cast("Judge", self.server)
        with judge.mutex:
            if self.path == "/new":
                judge.asked.clear()
                judge.answered.clear()
            self._send(200, {"asked": judge.asked, "answered": judge.answered})

    def do_POST(self) -> None:
        judge = cast("Judge", self.server)
        body = self.rfile.read(int(self.headers["content-length"])).decode()
        found = re.search(r"Prompt (\d+)", body)
        assert found is not None
        number = int(found[1])
        with judge.mutex:
            judge.asked[number] += 1
            is_first = judge.asked[number] == 1
        fault = FIRST_FAULT.get(number) if is_first else None
        match fault or ENDS.get(number):
            case "wait":
                self._send(429, {"error": {"message": "slower"}}, {"retry-after": "0.05"})
            case "error":
                self._send(500, {"error": {"message": "broken"}})
            case "hang":
                time.sleep(1.5 * TIMEOUT_S)
                self.close_connection = True
            case "cut connection":
                self.send_response(200)
                self.send_header("content-length", "1000")
                self.end_headers()
                self.wfile.write(b'{"choices": [')
                self.close_connection = True
            case "no JSON":
                self._raw(200, b"<html>a relay</html>")
            case "no choices":
                self._send(200, {"result": "fine"})
            case "always an error":
                self._send(503, {"error": {"message": "no capacity"}})
            case "refused by the server":
                self._send(400, {"error": {"message": "filtered", "code": "content_filter"}})
                self._done(number)
            case end:
                self._send(200, completion(end))
                self._done(number)

    def _done(self, number: int) -> None:
        judge = cast("Judge", self.server)
        with judge.mutex:
            judge.answered[number] += 1

    def _send(self, status: int, body: object, headers: dict[str, str] | None = None) -> None:
        self._raw(status, json.dumps(body).encode(), headers)

    def _raw(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"content-length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


def completion(end: str | None) -> dict[str, object]:
    """Returns the body of an answer."""
    texts = {
        "refusal": "I cannot help.",
        "empty": "",
        "cut": "The image shows",
        "prose": "A fine image of a fine thing.",
        "wrong JSON": '{"Consistency": "very good", "Realism": [',
    }
    message = {"role": "assistant", "content": texts.get(end or "", _GOOD)}
    if end == "refusal":
        message = {"role": "assistant", "content": "", "refusal": texts[end]}
    finish = "length" if end == "cut" else "stop"
    return {"model": "judge-0613", "choices": [{"message": message, "finish_reason": finish}]}


def _serve(port: Connection) -> None:
    judge = Judge()
    port.send(judge.server_port)
    judge.serve_forever(poll_interval=0.05)


@pytest.fixture(scope="module")
def judge_url() -> Iterator[str]:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=_serve, args=(theirs,))
    process.start()
    yield f"http://127.0.0.1:{ours.recv()}"
    process.kill()
    process.join()


def counts(url: str, path: str = "/counts") -> dict[str, Counter[int]]:
    with urllib.request.urlopen(url + path, timeout=20) as answer:
        read = json.loads(answer.read())
    return {name: Counter({int(k): v for k, v in one.items()}) for name, one in read.items()}


@pytest.fixture
def wise(judge_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WiseBenchmark:
    """WISE with 30 prompts; its published files are replaced by small ones."""
    folder, files = tmp_path / "prompts", []
    folder.mkdir()
    for file, part in zip(LEGACY.files, ("culture", "space-time", "science"), strict=True):
        rows = [
            {
                "prompt_id": number,
                "Prompt": f"Prompt {number}",
                "Explanation": "as it is",
                "Subcategory": "x",
            }
            for number in NUMBERS
            if number in LEGACY.ids(part)
        ]
        data = json.dumps(rows).encode()
        (folder / f"{part}.json").write_bytes(data)
        files.append(dataclasses.replace(file, sha256=hashlib.sha256(data).hexdigest()))
    monkeypatch.setattr(WiseBenchmark, "version", dataclasses.replace(LEGACY, files=tuple(files)))
    judge = OpenAIJudge(
        model="judge",
        url=f"{judge_url}/v1",
        key_variable="",
        cache=str(tmp_path / "answers"),
        max_in_flight=IN_FLIGHT,
        timeout_s=TIMEOUT_S,
        retries=3,
        pause_s=0.02,
    )
    return WiseBenchmark(prompts=str(folder), judge=judge, attempts=1, batch_size=4)


class Painter:
    """Paints another square for each prompt, in the time of a very fast model."""

    def __init__(self) -> None:
        self.identity: dict[str, Any] = {"name": "painter"}
        self.sampler: dict[str, Any] = {"batch_size": 4}

    def outputs(self, task: Task, asked: Sequence[Asked]) -> list[Output]:
        del task
        time.sleep(0.02)
        numbers = [one.job.item.number for one in asked]
        return [Image.new("RGB", (64, 64), (n % 256, n // 256, 9)) for n in numbers]


def files_of(out: Path) -> dict[str, bytes]:
    """Returns the files of an evaluation; those of locks are not part of it."""
    return {
        str(file.relative_to(out)): file.read_bytes()
        for file in sorted(out.rglob("*"))
        if file.is_file() and ".lock" not in file.name
    }


def stored_numbers(answers: Path) -> set[int]:
    """Returns the prompts whose answers are on the disk."""
    found = [re.search(r"Prompt (\d+)", one.read_text()) for one in answers.rglob("*/*.json")]
    return {int(one[1]) for one in found if one is not None}


def forked(act: Callable[[], object]) -> ForkProcess:
    process = multiprocessing.get_context("fork").Process(target=act)
    process.start()
    return process


def test_kills_and_faults_of_the_judge_change_no_byte_and_repeat_no_call(
    wise: WiseBenchmark, judge_url: str, tmp_path: Path
) -> None:
    answers = tmp_path / "answers"
    counts(judge_url, "/new")
    start = time.monotonic()
    unbroken = evaluate("wise", wise, Painter(), tmp_path / "whole")
    seconds = time.monotonic() - start
    whole = files_of(tmp_path / "whole")
    assert unbroken is not None
    assert unbroken.outcomes == OUTCOMES
    assert unbroken.overall is None  # samples without a judgement leave it open
    answered = counts(judge_url)["answered"]
    assert answered == Counter(n for n in NUMBERS if ENDS.get(n) != "always an error")
    assert stored_numbers(answers) == set(answered)

    answers.rename(tmp_path / "old answers")
    counts(judge_url, "/new")
    out, draw = tmp_path / "killed", random.Random(0)
    kills, repeats = 0, 0
    known: dict[int, int] = {}  # prompts with a stored answer, and how often they were asked then
    while kills < NUM_KILLS:
        process = forked(lambda: evaluate("wise", wise, Painter(), out))
        process.join(draw.uniform(0.02, 0.35 * seconds))
        if process.is_alive():
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.join()
        asked = counts(judge_url)["asked"]
        assert all(asked[number] == times for number, times in known.items())
        known = {number: asked[number] for number in stored_numbers(answers)}
        if (out / "results.json").exists():  # start again, so that all moments are tried
            assert files_of(out) == whole
            repeats += sum(counts(judge_url)["answered"].values()) - len(known)
            for folder in (out, answers):
                shutil.rmtree(folder)
            counts(judge_url, "/new")
            known = {}
    assert evaluate("wise", wise, Painter(), out) is not None
    assert files_of(out) == whole
    asked = counts(judge_url)["asked"]
    assert all(asked[number] == times for number, times in known.items())
    repeats += sum(counts(judge_url)["answered"].values()) - len(stored_numbers(answers))
    assert repeats <= NUM_KILLS * IN_FLIGHT

    (number,) = (n for n in NUMBERS if ENDS.get(n) == "always an error")
    evaluate("wise", wise, Painter(), out)  # asks only for what the server did not answer
    again = counts(judge_url)["asked"]
    assert again - asked == Counter({number: 4})
    assert files_of(out) == whole


def test_a_repaired_server_is_asked_only_for_the_missing_answer(
    wise: WiseBenchmark, judge_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second folder with the same answers costs nothing but the questions without one."""
    counts(judge_url, "/new")
    evaluate("wise", wise, Painter(), tmp_path / "first")
    before = counts(judge_url)["asked"]
    evaluate("wise", wise, Painter(), tmp_path / "second")
    after = counts(judge_url)["asked"]
    assert set(after - before) == {n for n in NUMBERS if ENDS.get(n) == "always an error"}
    names = ("verdicts.jsonl", "results.json", "report.html")
    first, second = (files_of(tmp_path / name) for name in ("first", "second"))
    assert all(first[name] == second[name] for name in names)
