"""Hashes of the tokens and batches of every task, and of the scenes data set.

A change that must leave the data as it is leaves these hashes as they are.
"""

import hashlib
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from blip3o.core.types import Record
from blip3o.data.collate import Preparer
from blip3o.data.loader import Loader
from blip3o.data.mixture import MixtureEntry
from blip3o.data.scenes.export import export_scenes
from blip3o.data.scenes.prompts import CATEGORIES, eval_prompts
from blip3o.data.sources.webdataset import WebDatasetConfig
from blip3o.data.tasks import get_task

TENSORS = (
    *("indices", "epochs", "input_ids", "attention_mask", "labels", "prompt_pixels"),
    *("prompt_features", "target_pixels", "target_features", "reference_rows", "regions"),
)
BATCHES = {
    "text_to_image": "7afef7ced9468b78",
    "edit": "3312d794ee4323da",
    "reconstruct": "42b8daeb739ef7ca",
    "contrastive": "c9fd8da1eb5bf431",
    "image_to_text": "18581e15275e6869",
    "text": "099d0eb74b3550b1",
}
SCENES = {
    "scenes-000000.tar": "fbc8eb399bd563fe",
    "edits-000000.tar": "2bc9d81439cf70e4",
    "pairs-000000.tar": "a00edcd07a827bbf",
    "groups-000000.tar": "e861ac69d37c1c04",
}
PROMPTS = "0875045362be3cea"


def short_hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


@pytest.mark.parametrize("task", BATCHES)
def test_the_batches_of_every_task_are_the_recorded_ones(
    task: str, make_loader: Callable[..., Loader], mixture: tuple[MixtureEntry, ...]
) -> None:
    source = mixture[3 if task == "edit" else 0].source
    turns = 2 if task == "image_to_text" else None
    loader = make_loader(mixture=(MixtureEntry(source=source, task=task, max_turns=turns),))
    digest = hashlib.sha256()
    for _, batches in zip(range(4), loader(0), strict=False):
        for batch in batches:
            for name in TENSORS:
                value = getattr(batch, name)
                digest.update(name.encode())
                if isinstance(value, torch.Tensor):
                    digest.update(str((value.dtype, tuple(value.shape))).encode())
                    digest.update(value.contiguous().numpy().tobytes())
    assert digest.hexdigest()[:16] == BATCHES[task]


def test_a_caption_becomes_the_recorded_answer(
    preparer: Preparer, scenes: WebDatasetConfig
) -> None:
    """A record without a conversation gets a question that its caption answers."""
    source = scenes.build()
    ids = []
    for position in range(len(source)):
        key, files, row = source.read(position)
        row = {"captions": row["captions"]}
        record = Record(
            key=key, index=0, epoch=0, position=position, source="scenes", files=files, fields=row
        )
        prepared = preparer.prepare(
            get_task("image_to_text").make(record, np.random.default_rng(position))
        )
        ids.append([prepared.ids, prepared.labels])
    assert short_hash(json.dumps(ids).encode()) == "167b2e7b61bc2375"


def test_the_scenes_data_set_is_the_recorded_one(tmp_path: Path) -> None:
    files = export_scenes(tmp_path, 300, 200, 100, num_groups=100, px=16, num_processes=1)
    assert {file.name: short_hash(texts_of(file)) for file in files} == SCENES


def texts_of(file: Path) -> bytes:
    """Returns the JSON of a shard; images depend on the version of zlib."""
    with tarfile.open(file) as tar:
        members = [one for one in tar.getmembers() if one.name.endswith(".json")]
        files = [tar.extractfile(one) for one in members]
        return b"\n".join(file.read() for file in files if file is not None)


def test_the_prompts_of_evaluation_are_the_recorded_ones() -> None:
    prompts = [one.prompt for category in CATEGORIES for one in eval_prompts(category)]
    assert short_hash("\n".join(prompts).encode()) == PROMPTS
