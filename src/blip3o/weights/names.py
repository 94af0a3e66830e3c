"""Names of models, as `--model` and `from_pretrained` accept them; needs no torch."""

import json
import math
import os
import re
from pathlib import Path

from blip3o.core.errors import UsageError, unknown_name
from blip3o.core.files import home_path

BUNDLED = {"pocket": Path(__file__).parent.parent / "pocket"}
"""Models in the package, by name."""

RELEASED = {"4b": "BLIP3o/BLIP3o-Model-4B", "8b": "BLIP3o/BLIP3o-Model-8B"}
"""Hub ids of the released models, by short name."""

_SIZES = {"4b": "10 B parameters, about 20 GB", "8b": "14 B parameters, about 28 GB"}
KNOWS = {"pocket": "draws, edits and describes scenes of one to four of 48 things in 8 colors"}
"""Abilities of a bundled model, as a sentence without its subject."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_NOT_LEARNED = ("__metadata__", "normalizer.")
_FOLDERS = ("", "image_encoder", "image_decoder")
_LONGEST_HEADER = 100_000_000


def short_name(name: str | Path) -> str | None:
    """Returns the short name of a released model ("8B", "blip3o-8b" or its hub id), or None."""
    lowered = str(name).lower().replace("_", "-").removeprefix("blip3o-")
    if lowered in RELEASED:
        return lowered
    return next((short for short, hub_id in RELEASED.items() if str(name) == hub_id), None)


def full_name(name: str | Path) -> str | Path:
    """Returns a model's name with short names and a leading `~` expanded.

    Args:
        name: a bundled name, a short name (expanded to its hub id), a folder or a hub id. An
            existing folder takes precedence over a short name.

    Raises:
        UsageError: if it is neither a string nor a path.
    """
    if not isinstance(name, str | Path):
        raise UsageError(f"a model is named by a text or a path, not {name!r}")
    path = home_path(name)
    short = short_name(name)
    if short is not None and not is_there(path):
        return RELEASED[short]
    return os.path.expanduser(name) if isinstance(name, str) else path


def is_hub_id(name: str | Path) -> bool:
    """Returns whether a name has the form of a hub id and no such folder exists."""
    return isinstance(name, str) and bool(_HUB_ID.fullmatch(name)) and not is_there(name)


def check_name(name: str | Path) -> None:
    """Checks that a name can mean a model; the content of a folder is not checked.

    Raises:
        UsageError: if there is no such model.
    """
    full = full_name(name)
    if str(full) in BUNDLED or is_hub_id(full):
        return
    if not is_there(full):
        raise unknown_model(str(name))


def is_there(path: str | Path) -> bool:
    """Returns whether a file or folder exists; False for invalid file names."""
    try:
        return Path(path).exists()
    except (OSError, ValueError):  # too long, or with a zero byte
        return False


def unknown_model(name: str) -> UsageError:
    """Returns the error for an unknown model."""
    return unknown_name("model", name, [*BUNDLED, *RELEASED, *(f"blip3o-{n}" for n in RELEASED)])


def describe_models() -> str:
    """Returns a list of models, one per line: the bundled ones, then the released ones."""
    lines = []
    for name, folder in BUNDLED.items():
        files = [folder / part / "model.safetensors" for part in _FOLDERS]
        if all(file.is_file() for file in files):
            megabytes = sum(file.stat().st_size for file in files) / 1e6
            millions = sum(_count(file) for file in files) / 1e6
            size = f"{millions:.1f} M parameters, {megabytes:.1f} MB"
            knows = f"; {KNOWS[name]}" if name in KNOWS else ""
            lines.append(f"{name}  {size}, {folder}{knows}")
        else:
            lines.append(f"{name}  not in this installation")
    for name, hub_id in RELEASED.items():
        lines.append(f"{name}  {hub_id}: {_SIZES[name]}, downloaded by the first --model {name}")
    lines.append("any folder written by training also works: --model RUN/model")
    return "\n".join(lines)


def _count(file: Path) -> int:
    """Returns the number of parameters in a safetensors file, from its header."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(min(length, _LONGEST_HEADER)))
    # The feature normalizer is measured, not trained.
    shapes = [one["shape"] for key, one in header.items() if not key.startswith(_NOT_LEARNED)]
    return sum(math.prod(shape) for shape in shapes)
