"""Files of the page: written completely, and never rewritten while a browser may read them."""

import asyncio
import errno
import os
import threading
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from blip3o.serve.page import files
from blip3o.serve.page.files import kept, kept_image


def test_the_same_content_has_one_file_that_is_never_rewritten(tmp_path: Path) -> None:
    path = Path(kept(b"content", "a.png", str(tmp_path)))
    inode = path.stat().st_ino
    os.utime(path, (0, 0))
    assert kept(b"content", "a.png", str(tmp_path)) == str(path)
    assert path.stat().st_ino == inode
    assert path.stat().st_mtime > 0, "a file in use must look new to whatever deletes old files"
    assert Path(kept(b"others", "a.png", str(tmp_path))) != path


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    data = os.urandom(300_000)
    seen: list[int] = []
    is_over = threading.Event()

    def read() -> None:
        while not is_over.is_set():
            seen.extend(path.stat().st_size for path in tmp_path.glob("*/a.png"))

    reader = threading.Thread(target=read)
    reader.start()
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: kept(data, "a.png", str(tmp_path)), range(40)))
    is_over.set()
    reader.join()
    assert len(set(paths)) == 1
    assert set(seen) <= {len(data)}
    assert [path.name for path in tmp_path.glob("*/*")] == ["a.png"]


def test_a_file_that_cannot_be_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "replace", refuse)
    with pytest.raises(OSError, match="No space"):
        kept(b"content", "a.png", str(tmp_path))
    assert list(tmp_path.glob("*/*")) == []


@pytest.mark.parametrize("kind", ["png", "webp"])
def test_an_image_is_written_in_the_format_that_gradio_asks_for(tmp_path: Path, kind: str) -> None:
    image = Image.new("RGB", (5, 4), "red")
    path = kept_image(image, str(tmp_path), format=kind)
    with Image.open(path) as read:
        assert (read.format, read.size) == (kind.upper(), (5, 4))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_disk_is_reported_in_a_sentence(number: int) -> None:
    gradio = pytest.importorskip("gradio")
    from blip3o.serve.page.parts import with_messages

    @with_messages
    async def draw() -> AsyncGenerator[str]:
        raise OSError(number, "a reason")
        yield ""

    async def drawn() -> list[str]:
        return [one async for one in draw()]

    is_full = number != errno.EIO
    expected = "There is no room for this file" if is_full else "An internal error"
    with pytest.raises(gradio.Error, match=expected):
        asyncio.run(drawn())
