"""Next-token prediction on the answers of conversations, with and without images."""

import dataclasses
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from blip3o.core.bounds import NotNegative, Share, Whole
from blip3o.core.rng import numpy_rng
from blip3o.core.types import IGNORE_LABEL, Batch, LossOutput
from blip3o.models.unified import UnifiedModel, UnifiedModelConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class NextTokenConfig:
    """How understanding is trained.

    Args:
        tasks: tasks of the batches it applies to.
        weight: factor of this loss in the sum of all.
        length_power: a token of an answer of n tokens counts n^-length_power. 0 counts tokens
            alike, so that long descriptions drown one-word answers; 1 counts answers alike; 0.5
            lies between (the square averaging of InternVL 2.5, arXiv 2412.05271, section 3.2).
        hidden_share: share of the answers' tokens that what follows them does not see, so that it
            looks at the image instead of guessing from what was said (word dropout; Bowman et
            al., arXiv 1511.06349, section 3.1).
        hidden_token: id of the token in their place; 0 is the padding of our own tokenizers.
    """

    kind: str = "next_token"
    tasks: tuple[str, ...] = ("image_to_text", "text", "plain_text")
    weight: NotNegative = 1.0
    length_power: float = 0.0
    hidden_share: Share = 0.0
    hidden_token: Whole = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.hidden_share < 1.0:
            raise ValueError(f"hidden_share must be in [0, 1), got {self.hidden_share}")
        if not 0.0 <= self.length_power <= 1.0:
            raise ValueError(f"length_power must be in [0, 1], got {self.length_power}")

    def build(self, model_config: UnifiedModelConfig) -> "NextToken":
        """Returns the objective.

        Raises:
            ValueError: if the vocabulary has no `hidden_token`.
        """
        size = model_config.backbone.vocab_size
        if not 0 <= self.hidden_token < size:
            raise ValueError(f"hidden_token must be in [0, {size}), got {self.hidden_token}")
        return NextToken(self)


class NextToken(nn.Module):
    """Weighted cross entropy of answer tokens, summed; also counts how many are guessed right.

    Args:
        config: tasks and weights.
    """

    needs_pixels: Final = False
    regions: Final = None
    samples: Final = "answers"

    def __init__(self, config: NextTokenConfig) -> None:
        super().__init__()
        self.tasks = config.tasks
        self.weight = config.weight
        self.length_power = config.length_power
        self.hidden_share = config.hidden_share
        self.hidden_token = config.hidden_token

    def count(self, batch: Batch) -> float:
        """Returns the summed weights of the tokens with a label that can be predicted."""
        return float(self._token_weights(batch).sum())

    def _token_weights(self, batch: Batch) -> Tensor:
        """Returns a weight for each token that is asked for, in reading order, fp32 [tokens]."""
        if batch.labels is None:
            raise ValueError(f"a {batch.task!r} batch needs labels for next-token prediction")
        asked = batch.labels[:, 1:] != IGNORE_LABEL
        before = nn.functional.pad(asked[:, :-1], (1, 0))
        answer = (asked & ~before).flatten().cumsum(0)[asked.flatten()] - 1
        lengths = torch.bincount(answer)[answer]
        return lengths.float() ** -self.length_power

    def _with_hidden_answers(self, batch: Batch, seed: int) -> Tensor:
        """Returns the token ids [B, T] with a share of the answers' tokens hidden."""
        rolls = [
            numpy_rng(seed, "hidden_answers", epoch, index).random(batch.input_ids.shape[1])
            for epoch, index in zip(batch.epochs.tolist(), batch.indices.tolist(), strict=True)
        ]
        chosen = torch.from_numpy(np.stack(rolls) < self.hidden_share).to(batch.input_ids.device)
        answers = batch.labels != IGNORE_LABEL
        return batch.input_ids.masked_fill(chosen & answers, self.hidden_token)

    def forward(self, model: UnifiedModel, batch: Batch, seed: int) -> LossOutput:
        """Returns the summed cross entropy; logits are computed at labelled positions only."""
        with torch.no_grad():
            images = model.prompt_images(batch.prompt_pixels, batch.prompt_features)
        ids = self._with_hidden_answers(batch, seed) if self.hidden_share else batch.input_ids
        hidden = model.text_states(ids, batch.attention_mask, images)
        weights = self._token_weights(batch)
        labels = batch.labels[:, 1:]  # type: ignore[index]
        asked = labels != IGNORE_LABEL
        logits = model.backbone.logits(hidden[:, :-1][asked]).float()
        losses = nn.functional.cross_entropy(logits, labels[asked], reduction="none")
        right = (logits.detach().argmax(-1) == labels[asked]).sum()
        return LossOutput(
            loss_sum=(losses * weights).sum(),
            count=float(weights.sum()),
            metrics={"token_accuracy": (right, float(len(weights)))},
        )
