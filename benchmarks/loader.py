"""Compares the loader with the webdataset library, and measures random access and indexing.

`reading`: both read the same shards in one process, decode images with the same function and return
batches of pixels and captions. Our loader also shuffles over all records and can start at any of
them. webdataset reads shards from start to end, with the usual shuffle buffer.
"""

import contextlib
import io
import itertools
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import cast

import numpy as np
import torch
from measure import Case, Options, main
from PIL import Image
from torch import Tensor

from blip3o.data.images import read_pixels
from blip3o.data.mixture import DataConfig, Mixture, MixtureEntry
from blip3o.data.order import RecordOrder
from blip3o.data.sources.webdataset import WebDatasetConfig

PX, BATCH, SHARD_RECORDS = 96, 64, 1000
STARTS = {"sample_0": 0, "sample_1e4": 10**4, "sample_1e8": 10**8, "sample_1e10": 10**10}
INDEX = """
import re, sys, time
from blip3o.data.sources.shards import load_index, make_index
# getrusage is not used, because its peak starts at that of the parent process.
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
before, start = peak(), time.perf_counter()
make_index(sys.argv[1])
built, after, start = time.perf_counter() - start, peak(), time.perf_counter()
load_index(sys.argv[1])
print("build_s", built, "build_peak_mb", after - before, "load_s", time.perf_counter() - start)
"""


@contextlib.contextmanager
def shards(num_records: int) -> Iterator[WebDatasetConfig]:
    """Writes shards of JPEG images of 256 pixels with captions; they last as long as the context.

    Args:
        num_records: number of records; a shard has at most `SHARD_RECORDS`.
    """
    rng = np.random.default_rng(0)
    images = []
    for _ in range(50):
        rough = Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        rough.resize((256, 256), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        images.append(buffer.getvalue())
    with tempfile.TemporaryDirectory() as folder:
        for start in range(0, num_records, SHARD_RECORDS):
            with tarfile.open(f"{folder}/bench-{start:08d}.tar", "w") as tar:
                for number in range(start, min(start + SHARD_RECORDS, num_records)):
                    image, text = images[number % len(images)], f"image {number:08d}".encode()
                    for suffix, data in (("jpg", image), ("txt", text)):
                        info = tarfile.TarInfo(f"{number:08d}.{suffix}")
                        info.size = len(data)
                        tar.addfile(info, io.BytesIO(data))
        yield WebDatasetConfig(path=f"{folder}/bench-*.tar", name="bench")


def read_batches(source: WebDatasetConfig, start: int, num_batches: int) -> list[set[str]]:
    """Opens indexed shards and reads batches with our loader; returns their captions.

    Args:
        source: the shards.
        start: number of the first sample.
        num_batches: number of batches.
    """
    entry = MixtureEntry(source=source, task="text_to_image")
    mixture = Mixture(DataConfig(mixture=(entry,)), seed=0)
    captions = []
    for first in range(start, start + num_batches * BATCH, BATCH):
        records = [mixture.record(mixture.slot(first + row)) for row in range(BATCH)]
        torch.stack([read_pixels(record.files, "image", PX) for record in records])
        captions.append({record.fields["caption"] for record in records})
    return captions


def read_webdataset(source: WebDatasetConfig, num_batches: int) -> list[set[str]]:
    """Reads batches with webdataset and our decoder; returns their captions."""
    import webdataset

    def prepare(sample: dict[str, bytes]) -> tuple[Tensor, str]:
        return read_pixels({"image": sample["jpg"]}, "image", PX), sample["txt"].decode().strip()

    urls = sorted(str(path) for path in Path(source.path).parent.glob("*.tar"))
    samples = webdataset.WebDataset(urls, shardshuffle=100).shuffle(1000).map(prepare)
    rows = iter(cast("Iterable[tuple[Tensor, str]]", samples))
    captions = []
    for _ in range(num_batches):
        batch = list(itertools.islice(rows, BATCH))
        torch.stack([pixels for pixels, _ in batch])
        captions.append({caption for _, caption in batch})
    return captions


def reading(options: Options) -> Iterator[Case]:
    """Shuffled batches from the start."""
    num_batches = options.pick(40, 1)
    with shards(options.pick(8 * SHARD_RECORDS, BATCH)) as source:
        yield Case(
            unit="record",
            work=num_batches * BATCH,
            variants={
                "webdataset": lambda: read_webdataset(source, num_batches),
                "blip3o": lambda: read_batches(source, 0, num_batches),
            },
            difference=lambda one, other: float([*map(len, one)] != [*map(len, other)]),
            has_memory=True,
        )


def first_batch(options: Options) -> Iterator[Case]:
    """A new loader and the batch that starts at a sample."""
    with shards(options.pick(8 * SHARD_RECORDS, BATCH)) as source:
        yield Case(
            unit="batch",
            variants={
                name: lambda start=start: read_batches(source, start, 1)
                for name, start in STARTS.items()
            },
        )


def order(options: Options) -> Iterator[Case]:
    """The position of a sample among 30 million records."""
    lengths = [10_000] * options.pick(3000, 3)
    total = sum(lengths)
    yield Case(
        unit="sample",
        variants={
            name: lambda start=start: RecordOrder(lengths, 0, "order").position(
                start // total, start % total
            )
            for name, start in STARTS.items()
        },
    )


def index(options: Options) -> Iterator[Case]:
    """The index of one shard of a million tiny members, in a new process."""
    members = options.pick(1_000_000, 100)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "members.tar"
        header = tarfile.TarInfo()
        header.size = 8
        with path.open("wb") as file:
            for number in range(members):
                header.name = f"{number // 2:07d}.{'json' if number % 2 else 'txt'}"
                file.write(header.tobuf(tarfile.USTAR_FORMAT) + b'{"a": 1}'.ljust(512, b"\0"))
            file.write(bytes(10240))
        side_car = path.with_name(path.name + ".index.npz")

        def build() -> dict[str, float]:
            side_car.unlink(missing_ok=True)
            command = [sys.executable, "-c", INDEX, str(path)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found = {name: float(value) for name, value in re.findall(r"(\w+) ([\d.e-]+)", output)}
            return {**found, "side_car_mb": side_car.stat().st_size / 1e6}

        yield Case(
            unit="member",
            work=members,
            variants={"build": build},
            figures=dict,
            is_long=True,
            most_rounds=1,
        )


if __name__ == "__main__":
    cases = {"reading": reading, "first_batch": first_batch, "order": order, "index": index}
    main(__doc__, cases)
