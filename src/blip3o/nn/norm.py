"""Root-mean-square normalization with fp32 statistics."""

from typing import Any

import torch
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis.

    The statistics are fp32; the normalized values are rounded to the weight's type, if that is a
    half type, before they are scaled, as the published networks do.

    Args:
        hidden_size: length of the last axis.
        eps: added to the mean square.
    """

    def __init__(self, hidden_size: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden_size))

    def forward(self, hidden: Tensor) -> Tensor:
        """Returns the normalized tensor, same shape and type."""
        weight = self.weight
        single = hidden.dtype == weight.dtype == torch.float32
        training = torch.is_grad_enabled() and not torch.compiler.is_compiling()
        if single and training and hidden.device.type == "cpu":
            return _LeanRMSNorm.apply(hidden, weight, self.eps)
        return rms_norm(hidden, weight, self.eps)


def rms_norm(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Returns hidden / sqrt(mean(hidden^2) + eps) * weight in the type of `hidden`."""
    values = hidden.float()
    values = values * torch.rsqrt(values.square().mean(-1, keepdim=True) + eps)
    if weight.dtype != torch.float32:
        values = values.to(weight.dtype)
    return (values * weight).to(hidden.dtype)


class _LeanRMSNorm(torch.autograd.Function):
    """The same with a backward pass of two temporaries instead of nine.

    On a CPU the passes over memory are the cost: 1.1 ms against 2.8 ms, forward and backward,
    for 128 x 16 tokens of width 256 on one thread.
    """

    @staticmethod
    # pyrefly: ignore  # bad-override (torch declares the hooks as *args)
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, eps: float) -> Tensor:  # noqa: ANN401
        norm = torch.linalg.vector_norm(hidden, dim=-1, keepdim=True)
        scale = torch.rsqrt(norm.square().div_(hidden.shape[-1]).add_(eps))
        ctx.save_for_backward(hidden, scale, weight)
        return (hidden * scale).mul_(weight)

    @staticmethod
    # pyrefly: ignore  # bad-override
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:  # noqa: ANN401
        hidden, scale, weight = ctx.saved_tensors
        width = hidden.shape[-1]
        product = (grad * hidden).mul_(scale).reshape(-1, width)  # d loss / d weight, row by row
        grad_weight = product.sum(0) if ctx.needs_input_grad[1] else None
        mean = (product @ weight).div_(width).reshape(scale.shape) * scale
        grad_hidden = (grad * weight).addcmul_(hidden, mean, value=-1).mul_(scale)
        return grad_hidden, grad_weight, None
