"""Output paths: checked before the work, and named in the error if a write fails."""

import errno
import os
import subprocess
from pathlib import Path

import pytest

from blip3o.core.errors import UsageError, place_trouble
from blip3o.core.files import (
    atomic_folder,
    check_file,
    check_folder,
    check_no_file,
    naming,
    read_lines,
    write_atomic,
)
from blip3o.core.log import MetricsLogger

NO_SPACE = OSError(errno.ENOSPC, "No space left on device")


def test_a_check_leaves_no_trace(tmp_path: Path) -> None:
    check_folder(tmp_path / "a" / "b")
    check_file(tmp_path / "a" / "b" / "c.png")
    check_no_file(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())
    (tmp_path / "mine").mkdir()
    check_folder(tmp_path / "mine")
    assert (tmp_path / "mine").is_dir()


def test_a_link_to_a_folder_is_that_folder(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "dead").symlink_to(tmp_path / "none")
    check_folder(tmp_path / "link")
    check_file(tmp_path / "link" / "x.png")
    for check in (check_folder, check_no_file):
        with pytest.raises(UsageError, match="cannot write to"):
            check(tmp_path / "dead" / "x")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_an_unwritable_folder_is_refused_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("tempfile.TemporaryFile", fail)
    for check in (check_folder, check_file):
        with pytest.raises(UsageError, match=f"cannot write to {tmp_path}.*; .*choose"):
            check(tmp_path / "new")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("length", [200, 249, 250, 255])
def test_the_longest_names_can_be_written(tmp_path: Path, length: int) -> None:
    write_atomic(tmp_path / ("x" * length), "a")
    write_atomic(tmp_path / ("x" * length), "b", is_shared=True)
    assert (tmp_path / ("x" * length)).read_text() == "b"
    with atomic_folder(tmp_path / ("y" * length)) as folder:
        (folder / "a").write_text("a")
    assert len(list(tmp_path.iterdir())) == 2


def test_a_name_that_is_too_long_is_reported_as_such(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="too long") as caught:
        write_atomic(tmp_path / ("x" * 256), "a")
    message = str(place_trouble(caught.value))
    assert (
        message
        == f"cannot use {tmp_path / ('x' * 256)}: the name is too long; choose a shorter one"
    )


def test_a_full_disk_names_the_file_and_leaves_the_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_atomic(tmp_path / "a", "old")

    def full(path: Path, content: bytes) -> int:
        path.touch()
        raise NO_SPACE

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space") as caught:
        write_atomic(tmp_path / "a", "new")
    message = str(place_trouble(caught.value))
    assert message.startswith(f"cannot use {tmp_path / 'a'}: the disk is full")
    assert [one.name for one in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "old"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_metrics_name_the_file_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MetricsLogger, "_open_board", staticmethod(lambda *_: None))
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    monkeypatch.setattr(MetricsLogger, "_drop_after", lambda *_: None)
    logger = MetricsLogger(tmp_path)
    with pytest.raises(OSError, match="No space") as caught:
        logger.log(1, {"loss": 1.0})
    assert "metrics.jsonl: the disk is full" in str(place_trouble(caught.value))


def test_a_small_disk_that_is_full(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("no file system can be mounted here")
    try:
        with pytest.raises(OSError, match="No space") as caught:
            write_atomic(disk / "a", b"x" * 200_000)
        assert f"cannot use {disk / 'a'}: the disk is full" in str(place_trouble(caught.value))
        (disk / "b").write_bytes(b"x" * 65_536)
        with pytest.raises(UsageError, match="the disk is full"):
            check_folder(disk)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_other_failures_are_not_blamed_on_the_path(tmp_path: Path) -> None:
    others = (
        ConnectionRefusedError(errno.ECONNREFUSED, "refused"),
        PermissionError(errno.EACCES, "a socket"),
        OSError("encoder error -2"),
        ValueError("x"),
        RuntimeError("(os error 2)"),
        TimeoutError(),
    )
    for error in others:
        assert place_trouble(error) is None
    with pytest.raises(OSError, match="x") as caught, naming(tmp_path / "a"):
        raise OSError("x")
    assert caught.value.filename is None
    with pytest.raises(FileNotFoundError) as missing, naming(tmp_path / "a"):
        (tmp_path / "none").read_text()
    assert missing.value.filename == str(tmp_path / "none")


def test_an_error_of_a_library_that_quotes_a_system_error_gets_a_file_name(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space") as caught, naming(tmp_path / "a"):
        raise RuntimeError("I/O error: No space left on device (os error 28)")
    assert f"cannot use {tmp_path / 'a'}: the disk is full" in str(place_trouble(caught.value))
    with pytest.raises(RuntimeError, match="another"), naming(tmp_path / "a"):
        raise RuntimeError("another")


def test_lines_end_at_newlines_only(tmp_path: Path) -> None:
    file = tmp_path / "x.txt"
    for content, lines in (
        (b"", [""]),
        (b"a", ["a"]),
        (b"a\n", ["a"]),
        (b"a\r\nb\n\n", ["a", "b", ""]),
        (b"\xef\xbb\xbfa\xe2\x80\xa8b\rc\n", ["a\u2028b\rc"]),
        ("a\u2028b\r\nc".encode("utf-16"), ["a\u2028b", "c"]),
    ):
        file.write_bytes(content)
        assert read_lines(file) == lines
    for bad in (b"\xff\xfea", b"\x80"):
        file.write_bytes(bad)
        with pytest.raises(UsageError, match=r"not utf-.* text.*save it as UTF-8"):
            read_lines(file)
    with pytest.raises(UsageError, match="cannot read"):
        read_lines(tmp_path)
