"""Folders with one file for each item."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from blip3o.core.errors import UsageError
from blip3o.core.files import write_atomic
from blip3o.eval.benchmark import Found, Item, Layout, Sample
from blip3o.imaging.encode import to_png


def write_png(file: Path, image: Image.Image) -> None:
    """Writes an image atomically; its folder is created if missing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, to_png(image))


class FlatLayout(Layout):
    """One file `ID.png` for each item in one folder; a `Layout`."""

    def read(self, folder: Path, items: Sequence[Item]) -> Iterator[Found]:
        """Yields the samples; see `Layout`."""
        if not folder.is_dir():
            raise UsageError(f"no such folder: {folder}")
        files = {file.name: file for file in sorted(folder.iterdir()) if file.is_file()}
        known = {item.id for item in items}
        for name in files:
            stem, _, ending = name.rpartition(".")
            is_padded = stem not in known and stem.lstrip("0") in known and stem.isdigit()
            is_other = stem in known and ending.lower() in _OTHER_ENDINGS
            if (is_padded and ending == "png") or (is_other and f"{stem}.png" not in files):
                wanted = f"{stem.lstrip('0') if is_padded else stem}.png"
                raise UsageError(
                    f"{files[name]} is not read by the benchmark's own program: save it as {wanted}"
                )
        found = [item.id for item in items if f"{item.id}.png" in files]
        if not found:
            raise UsageError(f"{folder} holds no sample: they are named {items[0].id}.png ...")
        for key in found:
            yield Found(item=key, number=0, file=files[f"{key}.png"])

    def write(self, folder: Path, samples: Sequence[Sample]) -> None:
        """Writes the sample of an item; see `Layout`."""
        for sample in samples:
            if sample.image is not None and sample.number == 0:
                write_png(folder / f"{sample.item.id}.png", sample.image)


_OTHER_ENDINGS = {"jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff", "avif"}
