"""The gated feed-forward layer and the rule for its width."""

from torch import Tensor, nn
from torch.nn import functional


def swiglu_size(hidden_size: int, multiple_of: int = 256, multiplier: float | None = None) -> int:
    """Returns the inner width of a SwiGLU layer: two thirds of 4 x hidden, rounded up.

    Args:
        hidden_size: width of the network.
        multiple_of: the result is rounded up to a multiple of this.
        multiplier: optional factor, applied before rounding.

    Reference:
        LLaMA's rule; 4864 for the published width 1792.
    """
    size = int(2 * 4 * hidden_size / 3)
    if multiplier is not None:
        size = int(multiplier * size)
    return multiple_of * -(-size // multiple_of)


class SwiGLU(nn.Module):
    """linear_2(silu(linear_1 x) * linear_3 x), without biases.

    Args:
        hidden_size: width of input and output.
        inner_size: width of the hidden layer.
    """

    def __init__(self, hidden_size: int, inner_size: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(hidden_size, inner_size, bias=False)
        self.linear_2 = nn.Linear(inner_size, hidden_size, bias=False)
        self.linear_3 = nn.Linear(hidden_size, inner_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Returns the transformed tensor [..., E]."""
        # The published DiT computes the SiLU in fp32 and rounds it, as torch's 16-bit kernels do.
        opened = functional.silu(self.linear_1(hidden))
        return self.linear_2(opened * self.linear_3(hidden))
