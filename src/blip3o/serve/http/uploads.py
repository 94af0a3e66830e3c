"""Disk space for uploads to the page: old files make room for new ones; a full disk gives 507."""

import asyncio
import contextlib
import errno
import shutil
from collections.abc import Iterable
from pathlib import Path

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from blip3o.serve.http.errors import ApiError
from blip3o.serve.http.request_checks import replayed

_UPLOAD_PATHS = ("/gradio_api/upload", "/upload")
_FREE_BYTES = 16_000_000
"""Disk space left free for all other files that the server writes."""
_LEAST_BYTES = 65_536
"""Smaller files count as this size, which limits their number; many files slow down scans."""
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class UploadFolder:
    """The folder of the page's files. Files that exist at the start (examples) are kept.

    Args:
        folder: contains uploads, and images that the page shows.
        max_bytes: largest total size of later files.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._kept = set(self._files())

    def make_room(self, size: int) -> None:
        """Deletes the oldest files until a new one of `size` bytes fits.

        Raises:
            ApiError: 507 if it still does not fit.
        """
        found = []
        for path in self._files():
            try:
                status = path.stat()
            except OSError:  # another request has just deleted it
                continue
            if path not in self._kept:
                found.append((status.st_mtime, max(status.st_size, _LEAST_BYTES), path))
        found.sort()
        total = sum(one[1] for one in found)
        for _, length, path in found:
            if total + size <= self._max_bytes and self._free() >= size + _FREE_BYTES:
                return
            self._remove(path)
            total -= length
        if total + size > self._max_bytes or self._free() < size:
            raise no_room()

    def _free(self) -> int:
        return shutil.disk_usage(self._folder).free

    def remove_unfinished(self) -> None:
        """Deletes the files of interrupted uploads, which lie at the top level of the folder."""
        for path in self._folder.iterdir():
            if path.is_file() and path not in self._kept:
                path.unlink(missing_ok=True)

    def _remove(self, path: Path) -> None:
        """Deletes a file, and its folder if that is then empty."""
        path.unlink(missing_ok=True)
        if path.parent != self._folder:
            with contextlib.suppress(OSError):
                path.parent.rmdir()

    def _files(self) -> Iterable[Path]:
        return [path for path in self._folder.rglob("*") if path.is_file()]


class UploadRoom:
    """ASGI middleware that makes room before an upload, and answers 507 if the disk is full.

    Args:
        app: the application; if it has a page, its `state.uploads` is the `UploadFolder`.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles a request."""
        held: list[Message] = []

        async def holding(message: Message) -> None:
            # A 500 is held back, because it may turn out to be a 507.
            if held or message.get("status") == 500:
                held.append(message)
            else:
                await send(message)

        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        folder = getattr(scope["app"].state, "uploads", None)
        is_upload = folder is not None and scope["path"] in _UPLOAD_PATHS
        try:
            if is_upload:
                first = await receive()
                await asyncio.to_thread(folder.make_room, len(first.get("body", b"")))
                receive = replayed(first, receive)
            await self._app(scope, receive, holding)
        except ApiError as error:
            await error.response()(scope, receive, send)
        except Exception as error:
            if not is_full(error):
                await _send_all(held, send)
                raise
            if is_upload:
                folder.remove_unfinished()
            await no_room().response()(scope, receive, send)
        else:
            await _send_all(held, send)


async def _send_all(messages: list[Message], send: Send) -> None:
    for message in messages:
        await send(message)


def is_full(error: BaseException) -> bool:
    """Whether an error, its cause or a member of its group means that the disk is full."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    inner = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    causes = [one for one in (error.__cause__, *inner) if one is not None]
    return any(is_full(one) for one in causes)


def no_room() -> ApiError:
    """Returns the error for a file that does not fit on the server's disk."""
    return ApiError(
        507, "there is no room for this file on the server; try again later", code="disk_full"
    )
