"""Input images of requests: uploads, data URIs and, from listed hosts, URLs."""

import asyncio
import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable, Collection
from urllib.parse import urljoin, urlsplit

from PIL import Image

from blip3o.core.errors import UsageError
from blip3o.imaging.load import ImageLimits, read_header
from blip3o.imaging.pixels import resized
from blip3o.serve.config import ServeConfig
from blip3o.serve.http.data_uri import HINT, TooLongError, data_of, has_image_type, is_data_uri
from blip3o.serve.http.errors import ApiError, invalid
from blip3o.serve.http.workers import PixelBudget, Workers

_FETCHING_THREADS = 4
_MOST_REDIRECTS = 3
_TIMEOUT_S = 10.0
"""Longest time to connect, and longest time until the next bytes arrive."""
_MOST_SECONDS = 30.0
"""Longest time to read a file, redirects included; a slow host stays below `_TIMEOUT_S`."""
_PIECE_BYTES = 65_536
_PORTS = {"http": 80, "https": 443}

Resolver = Callable[[str, int], list[str]]


class ImageReader:
    """Reads images outside the event loop, within the limits.

    The pixels of an image are counted from before it is decoded until it is garbage-collected.

    Args:
        config: the limits, and the hosts that URLs may point to.
        seen_px: side of the square to which the model stretches every image; None if it reads
            images in other shapes or sizes.
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
        """Returns the image in a file.

        Args:
            data: bytes of the file.
            param: the field of the request that holds it.
            is_shown: whether the page shows the image; an image for the model only is shrunk to
                `seen_px`.

        Raises:
            ApiError: 400 if it is not a complete image, 413 if the file is too large, 429 if too
                many pixels are held, 504 if decoding takes too long.
        """
        if len(data) > self._limits.max_bytes:
            raise _too_large(self._limits.max_bytes, param)
        return await self._decoded(lambda: data, param, is_shown=is_shown)

    async def from_url(self, url: str, param: str) -> Image.Image:
        """Returns the image of a data URI or URL, shrunk to `seen_px`.

        Raises:
            ApiError: as for `from_bytes`, and 400 if the URL is refused.
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
            if error.code != "invalid_image" or has_image_type(url):
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
                self.budget.release(pixels, owner)

        try:
            return await self._decoders.run(decode)
        except UsageError as error:
            raise invalid(str(error), param, "invalid_image") from error


def _too_large(limit: int, param: str) -> ApiError:
    return ApiError(413, f"the image is over {limit} bytes", param=param, code="image_too_large")


def resolve(host: str, port: int) -> list[str]:
    """Returns the addresses of a host, or raises an `OSError` if it has none."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def is_public(address: str) -> bool:
    """Whether an address is on the internet: not private, loopback, link-local or reserved."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address):
        # An IPv4 address embedded in IPv6 follows the IPv4 rules.
        inner = parsed.ipv4_mapped or parsed.sixtofour
        if parsed in ipaddress.ip_network("64:ff9b::/96"):
            inner = ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return parsed.is_global and not parsed.is_multicast


class RemoteImages:
    """Reads files from listed hosts, but never from this machine or its network.

    A host's addresses are resolved once and must all be public. The connection uses one of these
    addresses, so a later DNS answer has no effect. Redirects follow the same rules.

    Args:
        hosts: allowed host names.
        max_bytes: largest size of a file.
        resolver: resolves host names.
    """

    def __init__(
        self, hosts: Collection[str], max_bytes: int, resolver: Resolver = resolve
    ) -> None:
        self._hosts = {host.lower() for host in hosts}
        self._max_bytes = max_bytes
        self._resolver = resolver

    def read(self, url: str) -> bytes:
        """Returns the bytes of the file at an http or https URL.

        Raises:
            UsageError: if the URL is not allowed, or the file cannot be read or is too large.
        """
        end = time.monotonic() + _MOST_SECONDS
        for _ in range(_MOST_REDIRECTS + 1):
            scheme, host, path = self._check(url)
            address = self._address(host, _PORTS[scheme])
            try:
                answer = self._get(scheme, host, address, path, end)
            except (OSError, http.client.HTTPException) as error:
                raise UsageError(f"cannot read the image from {host}") from error
            if isinstance(answer, bytes):
                return answer
            url = urljoin(url, answer)
        raise UsageError(f"the image URL redirects more than {_MOST_REDIRECTS} times")

    def _check(self, url: str) -> tuple[str, str, str]:
        """Returns scheme, host and path of a URL that is allowed."""
        if not self._hosts:
            raise UsageError(
                "this server reads no image URLs; send the image as a data URI "
                "(data:image/png;base64,...)"
            )
        try:
            parts = urlsplit(url)
            scheme, host, port = parts.scheme.lower(), parts.hostname or "", parts.port
        except ValueError as error:
            raise UsageError("the image URL is not valid") from error
        if scheme not in _PORTS or parts.username is not None or not url.isascii():
            raise UsageError("an image URL must be http or https, in ASCII and without a user name")
        if host not in self._hosts:
            raise UsageError("this server does not read images from this host")
        if port not in (None, _PORTS[scheme]):
            raise UsageError("an image URL must use the standard port")
        if any(ord(letter) <= 32 for letter in url):
            raise UsageError("the image URL is not valid")
        return scheme, host, (parts.path or "/") + (f"?{parts.query}" if parts.query else "")

    def _address(self, host: str, port: int) -> str:
        try:
            addresses = self._resolver(host, port)
        except OSError as error:
            raise UsageError(f"no such host: {host}") from error
        if not addresses or not all(is_public(address) for address in addresses):
            raise UsageError("this server does not read images from private addresses")
        return addresses[0]

    def _get(self, scheme: str, host: str, address: str, path: str, end: float) -> bytes | str:
        """Returns the file or the redirect target; `end` is a time of the monotonic clock."""
        connection = http.client.HTTPConnection(host, _PORTS[scheme], timeout=_TIMEOUT_S)
        plain = socket.create_connection((address, _PORTS[scheme]), timeout=_TIMEOUT_S)
        try:
            connection.sock = plain
            if scheme == "https":
                context = ssl.create_default_context()
                connection.sock = context.wrap_socket(plain, server_hostname=host)
            connection.request("GET", path, headers={"Accept": "image/*"})
            response = connection.getresponse()
            if response.status in (301, 302, 303, 307, 308):
                return response.getheader("Location") or "/"
            if response.status != 200:
                raise UsageError(f"{host} answered {response.status}")
            data = self._body(response, end)
        finally:
            connection.close()
            plain.close()
        if len(data) > self._max_bytes:
            raise UsageError(f"the image is over {self._max_bytes} bytes")
        return data

    def _body(self, response: http.client.HTTPResponse, end: float) -> bytes:
        """Returns the body, or a little more than `max_bytes` of it if it is too large.

        Raises:
            TimeoutError: if it does not arrive in time.
            http.client.HTTPException: if it ends before its stated length.
        """
        data = bytearray()
        while len(data) <= self._max_bytes:
            if time.monotonic() > end:
                raise TimeoutError
            piece = response.read1(_PIECE_BYTES)
            if not piece:
                break
            data += piece
        if len(data) <= self._max_bytes and response.length:
            raise http.client.IncompleteRead(bytes(data), response.length)
        return bytes(data)
