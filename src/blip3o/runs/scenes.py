"""Writes the scenes data set, for `blip3o scenes` and for pocket recipes that need it."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from blip3o.core.config import override
from blip3o.core.errors import UsageError
from blip3o.core.log import say
from blip3o.data.mixture import DataConfig
from blip3o.data.scenes.export import Format, export_scenes, is_current
from blip3o.data.scenes.world import FULL, World
from blip3o.recipes.pocket_parts import SCENES, SMALL_WORLD, SMALL_WORLD_SCENES


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScenesConfig:
    """Size and format of a scenes data set.

    Args:
        num_scenes: images with captions, questions and objects.
        num_edits: pairs of images, before and after an instruction.
        num_pairs: images of two objects with captions of their relation.
        num_chains: conversations of two or three edits that build on each other.
        num_groups: images of three or four things, or of two of which one occurs more than once.
        seed: seed of the whole data set.
        px: side of the images.
        split: "train", "val" or "heldout".
        format: "webdataset" or "jsonl".
        num_processes: processes that draw the images.
        world: vocabulary of the scenes: world.things, world.colors and world.max_objects.
    """

    num_scenes: int = 60_000
    num_edits: int = 20_000
    num_pairs: int = 20_000
    num_chains: int = 0
    num_groups: int = 0
    seed: int = 0
    px: int = 96
    split: str = "train"
    format: Format = "webdataset"
    num_processes: int = 2
    world: World = FULL


def export(folder: Path, overrides: Sequence[str] = (), config: ScenesConfig | None = None) -> None:
    """Writes the data set; continues where an earlier call stopped.

    Args:
        folder: folder of the data set.
        overrides: `path=value` changes of the config.
        config: size and format; `ScenesConfig()` if None.
    """
    settings = override(config or ScenesConfig(), overrides)
    fields = {one.name: getattr(settings, one.name) for one in dataclasses.fields(settings)}
    export_scenes(folder, **fields)


_OWN = {
    SCENES: ScenesConfig(num_groups=40_000),
    f"{SCENES}-small": ScenesConfig(num_scenes=2000, num_edits=500, num_pairs=0),
    SMALL_WORLD_SCENES: ScenesConfig(
        num_scenes=12_000, num_pairs=6000, num_edits=0, world=SMALL_WORLD
    ),
}
"""Data sets that are written for a recipe, by folder."""


def ensure_scenes(data: DataConfig) -> None:
    """Writes the scenes data sets of the pocket recipes that a run needs and that are missing.

    Raises:
        UsageError: if another version of this package wrote the data set.
    """
    for name, config in _OWN.items():
        folder = Path(name)
        if not any(Path(entry.source.path).parent == folder for entry in data.mixture):
            continue
        if not (folder / "done").exists():
            say(f"{folder} does not exist yet: writing the scenes data set")
            export(folder, (), config)
            (folder / "done").touch()
        elif not is_current(folder):
            raise UsageError(
                f"{folder} was written by another version; move it away, and it is written again"
            )
