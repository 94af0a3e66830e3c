"""The image files of a run, each under the hash of its content."""

import hashlib
from pathlib import Path

from PIL import Image

from blip3o.core.errors import UsageError, reason_of
from blip3o.core.files import write_atomic
from blip3o.imaging.load import open_image


class ImageStore:
    """Keeps image files by content, so equal files are kept once and nothing is overwritten.

    Args:
        folder: folder of the files; it and its parents are created when the first file comes.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, sha256: str) -> Path:
        """Returns the place of a file; it has no ending, because PNG, JPEG and WebP are kept."""
        return self._folder / sha256[:2] / sha256

    def add(self, data: bytes) -> str:
        """Keeps a file and returns its sha256."""
        sha256 = hashlib.sha256(data).hexdigest()
        file = self.path(sha256)
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(file, data, is_shared=True)
        return sha256

    def read(self, sha256: str) -> bytes:
        """Returns the bytes of a file.

        Raises:
            UsageError: if it is not there, or was changed.
        """
        file = self.path(sha256)
        try:
            data = file.read_bytes()
        except OSError as error:
            raise UsageError(f"cannot read {file}: {reason_of(error)}") from error
        if hashlib.sha256(data).hexdigest() != sha256:
            raise UsageError(f"{file} was changed: remove it and the folder work, and run again")
        return data

    def open(self, sha256: str) -> Image.Image:
        """Returns an image in RGB.

        Raises:
            UsageError: as `read`, or if it cannot be decoded.
        """
        return open_image(self.read(sha256)).convert("RGB")
