"""Measures servers under mixed requests: batched against single images, and memory over time.

python benchmarks/serve.py [--requests 200] [--clients 16] [--repeats 3] [--note TEXT]

Two servers run; one batches images and one generates them one by one. They are measured in turn,
never at the same time. A request with status 429 is sent again after the time in its response;
every other failure is counted. On a shared machine, CPU time is a better measure than wall-clock
time.
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
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from PIL import Image

WARM = 50
"""Number of requests before memory is first measured."""
BARS = {"batching_speedup": 1.8, "memory_growth": 0.05}
"""Required speedup and largest allowed growth."""


class Server:
    """A server process.

    Args:
        words: options of `blip3o serve`.
    """

    def __init__(self, *words: str) -> None:
        command = [sys.executable, "-m", "blip3o", "serve", "--port", "0", "--no-page", *words]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if found := re.search(r"serving .*:(\d+)$", line.strip()):
                self.port = int(found[1])
                return
        raise RuntimeError("the server did not start")

    def memory_mb(self) -> float:
        """Returns the resident memory of the process in MB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) / 1024

    def cpu_seconds(self) -> float:
        """Returns the CPU time that the process has used."""
        stat = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="utf-8")
        user, system = stat.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def ask(self, path: str, body: bytes, kind: str) -> "Asked":
        """Sends a request until its response has another status than 429."""
        start = time.perf_counter()
        put_off = 0
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
            try:
                connection.request("POST", path, body, {"Content-Type": kind})
                answer = connection.getresponse()
                text = answer.read()
            except (OSError, http.client.HTTPException) as error:
                print(f"no response to {path}: {error}", file=sys.stderr)
                return Asked(time.perf_counter() - start, put_off, None)
            finally:
                connection.close()
            if answer.status != 429:
                if answer.status != 200:
                    print(f"status {answer.status} for {path}: {text[:300]!r}", file=sys.stderr)
                return Asked(time.perf_counter() - start, put_off, answer.status)
            put_off += 1
            time.sleep(float(answer.headers["Retry-After"]))


class Asked(NamedTuple):
    """Result of a request: seconds, number of 429 responses, and status (None if it was lost)."""

    seconds: float
    put_off: int
    status: int | None


def image() -> bytes:
    """Returns an image file for edits and questions."""
    file = io.BytesIO()
    Image.new("RGB", (96, 96), "red").save(file, "PNG")
    return file.getvalue()


def mixed(number: int) -> tuple[str, bytes, str]:
    """Returns path, body and content type of a request; seven of ten generate images."""
    seed = str(number)
    if number % 10 in (3, 7):
        fields = {"image": image(), "seed": seed.encode()}
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
        uri = "data:image/png;base64," + base64.b64encode(image()).decode()
        parts_of_turn = [
            {"type": "image_url", "image_url": {"url": uri}},
            {"type": "text", "text": "What is in the image?"},
        ]
        chat = {"messages": [{"role": "user", "content": parts_of_turn}]}
        return "/v1/chat/completions", json.dumps(chat).encode(), "application/json"
    prompt = ("a red car", "three yellow stars", "a blue cat to the left of a tree")[number % 3]
    body = {"prompt": prompt, "seed": number, "guidance_scale": 2 + number % 5}
    return "/v1/images/generations", json.dumps(body).encode(), "application/json"


class Measured(NamedTuple):
    """Measurements of one run; the names are those in the results."""

    requests_per_second: float
    requests_per_cpu_second: float
    median_latency_s: float
    p95_latency_s: float
    answered: int
    errors_but_429: int
    lost: int
    put_off_by_429: int
    memory_mb: list[float]


def load(server: Server, count: int, clients: int) -> Measured:
    """Sends all requests and returns the measurements."""
    memory: list[float] = []

    def one(number: int) -> Asked:
        result = server.ask(*mixed(number))
        memory.append(server.memory_mb())
        return result

    start, cpu_start = time.perf_counter(), server.cpu_seconds()
    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        results = list(pool.map(one, range(count)))
    seconds, cpu_seconds = time.perf_counter() - start, server.cpu_seconds() - cpu_start
    latencies = sorted(result.seconds for result in results)
    return Measured(
        requests_per_second=count / seconds,
        requests_per_cpu_second=count / cpu_seconds,
        median_latency_s=statistics.median(latencies),
        p95_latency_s=latencies[int(0.95 * (len(latencies) - 1))],
        answered=sum(result.status == 200 for result in results),
        errors_but_429=sum(result.status not in (200, None) for result in results),
        lost=sum(result.status is None for result in results),
        put_off_by_429=sum(result.put_off for result in results),
        memory_mb=memory,
    )


def summary(runs: list[Measured]) -> dict[str, object]:
    """Returns the measurements of one server over all repeats."""
    memory = [value for run in runs for value in run.memory_mb]
    settled = statistics.median(memory[WARM : WARM + 10]) if len(memory) > WARM + 10 else memory[-1]
    return {
        "requests_per_second": spread([run.requests_per_second for run in runs]),
        "requests_per_cpu_second": spread([run.requests_per_cpu_second for run in runs]),
        "median_latency_s": statistics.median(run.median_latency_s for run in runs),
        "p95_latency_s": statistics.median(run.p95_latency_s for run in runs),
        "answered": sum(run.answered for run in runs),
        "errors_but_429": sum(run.errors_but_429 for run in runs),
        "lost": sum(run.lost for run in runs),
        "put_off_by_429": sum(run.put_off_by_429 for run in runs),
        f"memory_mb_after_{WARM}": settled,
        "memory_mb_at_the_end": statistics.median(memory[-10:]),
        "memory_growth": statistics.median(memory[-10:]) / settled - 1,
    }


def spread(values: list[float]) -> dict[str, float]:
    """Returns median, minimum and maximum."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratio(
    runs: dict[str, list[Measured]], measure: Callable[[Measured], float]
) -> dict[str, float]:
    """Returns the ratio of the batched server to the other one over all runs."""
    pairs = zip(runs["batched"], runs["one_by_one"], strict=True)
    return spread([measure(batched) / measure(single) for batched, single in pairs])


def main() -> None:
    """Measures both servers in turn, prints the results and writes them to a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--note", default="", help="other load on the machine, for the results")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/serve.json"))
    options = parser.parse_args()
    servers = {"batched": Server(), "one_by_one": Server("--max-batch", "1")}
    runs: dict[str, list[Measured]] = {name: [] for name in servers}
    try:
        for _ in range(options.repeats):
            for name, server in servers.items():
                runs[name].append(load(server, options.requests, options.clients))
    finally:
        for server in servers.values():
            server.process.terminate()
        codes = [server.process.wait() for server in servers.values()]
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    results = {
        "command": " ".join(["python", *sys.argv]),
        "compared": "our server with batches and our server that generates images one by one",
        "commit": commit.strip(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "note": options.note,
        "load_average": os.getloadavg()[2],
        "bars": BARS,
        "requests_of_a_run": options.requests,
        "clients": options.clients,
        "batching_speedup": ratio(runs, lambda run: run.requests_per_second),
        "batching_speedup_by_cpu_time": ratio(runs, lambda run: run.requests_per_cpu_second),
        "exit_codes_after_sigterm": codes,
        **{name: summary(some) for name, some in runs.items()},
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
