"""Opens pictures from anywhere and of any kind: an RGB picture comes back, or one clear line.

Files come from users and from the web, so they are read as hostile: size limits hold before
anything is decoded, and whatever a decoder raises becomes a `UsageError` that names the file.
"""

import dataclasses
import io
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image

from blip3o.core.errors import UsageError

# Not all of Pillow's formats: some of the others run external programs.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")

_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_ORIENTED = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")
"""Notes of a file that may say how its picture is turned."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ImageLimits:
    """What is accepted as a picture.

    Args:
        max_bytes: longest file.
        max_pixels: largest width x height, checked before decoding.
        min_side: least width and height in pixels.
    """

    max_bytes: int = 20_000_000
    max_pixels: int = 64_000_000
    min_side: int = 1


DEFAULT_LIMITS = ImageLimits()


def open_image(
    source: str | Path | bytes | BinaryIO, limits: ImageLimits = DEFAULT_LIMITS
) -> Image.Image:
    """Returns a picture as 8-bit RGB, upright, transparent parts on white, first frame.

    Args:
        source: a path, the bytes of a picture file, or a binary file to read them from.
        limits: what is accepted.

    Raises:
        UsageError: if there is no such file, it is no whole picture or over a limit.
    """
    name, data = _read(source, limits)
    with warnings.catch_warnings():  # Pillow warns about large and odd files; we refuse or read
        warnings.simplefilter("ignore")
        try:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            _check_size(image.size, limits)
            return to_rgb(upright(image))
        except Image.UnidentifiedImageError as error:
            raise UsageError(f"{name} is not a picture this program can read") from error
        except Image.DecompressionBombError as error:
            raise UsageError(f"{name}: over the limit of {limits.max_pixels} pixels") from error
        except UsageError as error:
            raise UsageError(f"{name}: {error}") from error
        except Exception as error:  # decoders raise all kinds of things for damaged files
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UsageError(f"{name} is a damaged or truncated picture: {reason}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Returns any PIL picture as 8-bit RGB, with transparent parts on white.

    Args:
        image: of any mode; 16-bit grey is scaled from 0..65535.

    Raises:
        UsageError: for numbers that have no meaning as a color, such as floats.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "F":
        raise UsageError("a picture of floating point numbers; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        return _from_16_bit(image)
    if image.has_transparency_data:
        color = image.convert("RGBA")
        white = Image.new("RGBA", color.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, color).convert("RGB")
    return image.convert("RGB")


def _read(source: str | Path | bytes | BinaryIO, limits: ImageLimits) -> tuple[str, bytes]:
    """Returns a name for messages and at most the allowed bytes."""
    if isinstance(source, bytes):
        name, data = "the picture", source
    elif isinstance(source, str | Path):
        name, data = str(source), _read_file(Path(source), limits)
    else:
        name = str(getattr(source, "name", "the picture"))
        data = source.read(limits.max_bytes + 1)
    if not data:
        raise UsageError(f"{name} is empty (0 bytes)")
    if len(data) > limits.max_bytes:
        raise UsageError(f"{name} is too large: more than {limits.max_bytes} bytes")
    return name, data


def _read_file(path: Path, limits: ImageLimits) -> bytes:
    try:
        if path.is_dir():
            raise UsageError(f"{path} is a folder, not a picture")
        if path.exists() and not path.is_file():
            raise UsageError(f"{path} is not an ordinary file")
        with path.open("rb") as file:
            return file.read(limits.max_bytes + 1)
    except FileNotFoundError as error:
        raise UsageError(f"no such picture: {path}") from error
    except (OSError, ValueError) as error:  # no permission; a name no file can have
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"cannot read {str(path)!r:.200}: {reason}") from error


def _check_size(size: tuple[int, int], limits: ImageLimits) -> None:
    width, height = size
    if width * height > limits.max_pixels:
        raise UsageError(f"{width} x {height} is over the limit of {limits.max_pixels} pixels")
    if min(size) < limits.min_side:
        raise UsageError(f"{width} x {height} is under {limits.min_side} pixels a side")


def upright(image: Image.Image) -> Image.Image:
    """Returns the picture turned as its EXIF orientation says; unreadable EXIF says nothing.

    Args:
        image: of any mode; what is returned no longer says how it was turned.

    Raises:
        OSError: if its file is damaged or truncated; decoders have further errors of their own.
    """
    image.load()
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # noqa: BLE001  (a damaged side note is no reason to refuse)
        return image
    method = _TRANSPOSE.get(orientation) if isinstance(orientation, int) else None
    if method is None:
        return image
    turned = image.transpose(method)
    # Pillow hands the note on: whoever reads the picture next would turn it once more.
    for note in _ORIENTED:
        turned.info.pop(note, None)
    return turned


def _from_16_bit(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise UsageError("a picture of 32-bit numbers; save it with 8 or 16 bits")
    grey = ((values + 128) // 257).astype(np.uint8)
    grey[values == image.info.get("transparency", -1)] = 255  # Pillow would drop what it says
    return Image.fromarray(grey).convert("RGB")
