"""Writes generated pictures to a folder: one file each, a grid, and what they were made from."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from blip3o.core.errors import UsageError
from blip3o.core.files import atomic_file, write_atomic
from blip3o.core.log import progress
from blip3o.core.rng import numpy_rng
from blip3o.generate.inputs import check_sampling
from blip3o.generate.pipeline import Blip3oPipeline
from blip3o.imaging.sheet import contact_sheet

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_METADATA, _GRID = "metadata.jsonl", "grid.png"
_MOST_SHOWN = 64
"""Pictures on the sheet: those of a long list of prompts would fill the memory."""


def read_prompts(file: Path) -> list[str]:
    """Returns the non-empty lines of a file.

    Args:
        file: UTF-8 text, one prompt a line.

    Raises:
        UsageError: if it cannot be read or holds no prompt.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read prompts from {file}: {error}") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise UsageError(f"{file} holds no prompt")
    return prompts


def picture_generator(seed: int, prompt_number: int, image_number: int) -> torch.Generator:
    """Returns the generator of one picture; it does not depend on what else is generated.

    Args:
        seed: the user's seed.
        prompt_number: number of the prompt, from 0.
        image_number: number of the picture of that prompt, from 0.
    """
    words = numpy_rng(seed, "picture", prompt_number, image_number).integers(0, 2**62)
    return torch.Generator().manual_seed(int(words))


def write_pictures(
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
    """Generates pictures and writes `NNNN-K.png`, `metadata.jsonl`, and `grid.png` of the first.

    Args:
        pipe: the pipeline.
        prompts: one or more captions.
        folder: created if missing.
        num_images: pictures of each prompt.
        seed: with the prompt's and the picture's number it decides the picture.
        num_inference_steps: the model's own number if None.
        guidance_scale: the model's own number if None.
        batch_size: pictures sampled at once; changes nothing but speed and memory.

    Returns:
        The path of the grid.

    Raises:
        UsageError: for an empty or over-long prompt, a number out of range, or a folder that
            cannot be written to.
    """
    sampling = pipe.model.config.sampling
    steps = sampling.num_inference_steps if num_inference_steps is None else num_inference_steps
    scale = sampling.guidance_scale if guidance_scale is None else guidance_scale
    check_sampling(steps, scale, num_images, "pil")
    _make_folder(folder)
    jobs = [(p, k) for p in range(len(prompts)) for k in range(num_images)]
    shown: list[Image.Image] = []
    lines: list[str] = []
    for start in progress(range(0, len(jobs), batch_size), what="batches"):
        batch = jobs[start : start + batch_size]
        images = pipe(
            [prompts[p] for p, _ in batch],
            generator=[picture_generator(seed, p, k) for p, k in batch],
            num_inference_steps=steps,
            guidance_scale=scale,
        ).images
        if start == 0:  # from now on they would tell of pictures that are gone
            for name in (_METADATA, _GRID):
                (folder / name).unlink(missing_ok=True)
        for (p, k), image in zip(batch, images, strict=True):
            name = f"{p:04d}-{k}.png"
            save_picture(image, folder / name)
            row = {
                "prompt": prompts[p],
                "seed": seed,
                "prompt_number": p,
                "image_number": k,
                "num_inference_steps": steps,
                "guidance_scale": scale,
                "file": name,
            }
            lines.append(json.dumps(row) + "\n")
            if len(shown) < _MOST_SHOWN:
                shown.append(image)
    _write_text("".join(lines), folder / _METADATA)
    captions = [prompts[p] for p, _ in jobs[: len(shown)]]
    save_picture(contact_sheet(shown, captions, columns=min(4, len(shown))), folder / _GRID)
    return folder / _GRID


def check_picture_path(path: Path) -> None:
    """Checks, before any work is done, that a picture can have this name.

    Args:
        path: where a picture is to be written.

    Raises:
        UsageError: if the suffix is none of a picture's, or the path is a folder.
    """
    if path.suffix.lower() not in _SUFFIXES:
        raise UsageError(f"cannot write {path}: use a name that ends in .png, .jpg or .webp")
    if path.is_dir():
        raise UsageError(f"cannot write {path}: it is a folder")


def save_picture(image: Image.Image, path: Path) -> None:
    """Writes a picture whole or not at all.

    Args:
        image: the picture.
        path: where to; the suffix decides the format.

    Raises:
        UsageError: if the suffix is unknown or the place cannot be written to.
    """
    check_picture_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as scratch:
            image.save(scratch, Image.registered_extensions()[path.suffix.lower()])
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error}") from error


def _write_text(text: str, path: Path) -> None:
    try:
        write_atomic(path, text)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error}") from error


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {error}") from error
