"""The repeated blocks of a network, and activation checkpointing over them."""

import functools
from collections.abc import Callable, Iterable
from typing import ParamSpec, TypeVar

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

P = ParamSpec("P")
R = TypeVar("R")


def repeated_blocks(module: nn.Module) -> list[nn.Module]:
    """Returns the repeated blocks of a network, in the order of its modules.

    A stack is a module list whose members share one class and have children. The members of a stack
    are blocks. A stack of stacks yields the inner blocks if these hold most of its weights: the
    transformer layers of a UNet count, a list that wraps one output projection does not.

    Args:
        module: any module; itself a stack or a network that contains stacks.
    """
    inner = [block for child in module.children() for block in repeated_blocks(child)]
    if not isinstance(module, nn.ModuleList) or not _is_stack(module):
        return inner
    return inner if 2 * _num_weights(inner) > _num_weights(module) else list(module)


def _is_stack(modules: nn.ModuleList) -> bool:
    return len({type(member) for member in modules}) == 1 and any(modules[0].children())


def _num_weights(modules: Iterable[nn.Module]) -> int:
    return sum(weight.numel() for module in modules for weight in module.parameters())


def checkpoint_blocks(model: nn.Module) -> None:
    """Makes every repeated block discard its activations and recompute them in the backward pass.

    Gradients stay the same bit for bit, dropout included. Names of weights do not change.

    Args:
        model: changed in place; passes without gradient are not affected.
    """
    for block in repeated_blocks(model):
        block.forward = _checkpointed(block.forward)


def _checkpointed(plain: Callable[P, R]) -> Callable[P, R]:
    rerun: Callable[..., R] = functools.partial(checkpoint, plain, use_reentrant=False)

    def forward(*args: P.args, **kwargs: P.kwargs) -> R:
        # A block that fills a cache of keys and values would fill it twice.
        if not torch.is_grad_enabled() or kwargs.get("past_key_values") is not None:
            return plain(*args, **kwargs)
        return rerun(*args, **kwargs)

    return forward
