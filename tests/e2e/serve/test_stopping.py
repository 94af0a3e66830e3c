"""Stops and failures: SIGTERM, a failed engine, full queues, lost clients, keys."""

import concurrent.futures
import http.client
import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest

FAULTS = """
import os, sys, time
from blip3o.serve import images
from blip3o import cli
plain = images.ImageMaker.make
def make(self, rows, on_step=None):
    seeds = {row.request.seed for row in rows}
    while 11 in seeds and not os.path.exists(os.environ["GATE"]):
        time.sleep(0.01)
    if 13 in seeds:
        raise SystemExit("crash")
    if 7 in seeds:
        raise RuntimeError("poison")
    return plain(self, rows, on_step)
images.ImageMaker.make = make
sys.exit(cli.main())
"""
"""A server with faults by seed: 7 fails, 13 kills the engine, 11 waits for a file."""


def draw(client: openai.OpenAI, seed: int = 0, steps: int = 2, n: int = 1) -> str:
    answer = client.images.generate(
        prompt="a red car", n=n, extra_body={"seed": seed, "num_inference_steps": steps}
    )
    assert answer.data is not None
    return answer.data[0].b64_json or ""


def health(port: int) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/health")
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def metric(port: int, name: str) -> float:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition was not met in time"
        time.sleep(0.02)


def test_sigterm_finishes_accepted_requests_and_refuses_new_ones(
    start: Any, tmp_path: Path
) -> None:
    server = start(code=FAULTS, GATE=str(tmp_path / "gate"))
    client = server.client()
    with concurrent.futures.ThreadPoolExecutor(9) as pool:
        accepted = [pool.submit(draw, client, 11, 4, 4) for _ in range(4)]
        chat = pool.submit(
            lambda: client.chat.completions.create(
                model="pocket", messages=[{"role": "user", "content": "hello"}]
            )
        )
        until(lambda: metric(server.port, "blip3o_open_requests") >= 5)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        with pytest.raises((openai.APIConnectionError, openai.InternalServerError)):
            draw(server.client(), 2)
        assert not any(job.done() for job in accepted)
        (tmp_path / "gate").touch()
        assert len({job.result(120) for job in accepted}) == 1
        assert chat.result(120).choices[0].message.content
    assert server.process.wait(60) == 0
    assert "Traceback" not in "".join(server.lines)


def test_a_dead_engine_fails_all_waiting_requests_immediately(start: Any, tmp_path: Path) -> None:
    server = start("--max-batch", "1", code=FAULTS, GATE=str(tmp_path / "gate"))
    client = server.client()
    assert health(server.port)[0] == 200
    with concurrent.futures.ThreadPoolExecutor(9) as pool:
        first = pool.submit(draw, client, 11)
        until(lambda: metric(server.port, "blip3o_open_requests") >= 1)
        crash = pool.submit(draw, client, 13)
        until(lambda: metric(server.port, "blip3o_open_requests") >= 2)
        waiting = [pool.submit(draw, client, 2) for _ in range(4)]
        until(lambda: metric(server.port, "blip3o_open_requests") >= 6)
        (tmp_path / "gate").touch()
        assert first.result(120)
        for job in (crash, *waiting):
            error = job.exception(20)
            assert isinstance(error, openai.InternalServerError)
            assert error.status_code == 503
            assert "engine stopped" in str(error)
    status, state = health(server.port)
    assert (status, state["live"], state["ready"]) == (503, False, False)
    with pytest.raises(openai.InternalServerError, match="engine stopped"):
        draw(client, 1)
    assert server.stop() == 0


def test_a_failing_request_does_not_fail_its_batch(start: Any) -> None:
    server = start("--max-wait-ms", "500", code=FAULTS)
    client = server.client()
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        good, bad, other = (pool.submit(draw, client, seed) for seed in (1, 7, 2))
        assert good.result(60) != other.result(60)
        with pytest.raises(openai.InternalServerError, match="log says why"):
            bad.result(60)
    assert health(server.port)[0] == 200


