"""Fetches images from listed hosts, and never from this machine or its network."""

import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable, Collection
from urllib.parse import urljoin, urlsplit

from blip3o.core.errors import UsageError

_MOST_REDIRECTS = 3
_TIMEOUT_S = 10.0
"""For each step: to connect, and for the next bytes to come."""
_MOST_SECONDS = 30.0
"""For a file, redirects and all: bytes that drip are no reason to wait for ever."""
_PIECE_BYTES = 65_536
_PORTS = {"http": 80, "https": 443}

Resolver = Callable[[str, int], list[str]]


def resolve(host: str, port: int) -> list[str]:
    """Returns the addresses of a host.

    Raises:
        OSError: if it has none.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def is_public(address: str) -> bool:
    """Whether an address is on the internet: not private, loopback, link-local or reserved."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address):
        # An IPv4 address in IPv6 clothes is judged as what it is.
        inner = parsed.ipv4_mapped or parsed.sixtofour
        if parsed in ipaddress.ip_network("64:ff9b::/96"):
            inner = ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return parsed.is_global and not parsed.is_multicast


class RemoteImages:
    """Reads files from listed hosts.

    A host's addresses are looked up once, all must be public, and the connection goes to one of
    them, so that a second answer of the name server changes nothing. Redirects are followed by
    hand, under the same rules.

    Args:
        hosts: names that URLs may have.
        max_bytes: largest file.
        resolver: looks names up.
    """

    def __init__(
        self, hosts: Collection[str], max_bytes: int, resolver: Resolver = resolve
    ) -> None:
        self._hosts = {host.lower() for host in hosts}
        self._max_bytes = max_bytes
        self._resolver = resolver

    def read(self, url: str) -> bytes:
        """Returns the bytes of a file.

        Args:
            url: http or https.

        Raises:
            UsageError: if the URL is not allowed, or the file cannot be had or is too large.
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
        raise UsageError(f"the image's URL redirects more than {_MOST_REDIRECTS} times")

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
            raise UsageError("an image's URL is not valid") from error
        if scheme not in _PORTS or parts.username is not None or not url.isascii():
            raise UsageError("an image's URL is http or https, in ASCII and without a user")
        if host not in self._hosts:
            raise UsageError("images are not read from this host")
        if port not in (None, _PORTS[scheme]):
            raise UsageError("an image's URL has no port of its own")
        if any(ord(letter) <= 32 for letter in url):
            raise UsageError("an image's URL is not valid")
        return scheme, host, (parts.path or "/") + (f"?{parts.query}" if parts.query else "")

    def _address(self, host: str, port: int) -> str:
        try:
            addresses = self._resolver(host, port)
        except OSError as error:
            raise UsageError(f"no such host: {host}") from error
        if not addresses or not all(is_public(address) for address in addresses):
            raise UsageError("images are not read from private addresses")
        return addresses[0]

    def _get(self, scheme: str, host: str, address: str, path: str, end: float) -> bytes | str:
        """Returns the file, or where it is instead; gives up at a time of the monotonic clock."""
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
        """Returns at most a byte more than is allowed.

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
