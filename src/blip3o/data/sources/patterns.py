"""Finds the local files that match a pattern. A part of a path that exists is taken literally."""

import glob
import itertools
import os
import re
from collections.abc import Iterator

from blip3o.core.errors import UsageError

_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MAX_FILES = 1_000_000
_SHOWN = 5
"""Number of missing files that a message names."""


def counted(pattern: str, *, is_local: bool) -> list[str]:
    """Returns the paths or patterns that ranges such as `{0000..0099}` stand for.

    A range in a local pattern is taken literally if a folder or file of that name exists.

    Raises:
        UsageError: if there are more than a million results.
    """
    found = list(itertools.islice(_counted(pattern, is_local), _MAX_FILES + 1))
    if len(found) > _MAX_FILES:
        raise UsageError(f"{pattern} stands for more than {_MAX_FILES} files")
    return found


def find(pattern: str) -> list[str]:
    """Returns the local files that match a pattern as `files.expand` describes it, sorted.

    Raises:
        UsageError: if only some of the files of a range exist.
    """
    wanted = counted(pattern, is_local=True)
    found = {one: sorted(_matches(one)) for one in wanted}
    missing = [one for one, files in found.items() if not files]
    if missing and len(missing) < len(wanted) and not _is_loose(pattern):
        shown = ", ".join(missing[:_SHOWN]) + (", ..." if len(missing) > _SHOWN else "")
        raise UsageError(
            f"{len(missing)} of the {len(wanted)} files of {pattern} are missing: {shown}; "
            "fetch them, or give a range of existing files"
        )
    # "{1..12}*.tar" matches 12.tar twice.
    return list(dict.fromkeys(itertools.chain.from_iterable(found.values())))


def _is_loose(pattern: str) -> bool:
    """Returns whether a range is next to a wildcard ("{1..12}*.tar"): then gaps are allowed."""
    return any(_BRACES.search(part) and glob.has_magic(part) for part in pattern.split("/"))


def _counted(pattern: str, is_local: bool) -> Iterator[str]:
    for braces in _BRACES.finditer(pattern):
        end = pattern.find("/", braces.end())
        if is_local and os.path.lexists(pattern[: end if end != -1 else None]):
            continue
        first, last = braces.groups()
        is_padded = any(len(number) > 1 and number[0] == "0" for number in (first, last))
        width = max(len(first), len(last)) if is_padded else 0
        for number in range(min(int(first), int(last)), max(int(first), int(last)) + 1):
            name = str(number).zfill(width)
            yield from _counted(
                pattern[: braces.start()] + name + pattern[braces.end() :], is_local
            )
        return
    yield pattern


def _matches(pattern: str) -> list[str]:
    if os.path.lexists(pattern):
        return [pattern]
    if not glob.has_magic(pattern):
        return []
    folder, name = os.path.split(pattern)
    found: list[str] = []
    for base in _matches(folder) if folder else [""]:
        path = os.path.join(base, name)
        if os.path.lexists(path):
            found.append(path)
        elif glob.has_magic(name):
            found += (os.path.join(base, one) for one in glob.glob(name, root_dir=base or None))
    return found
