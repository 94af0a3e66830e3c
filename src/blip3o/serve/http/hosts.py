"""The names that a server answers to.

Another site can make a name of its own point to this machine, and its page would then reach the
server by that name (DNS rebinding).
"""

import ipaddress
import re
import socket
from collections.abc import Sequence

from blip3o.core.log import say

_ANY = "*"
_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^\s:@/\[\]]*))(?::[0-9]*)?")


class HostNames:
    """The names that requests may give in their header `Host`.

    A server on a loopback address answers to loopback names, to its address and to the names that
    are listed. A server on another address also answers to every IP address and to the machine's
    own name, because no page can make these point elsewhere. All other names are refused. There is
    one exception: if clients need a key and no name is listed, every name is taken, but answers do
    not repeat it.

    Args:
        bound: the address that the server listens on.
        listed: further names; "*.example.com" is every name below, "*" every name.
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
        self._is_told = False

    def allows(self, header: str | None) -> bool:
        """Whether a request with this header is answered; None stands for no header, and is."""
        return header is None or self._takes_any or self.knows(header)

    def knows(self, header: str) -> bool:
        """Whether an answer may repeat the name of a header."""
        name = host_of(header)
        if name is None:
            return False
        if self._is_open or name == self._bound or any(_fits(name, one) for one in self._listed):
            return True
        if name == "localhost" or name.endswith(".localhost") or _is_loopback(name):
            return True
        return not self._is_local and (name in self._own or _address(name) is not None)

    def say_unknown(self, header: str) -> None:
        """Says once that answers will not repeat a name."""
        if not self._is_told:
            self._is_told = True
            say(
                f"blip3o: the host {header!a:.100} is not known, so URLs of images name "
                "this machine's address; --allowed-host lists the names of this server"
            )


def host_of(header: str) -> str | None:
    """Returns the name or address in a header `Host`, without its port; None if it holds neither.

    A browser finds another host than localhost in "localhost:80@evil.example".
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
    # Not every version of Python sees that ::ffff:127.0.0.1 is 127.0.0.1.
    address = getattr(address, "ipv4_mapped", None) or address
    return address is not None and address.is_loopback
