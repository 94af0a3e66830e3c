"""Opens image files and PIL images as RGB images.

Files from users and the web are not trusted: size limits apply before anything is decoded, and any
error of a decoder becomes a `UsageError` of one line that names the file.
"""

import contextlib
import dataclasses
import io
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from blip3o.core.errors import UsageError, first_line
from blip3o.imaging.color import profile_of
from blip3o.imaging.kinds import format_of, unread
from blip3o.imaging.metadata import Stripped, strip_metadata
from blip3o.imaging.profiles import adobe_rgb
from blip3o.imaging.rgb import TRANSPOSE, to_rgb, upright

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
"""Pillow's names of the accepted formats. For some others, Pillow runs external programs."""

READING = 3
"""Version of the decoding. A change that alters the pixels of any file must increase it: cached
features are then computed again."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ImageLimits:
    """Limits of the accepted images.

    Args:
        max_bytes: largest file.
        max_pixels: largest width x height, checked before decoding.
        max_side: largest width and height in pixels. Pillow allocates memory for each row and, when
            it resizes, for each column: an image of 64 million x 1 pixels would take gigabytes.
    """

    max_bytes: int = 20_000_000
    max_pixels: int = 64_000_000
    max_side: int = 100_000


DEFAULT_LIMITS = ImageLimits()
_ANY_SIZE = ImageLimits(max_bytes=sys.maxsize - 1, max_pixels=sys.maxsize, max_side=sys.maxsize)
"""Limits for PIL images: the caller has opened them and accepted their size."""


class UndecodedImage:
    """An image file of which only the header has been read.

    Args:
        name: name of the file, for messages.
        data: the file.
        limits: limits of the accepted images.

    Raises:
        UsageError: if it is not an image or exceeds a limit.
    """

    def __init__(self, name: str, data: bytes, limits: ImageLimits) -> None:
        self._name = name
        self._data = data
        self._limits = limits
        self.format = format_of(data) or "?"
        with self._named_errors():
            self._plain = strip_metadata(data)
            self._image = None
            if (deep := self._plain.deep) is not None:
                self.size, self.mode = deep.size, f"{len(deep.taken)} x {deep.scale.bits} bits"
            else:
                self._image = Image.open(io.BytesIO(self._plain.data), formats=FORMATS)
                self.size, self.mode = self._image.size, self._image.mode
            _check_size(self.size, limits)

    @property
    def has_transparency(self) -> bool:
        """Whether parts of the image may be transparent."""
        is_clear = self._plain.clear_color is not None
        return is_clear or (self._image is not None and self._image.has_transparency_data)

    def decode(self) -> Image.Image:
        """Returns the first frame as upright 8-bit sRGB, with transparent parts on white.

        Raises:
            UsageError: if it is damaged or truncated.
        """
        with self._named_errors():
            plain, image = self._plain, self._image
            if image is None:
                assert plain.deep is not None, "the image has a reader if Pillow does not open it"
                image = plain.deep.read()
            image.load()
            if plain.clear_color is not None:
                image.putalpha(_clear_mask(plain))
            if plain.profile is not None:
                image.info["icc_profile"] = plain.profile
            elif plain.is_adobe_rgb and profile_of(image) is None:
                image.info["icc_profile"] = adobe_rgb()
            if plain.orientation is None:
                return to_rgb(upright(image))
            method = TRANSPOSE.get(plain.orientation)
            return to_rgb(image if method is None else image.transpose(method))

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        """Converts every error to a `UsageError` of one line that names the file."""
        name = self._name
        with warnings.catch_warnings():  # Pillow warns about large and unusual files
            warnings.simplefilter("ignore")
            try:
                yield
            except Image.UnidentifiedImageError as error:
                raise UsageError(_unread(name, self._data)) from error
            except Image.DecompressionBombError as error:
                most = self._limits.max_pixels
                raise UsageError(f"{name}: over the limit of {most} pixels") from error
            except UsageError as error:
                raise UsageError(f"{name}: {error}") from error
            except MemoryError as error:
                raise UsageError(f"{name}: there is not enough memory to decode it") from error
            except Exception as error:  # decoders raise many kinds of errors for damaged files
                reason = first_line(error)
                if "nsupported" in reason:
                    line = f"{name} is of a kind that cannot be read: {reason}"
                    raise UsageError(f"{line}; save it as JPEG or PNG") from error
                raise UsageError(f"{name} is a damaged or truncated image: {reason}") from error


def read_header(
    source: str | Path | bytes | BinaryIO, limits: ImageLimits = DEFAULT_LIMITS
) -> UndecodedImage:
    """Returns an image that is not decoded yet, with its size, format and mode.

    Args:
        source: a path, the bytes of an image file, or an open binary file.
        limits: limits of the accepted images.

    Raises:
        UsageError: if the file does not exist, is not an image or exceeds a limit.
    """
    return UndecodedImage(*_read(source, limits), limits)


def open_image(
    source: str | Path | bytes | BinaryIO, limits: ImageLimits = DEFAULT_LIMITS
) -> Image.Image:
    """Returns the first frame of an image as upright 8-bit sRGB, with transparent parts on white.

    Args:
        source: as for `read_header`.
        limits: as for `read_header`.

    Raises:
        UsageError: if the file does not exist, is not a complete image or exceeds a limit.
    """
    return read_header(source, limits).decode()


def open_pil(image: Image.Image) -> Image.Image:
    """Returns a PIL image as upright 8-bit sRGB, with transparent parts on white.

    Args:
        image: an image of any size and mode. If it is not decoded yet and Pillow may misread its
            format, it is read from its file.

    Raises:
        UsageError: if it has no pixels, or if its numbers are not colors.
        OSError: if its file is damaged or truncated; decoders may raise other errors as well.
    """
    if (data := _file_of(image)) is not None:
        return open_image(data, _ANY_SIZE)
    image.load()
    if min(image.size) < 1:
        raise UsageError(f"an image of {image.width} x {image.height} pixels")
    return to_rgb(upright(image))


def _file_of(image: Image.Image) -> bytes | None:
    """Returns the file of an image that is not decoded yet and that Pillow may misread."""
    is_risky = image.format in {"TIFF", "BMP", "GIF"} or (
        image.format == "PNG" and "transparency" in image.info
    )
    if not is_risky or not isinstance(image, ImageFile.ImageFile):
        return None
    file = image.fp
    if file is None or not image.tile or image.tell():
        return None
    at = file.tell()
    try:
        file.seek(0)
        data = file.read()
        with Image.open(io.BytesIO(data)) as fresh:  # the caller may have changed its `info`
            return data if (fresh.size, fresh.info) == (image.size, image.info) else None
    except Image.UnidentifiedImageError:  # the image does not start at the beginning of the file
        return None
    finally:
        file.seek(at)


def _clear_mask(plain: Stripped) -> Image.Image:
    """Returns the alpha channel of a PNG with 16-bit colors of which one is transparent."""
    matches: list[NDArray[np.bool_]] = []
    for mode, shift in (("RGB;16B", 8), ("RGB;16L", 0)):  # the upper bytes, then the lower ones
        with Image.open(io.BytesIO(plain.data), formats=("PNG",)) as image:
            image.tile = [tile._replace(args=mode) for tile in image.tile]
            values = np.asarray(image)
        wanted = [level >> shift & 255 for level in plain.clear_color or ()]
        matches.append((values == wanted).all(-1))
    return Image.fromarray(np.where(np.all(matches, axis=0), 0, 255).astype(np.uint8))


def _unread(name: str, data: bytes) -> str:
    """Returns the message about a file that no decoder can read."""
    kind = format_of(data)
    description = unread(data)
    if kind is not None and (description is None or kind not in {"TIFF", "AVIF"}):
        return f"{name} is a damaged or truncated image ({kind})"
    line = f"{name} is not an image this program can read"
    return line if description is None else f"{line}; it is {description}"


def _read(source: str | Path | bytes | BinaryIO, limits: ImageLimits) -> tuple[str, bytes]:
    """Returns the name of a source for messages, and its bytes within the limit."""
    if isinstance(source, bytes):
        name, data = "the image", source
    elif isinstance(source, str | Path):
        name, data = str(source), _read_file(Path(source), limits)
    else:
        name = str(getattr(source, "name", "the image"))
        data = source.read(limits.max_bytes + 1)
    if not data:
        raise UsageError(f"{name} is empty (0 bytes)")
    if len(data) > limits.max_bytes:
        raise UsageError(f"{name} is too large: more than {limits.max_bytes} bytes")
    return name, data


def _read_file(path: Path, limits: ImageLimits) -> bytes:
    try:
        if path.is_dir():
            raise UsageError(f"{path} is a folder, not an image")
        if path.exists() and not path.is_file():
            raise UsageError(f"{path} is not an ordinary file")
        with path.open("rb") as file:
            return file.read(limits.max_bytes + 1)
    except FileNotFoundError as error:
        raise UsageError(f"no such image: {path}") from error
    except (OSError, ValueError) as error:  # no permission, or an invalid name
        reason = (isinstance(error, OSError) and error.strerror) or str(error)
        raise UsageError(f"cannot read {str(path)!r:.200}: {reason}") from error


def _check_size(size: tuple[int, int], limits: ImageLimits) -> None:
    width, height = size
    if width * height > limits.max_pixels:
        raise UsageError(f"{width} x {height} is over the limit of {limits.max_pixels} pixels")
    if max(size) > limits.max_side:
        raise UsageError(f"{width} x {height} is over the limit of {limits.max_side} pixels a side")
    if min(size) < 1:
        raise UsageError(f"an image of {width} x {height} pixels")
