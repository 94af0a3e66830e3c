"""Tar headers: the same members as tarfile, and damage never counts as the end."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from blip3o.core.errors import UsageError
from blip3o.data.sources.shards import load_index, make_index
from blip3o.data.sources.tar import FILE, Member, TarError, members
from blip3o.data.sources.webdataset import WebDatasetConfig

NAMES = [
    "a.png",
    "folder/b.txt",
    f"deep/{'d' * 90}/{'n' * 60}.json",
    "\u00e9t\u00e9.png",
    "x" * 150,
]


def tar_of(names: list[str], kind: int, size: int = 700) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as tar:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for number, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size = size + number
            tar.addfile(info, io.BytesIO(bytes([number]) * info.size))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "a.png"
        tar.addfile(link)
    return buffer.getvalue()


def read_all(data: bytes, window: int) -> list[Member]:
    found = members(lambda at, size: data[at : at + size], len(data), window)
    return [one for one in found if one.kind == FILE]


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("window", [0, 1000, 1 << 20])
def test_members_are_those_that_tarfile_finds(kind: int, window: int) -> None:
    names = NAMES[:-1] if kind == tarfile.USTAR_FORMAT else NAMES
    data = tar_of(names, kind)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        expected = [(m.name.encode(), m.offset_data, m.size) for m in tar if m.isfile()]
    assert [(m.name, m.offset, m.size) for m in read_all(data, window)] == expected


def test_every_flipped_bit_of_a_header_is_found() -> None:
    data = bytearray(tar_of(["a.png", "b.png"], tarfile.USTAR_FORMAT))
    for place in range(512, 1012, 7):  # the first file's header; the last bytes are padding
        data[place] ^= 0x10
        with pytest.raises(TarError, match="byte 512"):
            read_all(bytes(data), 4096)
        data[place] ^= 0x10
    assert len(read_all(bytes(data), 4096)) == 2


def test_a_compressed_tar_is_damaged() -> None:
    with pytest.raises(TarError, match="no tar header"):
        read_all(b"\x1f\x8b" + bytes(range(256)) * 8, 4096)


def test_salvage_reads_every_intact_record_and_reports_the_damage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "s.tar"
    data = bytearray(tar_of([f"{k}.png" for k in range(9)], tarfile.USTAR_FORMAT))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        places = [m.offset for m in tar if m.isfile()]
    data[places[3] + 3] ^= 1
    path.write_bytes(data[: places[7] + 600])  # record 3 has a damaged header, record 7 is cut
    with pytest.raises(UsageError, match=f"damaged or not a plain tar: .* at byte {places[3]};"):
        make_index(str(path))
    assert load_index(str(path)) is None
    index = make_index(str(path), salvage=True)
    assert [index.key(k) for k in range(len(index))] == ["0", "1", "2", "4", "5", "6"]
    assert len(index.damage) == 2
    kept = load_index(str(path), salvage=True)
    assert kept is not None
    assert kept.damage == index.damage
    assert load_index(str(path)) is None  # still refused without `salvage`
    path.write_bytes(b"not a tar at all" * 100)
    with pytest.raises(UsageError, match="not a plain tar"):
        make_index(str(path), salvage=True)


def header(name: bytes, size: int = 0, kind: bytes = b"0", **fields: bytes) -> bytes:
    """Returns a header; the keyword `at_N` puts bytes at offset N."""
    block = bytearray(512)
    block[: len(name)] = name
    block[100:108], block[124:136] = b"0000644\0", b"%011o\0" % size
    block[156:157], block[257:265] = kind, b"ustar\x0000"
    for place, data in fields.items():
        start = int(place[3:])
        block[start : start + len(data)] = data
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def pax(kind: bytes = b"x", **values: bytes) -> bytes:
    records = b""
    for key, value in values.items():
        name = key.replace("_", ".").encode()
        length = len(name) + len(value) + 3
        while length != len(str(length)) + len(name) + len(value) + 3:
            length = len(str(length)) + len(name) + len(value) + 3
        records += b"%d %s=%s\n" % (length, name, value)
    return header(b"PaxHeader/x", len(records), kind) + padded(records)


def long(kind: bytes, text: bytes) -> bytes:
    return header(b"././@LongLink", len(text) + 1, kind) + padded(text + b"\0")


LONG = b"d" * 60 + b"/" + b"n" * 130 + b".png"
DATA = padded(b"data!")
WRITERS = {
    # libarchive (macOS, conda) writes 99 bytes of a long name, and the pax path.
    "bsdtar": pax(path=LONG) + header(LONG[-99:], 5) + DATA,
    "pax size": pax(size=b"5") + header(b"a.png", 0) + DATA,
    "pax path and charset": pax(hdrcharset=b"BINARY", path=b"\xe9.png") + header(b"x", 5) + DATA,
    "padded pax": pax(path=b"a.png").ljust(1024 + 512, b"\0")[:1024] + header(b"x", 5) + DATA,
    "shared comment": pax(b"g", comment=b"of git") + header(b"a.png", 5) + DATA,
    "shared path": pax(b"g", path=b"b.png") + header(b"a.png", 5) + DATA,
    "empty path of its own": pax(b"g", path=b"b.png") + pax(path=b"") + header(b"a.png", 5) + DATA,
    "Solaris": pax(b"X", path=LONG) + header(b"x", 5) + DATA,
    "GNU long name": long(b"L", LONG) + header(LONG[:100], 5) + DATA,
    "GNU long link": long(b"K", LONG) + header(b"l.png", kind=b"2") + header(b"a.png", 5) + DATA,
    "prefix": header(b"a.png", 5, at_345=b"p" * 155) + DATA,
    "star": header(b"a.png", 5, at_345=b"p" * 131 + b"1234567 ", at_508=b"tar\0") + DATA,
    "old": header(b"a.png", 5, b"\0", at_257=bytes(8)) + DATA,
    "GNU magic": header(b"a.png", 5, at_257=b"ustar  \0", at_345=b"1234") + DATA,
    "contiguous": header(b"a.png", 5, b"7") + DATA,
    "binary size": header(b"a.png", at_124=b"\x80" + (5).to_bytes(11, "big")) + DATA,
    "size with spaces": header(b"a.png", at_124=b"         5 \0") + DATA,
    "folder with a size": header(b"f/", 77, b"5") + header(b"a.png", 5) + DATA,
    "symbolic link with a size": header(b"l.png", 77, b"2") + header(b"a.png", 5) + DATA,
    "hard link with a size": header(b"l.png", 77, b"1") + header(b"a.png", 5) + DATA,
    "hard link with its bytes": header(b"a.png", 5, b"1", at_157=b"b.png") + DATA,
    "unknown kind": header(b"v", 5, b"V") + DATA + header(b"a.png", 5) + DATA,
}
NAMED = {
    **dict.fromkeys(("bsdtar", "Solaris", "GNU long name"), LONG),
    **dict.fromkeys(("shared path",), b"b.png"),
    "pax path and charset": b"\xe9.png",
    "prefix": b"p" * 155 + b"/a.png",
    "star": b"p" * 131 + b"/a.png",
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("window", [0, 1 << 20])
def test_archives_of_every_writer_are_read(writer: str, window: int) -> None:
    data = WRITERS[writer] + bytes(1024)
    (member,) = read_all(data, window)
    assert member.name == NAMED.get(writer, b"a.png")
    assert data[member.offset : member.offset + member.size] == b"data!"


def test_some_old_writers_add_signed_bytes() -> None:
    block = bytearray(header("\u00e9.png".encode("latin-1"), 5))
    block[148:156] = b"%06o\0 " % (int(block[148:154], 8) - 256)
    (member,) = read_all(bytes(block) + DATA + bytes(1024), 0)
    assert member.name == b"\xe9.png"


@pytest.mark.parametrize(
    "padding",
    [
        pytest.param(0, id="one after the other"),
        pytest.param(8192, id="padded"),
        pytest.param(1 << 20, id="padded by a tape's record"),
    ],
)
@pytest.mark.parametrize("window", [0, 1 << 14])
def test_archives_written_one_after_another_are_all_read(padding: int, window: int) -> None:
    one, two = (tar_of([f"{k}.png"], tarfile.PAX_FORMAT) for k in range(2))
    found = read_all(one + bytes(padding) + two + two, window)
    assert [member.name for member in found] == [b"0.png", b"1.png", b"1.png"]
    assert [member.part for member in found] == [0, 1, 2]


@pytest.mark.parametrize(
    ("behind", "reason"),
    [
        (b"a line\n", "bytes that are not a tar after the end mark"),
        (b"\xff" * 700, "bytes that are not a tar after the end mark"),
        (bytes(512) + b"x" * 512, "bytes that are not a tar after the end mark"),
        (bytes((1 << 24) + 1024), "more than 16 MiB of zeros"),
        (tar_of(["b.png"], tarfile.GNU_FORMAT)[:1300], "truncated"),
    ],
)
def test_other_bytes_after_the_end_mark_are_damage(behind: bytes, reason: str) -> None:
    data = tar_of(["a.png"], tarfile.USTAR_FORMAT) + behind
    with pytest.raises(TarError, match=reason):
        read_all(data, 1 << 14)


@pytest.mark.parametrize("zeros", [0, 300, 512, 1024, 10240])
def test_the_end_mark_may_have_any_length_but_zero(zeros: int) -> None:
    data = header(b"a.png", 5) + DATA + bytes(zeros)
    if zeros >= 512:
        assert len(read_all(data, 0)) == 1
    else:
        with pytest.raises(TarError, match="truncated"):
            read_all(data, 0)


@pytest.mark.parametrize(
    "damaged",
    [
        header(b"PaxHeader", 12, b"x") + padded(b"99 path=a.png"),
        header(b"PaxHeader", 5000, b"x") + padded(b"9" * 5000),
        header(b"PaxHeader", 6, b"x") + padded(b"path=a"),
        header(b"a.png", at_124=b"\x80" + b"\xff" * 11) + DATA,
        header(b"a.png", at_124=b"-0000000005\0") + DATA,
        header(b"a.png", 5, b"L", at_124=b"77777777777\0") + DATA,
        pax(size=b"9" * 19) + header(b"a.png", 5) + DATA,
    ],
)
def test_an_impossible_header_is_damage(damaged: bytes) -> None:
    with pytest.raises(TarError):
        read_all(damaged + header(b"b.png", 5) + DATA + bytes(1024), 0)


SPARSE: dict[str, Callable[[], bytes]] = {
    "GNU": lambda: header(b"0.png", 5, b"S", at_257=b"ustar  \0") + DATA,
    "GNU with a long map": lambda: (
        header(b"0.png", 5, b"S", at_257=b"ustar  \0", at_482=b"\1")
        + (b"7" * 504 + b"\1").ljust(512, b"\0")
        + bytes(512)
        + DATA
    ),
    "pax 0.1": lambda: pax(GNU_sparse_map=b"0,5") + header(b"0.png", 5) + DATA,
    "pax 1.0": lambda: (
        pax(GNU_sparse_name=b"0.png", GNU_sparse_major=b"1")
        + header(b"GNUSparseFile.1/0", 5)
        + DATA
    ),
}


@pytest.mark.parametrize("kind", SPARSE)
def test_a_sparse_file_is_a_bad_record_and_its_neighbors_are_read(
    kind: str, tmp_path: Path
) -> None:
    path = tmp_path / "s.tar"
    path.write_bytes(SPARSE[kind]() + header(b"1.png", 5) + DATA + bytes(1024))
    source = WebDatasetConfig(path=str(path), name="s").build()
    assert len(source) == 2
    assert source.read(1) == ("1", {"image": b"data!"}, {})
    with pytest.raises(ValueError, match=r"record 0: 0\.png is a sparse file"):
        source.read(0)


@pytest.mark.parametrize("writer", WRITERS)
def test_records_of_every_writer_are_read_by_their_index(writer: str, tmp_path: Path) -> None:
    path = tmp_path / "w.tar"
    path.write_bytes(WRITERS[writer] + bytes(1024))
    source = WebDatasetConfig(path=str(path), name="w").build()
    assert source.read(len(source) - 1)[1] == {"image": b"data!"}
