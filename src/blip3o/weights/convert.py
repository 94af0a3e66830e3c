"""Converts published checkpoint folders to our model folders and back, bit for bit."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from blip3o.core.errors import UsageError, unknown_name
from blip3o.core.files import atomic_folder
from blip3o.core.lock import locked
from blip3o.core.log import say
from blip3o.text.tokenizer import FILE_NAME as TOKENIZER_FILE
from blip3o.weights.folder import open_model, write_folder
from blip3o.weights.hub import to_local
from blip3o.weights.published import write_published

LAYOUTS = ("blip3o", "published")

_CARD = "README.md"
_MAX_CARD_BYTES = 16 * 2**20


def convert(
    source: str | Path,
    dest: Path,
    to: str = "blip3o",
    revision: str | None = None,
    *,
    allow_pickle: bool = False,
) -> None:
    """Writes a model in another layout; every weight keeps its value and its dtype.

    Weights are read and written shard by shard. `dest` appears only when it is complete.

    Args:
        source: one of our model folders, a published folder, a checkpoint of the original training
            program, "pocket", or a hub id (`organization/name`), which is downloaded.
        dest: folder to write; it must be empty or missing.
        to: one of `LAYOUTS`.
        revision: branch, tag or commit of a hub id.
        allow_pickle: whether to read `pytorch_model.bin` of a published source without safetensors,
            with torch's `weights_only`; use it only for sources that you trust.

    Raises:
        UsageError: if the source is missing, incomplete, damaged or another model, if the published
            layout cannot hold it, or if `dest` is not empty.
    """
    if to not in LAYOUTS:
        raise unknown_name("layout", to, LAYOUTS)
    _check_empty(dest)
    folder = to_local(source, revision, allow_pickle=allow_pickle)
    model = open_model(folder, allow_pickle=allow_pickle)
    if not _is_inside(model.folder / TOKENIZER_FILE, model.folder):
        raise UsageError(
            f"{model.folder / TOKENIZER_FILE} is a link out of the folder, and convert does not "
            "follow it: replace it with a copy of the file"
        )
    with _alone(dest), atomic_folder(dest) as scratch:
        if to == "published":
            write_published(model, scratch)
        else:
            write_folder(scratch, model.config, model.tensors, model.tokenizer)
        _copy_card(model.folder, scratch)


def _check_empty(dest: Path) -> None:
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise UsageError(f"{dest} exists and is not an empty folder; choose another one")


@contextmanager
def _alone(dest: Path) -> Iterator[None]:
    """Holds a lock, as two calls would write into one scratch folder; reports failed writing."""
    place = dest.absolute()
    refusal = f"converts into {dest}: wait until it is done, or choose another folder"
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with locked(place.with_name(f".{place.name}.lock"), refusal):
            _check_empty(dest)  # another call may have filled it in the meantime
            yield
    except OSError as error:
        raise UsageError(f"{dest} cannot be written: {error}") from error


def _copy_card(folder: Path, dest: Path) -> None:
    """Copies the card, which states the licence, unless it is a link out of the folder."""
    card = folder / _CARD
    if not card.is_symlink() and not card.exists():
        return
    if not card.is_file() or not _is_inside(card, folder):
        say(f"{card} is left out: it is not a regular file of the folder")
    elif card.stat().st_size > _MAX_CARD_BYTES:
        say(f"{card} is left out: it is larger than {_MAX_CARD_BYTES:,} bytes")
    else:
        shutil.copyfile(card, dest / _CARD)


def _is_inside(file: Path, folder: Path) -> bool:
    """Returns whether a file, after following links, lies in a folder or in its hub cache."""
    root = folder.resolve()
    if root.parent.name == "snapshots" and root.parent.parent.name.startswith("models--"):
        root = root.parent.parent
    try:
        return file.resolve(strict=True).is_relative_to(root)
    except (OSError, RuntimeError):  # a broken or a circular link
        return False
