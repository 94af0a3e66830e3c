"""EVA-CLIP: the image encoder of the released models, with the weight names of its released file.

A vision transformer with post-norm branches: each branch is normalized after it is computed and
before it is added, so the residual stream itself is never normalized. Axes: B images, N tokens,
C width and feature channels, H heads, K head dim.

Reference:
    EVA-CLIP (arXiv 2303.15389) and Emu2 (arXiv 2312.13286). BLIP3-o uses Emu2's 448-pixel version
    of the E/14-plus vision tower; parity families `eva_clip` and `pooling`.
"""

import dataclasses
from collections import OrderedDict
from typing import Self

import torch
from torch import Tensor, nn

from blip3o.core.bounds import NotNegative
from blip3o.imaging.pixels import normalize_for_clip
from blip3o.models.encoders.grid import VisionTransformerConfig, check_pixels, pool_tokens
from blip3o.models.protocols import ImageEncoder
from blip3o.nn.attention import attend


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaClipEncoderConfig(VisionTransformerConfig):
    """Sizes of an EVA-CLIP vision tower; see also `VisionTransformerConfig`.

    Args:
        norm_eps: epsilon of the LayerNorms (published: 1e-6).
    """

    kind: str = "eva_clip"
    norm_eps: NotNegative = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"num_heads {self.num_heads} does not divide hidden_size {self.hidden_size}"
            )

    @classmethod
    def tiny(cls) -> Self:
        """Returns the smallest useful config, for tests."""
        return dataclasses.replace(super().tiny(), num_layers=2)

    @classmethod
    def published(cls) -> "EvaClipEncoderConfig":
        """Returns the released E/14-plus at 448 px, with 32 x 32 tokens pooled to 8 x 8.

        4,350,208,256 parameters. The MLPs are int(1792 * 8.571428571428571) wide.
        """
        return cls(
            image_px=448,
            patch_px=14,
            hidden_size=1792,
            intermediate_size=15360,
            num_layers=64,
            num_heads=16,
            pool=4,
        )

    def build(self) -> "EvaClipEncoder":
        """Returns the encoder with fresh weights."""
        return EvaClipEncoder(self)


class EvaClipEncoder(ImageEncoder):
    """Pixels [B, 3, P, P] in [-1, 1] to features [B, N, C], tokens row by row.

    The encoder normalizes the pixels with CLIP's statistics; `tower` takes normalized pixels. After
    `tower.`, weight names are those of the released file.

    Args:
        config: sizes.
    """

    def __init__(self, config: EvaClipEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.tower = EvaClipTower(config)

    def forward(self, pixels: Tensor) -> Tensor:
        """Returns the pooled features of images; see `ImageEncoder.forward`."""
        check_pixels(pixels, self.config.image_px)
        return pool_tokens(self.tower(normalize_for_clip(pixels)), self.config.pool)


class EvaClipTower(nn.Module):
    """The vision transformer without pooling: normalized pixels to one token per patch.

    Args:
        config: sizes; `pool` is not used here.
    """

    def __init__(self, config: EvaClipEncoderConfig) -> None:
        super().__init__()
        width, patch = config.hidden_size, config.patch_px
        num_patches = (config.image_px // patch) ** 2
        self.cls_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + num_patches, width) * 0.02)
        self.patch_embed = nn.Sequential(
            OrderedDict[str, nn.Module](proj=nn.Conv2d(3, width, patch, patch))
        )
        self.blocks = nn.ModuleList(EvaClipBlock(config) for _ in range(config.num_layers))

    def forward(self, normalized: Tensor) -> Tensor:
        """Returns the unnormalized tokens after the last block, without the class token.

        Args:
            normalized: pixels normalized with CLIP's mean and standard deviation, [B, 3, P, P].

        Returns:
            Tokens [B, (P / patch_px)^2, C], row by row.
        """
        patches = self.patch_embed(normalized).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], dim=1)
        tokens = tokens + self.pos_embed
        for block in self.blocks:
            tokens = block(tokens)
        return tokens[:, 1:]


class EvaClipBlock(nn.Module):
    """Self-attention and MLP, each followed by a LayerNorm and then added to the residual stream.

    Args:
        config: sizes.
    """

    def __init__(self, config: EvaClipEncoderConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.attn = EvaClipAttention(width, config.num_heads)
        self.norm1 = nn.LayerNorm(width, eps=config.norm_eps)
        self.mlp = nn.Sequential(
            OrderedDict[str, nn.Module](
                fc1=nn.Linear(width, config.intermediate_size),
                act=nn.GELU(),  # exact, not the tanh approximation
                fc2=nn.Linear(config.intermediate_size, width),
            )
        )
        self.norm2 = nn.LayerNorm(width, eps=config.norm_eps)

    def forward(self, tokens: Tensor) -> Tensor:
        """Returns the transformed tokens [B, N, C]."""
        tokens = tokens + self.norm1(self.attn(tokens))
        return tokens + self.norm2(self.mlp(tokens))


class EvaClipAttention(nn.Module):
    """Full self-attention with one projection for queries, keys and values.

    Args:
        hidden_size: width (C).
        num_heads: attention heads (H).
    """

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, tokens: Tensor) -> Tensor:
        """Returns the mixed tokens [B, N, C]."""
        qkv = self.qkv(tokens).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # [B, H, N, K] each
        return self.proj(attend(query, key, value).transpose(1, 2).flatten(2))
