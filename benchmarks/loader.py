"""Compares the loader with the webdataset library, and measures random access and indexing.

python benchmarks/loader.py [--repeats 5] [--out benchmarks/results/loader.json]

Both read the same shards in one process, decode images with the same function and return batches of
pixels and captions. Our loader also shuffles over all records and can start at any of them.
webdataset reads shards from start to end, with the usual shuffle buffer.
"""

import argparse
import io
import itertools
import json
import platform
import resource
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from blip3o.data.images import read_pixels
from blip3o.data.mixture import DataConfig, Mixture, MixtureEntry
from blip3o.data.order import RecordOrder
from blip3o.data.sources.webdataset import WebDatasetConfig

PX, BATCH, SHARD_RECORDS = 96, 64, 1000


def write_shards(folder: Path, num_shards: int) -> None:
    """Writes shards of JPEG images of 256 pixels with captions."""
    rng = np.random.default_rng(0)
    images = []
    for _ in range(50):
        rough = Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        rough.resize((256, 256), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        images.append(buffer.getvalue())
    for shard in range(num_shards):
        with tarfile.open(folder / f"bench-{shard:04d}.tar", "w") as tar:
            for number in range(SHARD_RECORDS):
                key = f"{shard:04d}{number:05d}"
                add(tar, f"{key}.jpg", images[number % len(images)])
                add(tar, f"{key}.txt", f"image {key}".encode())


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Adds a member to a tar file."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def ours(folder: Path, num_batches: int) -> float:
    """Returns records per second of our loader, including the time to open indexed shards."""
    start = time.perf_counter()
    source = WebDatasetConfig(path=f"{folder}/bench-*.tar", name="bench")
    entry = MixtureEntry(source=source, task="text_to_image")
    mixture = Mixture(DataConfig(mixture=(entry,)), seed=0)
    for batch in range(num_batches):
        records = [mixture.record(mixture.slot(batch * BATCH + row)) for row in range(BATCH)]
        pixels = torch.stack([read_pixels(record.files, "image", PX) for record in records])
        captions = [record.fields["caption"] for record in records]
        assert (len(pixels), len(captions)) == (BATCH, BATCH)
    return num_batches * BATCH / (time.perf_counter() - start)


def theirs(folder: Path, num_batches: int) -> float:
    """Returns records per second of the webdataset library with the same decoder."""
    import webdataset

    def prepare(sample: dict[str, bytes]) -> tuple[Tensor, str]:
        return read_pixels({"image": sample["jpg"]}, "image", PX), sample["txt"].decode().strip()

    start = time.perf_counter()
    urls = sorted(str(path) for path in folder.glob("bench-*.tar"))
    samples = webdataset.WebDataset(urls, shardshuffle=100).shuffle(1000).map(prepare)
    rows = iter(cast("Iterable[tuple[Tensor, str]]", samples))
    for _ in range(num_batches):
        batch = list(itertools.islice(rows, BATCH))
        pixels = torch.stack([one for one, _ in batch])
        captions = [caption for _, caption in batch]
        assert (len(pixels), len(captions)) == (BATCH, BATCH)
    return num_batches * BATCH / (time.perf_counter() - start)


def first_batch(folder: Path, start: int) -> float:
    """Returns the seconds to create a loader and read the batch that starts at a sample."""
    began = time.perf_counter()
    source = WebDatasetConfig(path=f"{folder}/bench-*.tar", name="bench")
    entry = MixtureEntry(source=source, task="text_to_image")
    mixture = Mixture(DataConfig(mixture=(entry,)), seed=0)
    for index in range(start, start + BATCH):
        read_pixels(mixture.record(mixture.slot(index)).files, "image", PX)
    return time.perf_counter() - began


def order_of_30_million(number: int) -> float:
    """Returns the seconds to find the position of a sample among 30 million records."""
    began = time.perf_counter()
    RecordOrder([10_000] * 3000, 0, "order").position(number // 30_000_000, number % 30_000_000)
    return time.perf_counter() - began


def index_a_million(folder: Path) -> dict[str, float]:
    """Returns time and memory to index one shard of a million tiny members."""
    path = folder / "million.tar"
    header = tarfile.TarInfo("0000000.txt")
    header.size = 8
    with path.open("wb") as file:
        for number in range(1_000_000):
            header.name = f"{number // 2:07d}.{'json' if number % 2 else 'txt'}"
            file.write(header.tobuf(tarfile.USTAR_FORMAT) + b'{"a": 1}'.ljust(512, b"\0"))
        file.write(bytes(10240))
    code = (
        "import re, sys, time; from blip3o.data.sources.shards import make_index, load_index;"
        # getrusage is not used, because its peak starts at that of the parent process.
        "status = lambda: open('/proc/self/status').read();"
        "peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', status())[1]) / 1024;"
        "before, start = peak(), time.perf_counter(); index = make_index(sys.argv[1]);"
        "built, after, start = time.perf_counter() - start, peak(), time.perf_counter();"
        "load_index(sys.argv[1]); loaded = time.perf_counter() - start;"
        "print(len(index), built, after - before, loaded)"
    )
    command = [sys.executable, "-c", code, str(path)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    side_car = path.with_name(path.name + ".index.npz").stat().st_size
    path.unlink()
    return {
        "members": 1_000_000,
        "records": int(output[0]),
        "build_s": float(output[1]),
        "build_peak_mb": float(output[2]),
        "load_s": float(output[3]),
        "side_car_mb": side_car / 1e6,
    }


def describe(values: list[float]) -> dict[str, float]:
    """Returns median, minimum and maximum."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def main() -> None:
    """Measures both loaders in turn, prints the results and writes them to a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--batches", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/loader.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    rates: dict[str, list[float]] = {"blip3o": [], "webdataset": []}
    places = {"0": 0, "10 thousand": 10_000, "100 million": 10**8, "10 billion": 10**10}
    starts: dict[str, list[float]] = {name: [] for name in places}
    orders: dict[str, list[float]] = {name: [] for name in places}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_shards(folder, options.shards)
        ours(folder, 1), theirs(folder, 1)  # builds the index and fills the page cache
        for _ in range(options.repeats):
            rates["blip3o"].append(ours(folder, options.batches))
            rates["webdataset"].append(theirs(folder, options.batches))
            for place, start in places.items():
                starts[place].append(first_batch(folder, start))
                orders[place].append(order_of_30_million(start))
        index = index_a_million(folder)
    ratios = [a / b for a, b in zip(*rates.values(), strict=True)]
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    results = {
        "command": " ".join(["python", *sys.argv]),
        "compared": "our loader and the webdataset library, both with our decoder",
        "commit": commit.strip(),
        "machine": f"{platform.machine()}, 1 thread",
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "records_per_second": {name: describe(values) for name, values in rates.items()},
        "ratio_to_webdataset": describe(ratios),
        "first_batch_s_from_sample": {name: describe(values) for name, values in starts.items()},
        "order_of_30_million_records_s": {name: describe(v) for name, v in orders.items()},
        "index": index,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
