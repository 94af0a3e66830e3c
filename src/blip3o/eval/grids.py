"""Folders with one file for each item, in which the samples of an item are the tiles of a grid."""

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from PIL import Image

from blip3o.core.errors import UsageError
from blip3o.eval.benchmark import Found, Item, Layout, Sample
from blip3o.eval.layouts import write_png
from blip3o.imaging.load import ImageLimits, read_header

_SHOWN = 5
"""Most names in a message."""
_LIMITS = ImageLimits(max_bytes=2**30, max_pixels=2**30)
"""A grid of large images is larger than an image of a stranger may be."""


@dataclasses.dataclass(frozen=True)
class FolderSurvey:
    """The content of a folder of grids.

    Args:
        found: file of each item that has exactly one, by its id.
        repeated: files of each item that has several, by its id.
        unknown: names of files and folders that belong to no item.
        missing: ids of items without a file.
        broken: names of files whose start is not that of a complete image, with the reason.
        wrong_size: names of files that are no grid of this size, with their width and height.
    """

    found: Mapping[str, Path]
    repeated: Mapping[str, Sequence[str]]
    unknown: Sequence[str]
    missing: Sequence[str]
    broken: Mapping[str, str]
    wrong_size: Mapping[str, tuple[int, int]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GridLayout(Layout):
    """A folder of grids: `ITEM.png`, tiles from left to right, then from the top to the bottom.

    The name of a file up to its first dot is the id of its item; the ending may be that of any
    image format.

    Args:
        columns: tiles in a row.
        rows: tiles in a column.
        tile_px: side of a tile in pixels; None means that it is not known, and reading is refused
            unless the grid has one tile.
        setting: name of the setting that holds `tile_px`, for messages.
    """

    columns: int
    rows: int
    tile_px: int | None
    setting: str = "resolution"

    def survey(self, folder: Path, items: Sequence[Item]) -> FolderSurvey:
        """Returns the content of a folder; reads the start of each file only.

        Raises:
            UsageError: if the folder cannot be read.
        """
        known = {item.id for item in items}
        unknown: list[str] = []
        files: dict[str, list[Path]] = defaultdict(list)
        try:
            entries = sorted(folder.iterdir())
        except OSError as error:
            raise UsageError(f"{folder} is not a folder of images: {error.strerror}") from error
        for entry in entries:
            key = entry.name.partition(".")[0]
            if key in known and entry.is_file():
                files[key].append(entry)
            else:
                unknown.append(entry.name)
        found = {key: paths[0] for key, paths in files.items() if len(paths) == 1}
        broken: dict[str, str] = {}
        wrong_size: dict[str, tuple[int, int]] = {}
        for path in found.values():
            try:
                size = read_header(path, _LIMITS).size
            except UsageError as error:
                broken[path.name] = str(error)
                continue
            if self.tile_px is not None and size != self._size(self.tile_px):
                wrong_size[path.name] = size
        return FolderSurvey(
            found=found,
            repeated={k: [p.name for p in paths] for k, paths in files.items() if len(paths) > 1},
            unknown=unknown,
            missing=[item.id for item in items if item.id not in files],
            broken=broken,
            wrong_size=wrong_size,
        )

    def read(self, folder: Path, items: Sequence[Item]) -> Iterator[Found]:
        """Yields the tiles of each item; see `Layout`.

        Missing items have no samples, and broken files fail when they are read; see `notes`.

        Raises:
            UsageError: if no file has the name of an item, an item has several files, or a grid
                does not have the size of its tiles.
        """
        if self.tile_px is None and self.columns * self.rows > 1:
            raise UsageError(
                f"{folder}: {self.setting}=PIXELS must state the side of one image: a grid cannot "
                "be told from a single image without it"
            )
        survey = self.survey(folder, items)
        self._refuse(folder, survey)
        for item in items:
            if (file := survey.found.get(item.id)) is None:
                continue
            for number in range(item.num_samples):
                tile = (number % self.columns, number // self.columns, self.columns, self.rows)
                is_whole = self.columns * self.rows == 1
                yield Found(
                    item=item.id,
                    number=number,
                    file=file,
                    tile=None if is_whole else tile,
                    tile_px=self.tile_px,
                )

    def notes(self, folder: Path, items: Sequence[Item]) -> list[str]:
        """Returns the missing items, the files without an item and the broken files."""
        survey = self.survey(folder, items)
        return [
            f"{folder.name}: {len(names)} {fault}: {_listed(names)}"
            for fault, names in (
                ("items have no file", survey.missing),
                ("files belong to no item, and are passed over", survey.unknown),
                ("files are broken images", list(survey.broken)),
            )
            if names
        ]

    def write(self, folder: Path, samples: Sequence[Sample]) -> None:
        """Writes the grid of an item; see `Layout`. Tiles without a sample are black.

        Raises:
            UsageError: if samples of the item are missing or do not have the size of a tile.
        """
        item = samples[0].item
        images = {sample.number: sample.image for sample in samples if sample.image is not None}
        if sorted(images) != list(range(item.num_samples)):
            raise UsageError(
                f"{item.id} has {len(images)} of {item.num_samples} images: a grid needs all"
            )
        side = self.tile_px or images[0].width
        for number, image in images.items():
            if image.size != (side, side):
                raise UsageError(
                    f"image {number} of {item.id} is {_by(image.size)}, but a tile of the grid is "
                    f"{_by((side, side))}: set {self.setting} to the size of the images"
                )
        grid = Image.new("RGB", self._size(side))
        for number, image in images.items():
            grid.paste(image, (number % self.columns * side, number // self.columns * side))
        write_png(folder / f"{item.id}.png", grid)

    def _size(self, side: int) -> tuple[int, int]:
        return self.columns * side, self.rows * side

    def _refuse(self, folder: Path, survey: FolderSurvey) -> None:
        if not survey.found and not survey.repeated:
            some = f": it holds {_listed(survey.unknown)}" if survey.unknown else ""
            raise UsageError(f"{folder} has no file with the name of an item{some}")
        if survey.repeated:
            key, names = next(iter(survey.repeated.items()))
            raise UsageError(
                f"{folder}: {len(survey.repeated)} items have several files, such as {key}: "
                f"{_listed(names)}; the official program counts each of them: keep one"
            )
        if survey.wrong_size and self.tile_px is not None:
            name, size = next(iter(survey.wrong_size.items()))
            wanted = self._size(self.tile_px)
            if size[0] < wanted[0] or size[1] < wanted[1]:
                effect = "black areas in place of images"
            else:
                effect = "parts of the first image as all images"
            raise UsageError(
                f"{folder}: {len(survey.wrong_size)} files do not have the size of their grid: "
                f"{name} is {_by(size)}, and {self.columns} x {self.rows} images with "
                f"{self.setting}={self.tile_px} need {_by(wanted)}; the official program does not "
                f"notice and judges {effect}: {self._remedy(size)}"
            )

    def _remedy(self, size: tuple[int, int]) -> str:
        side = size[0] // self.columns
        if self._size(side) == size:
            return f"set {self.setting}={side} if each file is a grid"
        return f"make square grids of {self.columns} x {self.rows} images"


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def _listed(names: Sequence[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
