"""The process of the scorer. It talks to the server through a pipe: JSON and image files.

The server sends a batch as one message of JSON, `[item, ...]`, then one message for each image
file. The process answers with one message of JSON for each image, in any order:
`{"place": position in the batch, "score", "outcome", "data"}`.
"""

import hashlib
import importlib
import json
import os
import signal
import traceback
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any

import torch
from PIL import Image

from blip3o.core.errors import UsageError, first_line
from blip3o.core.log import say
from blip3o.eval.benchmark import Item, Sample, Scorer, Verdict
from blip3o.eval.rewards import Reward, RewardSource
from blip3o.imaging.load import ImageLimits, open_image

_DEVICE_ERRORS: tuple[type[BaseException], ...] = (
    (torch.AcceleratorError,) if hasattr(torch, "AcceleratorError") else ()
)
"""Errors after which a device is unusable: the process ends, and the server starts another."""
_DECODING_THREADS = 4


def run_scorer(
    connection: "Connection[bytes, bytes]",
    place: tuple[str, str],
    overrides: Sequence[str],
    limits: ImageLimits,
) -> None:
    """Loads a scorer and judges images until the server closes the pipe.

    Args:
        connection: the pipe to the server.
        place: module and attribute of the entry of `REWARDS`.
        overrides: changes of the benchmark's settings.
        limits: limits of the images.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        # A terminal or a scheduler signals all processes; this one is needed until the server ends.
        signal.signal(number, signal.SIG_IGN)
    module, attribute = place
    try:
        entry = getattr(importlib.import_module(module, __package__), attribute)
        source: RewardSource = entry(overrides)
        scorer = source.scorer()
    except UsageError as error:
        _send(connection, {"refused": str(error)})
        return
    _send(connection, {"judge": scorer.judge, "batch_size": scorer.batch_size})
    with ThreadPoolExecutor(min(_DECODING_THREADS, os.cpu_count() or 1)) as decoders:
        while True:
            try:
                items = json.loads(connection.recv_bytes())
                files = [connection.recv_bytes() for _ in items]
            except EOFError:
                return
            images = list(decoders.map(lambda data: _decoded(data, limits), files))
            samples: dict[int, Sample] = {}
            for position, (item, data, image) in enumerate(zip(items, files, images, strict=True)):
                if isinstance(image, str):
                    broken = Reward(score=None, outcome="broken", data={"error": image})
                    _answer(connection, position, broken)
                    continue
                sha256 = hashlib.sha256(data).hexdigest()
                samples[position] = Sample(item=Item(**item), number=0, sha256=sha256, image=image)
            for position, reward in judged(scorer, samples):
                _answer(connection, position, reward)


def judged(scorer: Scorer, samples: Mapping[int, Sample]) -> Iterator[tuple[int, Reward]]:
    """Yields (position, reward) of each sample, in any order.

    If the scorer raises an error, each remaining sample is judged alone, so the one that causes the
    error does not affect the others.

    Args:
        scorer: the scorer.
        samples: samples by their positions; the ids of their items differ.
    """
    left = {(sample.item.id, sample.number): place for place, sample in samples.items()}
    trouble = "the scorer gave no verdict"
    try:
        if samples:
            for verdict in scorer.verdicts(list(samples.values())):
                yield left.pop((verdict.item, verdict.number)), _reward(verdict)
    except _DEVICE_ERRORS:
        raise
    except Exception as error:  # noqa: BLE001 (any error of a scorer)
        trouble = f"{type(error).__name__}: {first_line(error)}"
        say(f"blip3o: the scorer failed: {traceback.format_exc()}")
        if len(samples) > 1:
            for place in sorted(left.values()):
                yield from judged(scorer, {place: samples[place]})
            return
    for place in left.values():
        yield place, Reward(score=None, outcome="transport", data={"error": trouble})


def _reward(verdict: Verdict) -> Reward:
    return Reward(score=verdict.score, outcome=verdict.outcome, data=verdict.data)


def _decoded(data: bytes, limits: ImageLimits) -> Image.Image | str:
    """Returns an image in RGB, or the reason why it cannot be read."""
    try:
        return open_image(data, limits)
    except UsageError as error:
        return str(error)


def _answer(connection: "Connection[bytes, bytes]", place: int, reward: Reward) -> None:
    message = {"place": place, "score": reward.score, "outcome": reward.outcome}
    try:
        _send(connection, {**message, "data": reward.data})
    except (TypeError, ValueError) as error:  # NaN, or data that is not JSON
        say(f"blip3o: the scorer's verdict is not JSON: {error}")
        trouble = {"error": f"the scorer's verdict is not JSON: {error}"}
        _send(connection, {"place": place, "score": None, "outcome": "transport", "data": trouble})


def _send(connection: "Connection[bytes, bytes]", message: Mapping[str, Any]) -> None:
    connection.send_bytes(json.dumps(message, allow_nan=False).encode())
