"""Data sources: files of raw records with random access; nothing is decoded or held in memory."""

from collections.abc import Mapping
from typing import Any, Protocol

from blip3o.core.registry import Registry

SOURCES = Registry(
    "data source",
    {
        "webdataset": ".webdataset:WebDatasetConfig",
        "jsonl": ".jsonl:JsonlConfig",
        "folder": ".folder:FolderConfig",
    },
    package=__name__,
)


class Source(Protocol):
    """Records by position."""

    name: str

    def __len__(self) -> int:
        """Returns the number of records."""
        ...

    def read(self, position: int) -> tuple[str, Mapping[str, bytes], Mapping[str, Any]]:
        """Returns key, pictures by role, and fields of one record; ValueError if it is damaged."""
        ...

    def fingerprint(self) -> str:
        """Returns a text that changes when the records do; feature caches are kept under it."""
        ...
