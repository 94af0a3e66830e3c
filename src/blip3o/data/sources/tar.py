"""The headers of a plain tar, read through any window onto its bytes.

Reads what `tarfile` reads (old, ustar, GNU, star and pax archives of every writer) at several times
its speed, and differs on purpose in two things: a damaged header, a cut file or bytes that are no
tar behind the end mark are an error, not the end; and archives written one after another are all
read, as `tar --ignore-zeros` does.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

BLOCK = 512
FILE, HARD_LINK, SYMBOLIC_LINK, FOLDER, SPARSE = b"0", b"1", b"2", b"5", b"S"
_FOLDERS = (FOLDER, b"D", b"V")
"""Kinds that name no file: a folder, the list of a folder and a volume's label of GNU tar."""
_FILES = (FILE, b"\0", b"7")
_NO_DATA = (SYMBOLIC_LINK, b"3", b"4", FOLDER, b"6")
"""Kinds whose size says something else than a length: links, devices, folders, pipes."""
_LONG_NAME, _LONG_LINK, _PAX, _SOLARIS_PAX, _SHARED_PAX = b"L", b"K", b"x", b"X", b"g"
_EXTENSIONS = (_LONG_NAME, _LONG_LINK, _PAX, _SOLARIS_PAX, _SHARED_PAX)
_ZEROS = bytes(BLOCK)
_MAX_EXTENSION = 1 << 20
"""Longest name or pax header; longer ones are damage."""
_MAX_DIGITS = 20
_MAX_ZEROS = 1 << 24
"""Longest run of zeros behind an archive. Writers pad to a few megabytes at most; more of them are
a download that did not finish, or a file without content."""


class TarError(Exception):
    """The tar is damaged here.

    Args:
        offset: where, in bytes.
        reason: what is wrong.
    """

    def __init__(self, offset: int, reason: str) -> None:
        super().__init__(f"{reason} at byte {offset}")
        self.offset = offset


class TarHeader(NamedTuple):
    """One header.

    Args:
        name: as stored.
        size: bytes of data.
        kind: the type flag.
    """

    name: bytes
    size: int
    kind: bytes


class Member(NamedTuple):
    """A member of a tar.

    Args:
        name: with folders.
        offset: where its bytes begin; its header is the block before.
        size: how many it has.
        kind: `FILE` for every kind of ordinary file, or another type flag.
        target: the member that a link names.
        header: the block before its bytes.
        part: number of the archive that holds it, where several are written one after another.
    """

    name: bytes
    offset: int
    size: int
    kind: bytes
    target: bytes
    header: bytes
    part: int


def parse_header(block: bytes, offset: int = 0) -> TarHeader:
    """Returns what a header block says.

    Args:
        block: 512 bytes.
        offset: where it is, for the error.

    Raises:
        TarError: if it is no header or a bit of it is wrong.
    """
    said = block[148:156]
    try:
        total, expected = sum(block) - sum(said) + 8 * 32, _octal(said)
        # A few old writers took bytes for signed numbers.
        is_sound = total == expected or total - 256 * sum(one > 127 for one in block) == expected
        size = _number(block[124:136])
    except ValueError:
        is_sound, size = False, 0
    if not is_sound or size < 0:
        raise TarError(offset, "no tar header")
    name = block[:100].partition(b"\0")[0]
    if block[345] and block[257:263] == b"ustar\0":
        # star keeps two times where others go on with the folder.
        end = 476 if block[508:512] == b"tar\0" else 500
        name = block[345:end].partition(b"\0")[0] + b"/" + name
    return TarHeader(name, size, block[156:157])


def members(
    read: Callable[[int, int], bytes], size: int, window: int, start: int = 0
) -> Iterator[Member]:
    """Yields the ordinary files of a tar in order.

    Args:
        read: offset and size to bytes.
        size: length of the tar.
        window: bytes read at once.
        start: offset of the first header.

    Raises:
        TarError: where the tar is damaged or breaks off.
    """
    return (one for one in all_members(read, size, window, start) if one.kind == FILE)


