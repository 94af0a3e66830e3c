"""Detects that a run has diverged, and replaces the error by advice."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from blip3o.core.errors import NotFiniteError, UsageError
from blip3o.train.learner import local


class DivergedError(UsageError):
    """The weights or the losses of a run have left all bounds; the message has advice."""


_ABSURD = 1e4
"""Weights of a healthy network stay below this; too high a learning rate drives them above it."""


@contextmanager
def explaining(step: int, rate: float, weights: Iterable[Tensor]) -> Iterator[None]:
    """Converts errors of a diverged model to advice; other errors pass unchanged.

    Args:
        step: number of steps done, for the message.
        rate: learning rate of the run.
        weights: the trained weights and their averages.

    Raises:
        DivergedError: instead of an error that non-finite values caused.
    """
    try:
        yield
    except (ValueError, ArithmeticError, RuntimeError) as error:
        if isinstance(error, NotFiniteError) or have_diverged(weights):
            raise diverged(step, rate, str(error)) from error
        raise


def diverged(step: int, rate: float, symptom: str) -> DivergedError:
    """Returns the error of a run that has diverged: one line with the remedy.

    Args:
        step: number of steps done.
        rate: learning rate of the run.
        symptom: a text whose first line becomes the reason.
    """
    reason = (symptom.splitlines() or [""])[0]
    return DivergedError(
        f"the model of step {step} has diverged ({reason}): "
        f"lower train.optimizer.lr (it is {rate:g}) and start again with another --out"
    )


@torch.no_grad()
def have_diverged(weights: Iterable[Tensor]) -> bool:
    """Returns whether any weight of this process's shards is NaN, infinite or absurdly large."""
    parts = [local(weight.detach()) for weight in weights]
    largest = [part.abs().max().float() for part in parts if part.numel()]
    return bool(largest) and not bool(torch.stack(largest).max() <= _ABSURD)


@torch.no_grad()
def are_finite(weights: Iterable[Tensor]) -> bool:
    """Returns whether all weights of this process's shards are finite."""
    return all(bool(torch.isfinite(local(weight.detach())).all()) for weight in weights)
