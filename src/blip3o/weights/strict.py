"""Strict loading: weights fit their model exactly, or one error names everything that does not."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from blip3o.core.errors import UsageError

Shapes = Mapping[str, Sequence[int]]


class Problems:
    """Collects what is wrong, so that one error names all of it."""

    def __init__(self) -> None:
        self._messages: list[str] = []

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Keeps the message of a `UsageError` inside for later."""
        try:
            yield
        except UsageError as error:
            self._messages.append(str(error))

    def refuse(self) -> None:
        """Ends the collecting.

        Raises:
            UsageError: if anything was wrong.
        """
        if self._messages:
            raise UsageError("; ".join(self._messages))


def shapes_of(state: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every tensor of a state dict, in memory or in a file."""
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def require_fit(expected: Shapes, found: Shapes, where: str, also: Iterable[str] = ()) -> None:
    """Checks that weights have exactly the expected names and shapes.

    Args:
        expected: what the model needs.
        found: what there is.
        where: what holds the weights, for the message.
        also: further complaints to list with the others.

    Raises:
        UsageError: if anything is missing, too much or of another shape; it lists all of it.
    """
    missing = sorted(expected.keys() - found.keys())
    extra = sorted(found.keys() - expected.keys())
    misshapen = [
        f"{name} {list(found[name])} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in found and tuple(found[name]) != tuple(shape)
    ]
    problems = [
        f"{what}: {', '.join(names)}"
        for what, names in (("missing", missing), ("extra", extra), ("wrong shape", misshapen))
        if names
    ]
    problems += also
    if problems:
        raise UsageError(f"weights in {where} do not fit their config; {'; '.join(problems)}")
