"""Next-token prediction on the answers of conversations, with and without images."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Final

import torch
from torch import Tensor, nn

from blip3o.core.bounds import NotNegative
from blip3o.core.types import IGNORE_LABEL, Batch, LossOutput
from blip3o.models.unified import UnifiedModel, UnifiedModelConfig
from blip3o.objectives import RegionLabels
from blip3o.objectives.cross_entropy import token_losses


@dataclasses.dataclass(frozen=True, kw_only=True)
class NextTokenConfig:
    """Training of answers by next-token prediction.

    Args:
        tasks: tasks of the batches to which the loss applies.
        weight: factor of this loss in the sum of all losses.
        length_power: a token in an answer of n tokens has the weight n^-length_power. 0 gives all
            tokens one weight, so long descriptions outweigh one-word answers; 1 gives all answers
            one weight; 0.5 is between them (the square averaging of InternVL 2.5, arXiv
            2412.05271, section 3.2).
        early_weight: factor of a second loss: the later half of a question's tokens predict the
            words of its answer, if the answer is short. The token of a name then learns to find
            its thing. Without this loss two steps of attention pay only together (from the name to
            the thing, and from the end of the question to the name), and a small model that learns
            from scratch misses them (docs/log.md).
    """

    kind: str = "next_token"
    tasks: tuple[str, ...] = ("image_to_text", "text")
    weight: NotNegative = 1.0
    length_power: float = 0.0
    early_weight: NotNegative = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.length_power <= 1.0:
            raise ValueError(f"length_power must be in [0, 1], got {self.length_power}")

    def build(self, model_config: UnifiedModelConfig) -> "NextToken":
        """Returns the objective."""
        del model_config
        return NextToken(self)


class NextToken(nn.Module):
    """Summed weighted cross entropy of answer tokens; also measures the accuracy.

    Args:
        config: tasks and weights.
    """

    needs_pixels: Final = False
    regions: Final[RegionLabels | None] = None
    samples: Final = "answers"

    def __init__(self, config: NextTokenConfig) -> None:
        super().__init__()
        self.tasks = config.tasks
        self.weight = config.weight
        self.length_power = config.length_power
        self.early_weight = config.early_weight

    def count(self, batch: Batch) -> float:
        """Returns the summed weights of the tokens that have a label."""
        return float(self._token_weights(batch).sum())

    def _token_weights(self, batch: Batch) -> Tensor:
        """Returns the weight of each token that has a label, in reading order, fp32 [tokens]."""
        has_label = _next_labels(batch) != IGNORE_LABEL
        before = nn.functional.pad(has_label[:, :-1], (1, 0))
        answer = (has_label & ~before).flatten().cumsum(0)[has_label.flatten()] - 1
        lengths = torch.bincount(answer)[answer]
        return lengths.float() ** -self.length_power

    def forward(self, model: UnifiedModel, batch: Batch, seed: int) -> LossOutput:
        """Returns the summed cross entropy; logits are computed only where there are labels.

        Raises:
            ValueError: if the batch has no labels.
        """
        del seed  # this loss draws no noise
        with torch.no_grad():
            images = model.prompt_images(batch.prompt_pixels, batch.prompt_features)
        hidden = model.text_states(batch.input_ids, batch.attention_mask, images)
        weights = self._token_weights(batch)
        labels = _next_labels(batch)
        has_label = labels != IGNORE_LABEL
        losses, is_right = token_losses(
            model.backbone, hidden[:, :-1][has_label], labels[has_label]
        )
        loss_sum = (losses * weights).sum()
        if self.early_weight:
            loss_sum = loss_sum + self.early_weight * self._early(model, batch, hidden)
        return LossOutput(
            loss_sum=loss_sum,
            count=float(weights.sum()),
            metrics={"token_accuracy": (is_right.sum(), float(len(weights)))},
        )

    def _early(self, model: UnifiedModel, batch: Batch, hidden: Tensor) -> Tensor:
        """Returns the summed loss of short answers at the tokens of their questions."""
        assert batch.labels is not None
        rows, places, words, weights = list[int](), list[int](), list[int](), list[float]()
        ids, image = batch.input_ids.tolist(), model.config.backbone.image_token_id
        for row, labels in enumerate(batch.labels.tolist()):
            for question, answer in _turns(labels):
                told = list(
                    dict.fromkeys(labels[answer.start : answer.stop - 1])
                )  # without the end
                if not 0 < len(told) <= _MOST_EARLY_WORDS:
                    continue
                asked = [place for place in question if ids[row][place] != image]
                asked = asked[len(asked) // 2 :]
                for place in asked:
                    rows += [row] * len(told)
                    places += [place] * len(told)
                    words += told
                    weights += [1 / (len(asked) * len(told))] * len(told)
        if not rows:
            return hidden.sum() * 0
        losses, _ = token_losses(
            model.backbone, hidden[rows, places], torch.tensor(words, device=hidden.device)
        )
        return (losses * torch.tensor(weights, device=losses.device)).sum()


_MOST_EARLY_WORDS = 4
"""Longest answer, in different tokens, that the tokens of its question predict."""


def _turns(labels: Sequence[int]) -> Iterator[tuple[range, range]]:
    """Yields the places of each question and of its answer in a row of labels."""
    place = 0
    while place < len(labels):
        start = next((k for k in range(place, len(labels)) if labels[k] != IGNORE_LABEL), None)
        if start is None:
            return
        stop = next(
            (k for k in range(start, len(labels)) if labels[k] == IGNORE_LABEL), len(labels)
        )
        yield range(place, start), range(start, stop)
        place = stop


def _next_labels(batch: Batch) -> Tensor:
    """Returns the label of the token after each position but the last, [B, T - 1]."""
    if batch.labels is None:
        raise ValueError(f"a {batch.task!r} batch needs labels for next-token prediction")
    return batch.labels[:, 1:]
