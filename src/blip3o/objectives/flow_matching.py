"""Flow matching on image features: the objective that teaches a generator to draw."""

import dataclasses
from typing import Final

import torch
from torch import Tensor, nn

from blip3o.core.bounds import Count, NotNegative, Share
from blip3o.core.config import component
from blip3o.core.rng import sample_normal, sample_uniform
from blip3o.core.types import Batch, LossOutput
from blip3o.flow.path import interpolate, velocity_target
from blip3o.flow.sigmas import SigmaDistribution
from blip3o.models.unified import UnifiedModel, UnifiedModelConfig
from blip3o.objectives import RegionLabels
from blip3o.objectives.generation import clean_features, prompts_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowMatchingConfig:
    """Training of a generator by flow matching.

    Args:
        tasks: tasks of the batches to which the loss applies.
        weight: factor of this loss in the sum of all losses.
        sigmas: distribution of the noise levels, a config from `SIGMA_DISTRIBUTIONS`.
        condition_dropout: share of samples whose prompt is replaced by the empty one (published:
            0.1).
        draws: independent (noise, sigma) pairs of each sample; the plan is computed once for all.
        prompt_gradient: back-propagate through the prompts of a frozen backbone, as the released
            training does: the same gradients, only slower.
        text_weight: factor of the cross entropy of the prompts in the sum of all losses: of all
            their words and of the image mark that ends them. With `weight` 5 and `text_weight` 1
            this is the loss of Transfusion. 0 only logs it, as the released training does; None
            computes no vocabulary logits.
    """

    kind: str = "flow_matching"
    tasks: tuple[str, ...] = ("text_to_image", "edit", "reconstruct")
    weight: NotNegative = 1.0
    sigmas: SigmaDistribution = component("blip3o.flow.sigmas:SIGMA_DISTRIBUTIONS")
    condition_dropout: Share = 0.1
    draws: Count = 1
    prompt_gradient: bool = False
    text_weight: NotNegative | None = None

    def build(self, model_config: UnifiedModelConfig) -> "FlowMatching":
        """Returns the objective for a model."""
        return FlowMatching(self, model_config)


class FlowMatching(nn.Module):
    """Squared error between the generator's velocity and noise - clean.

    For a generator that predicts noise, it is the squared error of the noise; see
    `Plan.loss_weight`.

    Args:
        config: distribution of noise levels, dropout.
        model_config: config of the model to train; defines the shape of the features.

    Reference:
        BLIP3-o section 3. The published training takes the mean over all elements and empties a
        tenth of the prompts (parity family `qwen`). Transfusion (arXiv 2408.11039, section 3.3)
        adds the text loss (parity family `transfusion`).
    """

    needs_pixels: Final = False
    regions: Final[RegionLabels | None] = None
    samples: Final = "images"

    def __init__(self, config: FlowMatchingConfig, model_config: UnifiedModelConfig) -> None:
        super().__init__()
        self.config = config
        self.tasks = config.tasks
        self.weight = config.weight
        self.text_weight = config.text_weight or 0.0
        self.shape = model_config.feature_shape

    def count(self, batch: Batch) -> float:
        """Returns the number of velocity values."""
        return float(len(batch) * self.config.draws * self.shape[0] * self.shape[1])

    def text_count(self, batch: Batch) -> float:
        """Returns the number of tokens with a text loss."""
        return float(_followed(batch).sum()) if self.text_weight else 0.0

    def forward(self, model: UnifiedModel, batch: Batch, seed: int) -> LossOutput:
        """Returns the summed squared error of a batch with a target image in each row.

        Raises:
            ValueError: if the batch has neither target pixels nor target features.
        """
        with torch.no_grad():
            clean, prompts = clean_features(model, batch), prompts_of(model, batch)
        config = self.config
        plan = model.plan(
            prompts,
            prompt_gradient=config.prompt_gradient,
            keep_states=config.text_weight is not None,
        )
        states, text_sum = plan.backbone_states, None
        metrics: dict[str, tuple[Tensor, float]] = {}
        if states is not None:
            text_sum = _text_loss(model, batch, states)
            metrics["text_loss"] = (text_sum.detach(), float(_followed(batch).sum()))
        dropped = sample_uniform(seed, "condition_dropout", batch.epochs, batch.indices)
        plan = plan.dropped((dropped < config.condition_dropout).to(clean.device))
        loss_sum = torch.zeros((), device=clean.device)
        for draw in range(config.draws):
            noise, sigma = self._draw(batch, seed, draw, clean)
            predicted = plan.velocity(interpolate(clean, noise, sigma), sigma)
            error = (predicted.float() - velocity_target(clean, noise)).square()
            loss_sum = loss_sum + (plan.loss_weight(sigma)[:, None, None] * error).sum()
        return LossOutput(
            loss_sum=loss_sum,
            count=self.count(batch),
            metrics=metrics,
            text_sum=text_sum if self.text_weight else None,
        )

    def _draw(self, batch: Batch, seed: int, draw: int, clean: Tensor) -> tuple[Tensor, Tensor]:
        keys = (batch.epochs, batch.indices)
        noise = sample_normal(self.shape, seed, f"noise/{draw}", *keys).to(clean)
        uniform = sample_uniform(seed, f"sigma/{draw}", *keys)
        return noise, self.config.sigmas.sample(uniform).to(clean)


def _followed(batch: Batch) -> Tensor:
    """Returns True for the tokens of the prompts that another token follows, [B, T - 1]."""
    return batch.attention_mask[:, 1:] & batch.attention_mask[:, :-1]


def _text_loss(model: UnifiedModel, batch: Batch, states: Tensor) -> Tensor:
    """Returns the summed cross entropy of the prompts' tokens."""
    followed = _followed(batch)
    logits = model.backbone.logits(states[:, : followed.shape[1]][followed]).float()
    return nn.functional.cross_entropy(logits, batch.input_ids[:, 1:][followed], reduction="sum")
