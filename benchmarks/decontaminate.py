"""Measures how fast captions are compared with the prompts of benchmarks.

python benchmarks/decontaminate.py [--repeats 3] [--out benchmarks/results/decontaminate.json]

The captions are those of procedural scenes, in many wordings, one in each record of a list. The
time includes reading the list and starting the processes.
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from blip3o.core.rng import numpy_rng
from blip3o.curate.decontaminate import decontaminate
from blip3o.data.scenes.captions import caption_texts
from blip3o.data.scenes.scene import sample_scene

SEED = 0


def captions() -> Iterator[str]:
    """Yields captions without end."""
    index = 0
    while True:
        rng = numpy_rng(SEED, "benchmark captions", index)
        yield from caption_texts(sample_scene(SEED, index), rng)
        index += 1


def cpu_s() -> float:
    """Returns the CPU seconds of this process and of those that have ended."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def describe(values: list[float]) -> dict[str, float]:
    """Returns median, minimum and maximum."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def main() -> None:
    """Measures, prints the results and writes them to a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--captions", type=int, default=200_000)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/decontaminate.json"))
    options = parser.parse_args()
    walls, cpus, num_words = list[float](), list[float](), 0
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "captions.jsonl"
        with file.open("w", encoding="utf-8") as lines:
            for _, caption in zip(range(options.captions), captions(), strict=False):
                lines.write(json.dumps({"caption": caption}) + "\n")
                num_words += len(caption.split())
        for _ in range(options.repeats):
            wall, cpu = time.perf_counter(), cpu_s()
            report = decontaminate([str(file)], jobs=options.jobs)
            walls.append(time.perf_counter() - wall)
            cpus.append(cpu_s() - cpu)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    results = {
        "command": " ".join(["python", *sys.argv]),
        "commit": commit.strip(),
        "machine": f"{platform.machine()}, {options.jobs} processes",
        "captions": options.captions,
        "words_per_caption": num_words / options.captions,
        "prompts": report.num_prompts,
        "captions_per_minute": describe([60 * options.captions / wall for wall in walls]),
        "cpu_us_per_caption": describe([1e6 * cpu / options.captions for cpu in cpus]),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
