"""Measures cost against work: sampling, loader, feature cache and server at growing sizes.

The variants of a case are its sizes. `python benchmarks/report.py scaling` fits the exponent of
cost against work, 1 if twice the work costs twice as much. Networks are 64 wide and have random
weights.
"""

import contextlib
import itertools
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import torch
from loader import shards
from measure import Case, CaseFunction, Options, main
from sample import GUIDANCE, build, dit
from serve import figures, generation, servers
from torch import Tensor

from blip3o.data.cache import FeatureCache, build_cache
from blip3o.data.collate import Preparer
from blip3o.data.loader import Loader
from blip3o.data.mixture import DataConfig, MixtureEntry
from blip3o.data.order import RecordOrder
from blip3o.data.sources import Source
from blip3o.data.sources.webdataset import WebDatasetConfig
from blip3o.generate.draw import draw
from blip3o.models.generators.lmfusion import LMFusionConfig
from blip3o.models.generators.plan import GeneratorConfig
from blip3o.models.unified import SamplingConfig
from blip3o.text.chat import ChatConfig, ChatTemplate
from blip3o.text.tokenizer import train_tokenizer

WIDTH, PROMPT_TOKENS, BATCH, PX = 64, 32, 64, 96
GENERATORS: dict[str, GeneratorConfig] = {
    "dit": dit(WIDTH, 2, 4),
    "image_layers": LMFusionConfig(),
}
SAMPLING = SamplingConfig(num_inference_steps=4)


def growing(
    run: Callable[[int], object], sizes: Iterable[int], unit: str, *, has_memory: bool = False
) -> Case:
    """Returns the case of `run` at several sizes, which are the work; see `Case`."""
    return Case(
        unit=unit,
        work={str(size): size for size in sizes},
        variants={str(size): partial(run, size) for size in sizes},
        has_memory=has_memory,
    )


def drawing(
    generator: GeneratorConfig, grid: int, batch: int, device: torch.device
) -> Callable[[], Tensor]:
    """Returns a function that draws the features of a batch of images, one for each prompt."""
    model = build(WIDTH, grid, generator, device)
    plan = model.generator.empty_plan(model.backbone, batch, PROMPT_TOKENS)
    noise = torch.randn(batch, *model.config.feature_shape).to(device)
    return partial(draw, plan, noise, GUIDANCE, SAMPLING)


def tokens(generator: GeneratorConfig, options: Options) -> Iterator[Case]:
    """One image of more and more tokens."""
    sizes = options.pick((16, 64, 256, 1024, 4096), (4, 16))
    draws = {size: drawing(generator, math.isqrt(size), 1, options.device) for size in sizes}
    yield growing(lambda size: draws[size](), sizes, "token", has_memory=True)


def batch(generator: GeneratorConfig, options: Options) -> Iterator[Case]:
    """More and more images of 64 tokens."""
    sizes = options.pick((1, 2, 4, 8, 16, 32), (1, 2))
    draws = {size: drawing(generator, 8, size, options.device) for size in sizes}
    yield growing(lambda size: draws[size](), sizes, "image", has_memory=True)


