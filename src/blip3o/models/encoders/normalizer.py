"""Normalization of image features: rotation and scaling into the space the generator works in.

Features of a small encoder have low rank, and their channels have very different scales. Projecting
them onto their first K principal directions and scaling these towards equal variance gives the flow
a well-conditioned target. The published models use unchanged features.
"""

import dataclasses

import torch
from torch import Tensor, nn

from blip3o.core.bounds import Count, NotNegative


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureNormalizerConfig:
    """Settings of the feature normalizer.

    Args:
        num_components: number of principal directions to keep (K); None is the identity (K = C).
        power: 0 scales all components by one factor, 1 whitens them fully; values in between
            interpolate.
        floor: added to every component's variance, so that nearly constant components stay small.
    """

    num_components: Count | None = None
    power: float = 0.5
    floor: NotNegative = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.power <= 1.0:
            raise ValueError(f"power must be in [0, 1], got {self.power}")
        if self.floor < 0.0:
            raise ValueError(f"floor must be at least 0, got {self.floor}")

    def width(self, num_channels: int) -> int:
        """Returns K for features of C channels.

        Raises:
            ValueError: if `num_components` exceeds the number of channels.
        """
        if self.num_components is None:
            return num_channels
        if not 1 <= self.num_components <= num_channels:
            raise ValueError(f"num_components must be 1 to {num_channels}")
        return self.num_components


class FeatureNormalizer(nn.Module):
    """An affine map of C feature channels to K components whose mean variance is 1.

    Args:
        config: settings.
        num_channels: channels of the features (C).

    Attributes:
        forward_map: raw features to normalized ones, [C, K].
        backward_map: normalized features to the best estimate of the raw ones, [K, C].
    """

    def __init__(self, config: FeatureNormalizerConfig, num_channels: int) -> None:
        super().__init__()
        self.config = config
        self.is_identity = config.num_components is None
        self.num_components = config.width(num_channels)
        if not self.is_identity:
            width = config.width(num_channels)
            self.register_buffer("mean", torch.zeros(num_channels))
            # Not torch.eye, whose form on the meta device imports torch's compiler.
            identity = torch.zeros(num_channels, width).fill_diagonal_(1)
            self.register_buffer("forward_map", identity)
            self.register_buffer("backward_map", identity.T.contiguous())

    @torch.no_grad()
    def fit(self, features: Tensor) -> None:
        """Computes the map from a sample of raw features [..., C].

        Raises:
            ValueError: if there are fewer tokens than channels.
        """
        if self.is_identity:
            return
        tokens = features.reshape(-1, features.shape[-1]).double()
        if len(tokens) < tokens.shape[1]:
            raise ValueError(f"{len(tokens)} tokens are too few for {tokens.shape[1]} channels")
        mean = tokens.mean(0)
        variance, directions = torch.linalg.eigh((tokens - mean).T.cov())
        width = self.backward_map.shape[0]
        variance = variance.flip(0)[:width].clamp_min(1e-12) + self.config.floor
        directions = directions.flip(1)[:, :width]
        scaled = variance ** (1 - self.config.power)
        scale = variance ** (-self.config.power / 2) * scaled.mean().rsqrt()
        self.mean.copy_(mean)
        self.forward_map.copy_(directions * scale)
        self.backward_map.copy_((directions / scale).T)

    def forward(self, features: Tensor) -> Tensor:
        """Returns raw features [B, N, C] as normalized features [B, N, K]."""
        if self.is_identity:
            return features
        return (features - self.mean) @ self.forward_map

    def inverse(self, features: Tensor) -> Tensor:
        """Returns normalized features [B, N, K] as the best estimate of the raw ones, [B, N, C]."""
        if self.is_identity:
            return features
        return features @ self.backward_map + self.mean
