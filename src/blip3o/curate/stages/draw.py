"""Draws an image for each draft that has none: from its prompt, or by editing its source."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Literal

from blip3o.curate.desk import Desk
from blip3o.curate.draft import Draft, Step
from blip3o.curate.examples import EXAMPLE_TEXT
from blip3o.curate.models import Request
from blip3o.remote.images import ImageRequest

_SEEDS = 2**31
"""Servers accept seeds of 31 bits."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DrawStage:
    """Asks a model for images.

    A draft whose image was rejected has none any more, so a second stage of this kind tries again,
    with other noise. A refusal drops the draft; the model's reason is kept.

    Args:
        name: name of the stage; empty for the kind.
        model: name of the model.
        into: "image" for the image of the record, "source" for the one that an edit starts from.
    """

    version: ClassVar[int] = 1
    is_whole: ClassVar[bool] = False
    kind: str = "draw"
    name: str = ""
    model: str
    into: Literal["image", "source"] = "image"

    def fingerprint(self) -> str:
        """Returns an empty text: the stage reads no files."""
        return ""

    def examples(self) -> list[Request]:
        """Returns the request of one draft; see `AskingStage`."""
        return [ImageRequest(prompt=EXAMPLE_TEXT, seed=0)]

    def run(self, drafts: Sequence[Draft], desk: Desk) -> list[Draft]:
        """Returns the drafts with their images; see `StageConfig`."""
        model = desk.model(self.model)
        places = [number for number, one in enumerate(drafts) if self._needs_image(one)]
        requests = [self._request(drafts[place], desk) for place in places]
        result = list(drafts)
        replies = model.replies(requests, desk.stage)
        for place, request, reply in zip(places, requests, replies, strict=True):
            step = Step(
                stage=desk.stage,
                model=reply.model,
                license=model.license,
                request=reply.request,
                seed=request.seed,
                text="" if reply.image else f"{reply.outcome}: {reply.text}",
            )
            draft = drafts[place].noted(step)
            if not reply.image:
                result[place] = draft.drop(desk.stage, f"the model gave no image: {reply.text}")
            elif self.into == "source":
                result[place] = dataclasses.replace(draft, source=reply.image)
            else:
                result[place] = dataclasses.replace(draft, image=reply.image)
        return result

    def _needs_image(self, draft: Draft) -> bool:
        has_image = draft.source if self.into == "source" else draft.image
        return not draft.dropped and not has_image

    def _request(self, draft: Draft, desk: Desk) -> ImageRequest:
        seed = int(desk.rng(draft).integers(_SEEDS))
        if self.into == "source":
            return ImageRequest(prompt=draft.source_prompt, seed=seed)
        sources = (desk.images.read(draft.source),) if draft.source else ()
        return ImageRequest(prompt=draft.prompt, seed=seed, images=sources)
