"""Writes generated images to a folder: one file each, a grid, and what they were made from."""

import contextlib
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from blip3o.core.errors import UsageError, reason_of
from blip3o.core.files import write_atomic
from blip3o.core.log import progress
from blip3o.core.rng import numpy_rng
from blip3o.generate.checks import check_image_path, check_sampling, check_suffix, read_prompts
from blip3o.generate.pipeline import Blip3oPipeline
from blip3o.generate.requests import drawing_prompt
from blip3o.imaging.sheet import contact_sheet

__all__ = [
    "check_image_path",
    "image_generator",
    "read_prompts",
    "save_image",
    "write_images",
    "written_images",
]

_METADATA, _GRID = "metadata.jsonl", "grid.png"
_JOURNAL = ".images.jsonl"
"""Names the images of a run that is not done, and of those before it."""
_OWN_NAME = re.compile(r"\d{4,}-\d+\.png")
_MOST_SHOWN = 64
"""Images on the sheet: those of a long list of prompts would fill the memory."""


def image_generator(seed: int, prompt_number: int, image_number: int) -> torch.Generator:
    """Returns the generator of one image; it does not depend on what else is generated.

    Args:
        seed: the user's seed.
        prompt_number: number of the prompt, from 0.
        image_number: number of the image of that prompt, from 0.
    """
    # The stream keeps its first name, so that a seed keeps its image from release to release.
    words = numpy_rng(seed, "picture", prompt_number, image_number).integers(0, 2**62)
    return torch.Generator().manual_seed(int(words))


def write_images(
    pipe: Blip3oPipeline,
    prompts: Sequence[str],
    folder: Path,
    *,
    num_images: int = 1,
    seed: int = 0,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    batch_size: int = 16,
) -> Path:
    """Generates images and writes `NNNN-K.png`, `metadata.jsonl`, and `grid.png` of the first.

    A folder that was used before belongs to the new call: images that the older metadata lists and
    that are not written again are removed, other files stay. The metadata is there only when all
    images are.

    Args:
        pipe: the pipeline.
        prompts: one or more captions.
        folder: created if missing.
        num_images: images of each prompt.
        seed: with the prompt's and the image's number it decides the image.
        num_inference_steps: the model's own number if None.
        guidance_scale: the model's own number if None.
        batch_size: images sampled at once; changes nothing but speed and memory.

    Returns:
        The path of the grid.

    Raises:
        UsageError: for an empty or over-long prompt, a number out of range, or a folder that
            cannot be written to.
    """
    sampling = pipe.model.config.sampling
    steps = sampling.num_inference_steps if num_inference_steps is None else num_inference_steps
    scale = pipe.model.config.guidance(guidance_scale)
    check_sampling(steps, scale, num_images)
    _check_prompts(pipe, prompts)
    _make_folder(folder)
    jobs = [(p, k) for p in range(len(prompts)) for k in range(num_images)]
    shown: list[Image.Image] = []
    lines: list[str] = []
    for start in progress(range(0, len(jobs), batch_size), what="batches"):
        batch = jobs[start : start + batch_size]
        images = pipe(
            [prompts[p] for p, _ in batch],
            generator=[image_generator(seed, p, k) for p, k in batch],
            num_inference_steps=steps,
            guidance_scale=scale,
        ).images
        if start == 0:
            _begin(folder, [_name(p, k) for p, k in jobs])
        for (p, k), image in zip(batch, images, strict=True):
            name = _name(p, k)
            save_image(image, folder / name)
            row = {"prompt": prompts[p], "seed": seed, "prompt_number": p, "image_number": k}
            numbers = {"num_inference_steps": steps, "guidance_scale": scale}
            lines.append(json.dumps({**row, **numbers, "file": name}) + "\n")
            if len(shown) < _MOST_SHOWN:
                shown.append(image)
    captions = [prompts[p] for p, _ in jobs[: len(shown)]]
    save_image(contact_sheet(shown, captions, columns=min(4, len(shown))), folder / _GRID)
    _end(folder, "".join(lines), {_name(p, k) for p, k in jobs})
    return folder / _GRID


def _check_prompts(pipe: Blip3oPipeline, prompts: Sequence[str]) -> None:
    """Refuses a bad prompt at the end of a list before the work of those before it."""
    chat = pipe.chat_template
    for prompt in prompts:
        drawing_prompt(pipe.model, chat, chat.generate_messages(prompt), prompt)


def written_images(folder: Path) -> list[Path]:
    """Returns the images that a folder's metadata lists, in order, then the metadata itself.

    Args:
        folder: what `write_images` wrote to.
    """
    lines = (folder / _METADATA).read_text(encoding="utf-8").split("\n")
    return [*(folder / json.loads(line)["file"] for line in lines if line), folder / _METADATA]


def _name(prompt_number: int, image_number: int) -> str:
    return f"{prompt_number:04d}-{image_number}.png"


def _begin(folder: Path, names: Sequence[str]) -> None:
    """Notes the images that this run and older ones own, and removes what tells of older ones."""
    owned = sorted({*_owned(folder), *names})
    _write_text("".join(json.dumps({"file": name}) + "\n" for name in owned), folder / _JOURNAL)
    for name in (_METADATA, _GRID):
        (folder / name).unlink(missing_ok=True)


def _end(folder: Path, metadata: str, names: set[str]) -> None:
    """Removes the images of older runs that this one did not write; then the metadata appears."""
    for name in _owned(folder) - names:
        (folder / name).unlink(missing_ok=True)
    _write_text(metadata, folder / _METADATA)
    (folder / _JOURNAL).unlink(missing_ok=True)


def _owned(folder: Path) -> set[str]:
    """Returns the images that the metadata, or the note of a run that was killed, name."""
    found = set()
    for file in (folder / _METADATA, folder / _JOURNAL):
        lines = file.read_text(encoding="utf-8").split("\n") if file.is_file() else []
        for line in lines:
            with contextlib.suppress(ValueError, TypeError, KeyError):
                found.add(str(json.loads(line)["file"]))
    return {name for name in found if _OWN_NAME.fullmatch(name)}


def save_image(image: Image.Image, path: Path) -> None:
    """Writes an image whole or not at all.

    Args:
        image: the image.
        path: where to; the suffix decides the format.

    Raises:
        UsageError: if the suffix is unknown or the place cannot be written to.
    """
    check_suffix(path)
    Image.init()
    content = io.BytesIO()  # Pillow hides why a file cannot be written
    image.save(content, Image.registered_extensions()[path.suffix.lower()])
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


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "it is a file" if folder.is_file() else reason_of(error)
        raise UsageError(f"cannot write to {folder}: {reason}") from error
