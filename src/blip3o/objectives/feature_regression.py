"""Feature regression: the objective of the paper's "CLIP + MSE"."""

import dataclasses
from typing import Final

import torch
from torch import nn

from blip3o.core.bounds import NotNegative
from blip3o.core.types import Batch, LossOutput
from blip3o.models.generators.blocks import BlockConfig
from blip3o.models.unified import UnifiedModel, UnifiedModelConfig
from blip3o.objectives import RegionLabels
from blip3o.objectives.generation import clean_features, num_targets, prompts_of, rows_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureRegressionConfig:
    """Training of a generator by regression of clean features.

    Args:
        tasks: tasks of the batches to which the loss applies; "interleaved" only for a generator
            that gives each image a plan of its own.
        weight: factor of this loss in the sum of all losses.
    """

    kind: str = "feature_regression"
    tasks: tuple[str, ...] = ("text_to_image", "edit", "reconstruct")
    weight: NotNegative = 1.0

    def build(self, model_config: UnifiedModelConfig) -> "FeatureRegression":
        """Returns the objective for a model.

        Raises:
            ValueError: if the generator would show later images the noise of earlier ones.
        """
        if "interleaved" in self.tasks and isinstance(model_config.generator, BlockConfig):
            raise ValueError(
                f"feature_regression cannot learn interleaved rows with the generator "
                f"{model_config.generator.kind}: a later image would see an empty one; use "
                "flow_matching"
            )
        return FeatureRegression(self, model_config)


class FeatureRegression(nn.Module):
    """Mean squared error between the target and the features of one step from noise level 1.

    It trains every generator. For one without noise as its input (`regression`) it is all that
    flow matching can teach.

    Args:
        config: tasks and weight.
        model_config: the model to be trained; gives the shape of the features.

    Reference:
        "CLIP + MSE" of BLIP3-o (arXiv 2505.09568, section 3): mean over all elements, no dropout.
    """

    needs_pixels: Final = False
    regions: Final[RegionLabels | None] = None
    samples: Final = "images"

    def __init__(self, config: FeatureRegressionConfig, model_config: UnifiedModelConfig) -> None:
        super().__init__()
        self.tasks = config.tasks
        self.weight = config.weight
        self.shape = model_config.feature_shape

    def count(self, batch: Batch) -> float:
        """Returns the number of feature values."""
        return float(num_targets(batch) * self.shape[0] * self.shape[1])

    def forward(self, model: UnifiedModel, batch: Batch, seed: int) -> LossOutput:
        """Returns the summed squared error of a batch with a target image in each row.

        Raises:
            ValueError: if the batch lacks pixels and features of its images.
        """
        del seed  # no random numbers
        # noise - clean at noise level 1 without noise: the predicted clean features, negative.
        if batch.places is None:
            with torch.no_grad():
                clean, prompts = clean_features(model, batch), prompts_of(model, batch)
            plan, ones = model.plan(prompts), clean.new_ones(len(clean))
            velocity = plan.velocity(torch.zeros_like(clean), ones)
        else:
            with torch.no_grad():
                rows, clean = rows_of(model, batch)
            ones = clean.new_ones(len(clean))
            velocity = model.read_rows(rows, torch.zeros_like(clean), ones, ones == 0).velocity
            clean = clean[rows.targets]
        error = velocity.float() + clean
        return LossOutput(loss_sum=error.square().sum(), count=self.count(batch))
