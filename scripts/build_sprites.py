"""Builds the sprite sheet of the scenes data set, which is bundled with the package.

Usage: python scripts/build_sprites.py [--font FILE]

Every thing of `blip3o.data.scenes.things` gets one cell of gray tone and alpha. Emoji come from
Noto Color Emoji (Debian package fonts-noto-color-emoji, SIL OFL 1.1); this script draws the
geometric shapes. Tones are normalized, so one color ramp suits every thing. Each cell gets a dark
outline, so light colors stand out from light backgrounds.
"""

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

OUT = Path(__file__).parents[1] / "src" / "blip3o" / "data" / "scenes"
FONT = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
FONT_SIZE = 109  # the only size of the bitmap font
CELL, COLUMNS, OUTLINE = 112, 8, 5

EMOJI = {
    "cat": 0x1F408,
    "dog": 0x1F415,
    "rabbit": 0x1F407,
    "elephant": 0x1F418,
    "turtle": 0x1F422,
    "snail": 0x1F40C,
    "butterfly": 0x1F98B,
    "fish": 0x1F41F,
    "duck": 0x1F986,
    "penguin": 0x1F427,
    "crab": 0x1F980,
    "car": 0x1F697,
    "bus": 0x1F68C,
    "airplane": 0x2708,
    "rocket": 0x1F680,
    "boat": 0x26F5,
    "tree": 0x1F333,
    "cactus": 0x1F335,
    "mushroom": 0x1F344,
    "apple": 0x1F34E,
    "banana": 0x1F34C,
    "pear": 0x1F350,
    "pineapple": 0x1F34D,
    "pizza": 0x1F355,
    "guitar": 0x1F3B8,
    "bell": 0x1F514,
    "key": 0x1F511,
    "umbrella": 0x2602,
    "house": 0x1F3E0,
    "hat": 0x1F3A9,
    "shoe": 0x1F45F,
    "dress": 0x1F457,
    "cup": 0x2615,
    "clock": 0x23F0,
    "crown": 0x1F451,
    "anchor": 0x2693,
    "chair": 0x1FA91,
    "ghost": 0x1F47B,
    "robot": 0x1F916,
    "moon": 0x1F319,
}
Points = list[tuple[float, float]]


def _star() -> Points:
    corners = [(math.pi * k / 5 - math.pi / 2, 0.5 if k % 2 == 0 else 0.21) for k in range(10)]
    return [(0.5 + r * math.cos(a), 0.5 + r * math.sin(a)) for a, r in corners]


def _heart() -> Points:
    angles = [2 * math.pi * k / 90 for k in range(90)]
    return [
        (
            0.5 + math.sin(a) ** 3 * 0.5,
            0.44
            - (13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)) / 32,
        )
        for a in angles
    ]


POLYGONS: dict[str, Callable[[], Points]] = {
    "square": lambda: [(0.06, 0.06), (0.94, 0.06), (0.94, 0.94), (0.06, 0.94)],
    "triangle": lambda: [(0.5, 0.05), (0.98, 0.92), (0.02, 0.92)],
    "star": _star,
    "heart": _heart,
    "diamond": lambda: [(0.5, 0.0), (0.85, 0.5), (0.5, 1.0), (0.15, 0.5)],
    "cross": lambda: [
        *((0.33, 0), (0.67, 0), (0.67, 0.33), (1, 0.33), (1, 0.67), (0.67, 0.67)),
        *((0.67, 1), (0.33, 1), (0.33, 0.67), (0, 0.67), (0, 0.33), (0.33, 0.33)),
    ],
}
SHAPES = ("circle", *POLYGONS, "ring")


def draw_shape(name: str, px: int) -> Image.Image:
    """Returns an RGBA image of a shape in gray that gets lighter toward the top."""
    big = px * 4
    mask = Image.new("L", (big, big))
    draw = ImageDraw.Draw(mask)
    if name in POLYGONS:
        draw.polygon([(x * (big - 1), y * (big - 1)) for x, y in POLYGONS[name]()], fill=255)
    else:
        draw.ellipse((0, 0, big - 1, big - 1), fill=255)
    if name == "ring":
        draw.ellipse((big * 0.3, big * 0.3, big * 0.7, big * 0.7), fill=0)
    rows = np.linspace(190, 130, px)[:, None].repeat(px, 1).astype(np.uint8)
    gray = Image.fromarray(rows)
    return Image.merge("RGBA", (gray, gray, gray, mask.resize((px, px), Image.Resampling.BOX)))


