"""Disk space for uploads: total limit, removal of the oldest, and a full disk."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")

from fastapi import FastAPI
from fastapi.testclient import TestClient

from blip3o.serve.http import uploads
from blip3o.serve.http.errors import ApiError
from blip3o.serve.http.uploads import UploadFolder, UploadRoom, is_full

UPLOAD = "/gradio_api/upload"


def put(folder: Path, name: str, size: int, age_s: int) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    os.utime(path, (1_000_000 - age_s, 1_000_000 - age_s))
    return path


@pytest.fixture(autouse=True)
def _small_files_count_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "_LEAST_BYTES", 1)


def test_tiny_files_count_as_larger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Millions of tiny files would be slow to scan and fill the disk with folders."""
    monkeypatch.setattr(uploads, "_LEAST_BYTES", 100)
    folder = UploadFolder(tmp_path, 1000)
    for number in range(20):
        folder.make_room(1)
        put(tmp_path, f"{number}/a.png", 1, 100 - number)
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == list(range(10, 20))


def test_the_oldest_files_make_room(tmp_path: Path) -> None:
    example = put(tmp_path, "examples/a.png", 500, 999)
    folder = UploadFolder(tmp_path, 1000)
    old, middle, new = (put(tmp_path, f"{k}/a.png", 400, age) for k, age in enumerate((9, 5, 1)))
    folder.make_room(500)
    assert [path.exists() for path in (example, old, middle, new)] == [True, False, False, True]
    folder.make_room(600)
    assert new.exists()
    with pytest.raises(ApiError, match="no room") as caught:
        folder.make_room(1001)
    assert caught.value.status == 507
    assert example.exists()


def test_old_files_are_deleted_if_the_disk_is_nearly_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = UploadFolder(tmp_path, 10**9)
    old, new = put(tmp_path, "a/a", 1000, 9), put(tmp_path, "b/b", 1000, 1)

    def disk(path: Path) -> Any:
        left = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        return type("Usage", (), {"free": 2500 - left})

    monkeypatch.setattr(uploads.shutil, "disk_usage", disk)
    monkeypatch.setattr(uploads, "_FREE_BYTES", 0)
    folder.make_room(1200)
    assert (old.exists(), new.exists()) == (False, True)
    with pytest.raises(ApiError, match="no room"):
        folder.make_room(2600)


def client(
    folder: Path | None, error: Exception | None = None, max_bytes: int = 1000
) -> TestClient:
    app = FastAPI(openapi_url=None)
    page = FastAPI(openapi_url=None)

    @page.post("/gradio_api/upload")
    @page.post("/v1/images/edits")
    async def take() -> str:
        if error is not None:
            if folder is not None:
                (folder / "tmp123").write_bytes(b"half of it")
            raise error
        return "taken"

    app.add_middleware(UploadRoom)
    app.mount("/", page)
    if folder is not None:
        app.state.uploads = UploadFolder(folder, max_bytes)
    return TestClient(app, raise_server_exceptions=False)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        ExceptionGroup("several", [OSError(errno.ENOSPC, "full")]),
    ],
)
def test_a_full_disk_gives_507_and_leaves_no_partial_files(
    tmp_path: Path, error: Exception
) -> None:
    for path in (UPLOAD, "/v1/images/edits"):
        answer = client(tmp_path, error).post(path, content=b"x")
        assert answer.status_code == 507
        assert "no room" in answer.json()["error"]["message"]
    here = client(tmp_path, error)
    assert here.post(UPLOAD, content=b"x").status_code == 507


def test_an_unfinished_upload_is_removed(tmp_path: Path) -> None:
    here = client(tmp_path, OSError(errno.ENOSPC, "full"))
    here.post(UPLOAD, content=b"x")
    assert not (tmp_path / "tmp123").exists()


def test_other_errors_are_unchanged(tmp_path: Path) -> None:
    assert client(tmp_path, RuntimeError("a bug")).post(UPLOAD).status_code == 500
    assert client(tmp_path, OSError(errno.EIO, "broken")).post(UPLOAD).status_code == 500
    assert not is_full(OSError(errno.EACCES, "no"))


def test_an_upload_over_the_total_is_refused_and_others_are_accepted(tmp_path: Path) -> None:
    here = client(tmp_path, max_bytes=100)
    assert here.post(UPLOAD, content=b"x" * 101).status_code == 507
    assert here.post(UPLOAD, content=b"x" * 100).json() == "taken"
    assert client(None).post(UPLOAD, content=b"x" * 101).json() == "taken"
