"""The pocket image decoder: a small convolutional diffusion network from features to pixels.

The network has three levels: the feature grid, which interprets the tokens; a middle grid, which
gives objects their shape; and a fine grid of small pixel blocks, which also sees the noisy image.
The network predicts the clean image, because the features determine almost all of it, and a few
steps then suffice (Li and He, "Back to basics: let denoising generative models denoise",
arXiv 2511.13720). `velocity` converts the prediction.
"""

import dataclasses

from torch import Tensor, nn
from torch.nn import functional

from blip3o.core.bounds import Count, Share, Whole
from blip3o.flow.path import clean_to_velocity
from blip3o.flow.sigmas import NUM_TIMESTEPS, inference_sigmas
from blip3o.flow.solver import at_levels, euler
from blip3o.models.protocols import CleanPredictor, DecoderDefaults
from blip3o.nn.convolution import ResidualStack, num_groups
from blip3o.nn.embedding import TimestepEmbedding


@dataclasses.dataclass(frozen=True, kw_only=True)
class PocketDecoderConfig(DecoderDefaults):
    """Sizes of the pocket decoder.

    Args:
        image_px: side of the image.
        feature_channels: channels of the normalized features (K).
        grid: feature tokens along one side, which is the coarse level.
        widths: channels of the coarse, middle and fine level.
        num_blocks: residual blocks of each level.
        middle_scale: cells of the middle level along one side of a token.
        fine_scale: cells of the fine level along one side of a middle cell.
        sigma_shift: shift of the noise levels of decoding towards pure noise. Features determine
            almost all of an image, so the high noise levels matter most.
        num_steps: default number of Euler steps.
        min_sigma: lower bound of the sigma that the conversion to a velocity divides by.
    """

    kind: str = "pocket"
    image_px: Count
    feature_channels: Count
    grid: Count
    widths: tuple[Count, Count, Count]
    num_blocks: tuple[Whole, Whole, Whole]
    middle_scale: Count
    fine_scale: Count
    sigma_shift: float = 1.0
    num_steps: Count = 3
    min_sigma: Share = 0.05

    def __post_init__(self) -> None:
        if self.image_px % self.fine_grid:
            raise ValueError(
                f"image_px {self.image_px} must be a multiple of the fine grid {self.fine_grid} "
                "(grid * middle_scale * fine_scale)"
            )

    @property
    def fine_grid(self) -> int:
        """Cells of the fine level along one side."""
        return self.grid * self.middle_scale * self.fine_scale

    @property
    def block_px(self) -> int:
        """Side of the pixel block of a fine cell."""
        return self.image_px // self.fine_grid

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        """Shape of the noise that one image starts from, which is that of its pixels."""
        return (3, self.image_px, self.image_px)

    @property
    def predicts_clean(self) -> bool:
        """True: `pixel_decoding` trains `predict_clean`."""
        return True

    @classmethod
    def tiny(cls) -> "PocketDecoderConfig":
        """Returns the smallest useful config, for tests."""
        return cls(
            image_px=16,
            feature_channels=8,
            grid=2,
            widths=(16, 8, 8),
            num_blocks=(1, 1, 1),
            middle_scale=2,
            fine_scale=2,
        )

    def build(self) -> "PocketDecoder":
        """Returns the decoder with fresh weights."""
        return PocketDecoder(self)


class PocketDecoder(CleanPredictor):
    """Normalized features [B, N, K] to pixels [B, 3, P, P] by flow matching on pixels.

    Args:
        config: sizes.
    """

    def __init__(self, config: PocketDecoderConfig) -> None:
        super().__init__()
        self.config = config
        coarse, middle, fine = config.widths
        pixels = 3 * config.block_px**2
        self.sigma_embedding = TimestepEmbedding(fine)
        self.coarse_in = nn.Conv2d(config.feature_channels, coarse, 3, padding=1)
        self.coarse = ResidualStack(coarse, fine, config.num_blocks[0])
        self.to_middle = nn.Conv2d(coarse, middle * config.middle_scale**2, 1)
        self.middle = ResidualStack(middle, fine, config.num_blocks[1])
        self.to_fine = nn.Conv2d(middle, fine * config.fine_scale**2, 1)
        self.noisy_in = nn.Conv2d(pixels, fine, 3, padding=1)
        self.fine = ResidualStack(fine, fine, config.num_blocks[2])
        self.norm_out = nn.GroupNorm(num_groups(fine), fine)
        self.pixels_out = nn.Conv2d(fine, pixels, 3, padding=1)

    @property
    def layers(self) -> list[nn.Module]:
        """The repeated blocks, coarse to fine."""
        return [*self.coarse, *self.middle, *self.fine]

    def predict_clean(self, noisy: Tensor, sigma: Tensor, features: Tensor) -> Tensor:
        """Returns the predicted clean images; see `CleanPredictor.predict_clean`."""
        config = self.config
        vector = self.sigma_embedding(NUM_TIMESTEPS * sigma)
        hidden = features.mT.unflatten(2, (config.grid, config.grid))
        hidden = self.coarse(self.coarse_in(hidden), vector)
        hidden = functional.pixel_shuffle(self.to_middle(hidden), config.middle_scale)
        hidden = self.middle(hidden, vector)
        hidden = functional.pixel_shuffle(self.to_fine(hidden), config.fine_scale)
        hidden = hidden + self.noisy_in(functional.pixel_unshuffle(noisy, config.block_px))
        hidden = self.fine(hidden, vector)
        blocks = self.pixels_out(functional.silu(self.norm_out(hidden)))
        return functional.pixel_shuffle(blocks, config.block_px)

    def velocity(self, noisy: Tensor, sigma: Tensor, features: Tensor) -> Tensor:
        """Returns the velocity (noise - clean) [B, 3, P, P]; arguments as for `predict_clean`."""
        clean = self.predict_clean(noisy, sigma, features)
        return clean_to_velocity(clean, noisy, sigma.clamp_min(self.config.min_sigma))

    def decode(
        self, features: Tensor, noise: Tensor, num_inference_steps: int, **guidance: object
    ) -> Tensor:
        """Returns images after Euler steps, without guidance; see `ImageDecoder.decode`."""
        del guidance
        sigmas = inference_sigmas(num_inference_steps, self.config.sigma_shift)

        def velocity(pixels: Tensor, sigma: Tensor) -> Tensor:
            return self.velocity(pixels, sigma, features)

        levels = sigmas.to(noise.device)
        return euler(at_levels(velocity, levels), noise, sigmas).clamp(-1.0, 1.0)
