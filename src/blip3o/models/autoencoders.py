"""VAEs between pixels and latents, which image encoders and image decoders share.

The layers are diffusers' `AutoencoderKL` (SDXL, FLUX) and `AutoencoderDC` (SANA), so published
weights load by their own names. A feature token is a latent pixel, normalized with the
autoencoder's shift and scaling factors. Axes: B images, C latent channels, G latent pixels along a
side.
"""

import dataclasses
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn

from blip3o.core.bounds import Count, Positive, Whole
from blip3o.core.config import component
from blip3o.core.errors import UsageError
from blip3o.core.registry import Registry

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    Autoencoder = AutoencoderKL | AutoencoderDC

AUTOENCODERS = Registry(
    "autoencoder",
    {"kl": f"{__name__}:KlAutoencoderConfig", "dc": f"{__name__}:DcAutoencoderConfig"},
    package=__name__,
)

TILE_PX = 512
"""Side of the tiles in which a VAE decodes larger images when tiling is on."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """The part that the configs of VAEs share, the entries of `AUTOENCODERS`.

    Args:
        kind: name in the table.
        latent_channels: channels of the latents (C).
        block_out_channels: channels of each stage; every stage except the last halves the sides.
        scaling_factor: factor that normalizes shifted latents.
        shift_factor: offset that is subtracted from latents before scaling.
    """

    kind: str
    latent_channels: Count
    block_out_channels: tuple[Count, ...]
    scaling_factor: Positive
    shift_factor: float = 0.0

    @property
    def downsampling(self) -> int:
        """Pixels along the side of a latent pixel."""
        return 2 ** (len(self.block_out_channels) - 1)

    def build(self) -> "Autoencoder":
        """Returns diffusers' autoencoder, both halves, with fresh weights.

        Raises:
            UsageError: if diffusers is not installed.
        """
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class KlAutoencoderConfig(AutoencoderConfig):
    """An `AutoencoderKL`; the fields have the names of its published config.json.

    Args:
        layers_per_block: residual blocks of a stage.
        norm_num_groups: groups of the GroupNorms.
        use_quant_conv: whether a 1 x 1 convolution follows the encoder; FLUX has none.
    """

    kind: str = "kl"
    layers_per_block: Count = 2
    norm_num_groups: Count = 32
    use_quant_conv: bool = True

    @classmethod
    def tiny(cls, shift_factor: float = 0.0) -> "KlAutoencoderConfig":
        """Returns the smallest useful config, for tests."""
        return cls(
            latent_channels=4,
            block_out_channels=(8, 8),
            layers_per_block=1,
            norm_num_groups=2,
            scaling_factor=0.5,
            shift_factor=shift_factor,
        )

    @classmethod
    def sdxl(cls) -> "KlAutoencoderConfig":
        """Returns the published VAE of SDXL, which the released SDXL decoder also uses."""
        return cls(
            latent_channels=4, block_out_channels=(128, 256, 512, 512), scaling_factor=0.13025
        )

    @classmethod
    def flux(cls) -> "KlAutoencoderConfig":
        """Returns the published VAE of FLUX.1, whose latents BLIP3-o's VAE variant generates."""
        return cls(
            latent_channels=16,
            block_out_channels=(128, 256, 512, 512),
            use_quant_conv=False,
            scaling_factor=0.3611,
            shift_factor=0.1159,
        )

    def build(self) -> "Autoencoder":
        """See `AutoencoderConfig.build`."""
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
class DcAutoencoderConfig(AutoencoderConfig):
    """An `AutoencoderDC` (DC-AE, arXiv 2410.10733) whose halves have the same stages.

    Args:
        attention_head_dim: width of a head of the linear attention.
        block_types: "ResBlock" or "EfficientViTBlock" for each stage.
        encoder_layers_per_block: blocks of each stage of the encoder.
        decoder_layers_per_block: blocks of each stage of the decoder.
        qkv_multiscales: kernel sizes of the multi-scale attention of each stage.
        downsample_block_type: "conv" or "pixel_unshuffle".
        upsample_block_type: "interpolate" or "pixel_shuffle".
    """

    kind: str = "dc"
    attention_head_dim: Count = 32
    block_types: tuple[str, ...]
    encoder_layers_per_block: tuple[Whole, ...]
    decoder_layers_per_block: tuple[Whole, ...]
    qkv_multiscales: tuple[tuple[int, ...], ...]
    downsample_block_type: str = "conv"
    upsample_block_type: str = "interpolate"

    @classmethod
    def tiny(cls) -> "DcAutoencoderConfig":
        """Returns the smallest useful config, for tests."""
        return cls(
            latent_channels=4,
            attention_head_dim=4,
            block_types=("ResBlock", "EfficientViTBlock"),
            block_out_channels=(8, 8),
            encoder_layers_per_block=(1, 1),
            decoder_layers_per_block=(1, 1),
            qkv_multiscales=((), (5,)),
            scaling_factor=0.5,
        )

    @classmethod
    def sana(cls) -> "DcAutoencoderConfig":
        """Returns the published autoencoder of SANA: 32 channels, sides 32 times smaller."""
        return cls(
            latent_channels=32,
            block_types=("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
            block_out_channels=(128, 256, 512, 512, 1024, 1024),
            encoder_layers_per_block=(2, 2, 2, 3, 3, 3),
            decoder_layers_per_block=(3, 3, 3, 3, 3, 3),
            qkv_multiscales=((), (), (), (5,), (5,), (5,)),
            scaling_factor=0.41407,
        )

    def build(self) -> "Autoencoder":
        """See `AutoencoderConfig.build`."""
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class SizedAutoencoder:
    """An autoencoder at one image size: the fields of the `vae` encoder and the `vae` decoder.

    Args:
        kind: name in the table of encoders or decoders.
        image_px: side of the square image; a multiple of the autoencoder's downsampling.
        autoencoder: config of the VAE, an entry of `AUTOENCODERS`.

    Raises:
        ValueError: if the downsampling does not divide `image_px`.
    """

    kind: str = "vae"
    image_px: Count
    autoencoder: AutoencoderConfig = component(f"{__name__}:AUTOENCODERS")

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

    @classmethod
    def tiny(cls) -> Self:
        """Returns the smallest useful config, for tests."""
        return cls(image_px=16, autoencoder=KlAutoencoderConfig.tiny(shift_factor=0.1))


def posterior(vae: nn.Module, pixels: Tensor, latent_channels: int) -> tuple[Tensor, Tensor | None]:
    """Returns means and log variances of the latents of images, [B, C, h, w] each.

    They are on the scale of the autoencoder. The means are the mode, so encoding with them is
    deterministic. A DC autoencoder has no variances; None stands in their place.

    Args:
        vae: diffusers' autoencoder, or a module with the same parts of its encoder half.
        pixels: [B, 3, P, P] in [-1, 1].
        latent_channels: channels of the latents (C).
    """
    parts = dict(vae.named_children())
    moments = parts["encoder"](pixels)
    # AutoencoderDC has no such layer, and AutoencoderKL may have None in its place.
    if "quant_conv" in parts:
        moments = parts["quant_conv"](moments)
    mean, log_variance = moments.tensor_split([latent_channels], dim=1)
    # The bounds of diffusers: a variance stays a number that its type can hold.
    return mean, log_variance.clamp(-30.0, 20.0) if log_variance.shape[1] else None


def normalized(latents: Tensor, autoencoder: AutoencoderConfig) -> Tensor:
    """Returns latents [B, C, h, w] of the scale of the autoencoder as normalized latents."""
    return (latents - autoencoder.shift_factor) * autoencoder.scaling_factor


def latents_to_features(latents: Tensor, autoencoder: AutoencoderConfig) -> Tensor:
    """Returns an encoder's latents [B, C, G, G] as normalized features [B, G * G, C]."""
    return normalized(latents, autoencoder).flatten(2).transpose(1, 2)


def features_to_latents(features: Tensor, autoencoder: AutoencoderConfig, grid: int) -> Tensor:
    """Returns features [B, G * G, C] as latents [B, C, G, G] for a decoder."""
    return denormalized(features.transpose(1, 2).unflatten(2, (grid, grid)), autoencoder)


def denormalized(latents: Tensor, autoencoder: AutoencoderConfig) -> Tensor:
    """Returns normalized latents [B, C, h, w] on the scale of the autoencoder."""
    return latents / autoencoder.scaling_factor + autoencoder.shift_factor


def latents_to_pixels(vae: "Autoencoder", latents: Tensor) -> Tensor:
    """Returns images [B, 3, P, P] in [-1, 1] decoded from latents [B, C, h, w]; see `decode`."""
    return decode(vae, latents).clamp(-1.0, 1.0)


def decode(vae: "Autoencoder", latents: Tensor) -> Tensor:
    """Returns images [B, 3, P, P] decoded from latents; values may lie outside [-1, 1].

    Args:
        vae: diffusers' autoencoder; a KL autoencoder in fp16 is converted to fp32.
        latents: on the scale of the autoencoder, [B, C, h, w], see `denormalized`.
    """
    if vae.dtype == torch.float16 and vae.config.get("force_upcast"):
        vae.float()  # activations of the KL decoders overflow in fp16
    run: Callable[..., object] = vae.decode  # its annotations contradict each other
    decoded = run(latents.to(vae.dtype), return_dict=False)
    assert isinstance(decoded, tuple)
    return decoded[0]


def set_low_memory(
    vae: "Autoencoder", *, sliced: bool = True, tiled: bool = True, tile_px: int = TILE_PX
) -> None:
    """Sets how a VAE decodes.

    Args:
        vae: diffusers' autoencoder.
        sliced: decode a batch one image at a time, with the same result.
        tiled: decode large images in overlapping tiles and blend them, with nearly the same result.
        tile_px: side of a tile; smaller images are decoded whole.
    """
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    (vae.enable_slicing if sliced else vae.disable_slicing)()
    if not tiled:
        vae.disable_tiling()
    elif isinstance(vae, AutoencoderKL):  # its tiles overlap by a quarter
        vae.enable_tiling()
        vae.tile_sample_min_size = tile_px
        vae.tile_latent_min_size = tile_px // 2 ** (len(vae.config["block_out_channels"]) - 1)
    else:
        scale = vae.spatial_compression_ratio
        stride = tile_px // scale * 3 // 4 * scale  # whole latent pixels
        vae.enable_tiling(tile_px, tile_px, stride, stride)


def import_diffusers(user: str) -> ModuleType:
    """Returns the diffusers package.

    Args:
        user: name of the part that needs it, for the error message.

    Raises:
        UsageError: if diffusers is not installed; the message says how to install it.
    """
    try:
        import diffusers
    except ImportError as error:
        message = f"{user} needs diffusers; install it: pip install 'blip3o[sdxl]'"
        raise UsageError(message) from error
    return diffusers
