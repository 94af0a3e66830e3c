"""Weight-only quantized linear layers: integers of 8 or 4 bits with a scale for each group.

Existing libraries did not fit. torchao's 4-bit layouts are specific to single GPU generations and
do not run on a CPU, bitsandbytes is a binary for a few platforms, and optimum-quanto is no longer
developed: their relevant code could not be tested without CUDA. The format below needs only torch,
is the same on every device, and has a size that is easy to compute.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from blip3o.core.choices import Quantization

_GROUP = {"int8": 128, "int4": 32}
"""Weights per scale in a row: 8.125 and 4.5 bits per weight with 16-bit scales."""


def quantize_weight(weight: Tensor, kind: Quantization) -> tuple[Tensor, Tensor]:
    """Returns a weight as integers and scales; `dequantize` inverts it.

    The weight of largest magnitude in a group maps to the lowest level (-128 or -8) whatever its
    sign, so that all levels are used. The other weights are rounded to the nearest level.

    Args:
        weight: [O, I], floating point.
        kind: "int8" or "int4".

    Returns:
        Integers, int8 [O, I'] or two 4-bit integers per byte [O, I' / 2], where I' is I padded to
        whole groups; and scales [O, I' / group] of the weight's type.
    """
    group, lowest = _GROUP[kind], -128 if kind == "int8" else -8
    padded = functional.pad(weight.float(), (0, -weight.shape[1] % group))
    groups = padded.unflatten(1, (-1, group))
    largest = groups.gather(2, groups.abs().argmax(2, keepdim=True))
    # The scale is rounded to its stored type first, so that the integers fit the rounded scale.
    scale = (largest / lowest).to(weight.dtype)
    divisor = torch.where(scale == 0, 1, scale.float())
    numbers = (groups / divisor).round().clamp(lowest, -lowest - 1).to(torch.int8).flatten(1)
    if kind == "int4":
        low, high = (numbers + 8).to(torch.uint8).unflatten(1, (-1, 2)).unbind(2)
        numbers = low | high << 4
    return numbers, scale.squeeze(2)


def dequantize(numbers: Tensor, scale: Tensor, in_features: int) -> Tensor:
    """Returns the weight [O, I] of integers and scales, in the type of the scales.

    Args:
        numbers: integers from `quantize_weight`.
        scale: scales from `quantize_weight`.
        in_features: I.
    """
    if numbers.dtype == torch.uint8:
        numbers = torch.stack([numbers & 15, numbers >> 4], dim=2).flatten(1).to(torch.int8) - 8
    groups = numbers.unflatten(1, (scale.shape[1], -1)).to(scale.dtype)
    return (groups * scale.unsqueeze(2)).flatten(1)[:, :in_features]


class QuantizedLinear(nn.Module):
    """A frozen linear layer that stores its weight in 8 or 4 bits and multiplies in full precision.

    Args:
        linear: the layer to replace; its weight may be on the meta device.
        kind: "int8" or "int4".
    """

    def __init__(self, linear: nn.Linear, kind: Quantization) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.kind = kind
        numbers, scale = quantize_weight(linear.weight.detach(), kind)
        self.numbers = nn.Parameter(numbers, requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.bias = linear.bias

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns [..., O] for inputs [..., I]."""
        weight = dequantize(self.numbers, self.scale, self.in_features)
        return functional.linear(inputs, weight.to(inputs.dtype), self.bias)

    def extra_repr(self) -> str:
        """Returns the details of the layer that a printed model shows."""
        return f"in_features={self.in_features}, out_features={self.out_features}, {self.kind}"


def quantize_linears(module: nn.Module, kind: Quantization) -> list[str]:
    """Replaces every linear layer inside a module with its quantized form.

    Args:
        module: changed in place; weights may be on the meta device.
        kind: "int8" or "int4".

    Returns:
        Names of the replaced layers within the module.
    """
    names = [name for name, layer in module.named_modules() if type(layer) is nn.Linear]
    for name in names:
        layer = module.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        module.set_submodule(name, QuantizedLinear(layer, kind))
    return names
