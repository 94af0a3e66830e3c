"""Checks and reads the small files of a model folder: configs, indexes, tokenizer, card.

A pipe, a device, a git-lfs pointer or JSON without end in their place is refused in one line.
"""

from pathlib import Path
from typing import Any

from blip3o.core.errors import UsageError
from blip3o.core.texts import LFS_START, load_json

MAX_JSON_BYTES = 64 * 2**20
"""Largest config or index that is read; the released indexes have a few hundred kilobytes."""

_POINTER_BYTES = 1024


def require_ordinary(file: Path) -> None:
    """Refuses a file that is missing, no ordinary file, or a pointer that git-lfs left.

    Args:
        file: links are followed.

    Raises:
        UsageError: if it is one of these; it says what to do.
    """
    if not file.is_file():
        what = "is no ordinary file" if file.exists() else "is missing"
        raise UsageError(f"{file} {what}; the model folder is incomplete")
    refuse_pointer(file)


def refuse_pointer(file: Path) -> None:
    """Refuses a git-lfs pointer in the place of the file itself.

    Raises:
        UsageError: if it is one.
    """
    try:
        if not file.is_file() or file.stat().st_size > _POINTER_BYTES:
            return
        is_pointer = file.read_bytes().startswith(LFS_START)
    except OSError:
        return  # the reader of the file reports the fault
    if is_pointer:
        raise UsageError(
            f"{file} is a git-lfs pointer and not the file itself: run `git lfs pull` in its folder"
        )


def read_json(file: Path, fault: str = "cannot be read") -> Any:  # noqa: ANN401  (of any type)
    """Returns the content of a JSON file.

    Args:
        file: UTF-8, at most `MAX_JSON_BYTES`.
        fault: the message about a file with other content.

    Raises:
        UsageError: if it is missing, no ordinary file, too large, no JSON, or names a key twice.
    """
    require_ordinary(file)
    try:
        size = file.stat().st_size
        if size > MAX_JSON_BYTES:
            raise ValueError(f"it has {size:,} bytes, more than {MAX_JSON_BYTES:,}")
        return load_json(file.read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} {fault}: {error}") from error
