"""Linear layers that read the same few rows, computed as one product.

Axes: R rows, I input channels, O output channels of all layers together.
"""

from collections.abc import Sequence
from typing import TypeGuard

import torch
from torch import Tensor, nn


class JoinedLinear:
    """Layers with one input: a call returns their outputs side by side.

    Plain linear layers on a CPU are copied in the layout of oneDNN's kernels, if torch has them.
    Otherwise the layers are called. A product that oneDNN has to lay out anew spends most of its
    time on that (bf16), or uses a kernel that rounds differently from that of more rows (fp32).
    The copies do not follow later changes of the weights.

    Args:
        layers: linear layers, plain or quantized.
        may_copy: whether the weights may be copied; without, the layers are called.
        num_rows: number of rows that the layout is for; others are computed as well.
    """

    def __init__(self, layers: Sequence[nn.Module], *, may_copy: bool, num_rows: int) -> None:
        self._layers = list(layers)
        self._weight: Tensor | None = None
        self._bias: Tensor | None = None
        plain = [layer for layer in self._layers if _can_copy(layer)]
        is_alike = len({layer.weight.dtype for layer in plain}) == 1
        if may_copy and is_alike and len(plain) == len(self._layers):
            weight = torch.cat([layer.weight.detach() for layer in plain])
            self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, num_rows)
            biases = [layer.bias.detach() for layer in plain if layer.bias is not None]
            assert len(biases) in (0, len(plain)), "either all layers have a bias or none"
            self._bias = torch.cat(biases) if biases else None

    def __call__(self, inputs: Tensor) -> Tensor:
        """Returns [R, O] for inputs [R, I]; not differentiable."""
        # Autocast chooses the type of each layer's product, but knows none of the operators.
        if self._weight is not None and not torch.is_autocast_enabled("cpu"):
            return torch.ops.mkldnn._linear_pointwise(
                inputs, self._weight, self._bias, "none", [], ""
            )
        if len(self._layers) == 1:
            return self._layers[0](inputs)
        return torch.cat([layer(inputs) for layer in self._layers], dim=-1)


def _can_copy(layer: nn.Module) -> TypeGuard[nn.Linear]:
    """Returns whether a layer is a plain product that oneDNN computes on this machine."""
    if type(layer) is not nn.Linear or layer._forward_hooks or layer._forward_pre_hooks:
        return False
    return layer.weight.device.type == "cpu" and _has_kernels(layer.weight.dtype)


def _has_kernels(dtype: torch.dtype) -> bool:
    """Returns whether torch has oneDNN's operators for a type of weights.

    They are private: builds without oneDNN lack them, and later versions may rename them.
    """
    if not torch.backends.mkldnn.is_available():
        return False
    names = ["_reorder_linear_weight", "_linear_pointwise"]
    if dtype == torch.bfloat16:
        names.append("_is_mkldnn_bf16_supported")
    elif dtype != torch.float32:
        return False
    operators = torch.ops.mkldnn
    if not all(hasattr(operators, name) for name in names):
        return False
    return dtype == torch.float32 or operators._is_mkldnn_bf16_supported()
