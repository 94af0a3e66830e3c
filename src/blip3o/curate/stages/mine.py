"""Captions, and images if wanted, of the user's own data."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import ClassVar, Literal

from blip3o.core.errors import UsageError, first_line
from blip3o.curate.desk import Desk
from blip3o.curate.draft import Draft, Step, concerns
from blip3o.data.captions import draw_caption
from blip3o.data.order import RecordOrder
from blip3o.data.sources import Source
from blip3o.data.walk import source_config

_IMAGE = "image"


@dataclasses.dataclass(frozen=True, kw_only=True)
class MineStage:
    """Gives each draft the caption of another record, and its image if wanted.

    The seed and the rank of a draft in its category select its record, so no two drafts get the
    same one, and the data need at least as many records as the plan has drafts of the category.

    Args:
        name: name of the stage in its run.
        data: tar shards, a list of records or a folder of images, as in `blip3o data lint`.
        license: licence or terms of the data; finished records name it.
        image_folder: folder that the image paths of a list start from; None is the list's folder.
        uses_image: what the record's image becomes: "source" for the image to edit, with the
            caption as its prompt; "image" for the image of the finished record, with the caption
            as the prompt; "no" to take only the caption as the prompt.
        category: category of the drafts to fill.

    Raises:
        UsageError: if the licence is empty.
    """

    version: ClassVar[int] = 1
    is_whole: ClassVar[bool] = False

    kind: str = "mine"
    name: str = ""
    data: str
    license: str
    category: str
    image_folder: str | None = None
    uses_image: Literal["no", "source", "image"] = "no"

    def __post_init__(self) -> None:
        if not self.license.strip():
            raise UsageError(f"the data {self.data} need a license")

    def fingerprint(self) -> str:
        """Returns the fingerprint of the data; see `StageConfig`."""
        return _opened(self.data, self.image_folder).fingerprint()

    def run(self, drafts: Sequence[Draft], desk: Desk) -> list[Draft]:
        """Returns the drafts with captions; see `StageConfig`."""
        source = _opened(self.data, self.image_folder)
        order = RecordOrder(source.shard_lengths, desk.seed, f"curate/{desk.stage}")
        return [
            self._filled(one, source, order, desk) if concerns(one, (self.category,)) else one
            for one in drafts
        ]

    def _filled(self, draft: Draft, source: Source, order: RecordOrder, desk: Desk) -> Draft:
        if draft.rank >= len(source):
            raise UsageError(
                f"{self.data} has {len(source)} records, but the plan has more drafts of "
                f"{self.category}: give more data, or plan fewer drafts"
            )
        position = order.position(0, draft.rank)
        try:
            key, files, fields = source.read(position)
            caption = draw_caption(fields, desk.rng(draft))
        except (ValueError, OSError) as error:
            fault = f"record {position} of {self.data}: {first_line(error)}"
            return draft.drop(desk.stage, fault)
        origin = f"record {key} of {self.data}"
        noted = draft.noted(Step(stage=desk.stage, license=self.license, text=origin))
        if self.uses_image == "no":
            return dataclasses.replace(noted, prompt=caption)
        if _IMAGE not in files:
            return noted.drop(desk.stage, f"{origin}: it has no image")
        sha256 = desk.images.add(files[_IMAGE])
        try:
            desk.images.open(sha256)
        except UsageError as error:
            return noted.drop(desk.stage, f"{origin}: {error}")
        if self.uses_image == "source":
            return dataclasses.replace(noted, source_prompt=caption, source=sha256)
        return dataclasses.replace(noted, prompt=caption, image=sha256)


@functools.cache
def _opened(data: str, image_folder: str | None) -> Source:
    """Returns the open data, whose index each process reads once."""
    return source_config(data, image_folder=image_folder).build()
