"""The bundled model: complete, small, reproducible and able to do every task."""

import colorsys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import blip3o
from blip3o import Blip3oPipeline
from blip3o.weights.folder import BUNDLED
from blip3o.weights.names import describe_models

FOLDER = Path(blip3o.__file__).parent / "pocket"
MOST_BYTES = 40_000_000

pytestmark = pytest.mark.skipif(
    not (FOLDER / "config.json").exists(),
    reason="there is no bundled model: src/blip3o/pocket/config.json does not exist",
)

PROMPTS = {
    "a large red heart": "red",
    "a large blue car": "blue",
    "a large green tree": "green",
    "a large yellow star": "yellow",
}
HUES = {"red": 0.99, "yellow": 0.14, "green": 0.37, "blue": 0.62}


@pytest.fixture(scope="module")
def pipe() -> Blip3oPipeline:
    return Blip3oPipeline.from_pretrained("pocket", device="cpu", dtype="fp32")


@pytest.fixture(scope="module")
def images(pipe: Blip3oPipeline) -> list[Image.Image]:
    return pipe(list(PROMPTS), generator=generators()).images


def generators() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(len(PROMPTS))]


def share_of(image: Image.Image, color: str) -> float:
    """Returns the share of pixels with the hue of a color and a high saturation."""
    rows = np.asarray(image).reshape(-1, 3) / 255
    hits = 0
    for red, green, blue in rows[::4]:
        hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
        distance = abs(hue - HUES[color])
        hits += min(distance, 1 - distance) < 0.06 and saturation > 0.55 and value > 0.4
    return 4 * hits / len(rows)


def test_the_folder_is_complete_and_small() -> None:
    assert BUNDLED["pocket"] == FOLDER
    files = [p for p in FOLDER.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= MOST_BYTES
    names = {"config.json", "model.safetensors", "tokenizer.json", "README.md"}
    assert {p.name for p in files} == names
    assert describe_models().startswith("pocket  ")
    assert "MB" in describe_models().splitlines()[0]


def test_the_same_seed_gives_the_same_image(
    pipe: Blip3oPipeline, images: list[Image.Image]
) -> None:
    again = pipe(list(PROMPTS), generator=generators()).images
    assert [p.tobytes() for p in again] == [p.tobytes() for p in images]
    (alone,) = pipe(list(PROMPTS)[1], generator=generators()[1]).images
    difference = np.asarray(alone).astype(int) - np.asarray(images[1])
    assert np.abs(difference).mean() < 2


def test_images_show_the_requested_color(images: list[Image.Image]) -> None:
    """For three of four prompts, the requested color must cover more pixels than any other."""
    right = 0
    for image, color in zip(images, PROMPTS.values(), strict=True):
        shares = {name: share_of(image, name) for name in HUES}
        right += max(shares, key=shares.__getitem__) == color and shares[color] > 0.02
    assert right >= 3


def test_it_answers_questions_about_generated_images(
    pipe: Blip3oPipeline, images: list[Image.Image]
) -> None:
    for image in images[:2]:
        assert pipe.ask(image, "What is in the image?")
    assert pipe.ask(images[0], "Describe the image in detail.").isprintable()


def test_it_edits_and_reconstructs(pipe: Blip3oPipeline, images: list[Image.Image]) -> None:
    original = np.asarray(images[1]).astype(int)
    (kept,) = pipe.reconstruct(images[1], generator=generators()[0]).images
    assert np.abs(np.asarray(kept) - original).mean() < 40
    (edited,) = pipe.edit(images[1], "make the car red", generator=generators()[0]).images
    assert edited.size == images[1].size
    assert (np.asarray(edited) != original).any()
