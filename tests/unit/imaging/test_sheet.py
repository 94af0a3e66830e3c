"""Contact sheets: every image and every caption is present and separate."""

import numpy as np
import pytest
from PIL import Image, ImageFont

from blip3o.imaging.sheet import contact_sheet, wrap

COLORS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255)]


def _count(sheet: Image.Image, color: tuple[int, int, int]) -> int:
    return int((np.asarray(sheet) == color).all(-1).sum())


def test_every_image_is_present_at_its_scale() -> None:
    images = [Image.new("RGB", (10, 8), color) for color in COLORS]
    sheet = contact_sheet(images, columns=2, scale=3)
    assert [_count(sheet, color) for color in COLORS] == [10 * 8 * 9] * 5
    top_left = np.argwhere((np.asarray(sheet) == COLORS[0]).all(-1)).min(0)
    below = np.argwhere((np.asarray(sheet) == COLORS[2]).all(-1)).min(0)
    assert top_left[1] == below[1]
    assert top_left[0] < below[0]


def test_captions_are_drawn_below_their_image() -> None:
    images = [Image.new("RGB", (64, 64), COLORS[0])] * 2
    bare = contact_sheet(images, columns=2)
    sheet = contact_sheet(images, ["a red square", ""], columns=2)
    assert sheet.height > bare.height
    assert sheet.width > bare.width
    dark = (np.asarray(sheet).sum(-1) < 200).nonzero()
    assert len(dark[0]) > 30
    assert dark[0].min() >= 64
    assert dark[1].max() < sheet.width // 2


def test_captions_are_wrapped_to_the_width_and_cut() -> None:
    font = ImageFont.load_default(13)
    lines = wrap("a red apple to the left of a very blue car " + "x" * 80, 120, font)
    assert len(lines) > 3
    assert all(font.getlength(line) <= 120 for line in lines)
    assert "".join(lines).replace(" ", "").startswith("aredappletotheleft")
    endless = wrap("word " * 5000, 120, font)
    assert len(endless) == 6
    assert endless[-1].endswith("...")
    assert wrap("", 120, font) == []


def test_an_empty_sheet_is_refused() -> None:
    image = Image.new("RGB", (4, 4))
    for arguments in ([], None), ([image], ["a", "b"]):
        with pytest.raises(ValueError, match=r"sheet|captions"):
            contact_sheet(*arguments)
