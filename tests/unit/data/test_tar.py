"""Tar headers: what tarfile reads, faster, and damage is never taken for the end."""

import io
import tarfile
from pathlib import Path

import pytest

from blip3o.core.errors import UsageError
from blip3o.data.sources.shards import load_index, make_index
from blip3o.data.sources.tar import Member, TarError, members

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
    return list(members(lambda at, size: data[at : at + size], len(data), window))


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


def test_a_compressed_tar_is_none() -> None:
    with pytest.raises(TarError, match="no tar header"):
        read_all(b"\x1f\x8b" + bytes(range(256)) * 8, 4096)


def test_salvage_takes_every_whole_record_and_says_what_is_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "s.tar"
    data = bytearray(tar_of([f"{k}.png" for k in range(9)], tarfile.USTAR_FORMAT))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        places = [m.offset for m in tar if m.isfile()]
    data[places[3] + 3] ^= 1
    path.write_bytes(data[: places[7] + 600])  # record 3 has a damaged header, record 7 is cut
    with pytest.raises(UsageError, match=f"damaged or no plain tar: .* at byte {places[3]};"):
        make_index(str(path))
    assert load_index(str(path)) is None
    index = make_index(str(path), salvage=True)
    assert [index.key(k) for k in range(len(index))] == ["0", "1", "2", "4", "5", "6"]
    assert len(index.damage) == 2
    kept = load_index(str(path), salvage=True)
    assert kept is not None
    assert kept.damage == index.damage
    assert load_index(str(path)) is None  # refused all the same where nobody asked for it
    path.write_bytes(b"not a tar at all" * 100)
    with pytest.raises(UsageError, match="no plain tar"):
        make_index(str(path), salvage=True)
