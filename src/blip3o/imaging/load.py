"""Opens images from anywhere and of any kind: an RGB image comes back, or one clear line.

Files come from users and from the web, so they are read as hostile: size limits hold before
anything is decoded, and whatever a decoder raises becomes a `UsageError` that names the file.
"""

import dataclasses
import io
import warnings
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from blip3o.core.errors import UsageError
from blip3o.imaging.color import COLOR_NOTES, profile_of, to_srgb
from blip3o.imaging.containers import Lean, exif_notes, lean
from blip3o.imaging.kinds import format_of, unread
from blip3o.imaging.profiles import adobe_rgb
from blip3o.imaging.tiff_deep import scale_of

# Not all of Pillow's formats: some of the others run external programs.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")

READING = 2
"""Number of the way in which files become pixels. Whatever changes the pixels of any file raises
it: features that were cached of other pixels are computed anew."""

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
_RAW_DEPTHS = {"L;2": 2, "L;4": 4}
"""What Pillow calls grey of fewer bits in a file that is not decoded yet."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ImageLimits:
    """What is accepted as a picture.

    Args:
        max_bytes: longest file.
        max_pixels: largest width x height, checked before decoding.
        max_side: largest width and height in pixels. Pillow keeps some bytes for each row and, to
            resize, for each column: a line of 64 million pixels would take gigabytes.
        min_side: least width and height in pixels.
    """

    max_bytes: int = 20_000_000
    max_pixels: int = 64_000_000
    max_side: int = 100_000
    min_side: int = 1


DEFAULT_LIMITS = ImageLimits()


def open_image(
    source: str | Path | bytes | BinaryIO, limits: ImageLimits = DEFAULT_LIMITS
) -> Image.Image:
    """Returns a picture as 8-bit sRGB, upright, transparent parts on white, first frame.

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
            return _decoded(lean(data), limits)
        except Image.UnidentifiedImageError as error:
            raise UsageError(_unread(name, data)) from error
        except Image.DecompressionBombError as error:
            raise UsageError(f"{name}: over the limit of {limits.max_pixels} pixels") from error
        except UsageError as error:
            raise UsageError(f"{name}: {error}") from error
        except Exception as error:  # decoders raise all kinds of things for damaged files
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UsageError(f"{name} is a damaged or truncated picture: {reason}") from error


