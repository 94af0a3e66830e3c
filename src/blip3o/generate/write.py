"""Writes generated images to a folder: image files, a grid, and metadata of every image.

The module needs no torch, so it also writes the images of a server.
"""

import contextlib
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

from PIL import Image

from blip3o.core.errors import UsageError, reason_of
from blip3o.core.files import write_atomic
from blip3o.core.log import progress
from blip3o.generate.checks import FORMATS, check_suffix
from blip3o.imaging.sheet import contact_sheet

_METADATA, _GRID = "metadata.jsonl", "grid.png"
_JOURNAL = ".images.jsonl"
"""Lists the images of an unfinished run and of the runs before it."""
_OWN_NAME = re.compile(r"\d{4,}-\d+\.png")
_MOST_SHOWN = 64
"""Most images in the grid; those of a long list of prompts would fill the memory."""


class NumberedPrompt(NamedTuple):
    """The prompt of one image, with the numbers that belong to its seed.

    Args:
        text: the prompt.
        prompt_number: number of the prompt, from 0.
        image_number: number of the image of that prompt, from 0.
    """

    text: str
    prompt_number: int
    image_number: int

    @property
    def file(self) -> str:
        """Name of the file of the image."""
        return f"{self.prompt_number:04d}-{self.image_number}.png"


class GeneratedImage(NamedTuple):
    """A generated image and its settings.

    Args:
        image: the image.
        num_inference_steps: steps of the generator; None if a server does not state them.
        guidance_scale: 1 or more; None as above.
    """

    image: Image.Image
    num_inference_steps: int | None
    guidance_scale: float | None


DrawBatch: TypeAlias = Callable[[Sequence[NumberedPrompt]], Sequence[GeneratedImage]]
"""Returns the image of each prompt."""


def write_generated(
    draw: DrawBatch,
    prompts: Sequence[str],
    folder: Path,
    *,
    num_images: int,
    seed: int,
    batch_size: int = 16,
) -> Path:
    """Generates images, writes them with metadata and a grid, and returns the path of the grid.

    Image K of prompt N is `NNNN-K.png`. The grid `grid.png` shows the first images. In a folder
    that an earlier call wrote to, images that the old metadata lists and this call does not write
    are removed; other files stay. `metadata.jsonl` exists only when all images do.

    Args:
        draw: generates one batch.
        prompts: one or more captions.
        folder: created if missing.
        num_images: images of each prompt.
        seed: the seed, as the metadata states it.
        batch_size: images per batch.

    Raises:
        UsageError: if the folder cannot be written to, or as `draw` does.
    """
    wanted = [
        NumberedPrompt(text, p, k) for p, text in enumerate(prompts) for k in range(num_images)
    ]
    shown: list[Image.Image] = []
    lines: list[str] = []
    with _made_folder(folder):
        for start in progress(range(0, len(wanted), batch_size), what="batches"):
            batch = wanted[start : start + batch_size]
            drawn = draw(batch)
            if start == 0:
                _begin(folder, [one.file for one in wanted])
            for one, (image, steps, scale) in zip(batch, drawn, strict=True):
                save_image(image, folder / one.file)
                row = {"prompt": one.text, "seed": seed}
                numbers = {"prompt_number": one.prompt_number, "image_number": one.image_number}
                settings = {"num_inference_steps": steps, "guidance_scale": scale}
                lines.append(json.dumps({**row, **numbers, **settings, "file": one.file}) + "\n")
                if len(shown) < _MOST_SHOWN:
                    shown.append(image)
    captions = [one.text for one in wanted[: len(shown)]]
    save_image(contact_sheet(shown, captions, columns=min(4, len(shown))), folder / _GRID)
    _end(folder, "".join(lines), {one.file for one in wanted})
    return folder / _GRID


def written_images(folder: Path) -> list[Path]:
    """Returns the paths of the images that a folder's metadata lists, then of the metadata.

    Args:
        folder: a folder that `write_generated` has written to.
    """
    lines = (folder / _METADATA).read_text(encoding="utf-8").split("\n")
    return [*(folder / json.loads(line)["file"] for line in lines if line), folder / _METADATA]


def _begin(folder: Path, names: Sequence[str]) -> None:
    """Lists the images of this run and of older runs, and removes the older metadata and grid."""
    owned = sorted({*_owned(folder), *names})
    _write_text("".join(json.dumps({"file": name}) + "\n" for name in owned), folder / _JOURNAL)
    for name in (_METADATA, _GRID):
        (folder / name).unlink(missing_ok=True)


def _end(folder: Path, metadata: str, names: set[str]) -> None:
    """Removes the images of older runs that this run did not write; then writes the metadata."""
    for name in _owned(folder) - names:
        (folder / name).unlink(missing_ok=True)
    _write_text(metadata, folder / _METADATA)
    (folder / _JOURNAL).unlink(missing_ok=True)


def _owned(folder: Path) -> set[str]:
    """Returns the images that the metadata and the list of an interrupted run name."""
    found = set()
    for file in (folder / _METADATA, folder / _JOURNAL):
        lines = file.read_text(encoding="utf-8").split("\n") if file.is_file() else []
        for line in lines:
            with contextlib.suppress(ValueError, TypeError, KeyError):
                found.add(str(json.loads(line)["file"]))
    return {name for name in found if _OWN_NAME.fullmatch(name)}


def save_image(image: Image.Image, path: Path) -> None:
    """Writes an image to a file, completely or not at all.

    Args:
        image: the image.
        path: path of the file; its suffix determines the format.

    Raises:
        UsageError: if the suffix is unknown or the file cannot be written.
    """
    check_suffix(path)
    content = io.BytesIO()  # Pillow hides the reason why a file cannot be written
    image.save(content, FORMATS[path.suffix.lower()])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise UsageError(f"cannot write {path}: it is a folder; give the name of a file")
        write_atomic(path, content.getvalue())
    except OSError as error:
        raise UsageError(f"cannot write {path}: {reason_of(error)}") from error


def _write_text(text: str, path: Path) -> None:
    try:
        write_atomic(path, text)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {reason_of(error)}") from error


@contextlib.contextmanager
def _made_folder(folder: Path) -> Iterator[None]:
    """Creates a folder; removes it again if it is new and an error leaves it empty."""
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "it is a file" if folder.is_file() else reason_of(error)
        raise UsageError(f"cannot write to {folder}: {reason}") from error
    try:
        yield
    except BaseException:
        if is_new:
            with contextlib.suppress(OSError):  # it holds images
                folder.rmdir()
        raise
