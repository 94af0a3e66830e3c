"""Loads real servers with mixed requests: batching against one by one, and memory over time.

python benchmarks/serve.py [--requests 200] [--clients 16] [--repeats 3] [--note TEXT]

Two servers run, one with batches and one that makes images one by one; they are loaded in turn,
never at the same time. A request that is answered 429 is sent again after the time that it says;
any other failure is counted. Where others use the machine too, the processor's time says more
about the work than the clock.
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
from typing import Any, NamedTuple

from PIL import Image

WARM = 50
"""Requests after which memory is first looked at."""
BARS = {"batching_speedup": 1.8, "memory_growth": 0.05}
"""Least speedup and largest growth that are good enough."""


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
        """Returns the resident memory of the process."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) / 1024

    def cpu_seconds(self) -> float:
        """Returns the processor time that the process has used."""
        stat = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="utf-8")
        user, system = stat.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def ask(self, path: str, body: bytes, kind: str) -> "Asked":
        """Sends a request until it is answered with something else than 429."""
        start = time.perf_counter()
        put_off = 0
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
            try:
                connection.request("POST", path, body, {"Content-Type": kind})
                answer = connection.getresponse()
                text = answer.read()
            except (OSError, http.client.HTTPException) as error:
                print(f"{path} was not answered: {error}", file=sys.stderr)
                return Asked(time.perf_counter() - start, put_off, None)
            finally:
                connection.close()
            if answer.status != 429:
                if answer.status != 200:
                    print(f"{path} was answered {answer.status}: {text[:300]!r}", file=sys.stderr)
                return Asked(time.perf_counter() - start, put_off, answer.status)
            put_off += 1
            time.sleep(float(answer.headers["Retry-After"]))


class Asked(NamedTuple):
    """What became of a request: seconds, times it was put off, status or None if it was lost."""

    seconds: float
    put_off: int
    status: int | None


def image() -> bytes:
    """Returns an image file to edit and to talk about."""
    file = io.BytesIO()
    Image.new("RGB", (96, 96), "red").save(file, "PNG")
    return file.getvalue()


def mixed(number: int) -> tuple[str, bytes, str]:
    """Returns path, body and content type of a request: of ten seven generate."""
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


def load(server: Server, count: int, clients: int) -> dict[str, Any]:
    """Sends the requests and returns how it went."""
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
    return {
        "requests_per_second": count / seconds,
        "requests_per_cpu_second": count / cpu_seconds,
        "median_latency_s": statistics.median(latencies),
        "p95_latency_s": latencies[int(0.95 * (len(latencies) - 1))],
        "answered": sum(result.status == 200 for result in results),
        "errors_but_429": sum(result.status not in (200, None) for result in results),
        "lost": sum(result.status is None for result in results),
        "put_off_by_429": sum(result.put_off for result in results),
        "memory_mb": memory,
    }


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the figures of one server over all repeats."""
    memory = [value for run in runs for value in run["memory_mb"]]
    counted = ("answered", "errors_but_429", "lost", "put_off_by_429")
    settled = statistics.median(memory[WARM : WARM + 10]) if len(memory) > WARM + 10 else memory[-1]
    return {
        "requests_per_second": spread([run["requests_per_second"] for run in runs]),
        "requests_per_cpu_second": spread([run["requests_per_cpu_second"] for run in runs]),
        "median_latency_s": statistics.median(run["median_latency_s"] for run in runs),
        "p95_latency_s": statistics.median(run["p95_latency_s"] for run in runs),
        **{name: sum(run[name] for run in runs) for name in counted},
        f"memory_mb_after_{WARM}": settled,
        "memory_mb_at_the_end": statistics.median(memory[-10:]),
        "memory_growth": statistics.median(memory[-10:]) / settled - 1,
    }


def spread(values: list[float]) -> dict[str, float]:
    """Returns the middle and the ends of what was measured."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratio(runs: dict[str, list[dict[str, Any]]], name: str) -> dict[str, float]:
    """Returns how much more the batched server does, run by run."""
    pairs = zip(runs["batched"], runs["one_by_one"], strict=True)
    return spread([batched[name] / single[name] for batched, single in pairs])


def main() -> None:
    """Measures, interleaved, and prints and stores the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--note", default="", help="what else the machine did")
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
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    results = {
        "command": " ".join(["python", *sys.argv]),
        "compared": "our server with batches, and our server that makes images one by one",
        "commit": commit.strip(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "note": options.note,
        "load_average": os.getloadavg()[2],
        "bars": BARS,
        "requests_of_a_run": options.requests,
        "clients": options.clients,
        "batching_speedup": ratio(runs, "requests_per_second"),
        "batching_speedup_by_cpu_time": ratio(runs, "requests_per_cpu_second"),
        "exit_codes_after_sigterm": codes,
        **{name: summary(some) for name, some in runs.items()},
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