def all_members(
    read: Callable[[int, int], bytes], size: int, window: int, start: int = 0, part: int = 0
) -> Iterator[Member]:
    """Yields whatever a tar holds in order, but for folders and labels.

    Args:
        read: offset and size to bytes.
        size: length of the tar.
        window: bytes read at once.
        start: offset of the first header.
        part: number of the first archive.

    Raises:
        TarError: where the tar is damaged or breaks off.
    """
    at = _window(read, window)
    offset, is_behind_end = start, False
    shared: dict[bytes, bytes] = {}  # pax values of all members that follow
    said: dict[bytes, bytes] = {}  # of the next one
    while True:
        block = at(offset, BLOCK)
        if block == _ZEROS:
            following = _next_bytes(at, size, offset, max(window, BLOCK))
            if following is None:
                return
            offset, is_behind_end, part = following, True, part + 1
            shared, said = {}, {}
            continue
        if len(block) < BLOCK and not is_behind_end:
            raise TarError(offset, "it breaks off")
        try:
            header = parse_header(block.ljust(BLOCK, b"\0"), offset)
        except TarError:
            if is_behind_end:
                raise TarError(offset, "bytes that are no tar behind its end mark") from None
            raise
        is_behind_end = False
        data = offset + BLOCK
        kind, length = header.kind, header.size
        if shared or said or kind not in _FILES:
            length = _length(header, shared, said)
            if kind == HARD_LINK and length and _ends_here(at(data, BLOCK)):
                length = 0  # most writers repeat the size of the file and not its bytes
            elif kind == SPARSE:
                data = _behind_sparse_map(at, block, data)
        offset = data + -(-length // BLOCK) * BLOCK
        if data + length > size:
            raise TarError(data - BLOCK, "it breaks off in the member")
        if kind in _EXTENSIONS:
            if length > _MAX_EXTENSION:
                raise TarError(data - BLOCK, "an endless name")
            _extend(kind, at(data, length), data - BLOCK, shared, said)
            continue
        if shared or said or kind not in _FILES:
            found = _described(header, data, length, block, part, {**shared, **said})
            said = {}
            if found is not None:
                yield found
        elif not header.name.endswith(b"/"):
            yield Member(header.name, data, length, FILE, b"", block, part)


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
            if chunk[place + 257 : place + 262] == b"ustar" and _is_header(
                chunk[place : place + BLOCK]
            ):
                return base + place
    return None


def _window(read: Callable[[int, int], bytes], window: int) -> Callable[[int, int], bytes]:
    """Returns a reader that reads a window at once and answers from it."""
    buffer, base = b"", 0

    def at(offset: int, length: int) -> bytes:
        nonlocal buffer, base
        if not base <= offset <= offset + length <= base + len(buffer):
            base, buffer = offset, read(offset, max(length, window))
        return buffer[offset - base : offset - base + length]

    return at


def _next_bytes(at: Callable[[int, int], bytes], size: int, start: int, step: int) -> int | None:
    """Returns the block behind a run of zeros, None if they last to the end."""
    offset = start
    while offset < size:
        chunk = at(offset, min(step, size - offset))
        rest = chunk.lstrip(b"\0")
        if rest:
            return offset + (len(chunk) - len(rest)) // BLOCK * BLOCK
        if not chunk:
            raise TarError(offset, "it breaks off")
        offset += len(chunk)
        if offset - start > _MAX_ZEROS:
            raise TarError(start, f"more than {_MAX_ZEROS >> 20} MiB of zeros")
    return None


def _described(
    header: TarHeader, data: int, length: int, block: bytes, part: int, said: Mapping[bytes, bytes]
) -> Member | None:
    """Returns a header's member with what the headers before it said of it, None for a folder."""
    name, kind, target = header.name, header.kind, b""
    if kind in _FILES:
        if name.endswith(b"/"):
            return None
        kind = FILE
    elif kind in _FOLDERS:
        return None
    elif kind in (HARD_LINK, SYMBOLIC_LINK):
        target = said.get(b"linkpath") or block[157:257].partition(b"\0")[0]
        if length:  # a further name of a file, and the file itself once more
            kind = FILE
    if said:
        name = said.get(b"path") or name
        if kind == FILE and any(key.startswith(b"GNU.sparse.") for key in said):
            kind, name = SPARSE, said.get(b"GNU.sparse.name") or name
    return Member(name, data, length, kind, target, block, part)


def _length(header: TarHeader, shared: Mapping[bytes, bytes], said: Mapping[bytes, bytes]) -> int:
    """Returns how many bytes of data stand behind a header."""
    if header.kind in _NO_DATA:
        return 0
    size = said.get(b"size") or shared.get(b"size")
    if size and header.kind not in _EXTENSIONS and size.isdigit() and len(size) < _MAX_DIGITS:
        return int(size)
    return header.size


def _behind_sparse_map(at: Callable[[int, int], bytes], block: bytes, data: int) -> int:
    """Returns where the bytes of a sparse file begin: its map may go on in further blocks."""
    goes_on = block[482:483]
    while goes_on and goes_on != b"\0":
        goes_on = at(data, BLOCK)[504:505]
        data += BLOCK
    return data


def _extend(
    kind: bytes, text: bytes, offset: int, shared: dict[bytes, bytes], said: dict[bytes, bytes]
) -> None:
    """Notes what an extension header says of the members behind it."""
    if kind in (_LONG_NAME, _LONG_LINK):
        said[b"path" if kind == _LONG_NAME else b"linkpath"] = text.partition(b"\0")[0]
        return
    values = shared if kind == _SHARED_PAX else said
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
    """Returns whether a block is a further header, or the end of an archive."""
    return not block.strip(b"\0") or _is_header(block)


def _is_header(block: bytes) -> bool:
    try:
        parse_header(block)
    except (TarError, IndexError):
        return False
    return True


def _number(field: bytes) -> int:
    if field[0] & 0x80:  # GNU: eight bits a byte where eleven octal digits are not enough
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    return _octal(field)


def _octal(field: bytes) -> int:
    return int(field.partition(b"\0")[0].rstrip() or b"0", 8)
