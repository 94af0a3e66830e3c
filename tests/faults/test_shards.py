"""Files that are not valid shards: one clear error immediately, never a hang."""

import gzip
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from blip3o.core.errors import UsageError
from blip3o.data.sources.shards import INDEX_SUFFIX, load_index, make_index
from blip3o.data.sources.webdataset import WebDatasetConfig, WebDatasetSource


def write(path: Path, *members: tuple[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def opened(path: Path | str) -> WebDatasetSource:
    return WebDatasetConfig(path=str(path), name="s").build()


GOOD = (("a.png", b"image"), ("a.txt", b"text"))


def _compressed(path: Path) -> None:
    path.write_bytes(gzip.compress(write(path, *GOOD).read_bytes()))


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(3_000_000_000)


NO_TARS: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda path: path.touch(), r"it is empty \(0 bytes\)"),
    "zeros": (_sparse, "more than 16 MiB of zeros"),
    "gzip": (_compressed, "a gzip archive: unpack it"),
    "bzip2": (lambda path: path.write_bytes(b"BZh91AY&SY" * 99), "a bzip2 archive: unpack it"),
    "zstd": (
        lambda path: path.write_bytes(b"\x28\xb5\x2f\xfd" * 99),
        "a Zstandard archive: unpack it",
    ),
    "zip": (lambda path: path.write_bytes(b"PK\x03\x04" * 99), "a ZIP archive"),
    "parquet": (lambda path: path.write_bytes(b"PAR1" * 99), "a Parquet table"),
    "page": (lambda path: path.write_bytes(b"\n<!DOCTYPE html><p>404" * 99), "a web page"),
    "pointer": (
        lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\nsize 1\n"),
        "a git-lfs pointer: fetch the file: git lfs pull",
    ),
    "text": (lambda path: path.write_bytes(b"not a tar " * 99), "no tar header at byte 0"),
    "short": (lambda path: path.write_bytes(b"abc"), "it is truncated at byte 0"),
    "garbage behind": (
        lambda path: path.write_bytes(write(path, *GOOD).read_bytes() + b"\n"),
        "bytes that are not a tar after the end mark",
    ),
    "pipe": (os.mkfifo, "it is a pipe, not a regular file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "it is a device, not a regular file"),
    "dangling link": (lambda path: path.symlink_to("gone"), "No such file"),
}


@pytest.mark.parametrize("name", NO_TARS)
def test_a_shard_that_is_not_a_tar_is_refused_immediately(tmp_path: Path, name: str) -> None:
    make, reason = NO_TARS[name]
    make(tmp_path / "x.tar")
    with pytest.raises(UsageError, match=rf"x\.tar.*{reason}") as caught:
        opened(tmp_path / "x.tar")
    assert "\n" not in str(caught.value)


def test_a_shard_that_became_a_pipe_makes_bad_records_and_no_wait(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tar", *GOOD)
    source = opened(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(OSError, match="seek"):
        source.read(0)


def test_a_member_with_a_huge_size_field_is_a_bad_record(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    monster = tarfile.TarInfo("a.png")
    monster.size = 3_000_000_000
    with path.open("wb") as file:
        file.write(monster.tobuf(tarfile.USTAR_FORMAT))
        file.truncate(512 + 3_000_000_256 + 1024)
    with pytest.raises(ValueError, match="3000000000 bytes is too large"):
        opened(path).read(0)


def test_shards_without_records_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = write(tmp_path / "1.tar")
    with pytest.raises(UsageError, match=r"no records in .*1\.tar$"):
        opened(empty)
    write(tmp_path / "2.tar", ("x.npy", b""))
    with pytest.raises(
        UsageError, match=r"no records in .*; 1 x neither an image nor a text: \.npy"
    ):
        opened(f"{tmp_path}/*.tar")
    write(tmp_path / "3.tar", *GOOD)
    assert len(opened(f"{tmp_path}/*.tar")) == 1
    shown = capsys.readouterr().err
    assert shown.count("warning: no records in the shard") == 2


@pytest.mark.parametrize("change", ["version", "size", "kinds", "starts", "offsets"])
def test_an_index_of_another_version_or_kind_is_made_again(tmp_path: Path, change: str) -> None:
    path = str(write(tmp_path / "s.tar", *GOOD, ("b.png", b"")))
    make_index(path)
    stored = dict(np.load(path + INDEX_SUFFIX, allow_pickle=False))
    if change in ("version", "size"):
        stored["stamp"] = stored["stamp"].astype("U40")
        stored["stamp"][0 if change == "version" else 1] = "3"
    elif change == "offsets":
        stored["offsets"] = stored["offsets"] * -1
    else:
        stored[change] = stored[change] + 1
    with Path(path + INDEX_SUFFIX).open("wb") as file:
        np.savez(file, **stored)
    assert load_index(path) is None
    source = opened(path)
    assert [source.read(k)[0] for k in range(2)] == ["a", "b"]
    assert load_index(path) is not None
