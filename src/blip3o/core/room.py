"""Room on a disk, asked for before hours of work find out that there is none."""

import shutil
from pathlib import Path

from blip3o.core.errors import UsageError


def require_room(folder: Path, need_bytes: int, what: str, advice: str) -> None:
    """Refuses work whose files do not fit on the disk.

    Args:
        folder: where they go; it need not exist.
        need_bytes: what they take at least.
        what: what they are, for the message.
        advice: what to do instead of making room.

    Raises:
        UsageError: if less is free.
    """
    place = folder.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        free = shutil.disk_usage(place).free
    except OSError:  # whoever writes there will say what is wrong
        return
    if need_bytes > free:
        raise UsageError(
            f"{what} need about {size_text(need_bytes)}, and {size_text(free)} are free on the "
            f"disk of {folder}: make room, or {advice}"
        )


def size_text(num_bytes: float) -> str:
    """Returns a size for people, such as "1.3 GB"."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "bytes" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"
