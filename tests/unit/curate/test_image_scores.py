"""Scores of images tell good images from faulty ones."""

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

from blip3o.curate.image_scores import (
    EDIT_SCORES,
    IMAGE_SCORES,
    aspect,
    border,
    cast,
    changed,
    image_scores,
    short_px,
    spread,
)

Scene = Callable[[int], Image.Image]
Recompress = Callable[[Image.Image, int], Image.Image]
SEEDS = range(6)
YELLOW = (1.0, 0.95, 0.75)


def tinted(image: Image.Image, gains: tuple[float, float, float]) -> Image.Image:
    return Image.fromarray((np.asarray(image) * np.array(gains)).clip(0, 255).astype(np.uint8))


def thing(color: str = "red", ground: str = "white") -> Image.Image:
    image = Image.new("RGB", (200, 200), ground)
    ImageDraw.Draw(image).ellipse((60, 60, 140, 140), fill=color)
    return image


@pytest.mark.parametrize("size", [(300, 100), (100, 300)])
def test_the_sides_do_not_depend_on_the_orientation(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size)
    assert (short_px(image), aspect(image)) == (100, 3)


def test_only_images_of_one_brightness_have_no_spread(scene: Scene) -> None:
    assert spread(Image.new("RGB", (64, 64), "orange")) == 0
    assert min(spread(scene(seed)) for seed in SEEDS) > 25
    halves = np.zeros((8, 8, 3), dtype=np.uint8)
    halves[4:] = 255
    assert spread(Image.fromarray(halves)) == 127.5


@pytest.mark.parametrize("quality", [40, 100])
@pytest.mark.parametrize(
    "sides", [(20, 20, 20, 20), (0, 30, 0, 30), (25, 0, 25, 0), (0, 0, 0, 40), (40, 0, 0, 0)]
)
def test_a_frame_and_bars_are_measured(
    sides: tuple[int, int, int, int], quality: int, scene: Scene, recompressed: Recompress
) -> None:
    for seed in SEEDS:
        framed = ImageOps.expand(scene(seed), sides, "white")
        share = 1 - 256 * 192 / (framed.width * framed.height)
        assert border(recompressed(framed, quality)) == pytest.approx(share, abs=0.03)


def test_a_plain_ground_is_no_frame_and_one_color_is_nothing_else(scene: Scene) -> None:
    assert border(thing()) == 0
    flat = Image.new("RGB", (400, 400), "white")
    ImageDraw.Draw(flat).ellipse((20, 150, 380, 250), fill="red")
    assert border(flat) == 0
    assert max(border(scene(seed)) for seed in SEEDS) == 0
    assert border(Image.new("RGB", (64, 48), "gray")) == 1


def test_a_cast_is_the_tint_of_the_whole_image(scene: Scene) -> None:
    assert cast(Image.new("RGB", (8, 8), "gray")) == pytest.approx(0, abs=0.01)
    assert cast(thing()) < 2
    assert cast(tinted(thing(), YELLOW)) > 20
    plain = [cast(scene(seed)) for seed in SEEDS]
    yellow = [cast(tinted(scene(seed), YELLOW)) for seed in SEEDS]
    assert max(plain) < min(yellow)


def test_colors_are_those_of_cielab() -> None:
    assert cast(Image.new("RGB", (4, 4), "red")) == pytest.approx(np.hypot(80.09, 67.20), abs=0.01)


@pytest.mark.parametrize("seed", SEEDS)
def test_recompression_and_another_size_are_no_change(
    seed: int, scene: Scene, recompressed: Recompress
) -> None:
    image = scene(seed)
    assert changed(image, image) == 0
    assert changed(image, recompressed(image, 40)) < 0.03
    assert changed(image, recompressed(image.resize((500, 375)), 40)) < 0.03
    assert changed(image.resize((512, 384)), image) < 0.03
    assert changed(image, tinted(image, (1.02, 1.02, 1.02))) < 0.03


def test_the_share_of_a_changed_part_is_measured(scene: Scene, recompressed: Recompress) -> None:
    image = scene(0)
    edited = image.copy()
    edited.paste(ImageOps.invert(image.crop((64, 48, 192, 144))), (64, 48))
    assert changed(image, recompressed(edited, 40)) == pytest.approx(0.25, abs=0.05)


def test_another_scene_is_a_change_of_nearly_everything(scene: Scene) -> None:
    assert min(changed(scene(seed), scene(seed + 100)) for seed in SEEDS) > 0.8
    assert changed(Image.new("RGB", (64, 64), "black"), Image.new("RGB", (9, 9), "white")) == 1


def test_scores_have_their_names(scene: Scene) -> None:
    assert image_scores(scene(0)).keys() == IMAGE_SCORES.keys()
    scores = image_scores(scene(0), scene(0))
    assert scores.keys() == IMAGE_SCORES.keys() | EDIT_SCORES.keys()
    assert all(isinstance(value, float) for value in scores.values())


def test_thin_images_have_scores(scene: Scene) -> None:
    thin = scene(0).resize((3000, 1))
    assert all(np.isfinite(value) for value in image_scores(thin, scene(0)).values())
