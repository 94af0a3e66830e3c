"""Files and folders that are complete or absent."""

import os
import signal
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import pytest

from blip3o.core.files import atomic_file, atomic_folder, write_atomic


def write_file(path: Path) -> None:
    with atomic_file(path) as scratch:
        scratch.write_text("new")
        raise_or_die()


def write_folder(path: Path) -> None:
    with atomic_folder(path) as scratch:
        (scratch / "inner").mkdir()
        (scratch / "inner" / "file").write_text("new")
        raise_or_die()


def raise_or_die() -> None:
    if os.environ.get("DIE"):
        os.kill(os.getpid(), signal.SIGKILL)
    raise ZeroDivisionError


@pytest.mark.parametrize("content", [b"a\r\n\xff", "gr\u00fcn\n"])
@pytest.mark.parametrize("is_shared", [False, True])
def test_a_file_is_replaced_with_the_exact_content(
    tmp_path: Path, content: bytes | str, is_shared: bool
) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    write_atomic(path, content, is_shared=is_shared)
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("write", [write_file, write_folder])
def test_a_failed_write_leaves_only_the_old_file(
    tmp_path: Path, write: Callable[[Path], None]
) -> None:
    path = tmp_path / "old"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError):
        write(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("write", [write_file, write_folder])
def test_a_killed_write_leaves_a_hidden_file_that_the_next_attempt_removes(
    tmp_path: Path, write: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "new"
    monkeypatch.setenv("DIE", "1")
    process = get_context("fork").Process(target=write, args=(path,))
    process.start()
    process.join(30)
    assert process.exitcode == -signal.SIGKILL
    assert [one.name for one in tmp_path.iterdir()] == [".new.part"]
    monkeypatch.delenv("DIE")
    with pytest.raises(ZeroDivisionError):
        write(path)
    assert not list(tmp_path.iterdir())


def test_a_folder_replaces_only_an_empty_folder(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "folder"
    for _ in range(2):
        with atomic_folder(path) as scratch:
            (scratch / "file").write_text("new")
        assert [one.name for one in path.parent.iterdir()] == ["folder"]
        assert (path / "file").read_text() == "new"
        (path / "file").unlink()
    (path / "kept").write_text("old")
    with pytest.raises(OSError, match="not empty"), atomic_folder(path):
        pass
    assert (path / "kept").read_text() == "old"
    assert list(path.parent.iterdir()) == [path]
