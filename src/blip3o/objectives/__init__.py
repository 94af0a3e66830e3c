"""L3: training objectives. Each returns a sum and a count, so batches of any size can be added."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

from blip3o.core.registry import Registry
from blip3o.core.types import Batch, LossOutput
from blip3o.models.unified import UnifiedModel

OBJECTIVES = Registry(
    "objective",
    {
        "autoencoding": ".autoencoding:AutoencodingConfig",
        "diffusion_nft": ".diffusion_nft:DiffusionNftConfig",
        "feature_regression": ".feature_regression:FeatureRegressionConfig",
        "flow_grpo": ".flow_grpo:FlowGrpoConfig",
        "flow_matching": ".flow_matching:FlowMatchingConfig",
        "image_text": ".image_text:ImageTextConfig",
        "latent_decoding": ".latent_decoding:LatentDecodingConfig",
        "next_token": ".next_token:NextTokenConfig",
        "pixel_decoding": ".pixel_decoding:PixelDecodingConfig",
    },
    package=__name__,
)


SampleKind: TypeAlias = Literal["images", "reconstructions", "answers"]
"""Samples that a run writes during training: images of prompts, reconstructions of images, or
answers to questions."""


class RegionLabels(NamedTuple):
    """Names of the labels of objects and of their colors."""

    things: tuple[str, ...]
    colors: tuple[str, ...]


@runtime_checkable
class Objective(Protocol):
    """A loss of a batch. Objectives are modules, because some have parameters for training only."""

    tasks: tuple[str, ...]
    weight: float

    @property
    def needs_pixels(self) -> bool:
        """Whether the loss needs target pixels even if the target features are cached."""

    @property
    def regions(self) -> RegionLabels | None:
        """Labels of the regions that batches must hold; None if the loss needs no regions."""

    @property
    def samples(self) -> SampleKind | None:
        """Samples that show the progress of training; None for an objective without samples."""

    def count(self, batch: Batch) -> float:
        """Returns the denominator of the batch's mean loss, without a forward pass."""
        ...

    def __call__(self, model: UnifiedModel, batch: Batch, seed: int) -> LossOutput:
        """Returns the loss sum of a batch; all randomness is keyed by (seed, epoch, index)."""
        ...


@runtime_checkable
class PreparesModel(Protocol):
    """An objective that sets data of a model's frozen parts; most objectives set none."""

    def prepare(self, model: UnifiedModel) -> None:
        """Sets the data, from frozen weights only; called once at every start of a run."""


@runtime_checkable
class TextObjective(Objective, Protocol):
    """An objective whose pass also gives a text loss, which has a count and a weight of its own.

    A step minimizes `weight` times the mean of the loss plus `text_weight` times the mean of the
    text loss. Each mean is over everything that the whole step counts, so it does not matter how
    images and text are spread over micro-batches and processes.
    """

    @property
    def text_weight(self) -> float:
        """Factor of the text loss in the sum of all losses."""

    def text_count(self, batch: Batch) -> float:
        """Returns the denominator of the batch's mean text loss, 0 without a text loss."""
        ...


@runtime_checkable
class DrawsImages(Objective, Protocol):
    """An objective that learns from images which an earlier policy drew.

    A step calls `roll_out` and `add_start` before the loss, in evaluation mode and without
    gradients, while the model holds the weights of that policy.
    """

    @property
    def needs_start(self) -> bool:
        """Whether the loss compares the model with its start weights."""

    def roll_out(self, model: UnifiedModel, batch: Batch, seed: int) -> Batch:
        """Returns a batch of this objective's tasks with images that the model drew, judged.

        Raises:
            UsageError: if the reward cannot judge them.
        """
        ...

    def add_start(self, model: UnifiedModel, batch: Batch) -> Batch:
        """Returns a batch of `roll_out` with the velocities of the model, which is the start."""
        ...


Counts: TypeAlias = tuple[float, float]
"""Counts of a loss and of its text loss."""


def counts_of(objective: Objective, batch: Batch) -> Counts:
    """Returns the counts of an objective for a batch; 0 for a task that it does not learn."""
    if batch.task not in objective.tasks:
        return 0.0, 0.0
    is_textual = isinstance(objective, TextObjective)
    return objective.count(batch), objective.text_count(batch) if is_textual else 0.0


def added(counts: Sequence[Counts]) -> Counts:
    """Returns the sums of counts."""
    return sum(one for one, _ in counts), sum(text for _, text in counts)
