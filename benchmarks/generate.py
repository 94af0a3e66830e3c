"""Measures text to image with the bundled model, cold (from process start to files) and warm.

python benchmarks/generate.py [--repeats 5] [--out benchmarks/results/generate.json]
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from blip3o import Blip3oPipeline

PROMPTS = (
    "a red car",
    "three yellow stars",
    "a blue cat to the left of a green tree",
    "a purple guitar and an orange crown",
)


def cold(steps: int) -> float:
    """Returns the seconds that a `blip3o generate` process takes for four prompts."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "blip3o", "generate", *PROMPTS]
        start = time.perf_counter()
        subprocess.run(
            [*command, "--out", folder, "--steps", str(steps)], check=True, capture_output=True
        )
        return time.perf_counter() - start


def warm(pipe: Blip3oPipeline, steps: int, batched: bool) -> float:
    """Returns the seconds that four images take in a warm process."""
    start = time.perf_counter()
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(PROMPTS))]
    if batched:
        pipe(PROMPTS, generator=generators, num_inference_steps=steps)
    else:
        for prompt, generator in zip(PROMPTS, generators, strict=True):
            pipe(prompt, generator=generator, num_inference_steps=steps)
    return time.perf_counter() - start


def describe(seconds: list[float]) -> dict[str, float]:
    """Returns median, minimum and maximum."""
    return {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds)}


def main() -> None:
    """Measures all variants in turn, prints the results and writes them to a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/generate.json"))
    options = parser.parse_args()
    pipe = Blip3oPipeline.from_pretrained("pocket")
    warm(pipe, options.steps, batched=True)
    times: dict[str, list[float]] = {"cold": [], "warm_batch_of_4": [], "warm_one_by_one": []}
    for _ in range(options.repeats):
        times["cold"].append(cold(options.steps))
        times["warm_batch_of_4"].append(warm(pipe, options.steps, batched=True))
        times["warm_one_by_one"].append(warm(pipe, options.steps, batched=False))
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    results = {
        "command": " ".join(["python", *sys.argv]),
        "commit": commit.strip(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "steps": options.steps,
        "seconds_for_four_images": {name: describe(values) for name, values in times.items()},
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
