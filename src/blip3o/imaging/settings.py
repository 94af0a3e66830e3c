"""Stores generation settings in PNG files and reads them back."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from blip3o.core.errors import UsageError

_KEY = "blip3o"
_MOST_CHARACTERS = 200_000


def png_with_settings(image: Image.Image, settings: Mapping[str, object]) -> bytes:
    """Returns an image as a PNG file with its settings as JSON in a text chunk.

    Args:
        image: the image.
        settings: plain data, such as prompt and seed.
    """
    info = PngInfo()
    info.add_itxt(_KEY, json.dumps(dict(settings), ensure_ascii=False))
    file = io.BytesIO()
    image.save(file, "PNG", pnginfo=info)
    return file.getvalue()


def read_settings(source: Path | bytes) -> dict[str, Any]:
    """Returns the settings in a PNG file, without decoding its pixels.

    Args:
        source: a path, or the bytes of a file from any source.

    Raises:
        UsageError: if it is not a PNG file with settings.
    """
    missing = "the image holds no settings; only a PNG file made by blip3o does"
    opened = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        with Image.open(opened, formats=("PNG",)) as file:
            text = file.info.get(_KEY)
        is_short = isinstance(text, str) and len(text) <= _MOST_CHARACTERS
        settings = json.loads(text) if is_short else None
    except Exception as error:  # decoders raise many kinds of errors for damaged files
        raise UsageError(missing) from error
    if not isinstance(settings, dict):
        raise UsageError(missing)
    return settings
