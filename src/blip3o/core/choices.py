"""Names of precisions, quantizations and offloading modes, checked without importing torch."""

from collections.abc import Iterable
from typing import Literal, TypeVar, get_args

from blip3o.core.errors import UsageError, unknown_name

PrecisionName = Literal["auto", "fp32", "bf16", "fp16"]
TORCH_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""Torch's names of the precisions, which are accepted as well."""

Quantization = Literal["int8", "int4"]
QUANTIZATIONS: tuple[Quantization, ...] = get_args(Quantization)

Offload = Literal["none", "model", "sequential"]
OFFLOADS: tuple[Offload, ...] = get_args(Offload)

Name = TypeVar("Name", bound=str)


def check_precision(name: str) -> None:
    """Checks the name of a precision.

    Raises:
        UsageError: for an unknown name.
    """
    known = (*get_args(PrecisionName), *TORCH_NAMES.values())
    if str(name).removeprefix("torch.") not in known:
        raise UsageError(f"unknown precision {name!r}; use one of {', '.join(known[:4])}")


def check_quantization(name: str) -> Quantization:
    """Returns a checked name of a quantization.

    Args:
        name: "int8" or "int4".

    Raises:
        UsageError: for any other name.
    """
    return _known("quantization", name, QUANTIZATIONS)


def check_offload(name: str) -> Offload:
    """Returns a checked name of an offloading mode.

    Args:
        name: "none", "model" or "sequential".

    Raises:
        UsageError: for any other name.
    """
    return _known("offload", name, OFFLOADS)


def _known(what: str, name: str, names: Iterable[Name]) -> Name:
    for known in names:
        if name == known:
            return known
    raise unknown_name(what, name, names)
