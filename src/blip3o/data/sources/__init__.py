"""Data sources: files of raw records with random access. Nothing is decoded or kept in memory."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from blip3o.core.registry import Registry
from blip3o.core.types import Record

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
        shard_lengths: number of records in each shard: a tar, or a piece of a folder or a list.
            Its records are neighbors.
        is_remote: whether reads wait for a network, so parallel reads are faster.
        passed_over: number of files or tar members that are not records, by reason.
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

        Raises ValueError or OSError for a bad record, UsageError if its store is unreachable.
        """
        ...

    def files(self) -> Iterable[str]:
        """Returns the local files that hold the records, without reading them."""
        ...

    def fingerprint(self) -> str:
        """Returns a text that changes when the records change."""
        ...

    def shard_fingerprint(self, number: int) -> str:
        """Returns a text that changes when the records of a shard change; it names features."""
        ...


class SourceConfig(Protocol):
    """Config of a source: hashable, and picklable for other processes."""

    @property
    def kind(self) -> str:
        """Name of the source in `SOURCES`."""
        ...

    @property
    def path(self) -> str:
        """Path or address of the data."""
        ...

    @property
    def name(self) -> str:
        """Short name for logs, quarantine and feature caches."""
        ...

    def build(self) -> Source:
        """Returns the open source."""
        ...


def read_record(source: Source, position: int, *, index: int = 0, epoch: int = 0) -> Record:
    """Returns a record with its sample's number and epoch; raises the errors of `Source.read`."""
    key, files, fields = source.read(position)
    return Record(
        key=key,
        index=index,
        epoch=epoch,
        position=position,
        source=source.name,
        files=files,
        fields=fields,
    )
