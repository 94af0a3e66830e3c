"""L3: what is optimized. An objective returns a sum and a count, so batches of any size add up."""

from typing import Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

from blip3o.core.registry import Registry
from blip3o.core.types import Batch, LossOutput
from blip3o.models.unified import UnifiedModel

OBJECTIVES = Registry(
    "objective",
    {
        "feature_regression": ".feature_regression:FeatureRegressionConfig",
        "flow_matching": ".flow_matching:FlowMatchingConfig",
        "image_text": ".image_text:ImageTextConfig",
        "next_token": ".next_token:NextTokenConfig",
        "pixel_decoding": ".pixel_decoding:PixelDecodingConfig",
    },
    package=__name__,
)


SampleKind: TypeAlias = Literal["images", "reconstructions", "answers"]
"""Samples that a run writes during training: of prompts, of images, or of questions."""


class RegionLabels(NamedTuple):
    """Names of the labels of objects and of their colors."""

    things: tuple[str, ...]
    colors: tuple[str, ...]


@runtime_checkable
class Objective(Protocol):
    """A loss over a batch; a module, because it may own parameters that only training needs."""

    tasks: tuple[str, ...]
    weight: float

    @property
    def needs_pixels(self) -> bool:
        """Whether batches must hold target pixels even if their features are cached."""

    @property
    def regions(self) -> RegionLabels | None:
        """Labels of the objects that batches must locate; None if it needs no regions."""

    @property
    def samples(self) -> SampleKind | None:
        """Samples that show its progress; None if it has none."""

    def count(self, batch: Batch) -> float:
        """Returns how much the loss of this batch counts, known before any forward pass."""
        ...

    def __call__(self, model: UnifiedModel, batch: Batch, seed: int) -> LossOutput:
        """Returns the loss sum of a batch; all randomness is keyed by (seed, epoch, index)."""
        ...
