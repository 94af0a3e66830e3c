"""Pictures of requests: data URIs, uploads and, where allowed, URLs."""

import asyncio
import base64
import binascii
import re

from PIL import Image

from blip3o.core.errors import UsageError
from blip3o.imaging.load import ImageLimits, open_image
from blip3o.serve.config import ServeConfig
from blip3o.serve.http.errors import ApiError, invalid
from blip3o.serve.remote import RemoteImages

_DATA_URI = re.compile(r"data:image/[a-z0-9.+-]{1,32};base64,", re.IGNORECASE)


class PictureReader:
    """Reads pictures off the event loop, within the limits.

    Args:
        config: the limits and the hosts that URLs may point to.
    """

    def __init__(self, config: ServeConfig) -> None:
        self._limits = ImageLimits(
            max_bytes=config.max_image_bytes, max_pixels=config.max_image_pixels
        )
        self._remote = RemoteImages(config.image_host, config.max_image_bytes)

    async def from_bytes(self, data: bytes, param: str) -> Image.Image:
        """Returns the picture of a file's bytes.

        Raises:
            ApiError: 400 if it is no whole picture, 413 if the file is too large.
        """
        if len(data) > self._limits.max_bytes:
            raise _too_large(self._limits.max_bytes, param)
        try:
            return await asyncio.to_thread(open_image, data, self._limits)
        except UsageError as error:
            raise invalid(str(error), param, "invalid_image") from error

    async def from_url(self, url: str, param: str) -> Image.Image:
        """Returns the picture that a data URI holds or a URL points to.

        Raises:
            ApiError: 400 if it is refused or no whole picture, 413 if it is too large.
        """
        if not url.lower().startswith("data:"):
            try:
                data = await asyncio.to_thread(self._remote.read, url)
            except UsageError as error:
                raise invalid(str(error), param, "invalid_image_url") from error
            return await self.from_bytes(data, param)
        head = _DATA_URI.match(url)
        if head is None:
            raise invalid(
                "a data URI of a picture begins with data:image/png;base64, or alike",
                param,
                "invalid_image_url",
            )
        if len(url) - head.end() > 4 * (self._limits.max_bytes // 3 + 1):
            raise _too_large(self._limits.max_bytes, param)
        try:
            data = base64.b64decode(url[head.end() :], validate=True)
        except (binascii.Error, ValueError) as error:
            raise invalid(f"bad base64: {error}", param, "invalid_base64") from error
        return await self.from_bytes(data, param)


def _too_large(limit: int, param: str) -> ApiError:
    return ApiError(413, f"the picture is over {limit} bytes", param=param, code="image_too_large")
