"""Checks and reads the small files of a model folder: configs, indexes, tokenizer, card.

Pipes, devices, git-lfs pointers and oversized JSON are refused with a one-line error.
"""

from collections.abc import Mapping
from pathlib import Path

from blip3o.core.errors import UsageError
from blip3o.core.texts import LFS_START, load_json

MAX_JSON_BYTES = 64 * 2**20
"""Largest accepted config or index; the released indexes have a few hundred kilobytes."""

_POINTER_BYTES = 1024


def require_ordinary(file: Path) -> None:
    """Raises `UsageError` for a file that is missing, not regular, or a git-lfs pointer."""
    if not file.is_file():
        what = "is not a regular file" if file.exists() else "is missing"
        raise UsageError(f"{file} {what}; the model folder is incomplete")
    refuse_pointer(file)


def refuse_pointer(file: Path) -> None:
    """Raises `UsageError` for a git-lfs pointer in place of the file itself."""
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


def read_json(file: Path, fault: str = "cannot be read") -> object:
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


def require_mapping(value: object, name: str) -> Mapping[str, object]:
    """Returns a value of a JSON file, or raises `UsageError` if it is not a mapping."""
    if not isinstance(value, Mapping):
        raise UsageError(f"{name} must be a mapping, got {str(value)[:80]}")
    return value
