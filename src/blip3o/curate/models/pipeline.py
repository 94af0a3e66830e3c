"""A model of this package that draws and edits in the process itself: no server, no costs."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image

from blip3o.core.bounds import Count
from blip3o.core.config import LocalPath, to_dict
from blip3o.core.errors import UsageError
from blip3o.core.rng import generator
from blip3o.curate.images import ImageStore
from blip3o.curate.models import Place, Reply, Request
from blip3o.imaging.encode import to_png
from blip3o.imaging.load import open_image
from blip3o.remote.images import ImageRequest

if TYPE_CHECKING:
    from blip3o.generate.pipeline import Blip3oPipeline


@dataclasses.dataclass(frozen=True, kw_only=True)
class PipelineModel:
    """A model folder, or the bundled model.

    Args:
        name: name by which stages ask for the model.
        license: licence of the model.
        model: the folder, "pocket", or the id of a model on a hub.
        num_inference_steps: steps of sampling; None for the model's own.
        guidance_scale: guidance; None for the model's own.
        batch_size: images that are drawn together; part of the result on some machines.
    """

    kind: str = "pipeline"
    name: str
    license: str = "unknown"
    model: LocalPath = "pocket"
    num_inference_steps: Count | None = None
    guidance_scale: float | None = None
    batch_size: Count = 16

    def identity(self) -> dict[str, object]:
        """Returns everything that shapes the images; see `ModelConfig`."""
        return to_dict(self)

    def build(self, place: Place) -> "LoadedModel":
        """Returns the model; see `ModelConfig`."""
        return LoadedModel(self, place.images)


class LoadedModel:
    """A `CurateModel` that draws in the process.

    Args:
        settings: the settings.
        images: the store that the images go to.
    """

    def __init__(self, settings: PipelineModel, images: ImageStore) -> None:
        self.license = settings.license
        self._settings = settings
        self._images = images
        self._pipe: Blip3oPipeline | None = None

    def replies(self, requests: Sequence[Request], stage: str) -> list[Reply]:
        """Returns the reply to each request, in order; see `CurateModel`.

        Prompts and edits are drawn in batches of their own.
        """
        drawn = [one for one in requests if isinstance(one, ImageRequest)]
        if len(drawn) < len(requests):
            raise UsageError(f"model {self._settings.name} only draws: give stage {stage} another")
        found: dict[int, Reply] = {}
        size = self._settings.batch_size
        for is_edit in (False, True):
            places = [n for n, one in enumerate(drawn) if bool(one.images) == is_edit]
            for start in range(0, len(places), size):
                batch = places[start : start + size]
                replies = self._batch([drawn[place] for place in batch])
                found.update(zip(batch, replies, strict=True))
        return [found[place] for place in range(len(drawn))]

    def _batch(self, requests: Sequence[ImageRequest]) -> list[Reply]:
        """Returns the replies to requests that are all prompts, or all edits."""
        pipe = self._loaded()
        prompts = [one.prompt for one in requests]
        noise = [generator(one.seed) for one in requests]
        settings = self._settings
        steps, guidance = settings.num_inference_steps, settings.guidance_scale
        if requests[0].images:
            sources = [[_decoded(data) for data in one.images] for one in requests]
            drawn = pipe.edit(
                sources,
                prompts,
                generator=noise,
                num_inference_steps=steps,
                guidance_scale=guidance,
            ).images
        else:
            drawn = pipe(
                prompts, generator=noise, num_inference_steps=steps, guidance_scale=guidance
            ).images
        return [
            Reply(outcome="answered", image=self._images.add(to_png(one)), model=settings.model)
            for one in drawn
        ]

    def _loaded(self) -> "Blip3oPipeline":
        if self._pipe is None:
            from blip3o.generate.pipeline import Blip3oPipeline

            self._pipe = Blip3oPipeline.from_pretrained(self._settings.model)
        return self._pipe


def _decoded(data: bytes) -> Image.Image:
    return open_image(data).convert("RGB")
