"""Data sources: files of raw records with random access; nothing is decoded or held in memory."""

from collections.abc import Iterable, Mapping, Sequence
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
    """Records by position.

    Attributes:
        name: short name for logs, quarantine and feature caches.
        shard_lengths: records of each file; those of one file lie next to each other.
        is_remote: whether a read waits for a network, so that many at once are faster.
        passed_over: files or members that are no records, counted by reason.
    """

    name: str
    shard_lengths: Sequence[int]
    is_remote: bool
    passed_over: Mapping[str, int]

    def __len__(self) -> int:
        """Returns the number of records."""
        ...

    def read(self, position: int) -> tuple[str, Mapping[str, bytes], Mapping[str, Any]]:
        """Returns key, images by role, and fields of one record.

        ValueError or OSError if the record is bad, UsageError if its store cannot be reached.
        """
        ...

    def files(self) -> Iterable[str]:
        """Returns the local files that the records are read from, without reading these."""
        ...

    def fingerprint(self) -> str:
        """Returns a text that changes when the records do; feature caches are kept under it."""
        ...
