"""The headers of a plain tar, read through any window onto its bytes.

Reads what `tarfile` reads (ustar, GNU long names, pax paths and sizes) at several times its speed,
and differs on purpose in one thing: a damaged header or a cut file is an error, not the end.
"""

import dataclasses
from collections.abc import Callable, Iterator

BLOCK = 512
_FILES = (b"0", b"\0", b"7")
_ZEROS = bytes(BLOCK)
_MAX_EXTENSION = 1 << 20
"""Longest name or pax header; longer ones are damage."""


class TarError(Exception):
    """The tar is damaged here.

    Args:
        offset: where, in bytes.
        reason: what is wrong.
    """

    def __init__(self, offset: int, reason: str) -> None:
        super().__init__(f"{reason} at byte {offset}")
        self.offset = offset


@dataclasses.dataclass(frozen=True, slots=True)
class TarHeader:
    """One header.

    Args:
        name: as stored.
        size: bytes of data.
        kind: the type flag.
    """

    name: bytes
    size: int
    kind: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Member:
    """An ordinary file of a tar.

    Args:
        name: with folders.
        offset: where its bytes begin.
        size: how many it has.
    """

    name: bytes
    offset: int
    size: int


def parse_header(block: bytes, offset: int = 0) -> TarHeader:
    """Returns what a header block says.

    Args:
        block: 512 bytes.
        offset: where it is, for the error.

    Raises:
        TarError: if it is no header or a bit of it is wrong.
    """
    field = block[148:156]
    try:
        is_sound = int(field.rstrip(b"\0 "), 8) == sum(block) - sum(field) + 8 * 32
        size = _number(block[124:136])
    except ValueError:
        is_sound, size = False, 0
    if not is_sound or size < 0:
        raise TarError(offset, "no tar header")
    name = block[:100].partition(b"\0")[0]
    if block[257:263] == b"ustar\0" and block[345]:
        name = block[345:500].partition(b"\0")[0] + b"/" + name
    return TarHeader(name, size, block[156:157])


def stored_size(block: bytes) -> int:
    """Returns the size field of a header block, -1 if it is none; checks nothing else.

    Args:
        block: 512 bytes.
    """
    try:
        return _number(block[124:136])
    except ValueError:
        return -1


def members(
    read: Callable[[int, int], bytes], size: int, window: int, start: int = 0
) -> Iterator[Member]:
    """Yields the files of a tar in order.

    Args:
        read: offset and size to bytes.
        size: length of the tar.
        window: bytes read at once.
        start: offset of the first header.

    Raises:
        TarError: where the tar is damaged or breaks off.
    """
    buffer, base = b"", 0

    def at(offset: int, length: int) -> bytes:
        nonlocal buffer, base
        if not base <= offset <= offset + length <= base + len(buffer):
            base, buffer = offset, read(offset, max(length, window))
        return buffer[offset - base : offset - base + length]

    offset, long_name, long_size = start, None, None
    while True:
        block = at(offset, BLOCK)
        if len(block) < BLOCK:
            raise TarError(offset, "it breaks off")
        if block == _ZEROS:
            return
        header = parse_header(block, offset)
        data = offset + BLOCK
        length = header.size if long_size is None else long_size
        following = data + -(-length // BLOCK) * BLOCK
        if data + length > size:
            raise TarError(offset, "it breaks off in the member")
        if header.kind in (b"L", b"x"):
            if length > _MAX_EXTENSION:
                raise TarError(offset, "an endless name")
            said = at(data, length)
            if header.kind == b"L":
                long_name = said.rstrip(b"\0")
            else:
                long_name, long_size = _pax(said, offset, long_name)
        elif header.kind == b"S":
            raise TarError(offset, "a sparse file")
        elif header.kind not in (b"g", b"K"):
            if header.kind in _FILES and not header.name.endswith(b"/"):
                yield Member(header.name if long_name is None else long_name, data, length)
            long_name = long_size = None
        offset = following


def next_header(read: Callable[[int, int], bytes], size: int, offset: int) -> int | None:
    """Returns where the next sound header behind a damaged place is, None if nowhere.

    Args:
        read: offset and size to bytes.
        size: length of the tar.
        offset: the damaged place.
    """
    step = 1 << 20
    for base in range(offset + BLOCK, size, step):
        chunk = read(base, step)
        for place in range(0, len(chunk) - BLOCK + 1, BLOCK):
            if chunk[place + 257 : place + 262] == b"ustar":
                try:
                    parse_header(chunk[place : place + BLOCK])
                except TarError:
                    continue
                return base + place
    return None


def _number(field: bytes) -> int:
    if field[0] & 0x80:  # GNU: eight bits a byte where eleven octal digits are not enough
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    return int(field.rstrip(b"\0 ") or b"0", 8)


def _pax(data: bytes, offset: int, name: bytes | None) -> tuple[bytes | None, int | None]:
    """Returns the path and the size of a pax header."""
    size = None
    while data:
        length, _, _ = data.partition(b" ")
        if not length.isdigit() or not len(length) < int(length) <= len(data):
            raise TarError(offset, "a damaged pax header")
        key, _, value = data[len(length) + 1 : int(length) - 1].partition(b"=")
        if key == b"path":
            name = value
        elif key == b"size" and value.isdigit():
            size = int(value)
        data = data[int(length) :]
    return name, size
