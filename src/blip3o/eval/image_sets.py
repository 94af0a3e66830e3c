"""Sets of images that a user gives: a folder, a list of records or tar shards."""

import hashlib
from pathlib import Path

from PIL import Image

from blip3o.core.errors import UsageError
from blip3o.data.images import read_image
from blip3o.data.walk import source_config
from blip3o.imaging.load import open_image


class ImageSet:
    """Images by position; the order is always the same.

    Args:
        path: a folder, a list of records or tar shards.

    Raises:
        UsageError: if the data are missing or of another kind.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._source = source_config(path).build()

    @property
    def name(self) -> str:
        """Last part of the path, for messages."""
        return Path(self.path.rstrip("/")).name

    def __len__(self) -> int:
        return len(self._source)

    def file(self, position: int) -> tuple[str, bytes]:
        """Returns the name of an image in the set, and its file.

        Raises:
            ValueError: if the record has no image, or as `Source.read`.
            OSError: if a file cannot be read.
        """
        name, files, _ = self._source.read(position)
        if not files:
            raise ValueError("the record has no image")
        return name, files["image"] if "image" in files else next(iter(files.values()))

    def image(self, position: int) -> Image.Image:
        """Returns an image in RGB; raises as `file`, and a ValueError if it is damaged."""
        return read_image({"image": self.file(position)[1]}, "image")

    def checked_file(self, position: int) -> tuple[str, bytes]:
        """Returns the result of `file`; any fault is a UsageError that names the record."""
        try:
            return self.file(position)
        except (ValueError, OSError) as error:
            raise UsageError(f"{self.path}, record {position}: {error}") from error

    def checked_image(self, position: int) -> Image.Image:
        """Returns an image in RGB; any fault is a UsageError that names the image."""
        name, data = self.checked_file(position)
        try:
            return open_image(data)
        except UsageError as error:
            raise UsageError(f"{self.path}, {name}: {error}") from error

    def sha256(self) -> str:
        """Returns a hash of all names and files; reads them all."""
        digest = hashlib.sha256()
        for position in range(len(self)):
            name, data = self.checked_file(position)
            digest.update(f"{name}\0{hashlib.sha256(data).hexdigest()}\0".encode())
        return digest.hexdigest()


def top_folder(name: str) -> str:
    """Returns the first folder of the name of an image; empty if it lies in none."""
    folder, slash, _ = name.partition("/")
    return folder if slash else ""
