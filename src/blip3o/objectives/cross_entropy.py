"""Cross entropy of tokens in chunks, because the logits of a large vocabulary fill the memory."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from blip3o.models.backbones.base import Backbone

_LOGITS_AT_ONCE = 2**25
"""Most logits of a chunk: 128 MiB in fp32, and as much again for their gradient."""


def token_losses(backbone: Backbone[Any], states: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the cross entropy of tokens, fp32 [L], and whether their labels are most likely.

    Tokens whose logits fit into one chunk keep them for the backward pass. Several chunks compute
    theirs again there: a third more arithmetic for the vocabulary head.

    Args:
        backbone: computes the logits.
        states: states of the tokens before the predicted ones, [L, D].
        labels: the predicted tokens, int64 [L].

    Returns:
        Losses with gradient, and bool [L].
    """
    length = max(1, _LOGITS_AT_ONCE // backbone.config.vocab_size)
    if len(labels) <= length:
        return _losses(backbone, states, labels)
    chunks = zip(states.split(length), labels.split(length), strict=True)
    parts = [checkpoint(_losses, backbone, *chunk, use_reentrant=False) for chunk in chunks]
    losses, are_right = zip(*parts, strict=True)
    return torch.cat(losses), torch.cat(are_right)


def _losses(backbone: Backbone[Any], states: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    logits = backbone.logits(states).float()
    is_right = logits.detach().argmax(-1) == labels
    return functional.cross_entropy(logits, labels, reduction="none"), is_right
