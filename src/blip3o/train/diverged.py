"""Finds out whether an error comes from a run that has diverged, and says what to do then."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from blip3o.core.errors import NotFiniteError, UsageError
from blip3o.train.learner import local

_ABSURD = 1e4
"""Weights of a network that learns stay below; a rate that is too high takes them beyond."""


@contextmanager
def explaining(step: int, rate: float, weights: Iterable[Tensor]) -> Iterator[None]:
    """Turns errors of a diverged model into advice; other errors stay what they are.

    Args:
        step: steps done, for the message.
        rate: the run's learning rate.
        weights: what was trained, and the averages.

    Raises:
        UsageError: instead of an error inside that comes from values that are not numbers.
    """
    try:
        yield
    except (ValueError, ArithmeticError, RuntimeError) as error:
        if isinstance(error, NotFiniteError) or have_diverged(weights):
            raise UsageError(advice(step, rate, str(error))) from error
        raise


def advice(step: int, rate: float, seen: str) -> str:
    """Returns what to do about a run that has diverged, as one line.

    Args:
        step: steps done.
        rate: the run's learning rate.
        seen: what showed it.
    """
    reason = (seen.splitlines() or [""])[0]
    return (
        f"the model of step {step} has diverged ({reason}): "
        f"lower train.optimizer.lr (it is {rate:g}) and start again with another --out"
    )


@torch.no_grad()
def have_diverged(weights: Iterable[Tensor]) -> bool:
    """Returns whether any weight is no number or absurdly large.

    Args:
        weights: whole or sharded; of shards, those of this process are looked at.
    """
    parts = [local(weight.detach()) for weight in weights]
    largest = [part.abs().max().float() for part in parts if part.numel()]
    return bool(largest) and not bool(torch.stack(largest).max() <= _ABSURD)


@torch.no_grad()
def are_finite(weights: Iterable[Tensor]) -> bool:
    """Returns whether all weights are numbers.

    Args:
        weights: as for `have_diverged`.
    """
    return all(bool(torch.isfinite(local(weight.detach())).all()) for weight in weights)