def look_at(data: bytes) -> tuple[str, str, tuple[int, int]]:
    """Returns format, Pillow's mode, and width and height of a file, which is not decoded.

    Args:
        data: the whole file. Width and height are those before it is turned upright.

    Raises:
        UsageError: if its header cannot be read.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            plain = lean(data)
            kind = format_of(data) or "?"
            if plain.deep is not None:
                return kind, f"{plain.deep.num_colors} x {plain.deep.scale.bits}", plain.deep.size
            with Image.open(io.BytesIO(plain.data), formats=FORMATS) as image:
                return kind, image.mode, image.size
        except UsageError:
            raise
        except Exception as error:  # decoders raise all kinds of things for damaged files
            raise UsageError(_unread("the picture", data)) from error


def _decoded(plain: Lean, limits: ImageLimits) -> Image.Image:
    """Returns the image of a file whose side notes are read."""
    if plain.deep is not None:
        _check_size(plain.deep.size, limits)
        image = plain.deep.read()
    else:
        image = Image.open(io.BytesIO(plain.data), formats=FORMATS)
        _check_size(image.size, limits)
        image.load()
    if plain.clear_color is not None:
        image.putalpha(_clear_mask(plain))
    if plain.profile is not None:
        image.info["icc_profile"] = plain.profile
    elif plain.is_adobe_rgb and profile_of(image) is None:
        image.info["icc_profile"] = adobe_rgb()
    if plain.orientation is None:
        return to_rgb(upright(image))
    method = _TRANSPOSE.get(plain.orientation)
    return to_rgb(image if method is None else image.transpose(method))


def _clear_mask(plain: Lean) -> Image.Image:
    """Returns the alpha of a PNG with 16-bit colors of which one is transparent."""
    is_clear: Any = True
    for mode, shift in (("RGB;16B", 8), ("RGB;16L", 0)):  # the upper bytes, then the lower ones
        with Image.open(io.BytesIO(plain.data), formats=("PNG",)) as image:
            image.tile = [tile._replace(args=mode) for tile in image.tile]
            values = np.asarray(image)
        wanted = [level >> shift & 255 for level in plain.clear_color or ()]
        is_clear = is_clear & (values == wanted).all(-1)
    return Image.fromarray(np.where(is_clear, 0, 255).astype(np.uint8))


def to_rgb(image: Image.Image) -> Image.Image:
    """Returns any PIL picture as 8-bit sRGB, with transparent parts on white.

    Args:
        image: of any mode; its color profile is applied if it is a sound one. Grey of more than 8
            bits is scaled from the range of its TIFF file, or from 0..65535 if it has none.

    Raises:
        UsageError: for numbers that have no meaning as a color, such as floats.
    """
    image = _with_8_bit_key(image)
    profile = _profile(image)
    if image.mode == "RGB" and "transparency" not in image.info:
        return _plain(image if profile is None else to_srgb(image, profile))
    if image.mode == "F":
        raise UsageError("a picture of floating point numbers; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        image = _from_deep_grey(image)
    alpha = None
    if image.has_transparency_data:
        is_grey = image.mode in {"1", "L", "LA", "La"}
        image = image.convert("LA" if is_grey and image.mode != "La" else "RGBA")
        alpha = image.getchannel("A")
        image = image.convert("L" if image.mode == "LA" else "RGB")
    elif image.mode in {"1", "P"}:
        image = image.convert("L" if image.mode == "1" else "RGB")
    if profile is not None:
        image = to_srgb(image, profile)
    color = image.convert("RGB")
    if alpha is not None:
        color.putalpha(alpha)
        white = Image.new("RGBA", color.size, (255, 255, 255, 255))
        color = Image.alpha_composite(white, color).convert("RGB")
    return _plain(color)


def _plain(image: Image.Image) -> Image.Image:
    """Returns an image that says nothing about its colors any more: whoever reads it next would
    convert them once more.
    """  # noqa: D205
    if not any(note in image.info for note in COLOR_NOTES):
        return image
    image = image.copy()  # the caller's keeps what it says
    for note in COLOR_NOTES:
        image.info.pop(note, None)
    return image


def _profile(image: Image.Image) -> bytes | None:
    profile = profile_of(image)
    exif = image.info.get("exif")
    if profile is None and isinstance(exif, bytes) and exif_notes(exif)[1]:
        return adobe_rgb()
    return profile


def _with_8_bit_key(image: Image.Image) -> Image.Image:
    """Returns a picture whose transparent level is one of 0..255, decoded.

    Of files with 2 or 4 bits Pillow decodes the levels to 0..255, but not the transparent one.
    """
    depth = next((_RAW_DEPTHS.get(str(tile[3])) for tile in getattr(image, "tile", ())), None)
    level = image.info.get("transparency")
    image.load()
    if depth is None or getattr(image, "format", None) != "PNG" or not isinstance(level, int):
        return image
    most = (1 << depth) - 1
    image = image.copy()
    image.info["transparency"] = (level & most) * 255 // most
    return image


def _unread(name: str, data: bytes) -> str:
    """Returns the line about a file that no decoder took."""
    kind = format_of(data)
    said = unread(data)
    if kind is not None and (said is None or kind not in {"TIFF", "AVIF"}):
        return f"{name} is a damaged or truncated picture ({kind})"
    line = f"{name} is not a picture this program can read"
    return line if said is None else f"{line}; it is {said}"


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
    if max(size) > limits.max_side:
        raise UsageError(f"{width} x {height} is over the limit of {limits.max_side} pixels a side")
    if min(size) < limits.min_side:
        raise UsageError(f"{width} x {height} is under {limits.min_side} pixels a side")


def upright(image: Image.Image) -> Image.Image:
    """Returns the picture turned as its EXIF orientation says; unreadable EXIF says nothing.

    Args:
        image: of any mode; what is returned no longer says how it was turned.

    Raises:
        OSError: if its file is damaged or truncated; decoders have further errors of their own.
    """
    image = _with_8_bit_key(image)
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


class _PillowTags:
    """The directory of a TIFF file that Pillow opened, as `scale_of` asks for it.

    Args:
        tags: Pillow's own.
    """

    def __init__(self, tags: Any) -> None:  # noqa: ANN401  (Pillow's directory)
        self._tags = tags

    def values(self, tag: int, most: int = 16) -> list[float]:
        """Returns at most so many numbers of a tag; none if it is not there."""
        found = self._tags.get(tag, ())
        found = found if isinstance(found, tuple) else (found,)
        return [float(one) for one in found[:most] if isinstance(one, int | float)]

    def number(self, tag: int, default: int) -> int:
        """Returns the first whole number of a tag."""
        values = self.values(tag, 1)
        return int(values[0]) if values else default


def _from_deep_grey(image: Image.Image) -> Image.Image:
    """Returns grey of more than 8 bits as L, or as LA if a level of it is transparent."""
    values: NDArray[Any] = np.asarray(image).astype(np.int64)
    if (tags := getattr(image, "tag_v2", None)) is not None:
        scale = scale_of(_PillowTags(tags))
        grey = scale.levels(values if scale.is_signed else values & (1 << scale.bits) - 1)
    elif values.min() < 0 or values.max() > 65535:
        raise UsageError("a picture of 32-bit numbers; save it with 8 or 16 bits")
    else:
        grey = ((values + 128) // 257).astype(np.uint8)
    result = Image.fromarray(grey)
    if isinstance(level := image.info.get("transparency"), int):
        result.putalpha(Image.fromarray(np.where(values == level, 0, 255).astype(np.uint8)))
    return result
