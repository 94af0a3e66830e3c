"""Checks and reads the small files of a model folder: configs, indexes, tokenizer, card.

Pipes, devices, git-lfs pointers and oversized JSON are refused with a one-line error.
"""

from pathlib import Path
from typing import Any

from blip3o.core.errors import UsageError
from blip3o.core.texts import LFS_START, load_json

MAX_JSON_BYTES = 64 * 2**20
"""Largest accepted config or index; the released indexes have a few hundred kilobytes."""

_POINTER_BYTES = 1024


def require_ordinary(file: Path) -> None:
    """Refuses a file that is missing, not a regular file, or a git-lfs pointer.

    Args:
        file: path of the file; links are followed.

    Raises:
        UsageError: in each of these cases, with the remedy.
    """
    if not file.is_file():
        what = "is not a regular file" if file.exists() else "is missing"
        raise UsageError(f"{file} {what}; the model folder is incomplete")
    refuse_pointer(file)


def refuse_pointer(file: Path) -> None:
    """Refuses a git-lfs pointer in place of the file itself.

    Raises:
        UsageError: if the file is a pointer.
    """
    try:
        if not file.is_file() or file.stat().st_size > _POINTER_BYTES:
            return
        is_pointer = file.read_bytes().startswith(LFS_START)
    except OSError:
        return  # the caller reports the error when it reads the file
    if is_pointer:
        raise UsageError(
            f"{file} is a git-lfs pointer and not the file itself: run `git lfs pull` in its folder"
        )


def read_json(file: Path, fault: str = "cannot be read") -> Any:  # noqa: ANN401  (any JSON)
    """Returns the content of a JSON file.

    Args:
        file: UTF-8, at most `MAX_JSON_BYTES`.
        fault: message for invalid content.

    Raises:
        UsageError: if it is missing, not a regular file, too large, invalid, or repeats a key.
    """
    require_ordinary(file)
    try:
        size = file.stat().st_size
        if size > MAX_JSON_BYTES:
            raise ValueError(f"it has {size:,} bytes, more than {MAX_JSON_BYTES:,}")
        return load_json(file.read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} {fault}: {error}") from error
