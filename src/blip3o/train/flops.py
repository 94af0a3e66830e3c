"""Counts the arithmetic of a step, for the share of the device's peak that a run reaches (MFU)."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_COUNTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_PEAK_TFLOPS = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "L4": 121.0}
"""Dense bf16 peak by GPU, as the vendor states it."""


@dataclasses.dataclass
class FlopCount:
    """Number of floating point operations counted so far."""

    total: float = 0.0


@contextmanager
def count_flops(model: nn.Module) -> Iterator[FlopCount]:
    """Counts the operations of linear layers and convolutions, forward and backward.

    Each input or weight that requires a gradient adds the count of the forward pass again. A pass
    that activation checkpointing repeats counts once. Attention scores are not counted; they are a
    few percent at usual lengths. The results of the model stay the same bit for bit.

    Args:
        model: its layers get hooks until the context ends.
    """
    count = FlopCount()

    def watch(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if torch._C._current_graph_task_id() != -1:  # a checkpointed block runs again
            return
        weight = layer.weight
        assert isinstance(weight, Tensor)
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
    """Returns the peak of a device in bf16, in 10^12 operations per second; None if unknown."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    words = name.replace("-", " ").split()  # "NVIDIA A100-SXM4-80GB"
    return next((peak for known, peak in _PEAK_TFLOPS.items() if known in words), None)
