"""Data sets and whole runs for the tests of curation."""

import base64
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from blip3o.core.config import from_dict
from blip3o.curate.config import CurateConfig
from blip3o.curate.desk import Desk
from blip3o.curate.draft import Draft
from blip3o.curate.images import ImageStore
from blip3o.curate.publish import publish
from blip3o.curate.run import Curation

Server = Any  # the class in tests/unit/conftest.py


@pytest.fixture
def shards_of_captions(tmp_path: Path) -> Path:
    """A folder with a shard of four captions; the second and the third are prompts of GenEval."""
    folder = tmp_path / "shards"
    folder.mkdir()
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(buffer, "PNG")
    captions = ("a castle at night", "There is a cow.", "four dogs", "a moat")
    with tarfile.open(folder / "shard-000000.tar", "w") as tar:
        for number, caption in enumerate(captions):
            data = {"png": buffer.getvalue(), "json": json.dumps({"caption": caption}).encode()}
            for suffix, content in data.items():
                info = tarfile.TarInfo(f"{number}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return folder


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """The surroundings of a stage named `stage`, without models."""
    return Desk(stage="stage", seed=0, images=ImageStore(tmp_path / "images"), models={})


@pytest.fixture(scope="session")
def scene() -> Callable[[int], Image.Image]:
    """Returns scenes by their seeds: a smooth ground, colorful things and noise, without a tint."""
    width, height = 256, 192

    def make(seed: int) -> Image.Image:
        rng = np.random.default_rng(seed)
        tones = rng.integers(60, 200, (3, 4, 1)).repeat(3, axis=2) + rng.integers(
            -25, 25, (3, 4, 3)
        )
        ground = Image.fromarray(tones.clip(0, 255).astype(np.uint8))
        image = ground.resize((width, height), Image.Resampling.BICUBIC)
        draw = ImageDraw.Draw(image)
        for _ in range(12):
            x, y = (int(place) for place in rng.integers(0, (width, height)))
            w, h = (int(side) for side in rng.integers(10, (width // 4, height // 4)))
            red, green, blue = (int(level) for level in rng.integers(0, 256, 3))
            draw.ellipse((x, y, x + w, y + h), fill=(red, green, blue))
        noise = rng.normal(0, 4, (height, width, 1))
        return Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))

    return make


@pytest.fixture(scope="session")
def recompressed() -> Callable[[Image.Image, int], Image.Image]:
    """Returns an image after JPEG of some quality."""

    def make(image: Image.Image, quality: int) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        return Image.open(buffer).convert("RGB")

    return make


GRAMMAR = """
words:
  thing: [cat, dog, bird, boat, lamp, chair, tree, clock, drum, kite, shoe, spoon]
  color: [red, green, blue, black, white, brown, pink, gray]
categories:
  plain: ["a {color:1} {thing:1} beside a {color:2} {thing:2}"]
"""


def image_of(prompt: str, seed: int) -> bytes:
    """Returns the image of a prompt: other colors for other prompts and seeds."""
    digest = hashlib.sha256(f"{prompt} {seed}".encode()).digest()
    image = Image.new("RGB", (64, 64), tuple(digest[:3]))
    image.paste(tuple(digest[3:6]), (8 + digest[6] % 16, 8, 40, 30 + digest[7] % 30))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def grades_of(body: Mapping[str, Any]) -> str:
    """Returns grades that depend on the image: about a third of the images fail."""
    content = body["messages"][-1]["content"]
    url = next(part["image_url"]["url"] for part in content if part["type"] == "image_url")
    data = base64.b64decode(url.partition(",")[2])
    grade = 3 if hashlib.sha256(data).digest()[0] < 85 else 9
    return f"Fine.\nAlignment: {grade}\nSoundness: 9\nQuality: 9"


class Lab:
    """Whole curations of 24 drafts with the server as painter and judge."""

    def __init__(self, server: Server, folder: Path) -> None:
        self._server = server
        self._grammar = folder / "grammar.yaml"
        self._grammar.write_text(GRAMMAR, encoding="utf-8")
        server.reply = self.answer

    def answer(self, call: Any) -> Any:
        """Returns the usual answer of the server."""
        if "prompt" in call.body:
            return self._server.image(image_of(call.body["prompt"], call.body["seed"]))
        return self._server.text(grades_of(call.body))

    @staticmethod
    def key_of(call: Any) -> str:
        """Returns a name of a request's whole content."""
        return hashlib.sha256(json.dumps(call.body, sort_keys=True).encode()).hexdigest()

    def config(self, served: Mapping[str, Any] | None = None, **changes: Any) -> CurateConfig:
        """Returns the settings of a run; `served` changes both of its models."""
        common = {"kind": "openai", "url": self._server.url, "key_variable": "", "license": "MIT"}
        common |= {"pause_s": 0.01, "timeout_s": 2.0, "max_in_flight": 4, **(served or {})}
        data = {
            "name": "tiny",
            "num_drafts": 24,
            "unit_size": 4,
            "categories": {"plain": 1.0},
            "models": [
                {**common, "name": "painter", "model": "p", "image_price": 1.0},
                {**common, "name": "judge", "model": "j"},
            ],
            "stages": [
                {"kind": "templates", "grammar": str(self._grammar)},
                {"kind": "draw", "model": "painter"},
                {"kind": "judge", "model": "judge"},
                {"kind": "draw", "name": "draw_again", "model": "painter"},
                {"kind": "judge", "name": "judge_again", "model": "judge"},
                {"kind": "dedup", "image": None},
            ],
        }
        return from_dict(CurateConfig, {**data, **changes})

    @staticmethod
    def finish(config: CurateConfig, out: Path) -> list[Draft]:
        """Returns the drafts of a whole run, whose set is published."""
        curation = Curation(config, out)
        drafts = curation.run()
        assert drafts is not None
        publish(config, drafts, curation.images, out)
        return drafts

    @staticmethod
    def content_of(out: Path) -> dict[str, str]:
        """Returns the hash of each file of a finished set, but not of the settings."""
        files = [out / "records.jsonl", out / "preferences.jsonl"]
        files += [one for one in (out / "data").iterdir() if one.name != "curation.yaml"]
        return {one.name: hashlib.sha256(one.read_bytes()).hexdigest() for one in files}


@pytest.fixture
def lab(server: Server, tmp_path: Path) -> Lab:
    """Whole curations with the server."""
    return Lab(server, tmp_path)
