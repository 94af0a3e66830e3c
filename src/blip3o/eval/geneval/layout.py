"""The folders of GenEval's own program.

    OUT/00000/metadata.jsonl         the line of the prompt file, one JSON object
    OUT/00000/samples/00000.png      the images; the program reads any number of them

The program scores whatever it finds. It asks neither whether prompts or images are missing, nor
whether a line is the published one, and it takes `0001.png.part` for an image. Such folders are
refused here.
"""

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from blip3o.core.errors import UsageError, reason_of
from blip3o.core.files import read_text, write_atomic
from blip3o.core.texts import load_json
from blip3o.eval.benchmark import Found, Item, Layout, Sample
from blip3o.eval.geneval.prompts import KEYS, identity
from blip3o.eval.layouts import write_png

_METADATA, _SAMPLES = "metadata.jsonl", "samples"
_IMAGE = re.compile(r"(\d+)\.png")
_IMAGE_ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})


@dataclasses.dataclass(frozen=True)
class GenEvalLayout(Layout):
    """The folders of GenEval's own program; see `Layout`.

    Args:
        others: items that the settings leave out; their folders are passed over.
    """

    others: Sequence[Item] = ()

    def read(self, folder: Path, items: Sequence[Item]) -> Iterator[Found]:
        """Yields the images in a folder.

        The metadata of a folder select the item, as in GenEval's program; the number in its name
        does not matter. An item with too few images is no fault here: the missing ones are.

        Raises:
            UsageError: if nothing is there; if metadata are missing, are not one JSON object, or
                are those of no item or of two folders; if there are more images than asked for; or
                if the program would read a file wrongly or would silently pass over an image.
        """
        by_identity = {identity(item.data): item for item in (*self.others, *items)}
        asked = {item.id for item in items}
        places: dict[str, Path] = {}
        for place, metadata in _prompt_folders(folder):
            item = by_identity.get(identity(metadata))
            if item is None:
                raise UsageError(
                    f"{place / _METADATA} is not a line of the prompt file: "
                    f"{_difference(metadata, by_identity)}"
                )
            if item.id in places:
                raise UsageError(
                    f"{place} and {places[item.id]} hold the same prompt {item.prompt!r}: keep one"
                )
            places[item.id] = place
            if item.id in asked:
                yield from _images(place, item)
        if not places:
            raise UsageError(
                f"{folder} has no folder such as 00000/samples: give the folder that GenEval's "
                "program would score"
            )

    def notes(self, folder: Path, items: Sequence[Item]) -> list[str]:
        """Returns the keys of the metadata that GenEval does not know; see `Layout.notes`."""
        known = {key for item in (*self.others, *items) for key in item.data}
        further = {key for _, metadata in _prompt_folders(folder) for key in metadata} - known
        if not further:
            return []
        return [
            f"the metadata have further keys ({', '.join(sorted(further))}); if images were drawn "
            "from their texts, the prompts were rewritten: state it"
        ]

    def write(self, folder: Path, samples: Sequence[Sample]) -> None:
        """Writes the images of one item into its folder; see `Layout.write`."""
        if not samples:
            return
        item = samples[0].item
        place = folder / item.id
        place.mkdir(parents=True, exist_ok=True)
        write_atomic(place / _METADATA, json.dumps(dict(item.data)))
        for sample in samples:
            write_png(place / _SAMPLES / f"{sample.number:05d}.png", sample.drawing)


def _prompt_folders(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yields the folder of each prompt with its metadata."""
    for place in _entries(folder):
        if place.name.isdigit() and place.is_dir():
            yield place, _metadata(place)


def _metadata(place: Path) -> dict[str, Any]:
    """Returns the line of the prompt file that a folder holds."""
    file = place / _METADATA
    if not file.is_file():
        raise UsageError(f"{file} is missing: it must hold the line of the prompt file")
    try:
        metadata = load_json(read_text(file))
    except ValueError as error:
        raise UsageError(
            f"{file} must hold exactly one JSON object, the line of the prompt file: {error}"
        ) from error
    if not isinstance(metadata, dict):
        raise UsageError(f"{file} must hold one JSON object, the line of the prompt file")
    return metadata


def _difference(metadata: Mapping[str, Any], by_identity: Mapping[str, Item]) -> str:
    """Returns how metadata differ from those of the nearest item, and the remedy."""
    asks = {key: metadata.get(key) for key in KEYS if key != "prompt"}
    for item in by_identity.values():
        if item.prompt == metadata.get("prompt"):
            keys = [key for key in KEYS if metadata.get(key) != item.data.get(key)]
            return f"{' and '.join(keys)} differ from those of {item.id} for this prompt"
        if asks == {key: item.data.get(key) for key in asks}:
            return (
                f"the prompt is {metadata.get('prompt')!r} and not {item.prompt!r}; rewritten "
                "prompts need prompts=FILE changed_prompts=true and make another benchmark"
            )
    return f"it has no prompt {metadata.get('prompt')!r}; remove the folder"


def _images(place: Path, item: Item) -> Iterator[Found]:
    samples = place / _SAMPLES
    if not samples.is_dir():
        raise UsageError(f"{samples} is missing: it must hold the images of {item.prompt!r}")
    numbered: list[tuple[int, Path]] = []
    for file in _entries(samples):
        if file.is_dir() or file.name.startswith("."):
            continue
        if whole := _IMAGE.fullmatch(file.name):
            numbered.append((int(whole[1]), file))
        elif _IMAGE.match(file.name):
            raise UsageError(
                f"GenEval's program would score {file}, which is no whole image by its name: "
                "remove it"
            )
        elif file.suffix.lower() in _IMAGE_ENDINGS:
            raise UsageError(
                f"GenEval's program would pass over {file}: name images 00000.png, 00001.png ..., "
                "or remove it"
            )
    numbered.sort()
    numbers = [number for number, _ in numbered]
    if len(numbered) > item.num_samples:
        raise UsageError(
            f"{samples} holds {len(numbered)} images and not {item.num_samples}: remove those of "
            f"other runs, or set images_per_prompt={len(numbered)}"
        )
    if len(set(numbers)) < len(numbers):
        twice = next(number for number in numbers if numbers.count(number) > 1)
        raise UsageError(f"{samples} holds two images of the number {twice}: keep one run")
    # Numbers of another count, such as 1 to 4, say only the order.
    is_order = any(number >= item.num_samples for number in numbers)
    for order, (number, file) in enumerate(numbered):
        yield Found(item=item.id, number=order if is_order else number, file=file)


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise UsageError(f"cannot read {folder}: {reason_of(error)}") from error
