"""Activation checkpointing: blocks keep their inputs only and run again in the backward pass."""

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """Returns the members of a model's outermost module lists: the layers of its networks.

    Args:
        model: any module.
    """
    if isinstance(model, nn.ModuleList):
        return list(model)
    return [block for child in model.children() for block in repeated_blocks(child)]


def checkpoint_blocks(model: nn.Module) -> None:
    """Makes every repeated block forget its activations and compute them again when needed.

    Gradients are the same bit for bit, dropout included. Names of weights do not change.

    Args:
        model: changed in place; passes without gradient are as before.
    """
    for block in repeated_blocks(model):
        _checkpoint(block)


def _checkpoint(block: nn.Module) -> None:
    plain = block.forward

    def forward(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401  (as the block's own)
        # A block that fills a cache of keys and values would fill it twice.
        if not torch.is_grad_enabled() or kwargs.get("past_key_values") is not None:
            return plain(*args, **kwargs)
        return checkpoint(plain, *args, use_reentrant=False, **kwargs)

    block.forward = forward
