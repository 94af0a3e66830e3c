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
    known = get_args(PrecisionName)
    if name.removeprefix("torch.") not in (*known, *TORCH_NAMES.values()):
        raise UsageError(f"unknown precision {name!r}; use one of {', '.join(known)}")


def check_quantization(name: str) -> Quantization:
    """Returns the name of a quantization after checking it.

    Raises:
        UsageError: for an unknown name.
    """
    return _known("quantization", name, QUANTIZATIONS)


def check_offload(name: str) -> Offload:
    """Returns the name of an offloading mode after checking it.

    Raises:
        UsageError: for an unknown name.
    """
    return _known("offload", name, OFFLOADS)


def _known(what: str, name: str, names: Iterable[Name]) -> Name:
    for known in names:
        if name == known:
            return known
    raise unknown_name(what, name, names)
