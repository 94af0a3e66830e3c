"""Loads real servers with mixed requests: batching against one by one, and memory over time.

python benchmarks/serve.py [--requests 200] [--clients 16] [--repeats 3]

Two servers run, one with batches and one that makes pictures one by one; they are loaded in turn,
never at the same time. A request that is answered 429 is sent again after the time that it says.
"""

import argparse
import base64
import concurrent.futures
import http.client
import io
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from PIL import Image

WARM = 50
"""Requests after which memory is first looked at."""


class Server:
    """A server process.

    Args:
        words: options of `blip3o serve`.
    """

    def __init__(self, *words: str) -> None:
        command = [sys.executable, "-m", "blip3o", "serve", "--port", "0", *words]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if found := re.search(r"serving .*:(\d+)$", line.strip()):
                self.port = int(found[1])
                return
        raise RuntimeError("the server did not start")

    def memory_mb(self) -> float:
        """Returns the resident memory of the process."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) / 1024

    def ask(self, path: str, body: bytes, kind: str) -> tuple[float, int]:
        """Returns the seconds until a request was answered, and how often it was put off."""
        start = time.perf_counter()
        put_off = 0
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
            connection.request("POST", path, body, {"Content-Type": kind})
            answer = connection.getresponse()
            text = answer.read()
            connection.close()
            if answer.status == 200:
                return time.perf_counter() - start, put_off
            if answer.status != 429:
                raise RuntimeError(f"{path} was answered {answer.status}: {text[:300]!r}")
            put_off += 1
            time.sleep(float(answer.headers["Retry-After"]))


def picture() -> bytes:
    """Returns a picture file to edit and to talk about."""
    file = io.BytesIO()
    Image.new("RGB", (96, 96), "red").save(file, "PNG")
    return file.getvalue()


def mixed(number: int) -> tuple[str, bytes, str]:
    """Returns path, body and content type of a request: of ten seven generate."""
    seed = str(number)
    if number % 10 in (3, 7):
        fields = {"image": picture(), "seed": seed.encode()}
        if number % 10 == 3:
            fields["prompt"] = b"make it blue"
        parts = [
            f'--b\r\nContent-Disposition: form-data; name="{name}"'.encode()
            + (b'; filename="a.png"' if name == "image" else b"")
            + b"\r\n\r\n"
            + value
            + b"\r\n"
            for name, value in fields.items()
        ]
        path = "/v1/images/edits" if number % 10 == 3 else "/v1/images/variations"
        return path, b"".join(parts) + b"--b--\r\n", "multipart/form-data; boundary=b"
    if number % 10 == 9:
        uri = "data:image/png;base64," + base64.b64encode(picture()).decode()
        parts_of_turn = [
            {"type": "image_url", "image_url": {"url": uri}},
            {"type": "text", "text": "What is in the image?"},
        ]
        chat = {"messages": [{"role": "user", "content": parts_of_turn}]}
        return "/v1/chat/completions", json.dumps(chat).encode(), "application/json"
    prompt = ("a red car", "three yellow stars", "a blue cat to the left of a tree")[number % 3]
    body = {"prompt": prompt, "seed": number, "guidance_scale": 2 + number % 5}
    return "/v1/images/generations", json.dumps(body).encode(), "application/json"


def load(server: Server, count: int, clients: int) -> dict[str, Any]:
    """Sends the requests and returns how it went."""
    memory: list[float] = []

    def one(number: int) -> tuple[float, int]:
        result = server.ask(*mixed(number))
        memory.append(server.memory_mb())
        return result

    start = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        results = list(pool.map(one, range(count)))
    seconds = time.perf_counter() - start
    latencies = sorted(latency for latency, _ in results)
    return {
        "requests_per_second": count / seconds,
        "median_latency_s": statistics.median(latencies),
        "p95_latency_s": latencies[int(0.95 * (len(latencies) - 1))],
        "answered": len(results),
        "put_off_by_429": sum(times for _, times in results),
        "memory_mb": memory,
    }


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the figures of one server over all repeats."""
    rates = [run["requests_per_second"] for run in runs]
    memory = [value for run in runs for value in run["memory_mb"]]
    settled = statistics.median(memory[WARM : WARM + 10]) if len(memory) > WARM + 10 else memory[-1]
    return {
        "requests_per_second": {
            "median": statistics.median(rates),
            "min": min(rates),
            "max": max(rates),
        },
        "median_latency_s": statistics.median(run["median_latency_s"] for run in runs),
        "p95_latency_s": statistics.median(run["p95_latency_s"] for run in runs),
        "answered": sum(run["answered"] for run in runs),
        "put_off_by_429": sum(run["put_off_by_429"] for run in runs),
        f"memory_mb_after_{WARM}": settled,
        "memory_mb_at_the_end": statistics.median(memory[-10:]),
        "memory_growth": statistics.median(memory[-10:]) / settled - 1,
    }


def main() -> None:
    """Measures, interleaved, and prints and stores the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/serve.json"))
    options = parser.parse_args()
    servers = {"batched": Server(), "one_by_one": Server("--max-batch", "1")}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in servers}
    try:
        for _ in range(options.repeats):
            for name, server in servers.items():
                runs[name].append(load(server, options.requests, options.clients))
    finally:
        for server in servers.values():
            server.process.terminate()
        codes = [server.process.wait() for server in servers.values()]
    pairs = zip(runs["batched"], runs["one_by_one"], strict=True)
    ratios = [a["requests_per_second"] / b["requests_per_second"] for a, b in pairs]
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    results = {
        "command": " ".join(["python", *sys.argv]),
        "commit": commit.strip(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "requests_of_a_run": options.requests,
        "clients": options.clients,
        "batching_speedup": {
            "median": statistics.median(ratios),
            "min": min(ratios),
            "max": max(ratios),
        },
        "exit_codes_after_sigterm": codes,
        **{name: summary(some) for name, some in runs.items()},
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
