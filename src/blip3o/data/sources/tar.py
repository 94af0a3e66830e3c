"""Reads the headers of a plain tar from any function that returns byte ranges.

It reads the same archives as `tarfile` (old, ustar, GNU, star and pax), several times as fast. Two
differences are intended. `tarfile` stops silently at a damaged header, at the end of a truncated
file, and at bytes after the end mark that are not a tar; here they are errors. Concatenated
archives are all read, as with `tar --ignore-zeros`.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

BLOCK = 512
FILE, HARD_LINK, SYMBOLIC_LINK, FOLDER, SPARSE = b"0", b"1", b"2", b"5", b"S"
_FOLDERS = (FOLDER, b"D", b"V")
"""Kinds that are not files: folders, and the folder lists and volume labels of GNU tar."""
_FILES = (FILE, b"\0", b"7")
_NO_DATA = (SYMBOLIC_LINK, b"3", b"4", FOLDER, b"6")
"""Kinds whose size field is not a length of data: links, devices, folders, pipes."""
_LONG_NAME, _LONG_LINK, _PAX, _SOLARIS_PAX, _SHARED_PAX = b"L", b"K", b"x", b"X", b"g"
_EXTENSIONS = (_LONG_NAME, _LONG_LINK, _PAX, _SOLARIS_PAX, _SHARED_PAX)
_ZEROS = bytes(BLOCK)
_MAX_EXTENSION = 1 << 20
"""Maximum length of a name or pax header; longer ones count as damage."""
_MAX_DIGITS = 20
_MAX_ZEROS = 1 << 24
"""Maximum run of zeros after an archive. Writers pad with a few megabytes at most; a longer run is
an unfinished download or a file without content."""


class TarError(Exception):
    """A damaged place in a tar.

    Args:
        offset: offset of the damage, in bytes.
        reason: description of the damage.
    """

    def __init__(self, offset: int, reason: str) -> None:
        super().__init__(f"{reason} at byte {offset}")
        self.offset = offset


class TarHeader(NamedTuple):
    """One header: the name as stored, the size field and the type flag."""

    name: bytes
    size: int
    kind: bytes


class Member(NamedTuple):
    """A member of a tar.

    Args:
        name: name with folders.
        offset: offset of its bytes; its header is the block before.
        size: number of bytes.
        kind: `FILE` for every kind of regular file, or another type flag.
        target: name of the member that a link leads to.
        header: the block before its bytes.
        part: number of its archive, if several archives are concatenated.
    """

    name: bytes
    offset: int
    size: int
    kind: bytes
    target: bytes
    header: bytes
    part: int


def parse_header(block: bytes, offset: int = 0) -> TarHeader:
    """Returns the header in a block of 512 bytes.

    Raises:
        TarError: if the block, which starts at `offset`, is not a valid header.
    """
    checksum = block[148:156]
    try:
        total, expected = sum(block) - sum(checksum) + 8 * 32, _octal(checksum)
        # A few old writers summed signed bytes.
        is_sound = total == expected or total - 256 * sum(one > 127 for one in block) == expected
        size = _number(block[124:136])
    except ValueError:
        is_sound, size = False, 0
    if not is_sound or size < 0:
        raise TarError(offset, "no tar header")
    name = block[:100].partition(b"\0")[0]
    if block[345] and block[257:263] == b"ustar\0":
        # star stores two times in the last bytes of the folder field.
        end = 476 if block[508:512] == b"tar\0" else 500
        name = block[345:end].partition(b"\0")[0] + b"/" + name
    return TarHeader(name, size, block[156:157])


def members(
    read: Callable[[int, int], bytes], size: int, window: int, start: int = 0, part: int = 0
) -> Iterator[Member]:
    """Yields the members of a tar in order, except folders and labels.

    Args:
        read: returns the bytes at an offset, given offset and size.
        size: length of the tar.
        window: number of bytes per read.
        start: offset of the first header.
        part: number of the first archive.

    Raises:
        TarError: where the tar is damaged or truncated.
    """
    at = _window(read, window)
    offset, is_after_end = start, False
    shared: dict[bytes, bytes] = {}  # pax values for all following members
    own: dict[bytes, bytes] = {}  # values for the next member
    while True:
        block = at(offset, BLOCK)
        if block == _ZEROS:
            following = _next_bytes(at, size, offset, max(window, BLOCK))
            if following is None:
                return
            offset, is_after_end, part = following, True, part + 1
            shared, own = {}, {}
            continue
        if len(block) < BLOCK and not is_after_end:
            raise TarError(offset, "it is truncated")
        try:
            header = parse_header(block.ljust(BLOCK, b"\0"), offset)
        except TarError:
            if is_after_end:
                raise TarError(offset, "bytes that are not a tar after the end mark") from None
            raise
        is_after_end = False
        data = offset + BLOCK
        kind, length = header.kind, header.size
        if shared or own or kind not in _FILES:
            length = _length(header, shared, own)
            if kind == HARD_LINK and length and _ends_here(at(data, BLOCK)):
                length = 0  # most writers repeat the file's size but not its bytes
            elif kind == SPARSE:
                data = _after_sparse_map(at, block, data)
        offset = data + -(-length // BLOCK) * BLOCK
        if data + length > size:
            raise TarError(data - BLOCK, "it is truncated inside a member")
        if kind in _EXTENSIONS:
            if length > _MAX_EXTENSION:
                raise TarError(data - BLOCK, f"a name of {length} bytes")
            _extend(kind, at(data, length), data - BLOCK, shared, own)
            continue
        if shared or own or kind not in _FILES:
            found = _described(header, data, length, block, part, {**shared, **own})
            own = {}
            if found is not None:
                yield found
        elif not header.name.endswith(b"/"):
            yield Member(header.name, data, length, FILE, b"", block, part)


def next_header(read: Callable[[int, int], bytes], size: int, offset: int) -> int | None:
    """Returns the offset of the next valid header after a damaged place; None if there is none.

    `read` and `size` are those of `members`.
    """
    step = 1 << 20
    for base in range(offset + BLOCK, size, step):
        chunk = read(base, step)
        for place in range(0, len(chunk) - BLOCK + 1, BLOCK):
            if chunk[place + 257 : place + 262] == b"ustar" and _is_header(
                chunk[place : place + BLOCK]
            ):
                return base + place
    return None


def _window(read: Callable[[int, int], bytes], window: int) -> Callable[[int, int], bytes]:
    """Returns a reader with a buffer of at least one window."""
    buffer, base = b"", 0

    def at(offset: int, length: int) -> bytes:
        nonlocal buffer, base
        if not base <= offset <= offset + length <= base + len(buffer):
            base, buffer = offset, read(offset, max(length, window))
        return buffer[offset - base : offset - base + length]

    return at


def _next_bytes(at: Callable[[int, int], bytes], size: int, start: int, step: int) -> int | None:
    """Returns the offset of the block after a run of zeros; None if the zeros reach the end."""
    offset = start
    while offset < size:
        chunk = at(offset, min(step, size - offset))
        rest = chunk.lstrip(b"\0")
        if rest:
            return offset + (len(chunk) - len(rest)) // BLOCK * BLOCK
        if not chunk:
            raise TarError(offset, "it is truncated")
        offset += len(chunk)
        if offset - start > _MAX_ZEROS:
            raise TarError(start, f"more than {_MAX_ZEROS >> 20} MiB of zeros")
    return None


def _described(
    header: TarHeader, data: int, length: int, block: bytes, part: int, own: Mapping[bytes, bytes]
) -> Member | None:
    """Returns the member of a header and its extension headers; None for a folder."""
    name, kind, target = header.name, header.kind, b""
    if kind in _FILES:
        if name.endswith(b"/"):
            return None
        kind = FILE
    elif kind in _FOLDERS:
        return None
    elif kind in (HARD_LINK, SYMBOLIC_LINK):
        target = own.get(b"linkpath") or block[157:257].partition(b"\0")[0]
        if length:  # a hard link that repeats the file's bytes
            kind = FILE
    if own:
        name = own.get(b"path") or name
        if kind == FILE and any(key.startswith(b"GNU.sparse.") for key in own):
            kind, name = SPARSE, own.get(b"GNU.sparse.name") or name
    return Member(name, data, length, kind, target, block, part)


def _length(header: TarHeader, shared: Mapping[bytes, bytes], own: Mapping[bytes, bytes]) -> int:
    """Returns the number of data bytes after a header."""
    if header.kind in _NO_DATA:
        return 0
    size = own.get(b"size") or shared.get(b"size")
    if size and header.kind not in _EXTENSIONS and size.isdigit() and len(size) < _MAX_DIGITS:
        return int(size)
    return header.size


def _after_sparse_map(at: Callable[[int, int], bytes], block: bytes, data: int) -> int:
    """Returns the offset of a sparse file's bytes, after all blocks of its map."""
    goes_on = block[482:483]
    while goes_on and goes_on != b"\0":
        goes_on = at(data, BLOCK)[504:505]
        data += BLOCK
    return data


