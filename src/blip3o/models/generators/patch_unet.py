"""A U-Net around the layers that draw: its down half makes patches, its up half resolves them.

Linear patch layers see a patch alone. The U-Net sees its surroundings and adds details of the noisy
input back by skip connections, so few large patches suffice. Axes: P prompts, N feature tokens, M
patches, K feature channels, W width, G grid side.

Reference:
    Transfusion (arXiv 2408.11039, section 3.2): down and up blocks, attention inside, conditioned
    on the noise level, 0.27 B parameters in all at every size of the transformer.
"""

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional

from blip3o.core.bounds import Count
from blip3o.nn.convolution import ResidualStack, num_groups
from blip3o.nn.transformer import TransformerBlock

Skips = tuple[Tensor, ...]
"""Everything that the way out needs of the way in; each tensor has a row for each image."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PatchUNetConfig:
    """Sizes of the U-Net; the side of a patch determines its levels.

    Args:
        hidden_size: channels (W) at every level, and of a patch.
        num_blocks: residual blocks of each level, in each half.
        num_heads: heads of the two transformer blocks over all patches, one in each half.

    Raises:
        ValueError: if the heads, or the groups of 16 channels that norms use, do not fit the width.
    """

    hidden_size: Count
    num_blocks: Count = 2
    num_heads: Count = 4

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"num_heads {self.num_heads} does not divide hidden_size {self.hidden_size}"
            )
        if self.hidden_size % num_groups(self.hidden_size):
            raise ValueError(f"hidden_size must be a multiple of 16, got {self.hidden_size}")


class PatchUNet(nn.Module):
    """Features of an image to patches [P, M, W], and such patches back to features.

    There is a level for each prime factor of the side of a patch, and one for the patches. A fresh
    network returns zeros.

    Args:
        config: sizes.
        channels: feature channels (K).
        patch_size: side of a patch in feature tokens.
        vector_size: length of the vector that describes the noise level.
    """

    def __init__(
        self, config: PatchUNetConfig, channels: int, patch_size: int, vector_size: int
    ) -> None:
        super().__init__()
        width, self.factors = config.hidden_size, prime_factors(patch_size)
        levels = range(len(self.factors) + 1)

        def blocks() -> nn.ModuleList:
            return nn.ModuleList(
                ResidualStack(width, vector_size, config.num_blocks) for _ in levels
            )

        self.image_in = nn.Conv2d(channels, width, 3, padding=1)
        self.down = blocks()
        self.fold = nn.ModuleList(nn.Conv2d(width * f * f, width, 1) for f in self.factors)
        self.mix = nn.ModuleList(TransformerBlock(width, config.num_heads) for _ in range(2))
        self.merge = nn.ModuleList(nn.Conv2d(2 * width, width, 1) for _ in levels)
        self.up = blocks()
        self.unfold = nn.ModuleList(nn.Conv2d(width, width * f * f, 1) for f in self.factors)
        self.norm_out = nn.GroupNorm(num_groups(width), width)
        self.image_out = nn.Conv2d(width, channels, 3, padding=1)
        nn.init.zeros_(self.image_out.weight)
        assert self.image_out.bias is not None
        nn.init.zeros_(self.image_out.bias)

    def enter(self, noisy: Tensor, vector: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Skips]:
        """Returns patches [P, M, W] of features, and what `leave` needs.

        Args:
            noisy: features, [P, N, K].
            vector: description of the noise level, [P, V].
            grid: rows and columns of the features.
        """
        hidden = self.image_in(noisy.mT.unflatten(2, grid))
        skips: list[Tensor] = []
        for level, blocks in enumerate(self.down):
            if level:
                factor = self.factors[level - 1]
                hidden = self.fold[level - 1](functional.pixel_unshuffle(hidden, factor))
            hidden = blocks(hidden, vector)
            skips.append(hidden)
        return self.mix[0](hidden.flatten(2).mT), (vector, *skips)

    def leave(self, patches: Tensor, skips: Skips) -> Tensor:
        """Returns features [P, N, K] of patches [P, M, W] and the skips of the same image."""
        vector, *maps = skips
        hidden = self.mix[1](patches).mT.unflatten(2, maps[-1].shape[2:])
        for level in reversed(range(len(maps))):
            hidden = self.merge[level](torch.cat([hidden, maps[level]], dim=1))
            hidden = self.up[level](hidden, vector)
            if level:
                factor = self.factors[level - 1]
                hidden = functional.pixel_shuffle(self.unfold[level - 1](hidden), factor)
        return self.image_out(functional.silu(self.norm_out(hidden))).flatten(2).mT


def prime_factors(number: int) -> tuple[int, ...]:
    """Returns the prime factors of a number from 1, in increasing order; none for 1."""
    for factor in range(2, number + 1):
        if number % factor == 0:
            return (factor, *prime_factors(number // factor))
    return ()
