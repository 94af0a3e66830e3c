"""Host names that the server accepts, as a defense against DNS rebinding.

In DNS rebinding, another site lets its host name point to this machine. Its page can then reach the
server by that name.
"""

import ipaddress
import re
import socket
from collections.abc import Sequence

from blip3o.core.log import say

_ANY = "*"
_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^\s:@/\[\]]*))(?::[0-9]*)?")


class HostNames:
    """The names that requests may have in their `Host` header.

    A server on a loopback address accepts loopback names, its own address and the listed names. A
    server on another address also accepts every IP address and the machine's host name, because
    no other site controls these. All other names are refused, with one exception: if clients need
    a key and no name is listed, every name is accepted, but answers do not repeat it.

    Args:
        bound: the address on which the server listens.
        listed: further names; "*.example.com" stands for all subdomains, "*" for every name.
        has_keys: whether clients need a key.
    """

    def __init__(self, bound: str, listed: Sequence[str], *, has_keys: bool) -> None:
        self._is_open = _ANY in listed
        self._listed = [name.lower().rstrip(".") for name in listed]
        self._bound = bound.lower()
        self._is_local = bound == "localhost" or _is_loopback(bound)
        own = socket.gethostname().lower()
        self._own = {own, own.partition(".")[0], f"{own.partition('.')[0]}.local"}
        self._takes_any = has_keys and not listed and not self._is_local
        self._has_warned = False

    def allows(self, header: str | None) -> bool:
        """Whether a request with this `Host` header is answered; None means no header."""
        return header is None or self._takes_any or self.knows(header)

    def knows(self, header: str) -> bool:
        """Whether an answer may repeat the name in a `Host` header."""
        name = host_of(header)
        if name is None:
            return False
        if self._is_open or name == self._bound or any(_fits(name, one) for one in self._listed):
            return True
        if name == "localhost" or name.endswith(".localhost") or _is_loopback(name):
            return True
        return not self._is_local and (name in self._own or _address(name) is not None)

    def warn_unknown(self, header: str) -> None:
        """Logs once that answers will not repeat a name."""
        if not self._has_warned:
            self._has_warned = True
            say(
                f"blip3o: the host {header!a:.100} is unknown, so image URLs contain this "
                "machine's address instead; --allowed-host adds a name of this server"
            )


def host_of(header: str) -> str | None:
    """Returns the name or address in a `Host` header, without its port; None if it is not valid.

    The check is strict: for a browser, "localhost:80@evil.example" means the host evil.example.
    """
    found = _HOST.fullmatch(header.strip().lower())
    return None if found is None else (found[1] or found[2] or "").rstrip(".")


def _fits(name: str, listed: str) -> bool:
    if listed.startswith("*."):
        return name.endswith(listed[1:])
    return name in {listed, host_of(listed)}


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def _is_loopback(name: str) -> bool:
    address = _address(name)
    if isinstance(address, ipaddress.IPv6Address):
        # Some versions of Python do not treat ::ffff:127.0.0.1 as loopback.
        address = address.ipv4_mapped or address
    return address is not None and address.is_loopback
