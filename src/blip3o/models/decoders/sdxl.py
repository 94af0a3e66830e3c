"""The SDXL-shaped decoder: a UNet whose cross-attention reads EVA-CLIP features instead of text.

The UNet and the VAE come from diffusers, so the released decoder loads by its own names (`unet.`,
`vae.`).
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from blip3o.core.bounds import Count, Whole
from blip3o.core.errors import UsageError
from blip3o.models.autoencoders import KlAutoencoderConfig, import_diffusers
from blip3o.models.decoders.latent_diffusion import (
    LatentDiffusionConfig,
    LatentDiffusionDecoder,
    Sampler,
    SamplerName,
)
from blip3o.models.protocols import NoisyLatents

_NUM_TIME_IDS = 6


@runtime_checkable
class _HasTrainedSteps(Protocol):
    """A scheduler with the table of the steps that its networks are trained on."""

    alphas_cumprod: Tensor


_SAMPLERS: Mapping[SamplerName, Sampler] = {
    "published": Sampler(
        num_steps=50,
        solver={
            "_class_name": "EulerDiscreteScheduler",
            "timestep_spacing": "leading",
            "steps_offset": 1,
        },
    ),
    "fast": Sampler(
        num_steps=15,
        solver={"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True},
    ),
}


def _published_scheduler() -> dict[str, object]:
    return {
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "prediction_type": "epsilon",
        **_SAMPLERS["published"].solver,
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class SdxlDecoderConfig(LatentDiffusionConfig):
    """Sizes of an SDXL-shaped decoder; see also `LatentDiffusionConfig`.

    Args:
        block_out_channels: channels of each stage of the UNet; every stage except the last halves
            the sides, every stage except the first has attention.
        layers_per_block: residual blocks of a stage.
        transformer_layers_per_block: transformer layers after a residual block of each stage.
        num_heads: attention heads of each stage.
        time_id_size: width of the embedding of each of the six size and crop numbers.
        norm_num_groups: groups of the UNet's GroupNorms.
        original_size: height and width before scaling, an input of the UNet (published: 1024,
            1024).
        crop: rows and columns cropped at the top left, an input of the UNet (published: 0, 0).
        empty_prompt: prompt whose features are the empty condition while the stored one is all
            zeros; None always uses the stored one (published: one space).
    """

    kind: str = "sdxl"
    block_out_channels: tuple[Count, ...]
    layers_per_block: Count
    transformer_layers_per_block: tuple[Whole, ...]
    num_heads: tuple[Count, ...]
    time_id_size: Whole
    norm_num_groups: Count = 32
    scheduler: dict[str, object] = dataclasses.field(default_factory=_published_scheduler)
    original_size: tuple[Count, Count] = (1024, 1024)
    crop: tuple[Whole, Whole] = (0, 0)
    empty_prompt: str | None = None

    samplers: ClassVar[Mapping[SamplerName, Sampler]] = _SAMPLERS

    def __post_init__(self) -> None:
        for name in ("transformer_layers_per_block", "num_heads"):
            if len(getattr(self, name)) != len(self.block_out_channels):
                raise ValueError(f"{name} must have a number for each of block_out_channels")

    @classmethod
    def published(cls) -> "SdxlDecoderConfig":
        """Returns the released decoder (`diffusion-decoder`): 64 EVA-CLIP tokens to 1024 px."""
        return cls(
            feature_channels=1792,
            grid=8,
            sample_size=128,
            block_out_channels=(320, 640, 1280),
            layers_per_block=2,
            transformer_layers_per_block=(1, 2, 10),
            num_heads=(5, 10, 20),
            time_id_size=256,
            autoencoder=KlAutoencoderConfig.sdxl(),
            empty_prompt=" ",
        )

    @classmethod
    def tiny(cls) -> "SdxlDecoderConfig":
        """Returns the smallest useful config, for tests."""
        return cls(
            feature_channels=8,
            grid=2,
            sample_size=8,
            block_out_channels=(8, 8),
            layers_per_block=1,
            transformer_layers_per_block=(1, 1),
            num_heads=(2, 2),
            time_id_size=4,
            norm_num_groups=4,
            autoencoder=KlAutoencoderConfig.tiny(),
        )

    def build(self) -> "SdxlDecoder":
        """Returns the decoder with fresh weights; raises UsageError without diffusers."""
        return SdxlDecoder(self)


class SdxlDecoder(LatentDiffusionDecoder[SdxlDecoderConfig]):
    """EVA-CLIP features [B, N, K] to pixels [B, 3, P, P] by noise prediction in VAE latents.

    The features replace the text states, and their mean replaces the pooled text embedding.

    Args:
        config: sizes.

    Reference:
        The visual decoder of Emu2 (arXiv 2312.13286), which BLIP3-o section 3 uses; parity family
        `sdxl_decoder`.
    """

    empty_first: ClassVar[bool] = False

    def __init__(self, config: SdxlDecoderConfig) -> None:
        super().__init__(config)
        num_stages = len(config.block_out_channels)
        channels = config.autoencoder.latent_channels
        self.unet = import_diffusers("the SDXL decoder").UNet2DConditionModel(
            sample_size=config.sample_size,
            in_channels=channels,
            out_channels=channels,
            down_block_types=("DownBlock2D", *["CrossAttnDownBlock2D"] * (num_stages - 1)),
            up_block_types=(*["CrossAttnUpBlock2D"] * (num_stages - 1), "UpBlock2D"),
            block_out_channels=config.block_out_channels,
            layers_per_block=config.layers_per_block,
            transformer_layers_per_block=config.transformer_layers_per_block,
            attention_head_dim=config.num_heads,  # diffusers' name for the number of heads
            use_linear_projection=True,
            cross_attention_dim=config.feature_channels,
            addition_embed_type="text_time",
            addition_time_embed_dim=config.time_id_size,
            projection_class_embeddings_input_dim=(
                config.feature_channels + _NUM_TIME_IDS * config.time_id_size
            ),
            norm_num_groups=config.norm_num_groups,
        )

    @property
    def layers(self) -> list[nn.Module]:
        """The transformer layers, which do nearly all of the work."""
        from diffusers.models.attention import BasicTransformerBlock

        return [one for one in self.unet.modules() if isinstance(one, BasicTransformerBlock)]

    def add_noise(self, latents: Tensor, noise: Tensor, sigma: Tensor) -> NoisyLatents:
        """Returns latents at the nearest trained steps; see `LatentPredictor.add_noise`.

        noisy = sqrt(a) latents + sqrt(1 - a) noise, where `a` is the share of the latents' variance
        that the scheduler's table keeps at a step (DDPM, arXiv 2006.11239, eq. 4).

        Raises:
            UsageError: if the scheduler's networks do not predict noise.
        """
        kind = self.config.scheduler.get("prediction_type", "epsilon")
        if kind != "epsilon" or not isinstance(self.scheduler, _HasTrainedSteps):
            raise UsageError(
                f"the training of an SDXL decoder predicts noise (epsilon), but "
                f"image_decoder.scheduler has prediction_type {kind!r}"
            )
        table = self.scheduler.alphas_cumprod.to(latents)
        step = (sigma * len(table)).round().long().clamp_min(1) - 1
        kept = table[step][:, None, None, None]
        return NoisyLatents(kept.sqrt() * latents + (1 - kept).sqrt() * noise, step, noise)

    def predict(self, noisy: Tensor, timestep: Tensor, features: Tensor) -> Tensor:
        """Returns the predicted noise, [B, C, h, w]."""
        config = self.config
        scale = config.autoencoder.downsampling
        size = (noisy.shape[-2] * scale, noisy.shape[-1] * scale)
        time_ids = torch.tensor([*config.original_size, *config.crop, *size], device=noisy.device)
        added = {"text_embeds": features.mean(1), "time_ids": time_ids.expand(len(noisy), -1)}
        return self.unet(
            noisy,
            timestep,
            encoder_hidden_states=features,
            added_cond_kwargs=added,
            return_dict=False,
        )[0]
