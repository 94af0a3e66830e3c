"""A folder of pictures, each with its text beside it: `a.jpg` and `a.txt` or `a.json`."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from blip3o.core.config import LocalPath
from blip3o.core.errors import UsageError

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
_TEXT_SUFFIXES = (".json", ".txt")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FolderConfig:
    """One folder.

    Args:
        path: the folder; folders in it count too.
        name: short name for logs, quarantine and feature caches.
        caption: caption of pictures without one of their own ("a photo of my dog"); None counts
            them as bad samples where a caption is needed.
    """

    kind: str = "folder"
    path: LocalPath
    name: str
    caption: str | None = None

    def build(self) -> "FolderSource":
        """Returns the opened source.

        Raises:
            UsageError: if there is no such folder or no picture in it.
        """
        return FolderSource(self)


class FolderSource:
    """Pictures of a folder by position, in the order of their paths.

    Args:
        config: which folder.
    """

    is_remote = False

    def __init__(self, config: FolderConfig) -> None:
        self.name = config.name
        self._caption = config.caption
        self._base = Path(config.path)
        if not self._base.is_dir():
            raise UsageError(f"no such folder of pictures: {self._base}")
        self._names = sorted(
            os.path.relpath(os.path.join(folder, name), self._base)
            for folder, _, names in os.walk(self._base)
            for name in names
            if name.lower().endswith(_SUFFIXES) and not name.startswith(".")
        )
        if not self._names:
            raise UsageError(f"no picture in {self._base}; it may hold {', '.join(_SUFFIXES)}")
        self.shard_lengths = [len(self._names)]

    def __len__(self) -> int:
        return len(self._names)

    def read(self, position: int) -> tuple[str, Mapping[str, bytes], Mapping[str, Any]]:
        """Returns the path inside the folder, the picture, and its fields.

        Args:
            position: 0 to len - 1.

        Raises:
            ValueError: if the text beside the picture cannot be read.
            OSError: if a file cannot be read.
        """
        path = self._base / self._names[position]
        fields: dict[str, Any] = {}
        if path.with_suffix(".json").exists():
            try:
                loaded = json.loads(path.with_suffix(".json").read_bytes())
            except RecursionError as error:  # a few kilobytes of "[[[[" are enough
                raise ValueError("the picture's JSON is nested too deeply") from error
            if not isinstance(loaded, dict):
                raise ValueError("the picture's JSON is no object")
            fields.update(loaded)
        if path.with_suffix(".txt").exists():
            fields["caption"] = path.with_suffix(".txt").read_bytes().decode("utf-8-sig").strip()
        if self._caption is not None:
            fields.setdefault("caption", self._caption)
        return Path(self._names[position]).as_posix(), {"image": path.read_bytes()}, fields

    def fingerprint(self) -> str:
        """Returns a hash of the pictures' names, sizes and times of change."""
        return self._fingerprint(self._base / name for name in self._names)

    def texts_fingerprint(self) -> str:
        """Returns the same of the texts beside them, which decide no features."""
        beside = (
            (self._base / name).with_suffix(end) for name in self._names for end in _TEXT_SUFFIXES
        )
        return self._fingerprint(file for file in beside if file.exists())

    def _fingerprint(self, files: Iterable[Path]) -> str:
        digest = hashlib.sha256()
        for file in files:
            name, status = os.path.relpath(file, self._base), file.stat()
            said = f"{name}/{status.st_size}/{status.st_mtime_ns}\n"
            digest.update(os.fsencode(said))  # a name may be in another encoding than UTF-8
        return digest.hexdigest()[:32]
