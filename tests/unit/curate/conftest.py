"""Data sets for the tests of curation."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from blip3o.curate.desk import Desk
from blip3o.curate.images import ImageStore


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
