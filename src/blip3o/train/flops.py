"""How much arithmetic a step is, and what share of the device's best that makes (MFU)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

_COUNTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_PEAK_TFLOPS = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "L4": 121.0}
"""Dense bf16 products as the makers state them."""


class FlopCount:
    """Floating point operations that were counted.

    Args:
        total: their number.
    """

    def __init__(self, total: float = 0.0) -> None:
        self.total = total


@contextmanager
def count_flops(model: nn.Module) -> Iterator[FlopCount]:
    """Counts the linear layers and convolutions of forward passes, and of their backward passes.

    An input or a weight that wants a gradient counts as much again; what activation checkpointing
    computes twice counts once. Attention scores, a few percent at these lengths, are left out.
    Hooks only watch: results are the same bit for bit.

    Args:
        model: whose layers are watched.
    """
    count = FlopCount()

    def watch(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        if torch._C._current_graph_task_id() != -1:  # a checkpointed block runs again
            return
        weight = cast("Tensor", layer.weight)
        positions = output.numel() / weight.shape[0]
        has_gradient = torch.is_grad_enabled()
        passes = 1 + has_gradient * (inputs[0].requires_grad + weight.requires_grad)
        count.total += 2.0 * weight.numel() * positions * passes

    handles = [
        layer.register_forward_hook(watch)
        for layer in model.modules()
        if isinstance(layer, _COUNTED)
    ]
    try:
        yield count
    finally:
        for handle in handles:
            handle.remove()


def peak_tflops(device: torch.device) -> float | None:
    """Returns what a device can do at best in bf16, in 10^12 operations a second; None if unknown.

    Args:
        device: where a run computes.
    """
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    words = name.replace("-", " ").split()  # "NVIDIA A100-SXM4-80GB"
    return next((peak for known, peak in _PEAK_TFLOPS.items() if known in words), None)
