"""Next-token prediction on the answers of conversations, with and without pictures."""

import dataclasses

import torch
from torch import nn

from blip3o.core.types import IGNORE_LABEL, Batch, LossOutput
from blip3o.models.unified import UnifiedModel, UnifiedModelConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class NextTokenConfig:
    """How understanding is trained.

    Args:
        tasks: tasks of the batches it applies to.
        weight: factor of this loss in the sum of all.
    """

    kind: str = "next_token"
    tasks: tuple[str, ...] = ("image_to_text", "text")
    weight: float = 1.0

    def build(self, model_config: UnifiedModelConfig) -> "NextToken":
        """Returns the objective; it needs nothing of the model's config."""
        del model_config
        return NextToken(self)


class NextToken(nn.Module):
    """Cross entropy of answer tokens, summed; also counts how many are guessed right.

    Args:
        config: tasks and weight.
    """

    def __init__(self, config: NextTokenConfig) -> None:
        super().__init__()
        self.tasks = config.tasks
        self.weight = config.weight

    def count(self, batch: Batch) -> float:
        """Returns the number of tokens with a label that can be predicted."""
        if batch.labels is None:
            raise ValueError(f"a {batch.task!r} batch needs labels for next-token prediction")
        return float((batch.labels[:, 1:] != IGNORE_LABEL).sum())

    def forward(self, model: UnifiedModel, batch: Batch, seed: int) -> LossOutput:
        """Returns the summed cross entropy; logits are computed at labelled positions only."""
        del seed  # nothing random here
        with torch.no_grad():
            features = batch.prompt_features
            if features is None and batch.prompt_pixels is not None:
                features = model.encode_images(batch.prompt_pixels)
        hidden = model.text_states(
            batch.input_ids, batch.attention_mask, None if features is None else features.float()
        )
        count = self.count(batch)
        labels = batch.labels[:, 1:]  # type: ignore[index]
        asked = labels != IGNORE_LABEL
        logits = model.backbone.logits(hidden[:, :-1][asked]).float()
        loss_sum = nn.functional.cross_entropy(logits, labels[asked], reduction="sum")
        right = (logits.detach().argmax(-1) == labels[asked]).sum()
        return LossOutput(
            loss_sum=loss_sum, count=count, metrics={"token_accuracy": (right, count)}
        )