def _extend(
    kind: bytes, text: bytes, offset: int, shared: dict[bytes, bytes], own: dict[bytes, bytes]
) -> None:
    """Stores the values of an extension header for the following members."""
    if kind in (_LONG_NAME, _LONG_LINK):
        own[b"path" if kind == _LONG_NAME else b"linkpath"] = text.partition(b"\0")[0]
        return
    values = shared if kind == _SHARED_PAX else own
    text = text.rstrip(b"\0")
    while text:
        length = text[:_MAX_DIGITS].partition(b" ")[0]
        if not length.isdigit() or not len(length) < int(length) <= len(text):
            raise TarError(offset, "a damaged pax header")
        key, _, value = text[len(length) + 1 : int(length) - 1].partition(b"=")
        if key in (b"path", b"size", b"linkpath") or key.startswith(b"GNU.sparse."):
            values[key] = value
        text = text[int(length) :]


def _ends_here(block: bytes) -> bool:
    """Returns whether a block is a header or the end of an archive."""
    return not block.strip(b"\0") or _is_header(block)


def _is_header(block: bytes) -> bool:
    try:
        parse_header(block)
    except (TarError, IndexError):
        return False
    return True


def _number(field: bytes) -> int:
    if field[0] & 0x80:  # GNU: binary, for sizes beyond eleven octal digits
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    return _octal(field)


def _octal(field: bytes) -> int:
    return int(field.partition(b"\0")[0].rstrip() or b"0", 8)
