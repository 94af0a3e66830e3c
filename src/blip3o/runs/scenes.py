"""The scenes data set as files: `blip3o scenes`, and what recipes write when it is missing."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from blip3o.core.config import override
from blip3o.core.errors import UsageError
from blip3o.core.log import say
from blip3o.data.mixture import DataConfig
from blip3o.data.scenes.export import Format, export_scenes, is_current


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScenesConfig:
    """How much of the scenes data set is written.

    Args:
        num_scenes: images with captions, questions and objects.
        num_edits: images with an instruction, and what they are after it.
        num_pairs: images of two things with captions of how they stand.
        seed: decides all of them.
        px: side of the images.
        split: "train", "val" or "heldout".
        format: "webdataset" or "jsonl".
        num_processes: processes that draw.
    """

    num_scenes: int = 60_000
    num_edits: int = 20_000
    num_pairs: int = 20_000
    seed: int = 0
    px: int = 96
    split: str = "train"
    format: Format = "webdataset"
    num_processes: int = 2


def export(folder: Path, overrides: Sequence[str] = (), config: ScenesConfig | None = None) -> None:
    """Writes the data set; goes on where an earlier call stopped.

    Args:
        folder: where to.
        overrides: `path=value` changes of the config.
        config: how much; the default if None.
    """
    settings = override(config or ScenesConfig(), overrides)
    export_scenes(
        folder,
        settings.num_scenes,
        settings.num_edits,
        settings.num_pairs,
        seed=settings.seed,
        px=settings.px,
        split=settings.split,
        num_processes=settings.num_processes,
        format=settings.format,
    )


SMALL = ScenesConfig(num_scenes=2000, num_edits=500, num_pairs=0)
"""What `pocket.smoke` learns from."""

_OWN = {"runs/scenes": ScenesConfig(), "runs/scenes-small": SMALL}


def ensure_scenes(data: DataConfig) -> None:
    """Writes the scenes data set of the pocket recipes if a run wants it and it is not there.

    Args:
        data: what the run learns from; other folders are left alone.

    Raises:
        UsageError: if it is there, but another version of this package wrote it.
    """
    for name, config in _OWN.items():
        folder = Path(name)
        if not any(Path(entry.source.path).parent == folder for entry in data.mixture):
            continue
        if not (folder / "done").exists():
            say(f"{folder} is not there yet: the scenes data set is written once")
            export(folder, (), config)
            (folder / "done").touch()
        elif not is_current(folder):
            raise UsageError(
                f"{folder} holds the scenes of another version; move it away to have them written"
            )
