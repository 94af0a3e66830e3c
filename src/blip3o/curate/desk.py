"""Everything that a stage may use besides its settings: images, models, random numbers."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from blip3o.core.errors import UsageError, unknown_name
from blip3o.core.rng import numpy_rng
from blip3o.curate.draft import Draft
from blip3o.curate.images import ImageStore
from blip3o.curate.models import CurateModel
from blip3o.imaging.kinds import format_of
from blip3o.remote.chat import ChatImage


@dataclasses.dataclass(frozen=True, kw_only=True)
class Desk:
    """The surroundings of one stage.

    Args:
        stage: name of the stage in the run.
        seed: seed of the run.
        images: the image files.
        models: the models by their names in the run.
    """

    stage: str
    seed: int
    images: ImageStore
    models: Mapping[str, CurateModel]

    def rng(self, draft: Draft) -> np.random.Generator:
        """Returns random numbers that depend on the seed, the stage and the slot only."""
        return numpy_rng(self.seed, f"curate/{self.stage}", draft.slot)

    def model(self, name: str) -> CurateModel:
        """Returns a model.

        Raises:
            UsageError: if the run has no model of that name.
        """
        if name not in self.models:
            raise unknown_name("model of the run", name, self.models)
        return self.models[name]

    def shown(self, sha256: str) -> ChatImage:
        """Returns an image file of the store for a request to a chat model.

        Raises:
            UsageError: if it is not there or no image.
        """
        data = self.images.read(sha256)
        kind = format_of(data)
        if kind is None:
            raise UsageError(f"{self.images.path(sha256)} is no image")
        return ChatImage(data, f"image/{kind.lower()}")
