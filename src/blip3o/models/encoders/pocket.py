"""The pocket image encoder: a convolutional stem, then a few transformer layers.

A plain patch embedding must learn every sprite at every offset inside a patch. A stem of strided
convolutions detects edges and parts first. Trained from scratch on few images, it learns to
identify objects many times faster ("Early convolutions help transformers see better",
arXiv 2106.14881).
"""

import dataclasses
import math

import torch
from torch import Tensor, nn

from blip3o.core.bounds import Count
from blip3o.models.encoders.grid import check_pixels, pool_tokens
from blip3o.models.protocols import ImageEncoder
from blip3o.nn.transformer import TransformerBlock


@dataclasses.dataclass(frozen=True, kw_only=True)
class PocketEncoderConfig:
    """Sizes of the pocket encoder.

    Args:
        image_px: side of the square input image.
        stem_channels: output channels of each convolution of the stem except the last.
        stem_strides: stride of each convolution; their product must divide `image_px`.
        hidden_size: width, which is the number of feature channels (C).
        num_layers: transformer layers.
        num_heads: attention heads.
        pool: kernel and stride of the average pooling of the token grid.
    """

    kind: str = "pocket"
    image_px: Count
    stem_channels: tuple[Count, ...]
    stem_strides: tuple[Count, ...]
    hidden_size: Count
    num_layers: Count
    num_heads: Count
    pool: Count = 1

    def __post_init__(self) -> None:
        if len(self.stem_strides) != len(self.stem_channels) + 1:
            raise ValueError("stem_strides must have one value more than stem_channels")
        if self.image_px % (math.prod(self.stem_strides) * self.pool):
            raise ValueError(
                f"image_px {self.image_px} must be a multiple of all strides times pool "
                f"({math.prod(self.stem_strides)} * {self.pool})"
            )

    @property
    def grid(self) -> int:
        """Feature tokens along one side."""
        return self.image_px // math.prod(self.stem_strides) // self.pool

    @property
    def num_tokens(self) -> int:
        """Feature tokens of an image (N)."""
        return self.grid**2

    @property
    def num_channels(self) -> int:
        """Channels of a feature token (C)."""
        return self.hidden_size

    @classmethod
    def tiny(cls) -> "PocketEncoderConfig":
        """Returns the smallest useful config, for tests."""
        return cls(
            image_px=16,
            stem_channels=(4,),
            stem_strides=(2, 2),
            hidden_size=16,
            num_layers=1,
            num_heads=2,
            pool=2,
        )

    def build(self) -> "PocketEncoder":
        """Returns the encoder with fresh weights."""
        return PocketEncoder(self)


class PocketEncoder(ImageEncoder):
    """Pixels [B, 3, P, P] in [-1, 1] to features [B, N, C], tokens row by row.

    Args:
        config: sizes.
    """

    def __init__(self, config: PocketEncoderConfig) -> None:
        super().__init__()
        self.config = config
        channels = (3, *config.stem_channels, config.hidden_size)
        stem: list[nn.Module] = []
        for narrow, wide, stride in zip(channels, channels[1:], config.stem_strides, strict=False):
            # The kernel is wider than its stride: windows overlap, so no edge is missed.
            kernel = stride + 1 + stride % 2
            stem += [
                nn.Conv2d(narrow, wide, kernel, stride, padding=kernel // 2, bias=False),
                nn.GroupNorm(1, wide),
                nn.GELU(),
            ]
        self.stem = nn.Sequential(*stem)
        num_tokens = (config.grid * config.pool) ** 2
        self.positions = nn.Parameter(torch.empty(num_tokens, config.hidden_size))
        nn.init.normal_(self.positions, std=0.02)
        self.layers = nn.ModuleList(
            TransformerBlock(config.hidden_size, config.num_heads) for _ in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(config.hidden_size)

    def forward(self, pixels: Tensor) -> Tensor:
        """Returns the features of images; see `ImageEncoder.forward`."""
        check_pixels(pixels, self.config.image_px)
        tokens = self.stem(pixels).flatten(2).transpose(1, 2) + self.positions
        for layer in self.layers:
            tokens = layer(tokens)
        return pool_tokens(self.norm(tokens), self.config.pool)
