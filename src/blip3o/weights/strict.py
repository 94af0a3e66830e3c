"""Strict loading: weights match their model exactly, or one error lists all mismatches."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol, Self, TypeVar

import torch

from blip3o.core.errors import UsageError

_ROOM = 600
"""Largest number of characters of a list of names in a message."""

_SENTENCES_ROOM = 800


class Described(Protocol):
    """A tensor in memory or in a file."""

    @property
    def shape(self) -> Sequence[int]:
        """Sizes of the axes."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Type of the numbers."""
        ...

    def reshape(self, shape: tuple[int, ...], /) -> Self:
        """Returns the same numbers in another shape."""
        ...


TensorT = TypeVar("TensorT", bound=Described)


class Problems:
    """Collects errors, to report all of them in one."""

    def __init__(self) -> None:
        self._messages: list[str] = []

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Catches a `UsageError` and keeps its message."""
        try:
            yield
        except UsageError as error:
            self._messages.append(str(error))

    def refuse(self) -> None:
        """Raises the collected errors as one.

        Raises:
            UsageError: if there is any.
        """
        if self._messages:
            raise UsageError(fold_sentences(self._messages))


def fold(names: Iterable[str], room: int = _ROOM, between: str = ", ") -> str:
    """Returns the first names, joined to one short text, and the count of the others.

    Args:
        names: names in order; the first is always listed, but truncated if it is too long.
        room: largest number of characters of the listed names.
        between: separator.
    """
    listed = [_on_one_line(name) for name in names]
    text, shown = "", 0
    for name in listed:
        longer = f"{text}{between if shown else ''}{name}"
        if shown and len(longer) > room:
            break
        text, shown = longer, shown + 1
    if len(text) > room:
        text = f"{text[:room]}..."
    rest = len(listed) - shown
    return f"{text}{between}and {rest:,} more" if rest else text


def _on_one_line(name: str) -> str:
    """Returns a name from a file with its control characters escaped."""
    if name.isprintable():
        return name
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in name)


def fold_sentences(problems: Iterable[str]) -> str:
    """Returns problems as one line: the first ones and the count of the others."""
    return fold(problems, _SENTENCES_ROOM, "; ")


def require_fit(
    expected: Mapping[str, Described],
    found: Mapping[str, Described],
    where: str,
    also: Iterable[str] = (),
) -> None:
    """Checks that weights have exactly the expected names, shapes and kinds of numbers.

    Args:
        expected: the weights of the model.
        found: the stored weights; any floating dtype matches any other.
        where: source of the weights, for the message.
        also: further complaints to add to the message.

    Raises:
        UsageError: if a weight is missing, is unexpected, or has another shape or kind of numbers.
            The message lists all of them; long lists are shortened.
    """
    both = [(name, tensor, found[name]) for name, tensor in expected.items() if name in found]
    misshapen = [
        f"{name} {list(stored.shape)} instead of {list(ours.shape)}"
        for name, ours, stored in both
        if tuple(stored.shape) != tuple(ours.shape)
    ]
    other_numbers = [
        f"{name} {str(stored.dtype).removeprefix('torch.')}"
        for name, ours, stored in both
        if stored.dtype.is_floating_point != ours.dtype.is_floating_point
    ]
    lists = {
        "missing": sorted(expected.keys() - found.keys()),
        "extra": sorted(found.keys() - expected.keys()),
        "wrong shape": misshapen,
        "wrong kind of numbers": other_numbers,
    }
    complaints = [*also]
    if any(0 in stored.shape and 0 not in ours.shape for _, ours, stored in both):
        complaints.append(
            "weights of shape [0] come from DeepSpeed ZeRO-3: gather them with its zero_to_fp32.py"
        )
    lists = {fault: names for fault, names in lists.items() if names}
    room = _ROOM // max(1, len(lists))
    problems = [f"{fault}: {fold(names, room)}" for fault, names in lists.items()] + complaints
    if problems:
        raise UsageError(f"weights in {where} do not fit their config; {'; '.join(problems)}")
