"""Draws contact sheets: many images in one, each with a readable caption."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

_GAP_PX = 8
_LEAST_CAPTIONED_WIDTH_PX = 144  # captions need more width than a small image
_FONT_PX = 13
_LINE_PX = 16
_MOST_LINES, _MOST_CHARACTERS = 6, 1000
_PAPER, _INK = (255, 255, 255), (20, 20, 20)


def contact_sheet(
    images: Sequence[Image.Image],
    captions: Sequence[str] | None = None,
    columns: int = 4,
    scale: int = 1,
) -> Image.Image:
    """Returns one image that shows many, row by row, each above its caption.

    Args:
        images: at least one image; sizes may differ.
        captions: one caption per image; long captions are wrapped, very long ones cut.
        columns: images in a row.
        scale: integer factor by which images are enlarged without smoothing.

    Raises:
        ValueError: if there is no image, if the number of captions differs from that of images, or
            if `columns` or `scale` is below 1.
    """
    if not images or columns < 1 or scale < 1:
        raise ValueError("a contact sheet needs an image, a column and a scale of 1 or more")
    if captions is not None and len(captions) != len(images):
        raise ValueError(f"{len(captions)} captions for {len(images)} images")
    columns = min(columns, len(images))
    width = max(image.width for image in images) * scale
    if captions is not None:
        width = max(width, _LEAST_CAPTIONED_WIDTH_PX)
    font = ImageFont.load_default(_FONT_PX)
    texts = [wrap(caption, width, font) for caption in captions or [""] * len(images)]
    starts = range(0, len(images), columns)
    image_heights = [max(i.height for i in images[s : s + columns]) * scale for s in starts]
    text_heights = [max(map(len, texts[s : s + columns])) * _LINE_PX for s in starts]
    height = sum(image_heights) + sum(text_heights) + _GAP_PX * (len(starts) + 1)
    sheet = Image.new("RGB", (columns * (width + _GAP_PX) + _GAP_PX, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    top = _GAP_PX
    for row, start in enumerate(starts):
        for column in range(min(columns, len(images) - start)):
            image, lines = images[start + column], texts[start + column]
            enlarged = image.convert("RGB").resize(
                (image.width * scale, image.height * scale), Image.Resampling.NEAREST
            )
            left = _GAP_PX + column * (width + _GAP_PX)
            sheet.paste(enlarged, (left, top))
            for number, line in enumerate(lines):
                place = (left, top + image_heights[row] + number * _LINE_PX)
                draw.text(place, line, fill=_INK, font=font)
        top += image_heights[row] + text_heights[row] + _GAP_PX
    return sheet


def wrap(text: str, width_px: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """Returns a text as lines that fit a width; a text of too many lines ends in "...".

    Args:
        text: any text; white space of any kind separates words.
        width_px: the width in pixels.
        font: the font of the drawn text.
    """
    lines: list[str] = []
    line = ""
    for word in text[:_MOST_CHARACTERS].split():
        joined = f"{line} {word}" if line else word
        if font.getlength(joined) <= width_px:
            line = joined
            continue
        if line:
            lines.append(line)
        while font.getlength(word) > width_px:  # a word longer than a line
            cut = max(
                n for n in range(1, len(word)) if n == 1 or font.getlength(word[:n]) <= width_px
            )
            lines.append(word[:cut])
            word = word[cut:]
        line = word
    if line:
        lines.append(line)
    if len(lines) > _MOST_LINES:
        lines = lines[:_MOST_LINES]
        while lines[-1] and font.getlength(lines[-1] + "...") > width_px:
            lines[-1] = lines[-1][:-1]
        lines[-1] += "..."
    return lines
