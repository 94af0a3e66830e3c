"""The pocket image decoder: a small diffusion transformer from features to pixels.

The features share the decoder's grid, so they are added to its tokens place by place, which learns
much faster than cross-attention. The network predicts the clean picture, because a velocity of raw
pixel patches would have to carry the full noise through a narrow model (Li and He, "Back to
basics: let denoising generative models denoise", arXiv 2511.13720); `velocity` converts.
"""

import dataclasses

import torch
from torch import Tensor, nn

from blip3o.flow.path import clean_to_velocity
from blip3o.flow.sigmas import inference_sigmas
from blip3o.flow.solver import euler
from blip3o.nn.embedding import TimestepEmbedding
from blip3o.nn.transformer import TransformerBlock


@dataclasses.dataclass(frozen=True, kw_only=True)
class PocketDecoderConfig:
    """Sizes of the pocket decoder.

    Args:
        image_px: side of the picture.
        patch_px: side of a pixel patch; the patch grid is a multiple of the feature grid.
        feature_channels: channels of the normalized features (K).
        grid: feature tokens along one side.
        hidden_size: width.
        num_layers: transformer layers.
        num_heads: attention heads.
        min_sigma: the conversion to a velocity divides by sigma, but by no less than this.
    """

    kind: str = "pocket"
    image_px: int
    patch_px: int
    feature_channels: int
    grid: int
    hidden_size: int
    num_layers: int
    num_heads: int
    min_sigma: float = 0.05

    def __post_init__(self) -> None:
        if self.image_px % (self.patch_px * self.grid):
            raise ValueError(
                f"image_px {self.image_px} must be a multiple of patch_px * grid "
                f"({self.patch_px} * {self.grid})"
            )

    @property
    def patch_grid(self) -> int:
        """Pixel patches along one side."""
        return self.image_px // self.patch_px

    @classmethod
    def tiny(cls) -> "PocketDecoderConfig":
        """Returns the smallest useful config, for tests."""
        return cls(
            image_px=16,
            patch_px=4,
            feature_channels=8,
            grid=2,
            hidden_size=16,
            num_layers=1,
            num_heads=2,
        )

    def build(self) -> "PocketDecoder":
        """Returns the decoder with fresh weights."""
        return PocketDecoder(self)


class PocketDecoder(nn.Module):
    """Normalized features [B, N, K] to pixels [B, 3, P, P] by flow matching on pixels.

    Args:
        config: sizes.
    """

    def __init__(self, config: PocketDecoderConfig) -> None:
        super().__init__()
        self.config = config
        width, patch = config.hidden_size, 3 * config.patch_px**2
        self.upscale = config.patch_grid // config.grid
        self.patch_in = nn.Linear(patch, width)
        self.features_in = nn.Linear(config.feature_channels, width * self.upscale**2)
        self.positions = nn.Parameter(torch.randn(config.patch_grid**2, width) * 0.02)
        self.sigma_embedding = TimestepEmbedding(width)
        self.layers = nn.ModuleList(
            TransformerBlock(width, config.num_heads, condition_size=width)
            for _ in range(config.num_layers)
        )
        self.norm_out = nn.LayerNorm(width)
        self.patch_out = nn.Linear(width, patch)

    def predict_clean(self, noisy: Tensor, sigma: Tensor, features: Tensor) -> Tensor:
        """Returns the predicted clean pictures [B, 3, P, P].

        Args:
            noisy: pictures on the path from clean to noise, [B, 3, P, P].
            sigma: noise levels in [0, 1], [B].
            features: normalized features, [B, N, K].
        """
        tokens = self.patch_in(self._to_patches(noisy)) + self._spread(features) + self.positions
        vector = self.sigma_embedding(1000.0 * sigma)
        for layer in self.layers:
            tokens = layer(tokens, vector)
        return self._to_pixels(self.patch_out(self.norm_out(tokens)))

    def velocity(self, noisy: Tensor, sigma: Tensor, features: Tensor) -> Tensor:
        """Returns the velocity (noise - clean) of pictures on the path; shapes as above."""
        clean = self.predict_clean(noisy, sigma, features)
        return clean_to_velocity(clean, noisy, sigma.clamp_min(self.config.min_sigma))

    def decode(self, features: Tensor, noise: Tensor, num_inference_steps: int) -> Tensor:
        """Returns pictures [B, 3, P, P] in [-1, 1] for features.

        Args:
            features: normalized features, [B, N, K].
            noise: standard normal pictures to start from, [B, 3, P, P].
            num_inference_steps: Euler steps from pure noise to the picture.
        """
        sigmas = inference_sigmas(num_inference_steps).to(noise)
        pixels = euler(lambda x, sigma: self.velocity(x, sigma, features), noise, sigmas)
        return pixels.clamp(-1.0, 1.0)

    def _spread(self, features: Tensor) -> Tensor:
        """Gives every feature token its square of patches: [B, N, K] -> [B, patches, width]."""
        grid, up = self.config.grid, self.upscale
        spread = self.features_in(features).unflatten(-1, (up, up, -1)).unflatten(1, (grid, grid))
        return spread.permute(0, 1, 3, 2, 4, 5).reshape(
            len(features), self.config.patch_grid**2, -1
        )

    def _to_patches(self, pixels: Tensor) -> Tensor:
        grid, patch = self.config.patch_grid, self.config.patch_px
        blocks = pixels.unflatten(3, (grid, patch)).unflatten(2, (grid, patch))
        return blocks.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)

    def _to_pixels(self, patches: Tensor) -> Tensor:
        grid, patch = self.config.patch_grid, self.config.patch_px
        blocks = patches.unflatten(2, (3, patch, patch)).unflatten(1, (grid, grid))
        return blocks.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
