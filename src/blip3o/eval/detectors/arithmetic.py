"""Float32 that is float32, and a check that a device computes like the CPU.

GPUs multiply float32 matrices with 10 bits of fraction (TF32) if they may, and kernels that were
built for other hardware give wrong numbers without an error. Both change a detector's verdicts.
"""

import copy
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

import torch
from torch import Tensor, nn

from blip3o.core.errors import UsageError

MAX_ERROR = 1e-4
"""Largest relative error of features; at full size float32 gives 1e-6, and TF32 1e-3."""

_SIDE_PX = 256

ModuleT = TypeVar("ModuleT", bound=nn.Module)


@contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """Computes in full float32 within the block: no TF32, no autocast, no gradients.

    The switches apply to the whole process, so nothing else should use the device meanwhile.
    """
    with (
        _switched(),
        torch.inference_mode(),
        torch.autocast(device.type, enabled=False),
    ):
        yield


@contextmanager
def _switched() -> Iterator[None]:
    """Sets torch's switches for full precision, and restores those of the caller.

    Torch has old switches and, since 2.9, new ones. Setting an old one also sets the new ones;
    reading an old one fails if the caller has set the new ones.
    """
    cudnn = torch.backends.cudnn
    switches: list[tuple[object, str, object]] = [
        (cudnn, "benchmark", False),
        (cudnn, "deterministic", True),
        (cudnn, "allow_tf32", False),
    ]
    for name in ("cuda.matmul", "mkldnn.matmul", "cudnn.conv", "cudnn.rnn"):
        with suppress(AttributeError):
            library = operator.attrgetter(name)(torch.backends)
            switches += [(library, "fp32_precision", "ieee")] * hasattr(library, "fp32_precision")
    before = [_value(holder, name) for holder, name, _ in switches]
    matmul = None
    with suppress(RuntimeError):
        matmul = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")
        for holder, name, value in switches:
            setattr(holder, name, value)
        yield
    finally:
        if matmul is not None:
            torch.set_float32_matmul_precision(matmul)
        for (holder, name, _), value in zip(switches, before, strict=True):
            if value is not None:
                setattr(holder, name, value)


def _value(holder: object, name: str) -> object:
    """Returns the value of a switch; None if it cannot be read."""
    with suppress(RuntimeError):
        return getattr(holder, name)
    return None


def check_device(
    network: ModuleT, features: Callable[[ModuleT, Tensor], Tensor], device: torch.device
) -> None:
    """Checks that a network computes the same features on a device, twice, and on the CPU.

    Args:
        network: the network, on the CPU in float32; it is not changed.
        features: the network and pixels [1, 3, H, W] to features that are continuous in the pixels.
        device: the device.

    Raises:
        UsageError: if the relative errors exceed `MAX_ERROR`.
    """
    pixels = torch.randn(1, 3, _SIDE_PX, _SIDE_PX, generator=torch.Generator().manual_seed(0))
    with exact(torch.device("cpu")):
        expected = features(network, pixels)
    moved = copy.deepcopy(network).to(device)
    with exact(device):
        found = [features(moved, pixels.to(device)).cpu() for _ in range(2)]
    errors = [float((one - expected).norm() / expected.norm()) for one in found]
    if not all(error <= MAX_ERROR for error in errors):  # NaN is a failure too
        raise UsageError(
            f"{device} does not compute float32 like the CPU: the relative errors of the "
            f"detector's features in two runs are {errors[0]:.1e} and {errors[1]:.1e}, and "
            f"{MAX_ERROR:.0e} is allowed; use another device or another build of torch"
        )
