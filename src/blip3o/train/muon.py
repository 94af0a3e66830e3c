"""AdamW whose matrices are updated by Muon: the update is the nearest orthogonal matrix.

All directions of a matrix then learn at the same speed, also those whose gradients are small. A
small language model finds look-ups several times sooner (docs/log.md).

Reference:
    Keller Jordan and others, "Muon: an optimizer for hidden layers in neural networks" (2024).
    The scale is that of "Muon is scalable for LLM training" (arXiv 2502.16982): an update has the
    size of AdamW's, so both share one learning rate and one weight decay.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from blip3o.train.learner import whole

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the polynomial that takes singular values to about one; published with Muon."""
_ITERATIONS = 5
_RMS = 0.2
"""Root mean square of the elements of AdamW's updates."""


class MuonAdamW(torch.optim.AdamW):
    """AdamW for most parameters and Muon for the groups with `is_matrix`.

    Args:
        groups: parameter groups with the key `is_matrix`; matrices have two axes.
        momentum: share of the old momentum that Muon keeps.
        dtype: type of Muon's matrix products. bf16 is as good as fp32, because the iteration
            corrects its own errors, and twice as fast where bf16 products are.
        options: as for AdamW.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        momentum: float,
        dtype: torch.dtype = torch.float32,
        **options: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(groups, **options)
        self._momentum = momentum
        self._dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Updates all parameters that have a gradient."""
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group["is_matrix"]]
        try:
            super().step(closure)
        finally:
            self.param_groups = groups
        for group in groups:
            for parameter in group["params"] if group["is_matrix"] else ():
                if parameter.grad is not None:
                    self._update(parameter, group["lr"], group["weight_decay"])

    def _update(self, matrix: Tensor, rate: float, decay: float) -> None:
        gradient = matrix.grad
        assert gradient is not None
        state = self.state[matrix]
        if not state:
            state["momentum"] = torch.zeros_like(matrix)
        momentum = state["momentum"]
        momentum.lerp_(gradient, 1 - self._momentum)
        # Shards alone have other singular values.
        direction = _orthogonal(whole(gradient.lerp(momentum, self._momentum)), self._dtype)
        scale = _RMS * max(matrix.shape) ** 0.5
        matrix.mul_(1 - rate * decay).sub_(_shard(direction, matrix), alpha=rate * scale)


def _orthogonal(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns about the nearest matrix with orthonormal rows or columns (Newton-Schulz).

    Args:
        matrix: fp32; so is the result.
        dtype: type of the products.
    """
    a, b, c = _COEFFICIENTS
    is_tall = matrix.shape[0] > matrix.shape[1]
    found = matrix.T if is_tall else matrix
    found = (found / (found.norm() + 1e-7)).to(dtype)
    for _ in range(_ITERATIONS):
        gram = found @ found.T
        polynomial = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        found = torch.addmm(found, polynomial, found, beta=a)
    return (found.T if is_tall else found).to(matrix.dtype)


def _shard(tensor: Tensor, like: Tensor) -> Tensor:
    """Returns a whole tensor, which all processes hold, in the shards of another."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)
