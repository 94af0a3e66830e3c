"""The SANA decoder: a linear-attention diffusion transformer conditioned on SigLIP2 features.

The transformer and the autoencoder come from diffusers. This module adds the connector between the
features and the transformer's caption input.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from blip3o.core.bounds import Count, Positive
from blip3o.flow.path import interpolate, velocity_target
from blip3o.flow.sigmas import NUM_TIMESTEPS
from blip3o.models.autoencoders import DcAutoencoderConfig, import_diffusers
from blip3o.models.decoders.latent_diffusion import (
    LatentDiffusionConfig,
    LatentDiffusionDecoder,
    Sampler,
    SamplerName,
)
from blip3o.models.protocols import NoisyLatents
from blip3o.nn.norm import RMSNorm

_CAPTION_SCALE = math.sqrt(5.5)  # published initial value of the connector's norm


_SAMPLERS: Mapping[SamplerName, Sampler] = {
    "published": Sampler(
        num_steps=30,
        solver={
            "_class_name": "DPMSolverMultistepScheduler",
            "solver_order": 2,
            "algorithm_type": "dpmsolver++",
            "flow_shift": 3.0,
        },
    ),
    "fast": Sampler(num_steps=25, solver={"flow_shift": 2.0}),
}


def _published_scheduler() -> dict[str, object]:
    return {
        "num_train_timesteps": 1000,
        "prediction_type": "flow_prediction",
        "use_flow_sigmas": True,
        **_SAMPLERS["published"].solver,
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class SanaDecoderConfig(LatentDiffusionConfig):
    """Sizes of a SANA decoder; see also `LatentDiffusionConfig`.

    Args:
        num_layers: transformer layers.
        num_heads: heads of the linear self-attention.
        head_dim: width of a head of the self-attention.
        num_cross_heads: heads of the cross-attention.
        cross_head_dim: width of a head of the cross-attention.
        caption_channels: width of the connector.
        mlp_ratio: width inside the convolutional MLPs, as a multiple of the transformer's width.
        position_scale: scale of the sinusoidal positions added to the latents' patches; None adds
            none (published: 1). Checkpoints do not contain it: the recorded runs (diffusers
            0.32.2) use 1, while diffusers 0.42 adds no positions if the config has no value.
    """

    kind: str = "sana"
    num_layers: Count
    num_heads: Count
    head_dim: Count
    num_cross_heads: Count
    cross_head_dim: Count
    caption_channels: Count
    mlp_ratio: Positive = 2.5
    position_scale: Count | None = 1
    scheduler: dict[str, object] = dataclasses.field(default_factory=_published_scheduler)

    samplers: ClassVar[Mapping[SamplerName, Sampler]] = _SAMPLERS

    def __post_init__(self) -> None:
        if self.num_cross_heads * self.cross_head_dim != self.hidden_size:
            raise ValueError(
                "num_cross_heads * cross_head_dim must be "
                f"num_heads * head_dim ({self.hidden_size})"
            )

    @property
    def hidden_size(self) -> int:
        """Width of the transformer."""
        return self.num_heads * self.head_dim

    @classmethod
    def published(cls, grid: int = 32) -> "SanaDecoderConfig":
        """Returns the released decoder: SigLIP2-so400m tokens to 512 px with SANA 1.6B.

        Args:
            grid: feature tokens along one side; 32 without pooling, 8 for the 64-token decoder.
        """
        return cls(
            feature_channels=1152,
            grid=grid,
            sample_size=16,
            num_layers=20,
            num_heads=70,
            head_dim=32,
            num_cross_heads=20,
            cross_head_dim=112,
            caption_channels=2304,
            autoencoder=DcAutoencoderConfig.sana(),
        )

    @classmethod
    def tiny(cls) -> "SanaDecoderConfig":
        """Returns the smallest useful config, for tests."""
        return cls(
            feature_channels=8,
            grid=2,
            sample_size=4,
            num_layers=1,
            num_heads=2,
            head_dim=8,
            num_cross_heads=2,
            cross_head_dim=8,
            caption_channels=16,
            autoencoder=DcAutoencoderConfig.tiny(),
        )

    def build(self) -> "SanaDecoder":
        """Returns the decoder with fresh weights; raises UsageError without diffusers."""
        return SanaDecoder(self)


class SanaDecoder(LatentDiffusionDecoder[SanaDecoderConfig]):
    """SigLIP2 features [B, N, K] to pixels [B, 3, P, P] by flow matching in DC-AE latents.

    The features are the states before SigLIP2's last layer.

    Args:
        config: sizes.

    Reference:
        SANA (arXiv 2410.10629); parity family `siglip2_sana`.
    """

    empty_first: ClassVar[bool] = True

    def __init__(self, config: SanaDecoderConfig) -> None:
        super().__init__(config)
        channels, width = config.autoencoder.latent_channels, config.caption_channels
        norm = RMSNorm(width)
        nn.init.constant_(norm.weight, _CAPTION_SCALE)
        self.connector = nn.Sequential(
            nn.Linear(config.feature_channels, width),
            nn.GELU(approximate="tanh"),
            nn.Linear(width, width),
            norm,
        )
        self.transformer = import_diffusers("the SANA decoder").SanaTransformer2DModel(
            in_channels=channels,
            out_channels=channels,
            num_attention_heads=config.num_heads,
            attention_head_dim=config.head_dim,
            num_layers=config.num_layers,
            num_cross_attention_heads=config.num_cross_heads,
            cross_attention_head_dim=config.cross_head_dim,
            cross_attention_dim=config.hidden_size,
            caption_channels=width,
            mlp_ratio=config.mlp_ratio,
            sample_size=config.sample_size,
            interpolation_scale=config.position_scale,
            patch_size=1,
        )

    @property
    def layers(self) -> list[nn.Module]:
        """The transformer layers."""
        return list(self.transformer.transformer_blocks)

    @property
    def condition_layers(self) -> list[nn.Module]:
        """The connector, the caption layers, and the keys and values of the cross-attention.

        At 512 px they are 38 % of a step with 1024 feature tokens, and 4 % with 64.
        """
        network = self.transformer
        crossed = [layer.attn2 for layer in network.transformer_blocks]
        projections = [one for layer in crossed for one in (layer.to_k, layer.to_v)]
        return [self.connector, network.caption_projection, network.caption_norm, *projections]

    def add_noise(self, latents: Tensor, noise: Tensor, sigma: Tensor) -> NoisyLatents:
        """Returns latents on the straight path to noise; see `LatentPredictor.add_noise`."""
        noisy = interpolate(latents, noise, sigma)
        return NoisyLatents(noisy, NUM_TIMESTEPS * sigma, velocity_target(latents, noise))

    def predict(self, noisy: Tensor, timestep: Tensor, features: Tensor) -> Tensor:
        """Returns the predicted velocity (noise - clean), [B, C, h, w]."""
        return self.transformer(
            noisy,
            encoder_hidden_states=self.connector(features),
            timestep=timestep.expand(len(noisy)),
            return_dict=False,
        )[0]
