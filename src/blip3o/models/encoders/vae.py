"""A VAE's encoder whose latents are the features: what flow matching on VAE latents generates.

The layers are diffusers' `AutoencoderKL` (SDXL, FLUX) and `AutoencoderDC` (SANA), so published
weights load by their own names; decoder weights are not held here. A feature token is a latent
pixel, normalized with the autoencoder's shift and scaling factors.

Reference:
    BLIP3-o section 3.2 (VAE + flow matching); parity families `sdxl_decoder` and `siglip2_sana`.
"""

import dataclasses
from typing import Any

from torch import Tensor, nn

from blip3o.core.bounds import Count, Positive, Whole
from blip3o.core.config import component
from blip3o.core.errors import UsageError
from blip3o.core.registry import Registry
from blip3o.models.encoders.grid import check_pixels

AUTOENCODERS = Registry(
    "autoencoder",
    {"kl": f"{__name__}:KlAutoencoderConfig", "dc": f"{__name__}:DcAutoencoderConfig"},
    package=__name__,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class KlAutoencoderConfig:
    """An `AutoencoderKL`; the fields have the names of its published config.json.

    Args:
        latent_channels: channels of the latents (C).
        block_out_channels: channels of each stage; every stage but the last halves the sides.
        layers_per_block: residual blocks of a stage.
        norm_num_groups: groups of the GroupNorms.
        use_quant_conv: a 1 x 1 convolution between the encoder and the latents; FLUX has none.
        scaling_factor: what latents are multiplied with.
        shift_factor: what is taken from latents first.
    """

    kind: str = "kl"
    latent_channels: Count
    block_out_channels: tuple[Count, ...]
    layers_per_block: Count = 2
    norm_num_groups: Count = 32
    use_quant_conv: bool = True
    scaling_factor: Positive
    shift_factor: float = 0.0

    @property
    def downsampling(self) -> int:
        """Pixels along the side of a latent pixel."""
        return 2 ** (len(self.block_out_channels) - 1)

    @classmethod
    def sdxl(cls) -> "KlAutoencoderConfig":
        """Returns the VAE of SDXL, which the released SDXL decoder has too. published."""
        return cls(
            latent_channels=4, block_out_channels=(128, 256, 512, 512), scaling_factor=0.13025
        )

    @classmethod
    def flux(cls) -> "KlAutoencoderConfig":
        """Returns the VAE of FLUX.1, which BLIP3-o's VAE variant generated for. published."""
        return cls(
            latent_channels=16,
            block_out_channels=(128, 256, 512, 512),
            use_quant_conv=False,
            scaling_factor=0.3611,
            shift_factor=0.1159,
        )

    def build(self) -> Any:  # noqa: ANN401  (diffusers is not imported at the top)
        """Returns diffusers' autoencoder, both halves, with fresh weights.

        Raises:
            UsageError: if diffusers is not installed.
        """
        num_stages = len(self.block_out_channels)
        return import_diffusers("a VAE").AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * num_stages,
            up_block_types=("UpDecoderBlock2D",) * num_stages,
            block_out_channels=self.block_out_channels,
            layers_per_block=self.layers_per_block,
            latent_channels=self.latent_channels,
            norm_num_groups=self.norm_num_groups,
            use_quant_conv=self.use_quant_conv,
            use_post_quant_conv=self.use_quant_conv,
            scaling_factor=self.scaling_factor,
            shift_factor=self.shift_factor,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DcAutoencoderConfig:
    """An `AutoencoderDC` (DC-AE, arXiv 2410.10733) whose halves have the same stages.

    Args:
        latent_channels: channels of the latents (C).
        attention_head_dim: width of a head of the linear attention.
        block_types: "ResBlock" or "EfficientViTBlock" for each stage.
        block_out_channels: channels of each stage; every stage but the last halves the sides.
        encoder_layers_per_block: blocks of each stage of the encoder.
        decoder_layers_per_block: blocks of each stage of the decoder.
        qkv_multiscales: kernel sizes of the multi-scale attention of each stage.
        downsample_block_type: "conv" or "pixel_unshuffle".
        upsample_block_type: "interpolate" or "pixel_shuffle".
        scaling_factor: what latents are multiplied with.
        shift_factor: what is taken from latents first.
    """

    kind: str = "dc"
    latent_channels: Count
    attention_head_dim: Count = 32
    block_types: tuple[str, ...]
    block_out_channels: tuple[Count, ...]
    encoder_layers_per_block: tuple[Whole, ...]
    decoder_layers_per_block: tuple[Whole, ...]
    qkv_multiscales: tuple[tuple[int, ...], ...]
    downsample_block_type: str = "conv"
    upsample_block_type: str = "interpolate"
    scaling_factor: Positive
    shift_factor: float = 0.0

    @property
    def downsampling(self) -> int:
        """Pixels along the side of a latent pixel."""
        return 2 ** (len(self.block_out_channels) - 1)

    @classmethod
    def sana(cls) -> "DcAutoencoderConfig":
        """Returns the autoencoder of SANA: 32 channels, 32 times smaller. published."""
        return cls(
            latent_channels=32,
            block_types=("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
            block_out_channels=(128, 256, 512, 512, 1024, 1024),
            encoder_layers_per_block=(2, 2, 2, 3, 3, 3),
            decoder_layers_per_block=(3, 3, 3, 3, 3, 3),
            qkv_multiscales=((), (), (), (5,), (5,), (5,)),
            scaling_factor=0.41407,
        )

    def build(self) -> Any:  # noqa: ANN401  (diffusers is not imported at the top)
        """Returns diffusers' autoencoder, both halves, with fresh weights.

        Raises:
            UsageError: if diffusers is not installed.
        """
        return import_diffusers("a VAE").AutoencoderDC(
            latent_channels=self.latent_channels,
            attention_head_dim=self.attention_head_dim,
            encoder_block_types=self.block_types,
            decoder_block_types=self.block_types,
            encoder_block_out_channels=self.block_out_channels,
            decoder_block_out_channels=self.block_out_channels,
            encoder_layers_per_block=self.encoder_layers_per_block,
            decoder_layers_per_block=self.decoder_layers_per_block,
            encoder_qkv_multiscales=self.qkv_multiscales,
            decoder_qkv_multiscales=self.qkv_multiscales,
            downsample_block_type=self.downsample_block_type,
            upsample_block_type=self.upsample_block_type,
            scaling_factor=self.scaling_factor,
        )


AutoencoderConfig = KlAutoencoderConfig | DcAutoencoderConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class VaeEncoderConfig:
    """A VAE's encoder at one image size.

    Args:
        image_px: side of the square input image; a multiple of the autoencoder's downsampling.
        autoencoder: which VAE, a config out of `AUTOENCODERS`.
    """

    kind: str = "vae"
    image_px: Count
    autoencoder: Any = component("blip3o.models.encoders.vae:AUTOENCODERS")

    def __post_init__(self) -> None:
        if self.image_px % self.autoencoder.downsampling:
            raise ValueError(
                f"image_px {self.image_px} must be a multiple of the autoencoder's downsampling "
                f"({self.autoencoder.downsampling})"
            )

    @property
    def grid(self) -> int:
        """Feature tokens along one side."""
        return self.image_px // self.autoencoder.downsampling

    @property
    def num_tokens(self) -> int:
        """Feature tokens of an image (N)."""
        return self.grid**2

    @property
    def num_channels(self) -> int:
        """Channels of a feature token (C)."""
        return self.autoencoder.latent_channels

    @classmethod
    def tiny(cls) -> "VaeEncoderConfig":
        """Returns the smallest useful config, for tests."""
        autoencoder = KlAutoencoderConfig(
            latent_channels=4,
            block_out_channels=(8, 8),
            layers_per_block=1,
            norm_num_groups=2,
            scaling_factor=0.5,
            shift_factor=0.1,
        )
        return cls(image_px=16, autoencoder=autoencoder)

    def build(self) -> "VaeEncoder":
        """Returns the encoder with fresh weights.

        Raises:
            UsageError: if diffusers is not installed.
        """
        return VaeEncoder(self)


class VaeEncoder(nn.Module):
    """Pixels [B, 3, P, P] in [-1, 1] to features [B, N, C], latent pixels row by row.

    The latents are the mode of the posterior, so an image has one encoding. Weight names are those
    of the published autoencoder, whose decoder half (`decoder.`, `post_quant_conv.`) is not here.

    Args:
        config: which VAE, and the image size.
    """

    def __init__(self, config: VaeEncoderConfig) -> None:
        super().__init__()
        self.config = config
        autoencoder = config.autoencoder.build()
        self.encoder: nn.Module = autoencoder.encoder
        self.quant_conv: nn.Module | None = getattr(autoencoder, "quant_conv", None)

    def forward(self, pixels: Tensor) -> Tensor:
        """Returns the features of images.

        Args:
            pixels: [B, 3, P, P] in [-1, 1].

        Raises:
            ValueError: if the images are not of the config's size.
        """
        check_pixels(pixels, self.config.image_px)
        moments = self.encoder(pixels)
        if self.quant_conv is not None:
            moments = self.quant_conv(moments)
        # A KL encoder gives means, then log variances; the mode of a Gaussian is its mean.
        latents = moments[:, : self.config.num_channels]
        return latents_to_features(latents, self.config.autoencoder)


def latents_to_features(latents: Tensor, autoencoder: AutoencoderConfig) -> Tensor:
    """Returns latents as an encoder gives them, [B, C, G, G], as features [B, G * G, C]."""
    normalized = (latents - autoencoder.shift_factor) * autoencoder.scaling_factor
    return normalized.flatten(2).transpose(1, 2)


def features_to_latents(features: Tensor, autoencoder: AutoencoderConfig, grid: int) -> Tensor:
    """Returns features [B, G * G, C] as latents [B, C, G, G], as a decoder takes them."""
    latents = features.transpose(1, 2).unflatten(2, (grid, grid))
    return latents / autoencoder.scaling_factor + autoencoder.shift_factor


def import_diffusers(what: str) -> Any:  # noqa: ANN401  (a module)
    """Returns the diffusers package.

    Args:
        what: what needs it, for the message.

    Raises:
        UsageError: if it is not installed, with what to install.
    """
    try:
        import diffusers
    except ImportError as error:
        message = f"{what} needs diffusers; install it: pip install 'blip3o[sdxl]'"
        raise UsageError(message) from error
    return diffusers