def load(source: WebDatasetConfig, num_records: int, num_workers: int) -> None:
    """Opens indexed shards and loads batches of training."""
    chat = ChatTemplate(train_tokenizer(["image 0123456789"], 300), ChatConfig(), 1)
    entry = MixtureEntry(source=source, task="text_to_image")
    loader = Loader(
        DataConfig(mixture=(entry,), num_workers=num_workers),
        Preparer(chat=chat, image_px=PX, max_text_tokens=128),
        seed=0,
        global_batch_size=BATCH,
        micro_batch_size=BATCH,
    )
    with contextlib.closing(loader(0)) as steps:
        for _ in range(num_records // BATCH):
            next(steps)


def loader_records(options: Options) -> Iterator[Case]:
    """The training loader without worker processes."""
    sizes = options.pick((64, 256, 1024, 4096), (64, 128))
    with shards(max(sizes)) as source:
        yield growing(lambda size: load(source, size, 0), sizes, "record")


def loader_workers(options: Options) -> Iterator[Case]:
    """The training loader with worker processes, whose start counts; equal work."""
    records = options.pick(2048, 64)
    with shards(records) as source:
        yield Case(
            unit="record",
            work=records,
            variants={
                f"{workers}_workers": partial(load, source, records, workers)
                for workers in options.pick((0, 1, 2, 4), (0, 1))
            },
        )


def loader_order(options: Options) -> Iterator[Case]:
    """The position of a sample in a shuffled data set of more and more shards."""
    sizes = options.pick((30, 300, 3000, 30_000), (3, 30))
    yield growing(
        lambda size: RecordOrder([10_000] * size, 0, "order").position(1, 5000), sizes, "shard"
    )


def encode(pixels: Tensor) -> Tensor:
    """Stands for an image encoder without its cost: pixels [B, 3, P, P] to features [B, 64, 3]."""
    return torch.nn.functional.adaptive_avg_pool2d(pixels, 8).flatten(2).mT


@contextlib.contextmanager
def sources(sizes: Iterable[int]) -> Iterator[dict[int, Source]]:
    """Opens data sets of some numbers of records."""
    with contextlib.ExitStack() as stack:
        yield {size: stack.enter_context(shards(size)).build() for size in sizes}


def write_cache(source: Source, folder: Path) -> FeatureCache:
    """Writes the features of all records in a new folder, with the decoding of the images."""
    cache = FeatureCache(str(folder), "benchmark")
    build_cache(cache, source, "image", encode, image_px=PX, batch_size=BATCH)
    return cache


def read_cache(source: Source, folder: Path) -> None:
    """Opens a cache and reads the features of all records."""
    cache = FeatureCache(str(folder), "benchmark")
    cache.open(source, "image")
    for position in range(len(source)):
        cache.get(source.name, "image", position)


def cache_writing(options: Options) -> Iterator[Case]:
    """A feature cache is written."""
    sizes, numbers = options.pick((64, 256, 1024, 4096), (4, 8)), itertools.count()
    with sources(sizes) as opened, tempfile.TemporaryDirectory() as folder:
        yield growing(
            lambda size: write_cache(opened[size], Path(folder) / str(next(numbers))),
            sizes,
            "record",
        )


def cache_reading(options: Options) -> Iterator[Case]:
    """A feature cache is read."""
    sizes = options.pick((64, 256, 1024, 4096), (4, 8))
    with sources(sizes) as opened, tempfile.TemporaryDirectory() as folder:
        for size, source in opened.items():
            write_cache(source, Path(folder) / str(size))
        yield growing(
            lambda size: read_cache(opened[size], Path(folder) / str(size)), sizes, "record"
        )


def server(options: Options) -> Iterator[Case]:
    """A server with more and more clients, of which each asks for one image after the other."""
    clients = options.pick((1, 4, 16, 64), (1, 2))
    requests = options.pick(4, 1)
    with servers(server=()) as started:
        started["server"].load(generation, max(clients), max(clients))  # warm-up
        yield Case(
            unit="image",
            work={f"{number}_clients": requests * number for number in clients},
            variants={
                f"{number}_clients": partial(
                    started["server"].load, generation, requests * number, number
                )
                for number in clients
            },
            figures=figures,
            is_long=True,
            most_rounds=3,
        )


CASES: dict[str, CaseFunction] = {
    **{f"{name}_tokens": partial(tokens, config) for name, config in GENERATORS.items()},
    **{f"{name}_batch": partial(batch, config) for name, config in GENERATORS.items()},
    "loader_records": loader_records,
    "loader_workers": loader_workers,
    "loader_order": loader_order,
    "cache_writing": cache_writing,
    "cache_reading": cache_reading,
    "server": server,
}

if __name__ == "__main__":
    main(__doc__, CASES)
