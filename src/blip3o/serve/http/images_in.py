"""Images of requests: data URIs, uploads and, where allowed, URLs."""

import asyncio
from collections.abc import Callable

from PIL import Image

from blip3o.core.errors import UsageError
from blip3o.imaging.load import ImageLimits, read_header
from blip3o.imaging.pixels import resized
from blip3o.serve.config import ServeConfig
from blip3o.serve.http.data_uri import HINT, TooLongError, data_of, is_data_uri, is_of_an_image
from blip3o.serve.http.decoding import PixelBudget, Workers
from blip3o.serve.http.errors import ApiError, invalid
from blip3o.serve.remote import RemoteImages

_FETCHING_THREADS = 4


class ImageReader:
    """Reads images off the event loop, within the limits.

    Their pixels are counted before they are decoded, and until nothing refers to them any more.

    Args:
        config: the limits and the hosts that URLs may point to.
        seen_px: side of the square that every image is stretched to before the model sees it;
            None where models see more of them than that.
    """

    def __init__(self, config: ServeConfig, seen_px: int | None = None) -> None:
        self._limits = ImageLimits(
            max_bytes=config.max_image_bytes, max_pixels=config.max_image_pixels
        )
        self._seen_px = seen_px
        self._remote = RemoteImages(config.image_host, config.max_image_bytes)
        self.budget = PixelBudget(config.max_queue_pixels)
        self._decoders = Workers(
            "decoding images", config.decode_threads, config.max_queue, config.decode_timeout_s
        )
        self._fetchers = Workers(
            "reading image URLs", _FETCHING_THREADS, config.max_queue, config.timeout_s
        )

    async def from_bytes(self, data: bytes, param: str, *, is_shown: bool = True) -> Image.Image:
        """Returns the image of a file's bytes.

        Args:
            data: the file.
            param: the field of the request that it came in.
            is_shown: whether people see it, too; what is for the model only is shrunk to what the
                model sees, where that is the same for all that it does with images.

        Raises:
            ApiError: 400 if it is no whole image, 413 if the file is too large, 429 if too many
                pixels are held, 504 if it is not decoded in time.
        """
        if len(data) > self._limits.max_bytes:
            raise _too_large(self._limits.max_bytes, param)
        return await self._decoded(lambda: data, param, is_shown=is_shown)

    async def from_url(self, url: str, param: str) -> Image.Image:
        """Returns the image that a data URI holds or a URL points to, as the model sees it.

        Raises:
            ApiError: as `from_bytes`, and 400 if the URL is refused.
        """
        if not is_data_uri(url):
            try:
                data = await self._fetchers.run(lambda: self._remote.read(url))
            except UsageError as error:
                raise invalid(str(error), param, "invalid_image_url") from error
            return await self.from_bytes(data, param, is_shown=False)

        def read() -> bytes:
            try:
                return data_of(url, self._limits.max_bytes)
            except TooLongError as error:
                raise _too_large(self._limits.max_bytes, param) from error
            except UsageError as error:
                raise invalid(str(error), param, "invalid_base64") from error

        try:
            return await self._decoded(read, param, is_shown=False)
        except ApiError as error:
            if error.code != "invalid_image" or is_of_an_image(url):
                raise
            raise invalid(f"{error.message}; {HINT}", param, "invalid_image_url") from error

    async def _decoded(
        self, read: Callable[[], bytes], param: str, *, is_shown: bool
    ) -> Image.Image:
        owner = id(asyncio.current_task())

        def decode() -> Image.Image:
            header = read_header(read(), self._limits)
            pixels = header.size[0] * header.size[1]
            self.budget.take(pixels, owner)
            try:
                image = header.decode()
                if self._seen_px is not None and not is_shown:
                    image = resized(image, (self._seen_px, self._seen_px))
                self.budget.hold(image, owner)
                return image
            finally:
                self.budget.give_back(pixels, owner)

        try:
            return await self._decoders.run(decode)
        except UsageError as error:
            raise invalid(str(error), param, "invalid_image") from error


def _too_large(limit: int, param: str) -> ApiError:
    return ApiError(413, f"the image is over {limit} bytes", param=param, code="image_too_large")
