"""Weights in pickles: `pytorch_model.bin`, one file or shards.

A pickle can run any program. Pickles are read on request only, by `convert` and for the networks
that judge images, and with torch's `weights_only`, which builds tensors and plain containers and
refuses everything else.
"""

import pickle
from pathlib import Path
from typing import TypeGuard

import torch
from torch import Tensor

from blip3o.core.errors import UsageError
from blip3o.weights.shards import read_index, require_finite
from blip3o.weights.small_files import refuse_pointer
from blip3o.weights.strict import Problems

_UNDER = ("module", "model", "state_dict", "model_state_dict")
_SINGLE, _INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"


def has_pickles(folder: Path) -> bool:
    """Returns whether a folder contains weights in pickles, by the names that transformers uses."""
    return (folder / _SINGLE).is_file() or (folder / _INDEX).is_file()


def read_pickles(folder: Path) -> dict[str, Tensor]:
    """Returns the tensors in the pickles of a folder, by name; files are memory-mapped if possible.

    Args:
        folder: contains the file, or the shards and their index.

    Raises:
        UsageError: if files are missing, damaged, or hold anything but tensors by name; one line
            names all of them.
    """
    tensors: dict[str, Tensor] = {}
    index = folder / _INDEX
    names = sorted(set(read_index(index).values())) if index.is_file() else [_SINGLE]
    problems = Problems()
    for name in names:
        with problems.collect():
            tensors |= read_pickle(folder / name)
    problems.refuse()
    return tensors


def _is_old(file: Path) -> bool:
    """Returns whether a file is a bare pickle of torch before 1.6, which cannot be mapped."""
    with file.open("rb") as opened:
        return opened.read(1) == pickle.PROTO


def read_pickle(file: Path) -> dict[str, Tensor]:
    """Returns the tensors in one pickle by name; raises the errors of `read_pickles`."""
    if not file.is_file():
        raise UsageError(f"{file} is missing")
    refuse_pointer(file)
    try:
        held = torch.load(file, map_location="cpu", weights_only=True, mmap=not _is_old(file))
    except pickle.UnpicklingError as error:
        raise UsageError(f"{file} holds more than weights and is refused") from error
    except (OSError, RuntimeError, ValueError, EOFError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(f"{file} is damaged and cannot be read: {reason}") from error
    state = next((state for state in _candidates(held) if _is_state(state)), None)
    if state is None:
        raise UsageError(f"{file} does not hold tensors by name")
    for name, tensor in state.items():
        require_finite(tensor, name, file)
    return state


def _candidates(held: object) -> list[object]:
    """Returns the possible state dicts in a file: the content and the values of known keys."""
    inner = [held[name] for name in _UNDER if name in held] if isinstance(held, dict) else []
    return [held, *inner]


def _is_state(held: object) -> TypeGuard[dict[str, Tensor]]:
    return isinstance(held, dict) and all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in held.items()
    )
