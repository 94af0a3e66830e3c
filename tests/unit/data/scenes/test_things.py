import json
from importlib import resources

import numpy as np
import pytest
from PIL import Image, ImageDraw

from blip3o.data.scenes.things import (
    BACKGROUNDS,
    COLORS,
    RAMPS,
    THINGS,
    background_image,
    colored_sprite,
    plural,
    sprite,
    with_article,
)


def test_the_sheet_holds_exactly_the_things() -> None:
    layout = json.loads(
        (resources.files("blip3o.data.scenes") / "sprites.json").read_text(encoding="utf-8")
    )
    assert tuple(layout["emoji"] + layout["shapes"]) == THINGS
    assert len(set(THINGS)) == 48
    assert len(layout["emoji"]) >= 40


@pytest.mark.parametrize("thing", THINGS)
def test_a_sprite_is_one_connected_blob_that_fills_its_box(thing: str) -> None:
    alpha = sprite(thing)[..., 1]
    assert max(alpha.shape) > 100
    mask = alpha > 128
    assert mask.mean() > 0.15
    paint = Image.fromarray(mask.astype(np.uint8) * 255).copy()
    y, x = np.argwhere(mask)[0]
    ImageDraw.floodfill(paint, (int(x), int(y)), 100)
    assert (np.asarray(paint) == 255).sum() <= 0.005 * mask.sum()


@pytest.mark.parametrize("color", COLORS)
def test_the_mean_color_of_every_thing_is_nearest_to_its_own_color(color: str) -> None:
    bodies = np.array([RAMPS[name][1] for name in COLORS], dtype=float)
    bodies /= np.linalg.norm(bodies, axis=1, keepdims=True)
    for thing in THINGS:
        pixels = np.asarray(colored_sprite(thing, color)).astype(float)
        mean = (pixels[..., :3] * pixels[..., 3:]).sum((0, 1)) / pixels[..., 3].sum()
        if color == "black":
            assert mean.max() < 130
            assert np.ptp(mean) < 12
        else:
            nearest = COLORS[int((bodies[:-1] @ mean).argmax())]
            assert nearest == color, f"{thing}: {mean}"


def test_backgrounds_are_light_and_different() -> None:
    means = {}
    for name in BACKGROUNDS:
        pixels = np.asarray(background_image(name, 32))
        assert pixels.shape == (32, 32, 3)
        assert pixels.min() > 130
        means[name] = pixels.tobytes()
    assert len(set(means.values())) == 10
    with pytest.raises(ValueError, match="no background"):
        background_image("marble", 8)


@pytest.mark.parametrize(
    ("one", "many"),
    [
        ("cat", "cats"),
        ("bus", "buses"),
        ("butterfly", "butterflies"),
        ("key", "keys"),
        ("cross", "crosses"),
        ("fish", "fish"),
    ],
)
def test_plurals(one: str, many: str) -> None:
    assert plural(one) == many


def test_articles() -> None:
    assert with_article("orange cat") == "an orange cat"
    assert with_article("cat") == "a cat"