def test_a_full_queue_says_when_to_retry(start: Any) -> None:
    server = start("--max-queue", "2", "--max-batch", "1")
    client = server.client()
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        jobs = [pool.submit(draw, client, 1, 20) for _ in range(12)]
        errors = [error for job in jobs if (error := job.exception(120)) is not None]
    assert 1 <= len(errors) <= 9
    for error in errors:
        assert isinstance(error, openai.RateLimitError)
        assert 1 <= int(error.response.headers["retry-after"]) <= 60
        assert error.code == "queue_full"
    patient = server.client().with_options(max_retries=5)
    assert draw(patient, 1)


def test_clients_that_leave_free_the_engine(start: Any) -> None:
    server = start("--max-steps", "1000")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        left = pool.submit(draw, server.client(timeout=2), 1, 1000, 10)
        until(lambda: metric(server.port, "blip3o_open_requests") == 1)
        assert isinstance(left.exception(60), openai.APITimeoutError)
    until(lambda: metric(server.port, "blip3o_open_requests") == 0)
    stream = server.client().images.generate(
        prompt="a cat", n=10, stream=True, extra_body={"num_inference_steps": 1000}
    )
    next(iter(stream))
    stream.close()
    until(lambda: metric(server.port, "blip3o_open_requests") == 0)
    assert draw(server.client(), 2)
    assert metric(server.port, "blip3o_images_total") == 1


def test_a_request_has_a_time_limit(start: Any, tmp_path: Path) -> None:
    server = start("--timeout-s", "8", code=FAULTS, GATE=str(tmp_path / "gate"))
    with pytest.raises(openai.InternalServerError) as late:
        draw(server.client(), 11)
    assert late.value.status_code == 504
    (tmp_path / "gate").touch()
    assert draw(server.client(), 2)


def test_long_chats_and_images_run_concurrently(start: Any) -> None:
    server = start("--max-steps", "1000")
    client = server.client()
    message: Any = [{"role": "user", "content": "Describe the image in detail."}]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        image = pool.submit(draw, client, 1, 400)
        until(lambda: metric(server.port, "blip3o_queue_seconds_count") >= 1)
        answer = client.chat.completions.create(model="pocket", messages=message)
        assert answer.choices[0].message.content
        assert not image.done()
        assert image.result(120)


@pytest.mark.parametrize("by_environment", [True, False])
def test_keys_are_required(start: Any, by_environment: bool) -> None:
    words = [] if by_environment else ["--api-key", "first", "--api-key", "second"]
    given = {"BLIP3O_API_KEYS": "first,second"} if by_environment else {}
    server = start("--cors-origin", "https://page.example", *words, **given)
    for key in ("first", "second"):
        assert draw(server.client(key))
    for key in ("third", "firs", "first,second", "k" * 5000):
        with pytest.raises(openai.AuthenticationError):
            draw(server.client(key))
    assert health(server.port)[0] == 200
    for path in ("/metrics", "/docs", "/openapi.json", "/v1/models", "/nowhere"):
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        connection.request("GET", path, headers={"Authorization": "first"})
        assert connection.getresponse().status == 401
    origins = {}
    for origin in ("https://page.example", "https://evil.example"):
        connection.close()
        asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        connection.request("OPTIONS", "/v1/images/generations", headers=asked)
        answer = connection.getresponse()
        origins[origin] = answer.getheader("Access-Control-Allow-Origin")
    assert origins == {"https://page.example": "https://page.example", "https://evil.example": None}


def test_an_open_server_gets_a_warning_and_two_engines_agree(start: Any) -> None:
    server = start("--host", "0.0.0.0", "--workers", "2")
    assert any("warning" in line and "--api-key" in line for line in server.lines)
    server.url = f"http://127.0.0.1:{server.port}"
    client = server.client()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(lambda _: draw(client, 3, 4), range(6)))) == 1
