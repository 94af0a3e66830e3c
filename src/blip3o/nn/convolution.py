"""Residual blocks of convolutions that also read a vector, such as a noise level."""

from torch import Tensor, nn
from torch.nn import functional

from blip3o.nn.linear import VectorLinear


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions, with a scale and shift from a vector in between.

    A fresh block is the identity.

    Args:
        width: channels of input and output.
        vector_size: length of the vector.
    """

    def __init__(self, width: int, vector_size: int) -> None:
        super().__init__()
        self.norm_1 = nn.GroupNorm(num_groups(width), width)
        self.conv_1 = nn.Conv2d(width, width, 3, padding=1)
        self.modulation = VectorLinear(vector_size, 2 * width)
        self.norm_2 = nn.GroupNorm(num_groups(width), width)
        self.conv_2 = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv_2.weight)

    def forward(self, hidden: Tensor, vector: Tensor) -> Tensor:
        """Returns maps [B, width, H, W] of maps of that shape and vectors [B, vector_size]."""
        change = self.conv_1(functional.silu(self.norm_1(hidden)))
        scale, shift = self.modulation(vector)[:, :, None, None].chunk(2, dim=1)
        change = self.norm_2(change) * (1 + scale) + shift
        return hidden + self.conv_2(functional.silu(change))


class ResidualStack(nn.ModuleList):
    """Blocks that run one after another.

    Args:
        width: as for `ResidualBlock`.
        vector_size: as for `ResidualBlock`.
        count: number of blocks.
    """

    def __init__(self, width: int, vector_size: int, count: int) -> None:
        super().__init__(ResidualBlock(width, vector_size) for _ in range(count))

    def forward(self, hidden: Tensor, vector: Tensor) -> Tensor:
        """Returns the maps after the last block; see `ResidualBlock.forward`."""
        for block in self:
            hidden = block(hidden, vector)
        return hidden


def num_groups(width: int) -> int:
    """Returns the number of groups in which GroupNorm normalizes channels: 16 to a group."""
    return max(1, width // 16)
