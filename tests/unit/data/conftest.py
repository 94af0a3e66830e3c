"""Small data sets on disk: a few 8 px images with captions, conversations, objects and edits."""

import io
import json
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from blip3o.data.collate import Preparer
from blip3o.data.loader import Loader
from blip3o.data.mixture import DataConfig, MixtureEntry
from blip3o.data.sources.webdataset import WebDatasetConfig
from blip3o.text.chat import ChatConfig, ChatTemplate
from blip3o.text.tokenizer import train_tokenizer

PX = 8
WriteTar = Callable[[Path, Mapping[str, bytes]], None]
MakeLoader = Callable[..., Loader]


def png(level: int) -> bytes:
    """Returns an image of one gray-red color."""
    buffer = io.BytesIO()
    Image.new("RGB", (PX, PX), (level, 0, 7)).save(buffer, "PNG")
    return buffer.getvalue()


def fields(number: int) -> dict[str, Any]:
    """Returns the fields of a scenes record."""
    return {
        "captions": [f"a red cat {number}", f"cat number {number}"],
        "conversations": [
            {"from": "human", "value": "<image>\nWhat is it?"},
            {"from": "gpt", "value": f"cat {number}"},
            {"from": "human", "value": "Which color?"},
            {"from": "gpt", "value": "red"},
        ],
        "text_conversations": [
            {"from": "human", "value": "Is a cat a dog?"},
            {"from": "gpt", "value": "no"},
        ],
        "drills": [
            {"from": "human", "value": "<image>\nWhich color are the cat and the dog?"},
            {"from": "gpt", "value": "the cat red; the dog none"},
        ],
        "objects": [
            {"thing": "cat", "color": "red", "x": 0.5, "y": 0.25, "size": 0.125},
            {"thing": "unheard-of", "color": "red", "x": 0.1, "y": 0.1, "size": 0.1},
        ],
    }


@pytest.fixture(scope="session")
def write_tar() -> WriteTar:
    """Writes a tar of members."""

    def write(path: Path, members: Mapping[str, bytes]) -> None:
        with tarfile.open(path, "w") as tar:
            for name, data in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))

    return write


@pytest.fixture
def shards(tmp_path: Path, write_tar: WriteTar) -> Path:
    """A folder with scenes-0.tar (7 records), scenes-1.tar (5) and edits-0.tar (6)."""
    for shard, numbers in enumerate((range(7), range(7, 12))):
        members = {}
        for number in numbers:
            members[f"{number:04d}.png"] = png(20 * number)
            members[f"{number:04d}.json"] = json.dumps(fields(number)).encode()
        write_tar(tmp_path / f"scenes-{shard}.tar", members)
    edits = {}
    for number in range(6):
        edits[f"{number}.source.png"] = png(number)
        edits[f"{number}.target.png"] = png(100 + number)
        edits[f"{number}.json"] = json.dumps({"instruction": f"make it blue {number}"}).encode()
    write_tar(tmp_path / "edits-0.tar", edits)
    return tmp_path


@pytest.fixture(scope="session")
def chat() -> ChatTemplate:
    """A chat template over a small tokenizer; an image takes two tokens."""
    texts = ("draw: a red cat", "edit: make it blue", "user\n", "assistant\n", "What is it?") * 3
    config = ChatConfig(system=None, generate="draw: {caption}", edit="edit: {instruction}")
    return ChatTemplate(train_tokenizer(texts, 300), config, num_image_tokens=2)


@pytest.fixture
def preparer(chat: ChatTemplate) -> Preparer:
    """Decodes images at their own size."""
    return Preparer(
        chat=chat, image_px=PX, max_text_tokens=128, things=("dog", "cat"), colors=("red",)
    )


@pytest.fixture
def scenes(shards: Path) -> WebDatasetConfig:
    """The scenes of `shards`."""
    return WebDatasetConfig(path=f"{shards}/scenes-*.tar", name="scenes")


@pytest.fixture
def mixture(shards: Path, scenes: WebDatasetConfig) -> tuple[MixtureEntry, ...]:
    """Four tasks over two sources."""
    edits = WebDatasetConfig(path=f"{shards}/edits-*.tar", name="edits")
    return (
        MixtureEntry(source=scenes, task="text_to_image", weight=2),
        MixtureEntry(source=scenes, task="image_to_text", max_turns=2),
        MixtureEntry(source=scenes, task="text", weight=0.5),
        MixtureEntry(source=edits, task="edit"),
    )


@pytest.fixture
def make_loader(preparer: Preparer, mixture: tuple[MixtureEntry, ...]) -> MakeLoader:
    """Makes a loader; arguments replace those of the data config and of the loader."""

    def make(**changes: Any) -> Loader:
        names = ("num_workers", "bad_sample_limit", "mixture")
        data = {name: changes.pop(name) for name in names if name in changes}
        config: dict[str, Any] = {"mixture": mixture, **data}
        settings: dict[str, Any] = {
            "preparer": preparer,
            "seed": 0,
            "global_batch_size": 6,
            "micro_batch_size": 2,
            **changes,
        }
        return Loader(DataConfig(**config), **settings)

    return make
