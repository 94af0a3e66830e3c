"""Flow matching on image features: the objective that teaches a generator to draw."""

import dataclasses
from collections import Counter
from typing import Final

import torch
from torch import Tensor, nn

from blip3o.core.bounds import Count, NotNegative, Share
from blip3o.core.config import component
from blip3o.core.rng import sample_normal, sample_uniform
from blip3o.core.types import IGNORE_LABEL, Batch, LossOutput
from blip3o.flow.path import interpolate, velocity_target
from blip3o.flow.sigmas import SigmaDistribution
from blip3o.models.prompts import Rows
from blip3o.models.unified import UnifiedModel, UnifiedModelConfig
from blip3o.objectives import RegionLabels
from blip3o.objectives.cross_entropy import token_losses
from blip3o.objectives.generation import clean_features, num_targets, prompts_of, rows_of


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
            Each image of an interleaved row has one pair.
        prompt_gradient: back-propagate through the prompts of a frozen backbone, as the released
            training does: the same gradients, only slower.
        text_weight: factor of the cross entropy of the text in the sum of all losses: of all words
            of a prompt and the image mark that ends it, or of the learned tokens of an interleaved
            row. With `weight` 5 and `text_weight` 1 this is the loss of Transfusion. 0 only logs
            it, as the released training does; None computes no vocabulary logits.
        max_context_sigma: largest noise level of an image of an interleaved row before learned
            words, which see it (Transfusion, section 4.3.2: 500 of 1000 steps, sigma 0.504). Levels
            are drawn as always and multiplied by it.
    """

    kind: str = "flow_matching"
    tasks: tuple[str, ...] = ("text_to_image", "edit", "reconstruct", "interleaved")
    weight: NotNegative = 1.0
    sigmas: SigmaDistribution = component("blip3o.flow.sigmas:SIGMA_DISTRIBUTIONS")
    condition_dropout: Share = 0.1
    draws: Count = 1
    prompt_gradient: bool = False
    text_weight: NotNegative | None = None
    max_context_sigma: Share = 0.5

    def build(self, model_config: UnifiedModelConfig) -> "FlowMatching":
        """Returns the objective for a model."""
        return FlowMatching(self, model_config)


class FlowMatching(nn.Module):
    """Squared error between the generator's velocity and noise - clean.

    For a generator that predicts noise, it is the squared error of the noise; see
    `Generator.loss_weight`.

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
        draws = self.config.draws if batch.places is None else 1
        return float(num_targets(batch) * draws * self.shape[0] * self.shape[1])

    def text_count(self, batch: Batch) -> float:
        """Returns the number of tokens with a text loss."""
        return float((_next_labels(batch) != IGNORE_LABEL).sum()) if self.text_weight else 0.0

    def forward(self, model: UnifiedModel, batch: Batch, seed: int) -> LossOutput:
        """Returns the summed squared error of a batch with a target image in each row.

        Raises:
            ValueError: if the batch lacks pixels and features of its images.
        """
        loss_sum, states = (
            self._of_prompts(model, batch, seed)
            if batch.places is None
            else self._of_rows(model, batch, seed)
        )
        metrics: dict[str, tuple[Tensor, float]] = {}
        text_sum = None
        if states is not None:
            text_sum, num_tokens = _text_loss(model, batch, states)
            metrics["text_loss"] = (text_sum.detach(), num_tokens)
        return LossOutput(
            loss_sum=loss_sum,
            count=self.count(batch),
            metrics=metrics,
            text_sum=text_sum if self.text_weight else None,
        )

    def _of_prompts(
        self, model: UnifiedModel, batch: Batch, seed: int
    ) -> tuple[Tensor, Tensor | None]:
        """Returns the loss sum, and the states of the text if they are asked for."""
        with torch.no_grad():
            clean, prompts = clean_features(model, batch), prompts_of(model, batch)
        config = self.config
        plan = model.plan(
            prompts,
            prompt_gradient=config.prompt_gradient,
            keep_states=config.text_weight is not None,
        )
        states = plan.backbone_states
        dropped = sample_uniform(seed, "condition_dropout", batch.epochs, batch.indices)
        plan = plan.dropped((dropped < config.condition_dropout).to(clean.device))
        loss_sum = torch.zeros((), device=clean.device)
        for draw in range(config.draws):
            noise, sigma = self._draw(batch, seed, draw, clean)
            predicted = plan.velocity(interpolate(clean, noise, sigma), sigma)
            loss_sum = loss_sum + _squared_error(
                model, predicted, velocity_target(clean, noise), sigma
            )
        return loss_sum, states

    def _of_rows(
        self, model: UnifiedModel, batch: Batch, seed: int
    ) -> tuple[Tensor, Tensor | None]:
        """Returns the loss sum of rows of text and images in turn, and the states of the text."""
        config = self.config
        with torch.no_grad():
            rows, clean = rows_of(model, batch)
        noise, sigma = self._draw_for_rows(batch, seed, rows, clean)
        dropped = sample_uniform(seed, "condition_dropout", batch.epochs, batch.indices)
        lines = [row for row, _ in rows.drawn]
        output = model.read_rows(
            rows,
            interpolate(clean, noise, sigma),
            sigma,
            (dropped[lines] < config.condition_dropout).to(clean.device),
            keep_states=config.text_weight is not None,
        )
        target = velocity_target(clean, noise)[rows.targets]
        loss_sum = _squared_error(model, output.velocity, target, sigma[rows.targets])
        return loss_sum, output.states

    def _draw_for_rows(
        self, batch: Batch, seed: int, rows: Rows, clean: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns noise and level of each drawn image; image k of a row has those of draw k."""
        noises: list[Tensor] = []
        sigmas: list[Tensor] = []
        numbers: Counter[int] = Counter()
        for line, (row, place) in enumerate(rows.drawn):
            here = slice(row, row + 1)
            one = dataclasses.replace(batch, indices=batch.indices[here], epochs=batch.epochs[here])
            noise, sigma = self._draw(one, seed, numbers[row], clean[line : line + 1])
            numbers[row] += 1
            if not place.is_target:
                sigma = torch.zeros_like(sigma)  # clean: it is only context
            elif place.before_text:
                sigma = sigma * self.config.max_context_sigma
            noises.append(noise)
            sigmas.append(sigma)
        return torch.cat(noises), torch.cat(sigmas)

    def _draw(self, batch: Batch, seed: int, draw: int, clean: Tensor) -> tuple[Tensor, Tensor]:
        keys = (batch.epochs, batch.indices)
        noise = sample_normal(self.shape, seed, f"noise/{draw}", *keys).to(clean)
        uniform = sample_uniform(seed, f"sigma/{draw}", *keys)
        return noise, self.config.sigmas.sample(uniform).to(clean)


def _squared_error(model: UnifiedModel, velocity: Tensor, target: Tensor, sigma: Tensor) -> Tensor:
    """Returns the summed squared error of the generator's predictions at levels [B]."""
    error = (velocity.float() - target).square()
    return (model.generator.loss_weight(sigma)[:, None, None] * error).sum()


def _next_labels(batch: Batch) -> Tensor:
    """Returns the label of the token after each position but the last, [B, T - 1].

    Without labels, all tokens of a prompt but its first are learned.
    """
    if batch.labels is not None:
        return batch.labels[:, 1:]
    is_followed = batch.attention_mask[:, 1:] & batch.attention_mask[:, :-1]
    return batch.input_ids[:, 1:].masked_fill(~is_followed, IGNORE_LABEL)


def _text_loss(model: UnifiedModel, batch: Batch, states: Tensor) -> tuple[Tensor, float]:
    """Returns the summed cross entropy of the learned tokens, and their number."""
    labels = _next_labels(batch)
    has_label = labels != IGNORE_LABEL
    states = states[:, : labels.shape[1]][has_label]
    losses, _ = token_losses(model.backbone, states, labels[has_label])
    return losses.sum(), float(has_label.sum())
