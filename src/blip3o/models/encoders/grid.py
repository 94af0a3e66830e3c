"""The parts that image encoders share: sizes of vision transformers, the input check, pooling."""

import dataclasses
import math
from typing import Self

from torch import Tensor

from blip3o.core.bounds import Count


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionTransformerConfig:
    """Sizes of a vision transformer and of the feature grid that is pooled from its patches.

    Args:
        kind: name in the table of encoders; each subclass has its own.
        image_px: side of the square input image.
        patch_px: side of a patch; must divide `image_px`.
        hidden_size: width of the transformer, which is the number of feature channels (C).
        intermediate_size: width inside the MLPs.
        num_layers: number of transformer layers.
        num_heads: attention heads.
        pool: kernel and stride of the average pooling of the token grid (1 keeps every token).

    Raises:
        ValueError: if `image_px` is not a multiple of `patch_px` times `pool`.
    """

    kind: str = "abstract"
    image_px: Count
    patch_px: Count
    hidden_size: Count
    intermediate_size: Count
    num_layers: Count
    num_heads: Count
    pool: Count = 1

    def __post_init__(self) -> None:
        if self.image_px % (self.patch_px * self.pool):
            raise ValueError(
                f"image_px {self.image_px} must be a multiple of patch_px * pool "
                f"({self.patch_px} * {self.pool})"
            )

    @classmethod
    def tiny(cls) -> Self:
        """Returns the smallest useful config, for tests."""
        return cls(
            image_px=16,
            patch_px=4,
            hidden_size=16,
            intermediate_size=32,
            num_layers=1,
            num_heads=2,
            pool=2,
        )

    @property
    def grid(self) -> int:
        """Feature tokens along one side."""
        return self.image_px // self.patch_px // self.pool

    @property
    def num_tokens(self) -> int:
        """Feature tokens of an image (N)."""
        return self.grid**2

    @property
    def num_channels(self) -> int:
        """Channels of a feature token (C)."""
        return self.hidden_size


def check_pixels(pixels: Tensor, image_px: int) -> None:
    """Raises ValueError unless the input of an encoder is [B, 3, image_px, image_px]."""
    if pixels.ndim != 4 or pixels.shape[1:] != (3, image_px, image_px):
        raise ValueError(
            f"the image encoder takes pixels [B, 3, {image_px}, {image_px}], "
            f"got {list(pixels.shape)}"
        )


def pool_tokens(tokens: Tensor, kernel: int) -> Tensor:
    """Returns a square token grid averaged over kernel x kernel windows, tokens row by row.

    Args:
        tokens: [B, G * G, C].
        kernel: side of a window; must divide G; 1 returns the tokens unchanged.

    Reference:
        BLIP3-o section 3 (`early_pool2d_4` in the released code); parity family `pooling`.
    """
    if kernel == 1:
        return tokens
    side = math.isqrt(tokens.shape[1])
    grid = tokens.unflatten(1, (side // kernel, kernel, side // kernel, kernel))
    return grid.mean(dim=(2, 4)).flatten(1, 2)