def draw_emoji(code: int, font: ImageFont.FreeTypeFont) -> Image.Image:
    """Returns the largest connected part of an emoji's image."""
    image = Image.new("RGBA", (180, 180))
    ImageDraw.Draw(image).text((20, 20), chr(code), font=font, embedded_color=True)
    pixels = np.array(image)
    pixels[~largest_blob(pixels[..., 3] > 40)] = 0
    return Image.fromarray(pixels)


def largest_blob(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Returns the largest connected part of a mask."""
    left = mask.copy()
    best = np.zeros_like(mask)
    while left.any():
        seed = np.zeros_like(mask)
        seed[tuple(np.argwhere(left)[0])] = True
        blob = np.zeros_like(mask)
        while (seed & ~blob).any():
            blob = seed
            grown = Image.fromarray(blob.astype(np.uint8)).filter(ImageFilter.MaxFilter(3))
            seed = (np.asarray(grown) > 0) & left
        if blob.sum() > best.sum():
            best = blob
        left &= ~blob
    return best


def to_cell(image: Image.Image, flat: bool) -> Image.Image:
    """Returns a CELL x CELL image of tone and alpha (mode LA), outlined and centered.

    Args:
        image: RGBA, any size.
        flat: whether gray values are kept instead of stretched.
    """
    image = image.crop(image.getbbox())
    inside = CELL - 2 * (OUTLINE // 2)
    scale = inside / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    image = image.resize(size, Image.Resampling.LANCZOS)
    canvas = Image.new("RGBA", (CELL, CELL))
    canvas.paste(image, ((CELL - size[0]) // 2, (CELL - size[1]) // 2))
    pixels = np.asarray(canvas).astype(np.float32) / 255
    weights = np.array([0.299, 0.587, 0.114], np.float32)
    luminance: NDArray[np.float32] = (pixels[..., :3] * weights).sum(-1, dtype=np.float32)
    alpha = pixels[..., 3]
    tone = luminance if flat else stretch(luminance, alpha > 0.5)
    grown = canvas.getchannel("A").filter(ImageFilter.MaxFilter(OUTLINE))
    grown = grown.filter(ImageFilter.GaussianBlur(0.6))
    tone = tone * alpha  # the outline is tone 0
    cell = np.stack([tone * 255, np.asarray(grown)], axis=-1).round().astype(np.uint8)
    cell[cell[..., 1] == 0] = 0
    return Image.fromarray(cell, mode="LA")


def stretch(luminance: NDArray[np.float32], inside: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Returns tones that cover [0.1, 1] and whose mean before scaling is near 0.6."""
    low, high = np.percentile(luminance[inside], [2, 98])
    tone = np.clip((luminance - low) / max(high - low, 0.35), 0, 1)
    mean = float(tone[inside].mean())
    for _ in range(20):
        gamma = float(np.clip(math.log(0.6) / math.log(mean), 0.7, 1.5))
        tone = tone**gamma
        mean = float(tone[inside].mean())
    return 0.1 + 0.9 * tone


def main() -> None:
    """Writes `sprites.png` and `sprites.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--font", default=FONT)
    font = ImageFont.truetype(parser.parse_args().font, FONT_SIZE)
    cells = {name: to_cell(draw_emoji(code, font), False) for name, code in EMOJI.items()}
    cells |= {name: to_cell(draw_shape(name, CELL), True) for name in SHAPES}
    rows = -(-len(cells) // COLUMNS)
    sheet = Image.new("LA", (COLUMNS * CELL, rows * CELL))
    for number, cell in enumerate(cells.values()):
        sheet.paste(cell, (number % COLUMNS * CELL, number // COLUMNS * CELL))
    sheet.save(OUT / "sprites.png", optimize=True)
    names = {"cell": CELL, "columns": COLUMNS, "emoji": list(EMOJI), "shapes": list(SHAPES)}
    (OUT / "sprites.json").write_text(json.dumps(names, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
