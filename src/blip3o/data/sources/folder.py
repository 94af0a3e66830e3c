"""A folder of pictures, each with its caption in a text file of the same name beside it.

cat.jpg  cat.txt          "a red cat on a sofa"
trip/dog.png              takes the caption of all that have none, if one is given
"""

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blip3o.core.errors import UsageError
from blip3o.data.sources.shards import PICTURE_SUFFIXES


@dataclasses.dataclass(frozen=True, kw_only=True)
class FolderConfig:
    """Pictures of one folder and the folders in it.

    Args:
        path: the folder.
        name: short name for logs, quarantine and feature caches.
        caption: caption of pictures without a text file ("a photo of my dog"); None counts them
            as bad samples where a caption is needed.
    """

    kind: str = "folder"
    path: str
    name: str
    caption: str | None = None

    def build(self) -> "FolderSource":
        """Returns the opened source.

        Raises:
            UsageError: if there is no such folder or no picture in it.
        """
        return FolderSource(self)


class FolderSource:
    """Records of a folder by position, in the order of their paths.

    Args:
        config: which folder.
    """

    def __init__(self, config: FolderConfig) -> None:
        self.name = config.name
        self._caption = config.caption
        self._folder = Path(config.path)
        if not self._folder.is_dir():
            raise UsageError(f"no such folder of pictures: {self._folder}")
        self._pictures = sorted(
            path
            for path in self._folder.rglob("*")
            if path.suffix.lower().lstrip(".") in PICTURE_SUFFIXES
            and not path.name.startswith(".")
            and path.is_file()
        )
        if not self._pictures:
            raise UsageError(
                f"no picture in {self._folder}; it may hold {', '.join(sorted(PICTURE_SUFFIXES))}"
            )

    def __len__(self) -> int:
        return len(self._pictures)

    def read(self, position: int) -> tuple[str, Mapping[str, bytes], Mapping[str, Any]]:
        """Returns the path inside the folder, the picture, and its caption if it has one.

        Args:
            position: 0 to len - 1.

        Raises:
            ValueError: if the caption is no UTF-8.
            OSError: if a file cannot be read.
        """
        picture = self._pictures[position]
        text = picture.with_suffix(".txt")
        caption = text.read_text(encoding="utf-8").strip() if text.is_file() else self._caption
        fields = {} if caption is None else {"caption": caption}
        key = picture.relative_to(self._folder).as_posix()
        return key, {"image": picture.read_bytes()}, fields

    def fingerprint(self) -> str:
        """Returns a hash of the pictures' names, sizes and times of change."""
        digest = hashlib.sha256()
        for picture in self._pictures:
            status = picture.stat()
            name = picture.relative_to(self._folder).as_posix()
            digest.update(f"{name} {status.st_size} {status.st_mtime_ns}\n".encode())
        return digest.hexdigest()[:32]
