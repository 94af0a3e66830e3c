"""The unified model: backbone, image encoder, query tokens, DiT and image decoder, composed.

It offers the seams the rest of the package joins (features, condition, velocity, logits) and
neither trains nor samples. `UnifiedModelConfig` checks that the widths of neighbours agree.
"""

import dataclasses
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from blip3o.core.config import component
from blip3o.models.encoders.normalizer import FeatureNormalizer, FeatureNormalizerConfig
from blip3o.models.query_tokens import QueryTokens
from blip3o.text.chat import ChatConfig

if TYPE_CHECKING:
    from transformers.cache_utils import Cache


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How a model samples unless told otherwise; they belong to its weights.

    Args:
        guidance_scale: strength of classifier-free guidance; 1 switches it off (published: 3).
        num_inference_steps: Euler steps of the DiT (published: 30).
        sigma_shift: shift of the noise levels towards pure noise (published: 1).
        num_decoder_steps: steps of the image decoder (published: 50).
        max_new_tokens: longest answer in tokens.
    """

    guidance_scale: float = 3.0
    num_inference_steps: int = 30
    sigma_shift: float = 1.0
    num_decoder_steps: int = 50
    max_new_tokens: int = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnifiedModelConfig:
    """The parts of a unified model.

    Args:
        backbone: the autoregressive model, a config out of `BACKBONES`.
        image_encoder: what makes the features, a config out of `ENCODERS`.
        normalizer: the map between raw features and the space the DiT works in.
        num_query_tokens: learned queries after a prompt (Q).
        query_init_std: standard deviation of fresh queries (published: 1).
        dit: the velocity network, a config out of `DITS`.
        image_decoder: features to pixels, a config out of `DECODERS`.
        chat: the words around prompts.
        sampling: default settings of generation.
    """

    backbone: Any = component("blip3o.models.backbones:BACKBONES")
    image_encoder: Any = component("blip3o.models.encoders:ENCODERS")
    normalizer: FeatureNormalizerConfig = dataclasses.field(default_factory=FeatureNormalizerConfig)
    num_query_tokens: int
    query_init_std: float = 1.0
    dit: Any = component("blip3o.models.dit:DITS")
    image_decoder: Any = component("blip3o.models.decoders:DECODERS")
    chat: ChatConfig = dataclasses.field(default_factory=ChatConfig)
    sampling: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)

    def __post_init__(self) -> None:
        channels = self.image_encoder.num_channels
        width = self.normalizer.width(channels)
        _require_equal("backbone.image_channels", self.backbone.image_channels, channels)
        _require_equal("dit.condition_size", self.dit.condition_size, self.backbone.hidden_size)
        _require_equal("dit.in_channels", self.dit.in_channels, width)
        if self.dit.reference_channels:
            _require_equal("dit.reference_channels", self.dit.reference_channels, width)
        _require_equal("dit.grid", self.dit.grid, self.image_encoder.grid)
        _require_equal("image_decoder.feature_channels", self.image_decoder.feature_channels, width)
        _require_equal("image_decoder.grid", self.image_decoder.grid, self.image_encoder.grid)

    @property
    def feature_shape(self) -> tuple[int, int]:
        """Shape (N, K) of the normalized features of one picture."""
        return (self.image_encoder.num_tokens, self.dit.in_channels)

    @classmethod
    def tiny(cls) -> "UnifiedModelConfig":
        """Returns the smallest useful model, for tests."""
        from blip3o.models.backbones.qwen3 import Qwen3BackboneConfig
        from blip3o.models.decoders.pocket import PocketDecoderConfig
        from blip3o.models.dit.nextdit import NextDiTConfig
        from blip3o.models.encoders.siglip2 import Siglip2EncoderConfig

        return cls(
            backbone=Qwen3BackboneConfig.tiny(),
            image_encoder=Siglip2EncoderConfig.tiny(),
            normalizer=FeatureNormalizerConfig(num_components=8),
            num_query_tokens=4,
            dit=dataclasses.replace(
                NextDiTConfig.tiny(), in_channels=8, condition_size=16, grid=2, reference_channels=8
            ),
            image_decoder=PocketDecoderConfig.tiny(),
        )

    def build(self) -> "UnifiedModel":
        """Returns the model with fresh weights."""
        return UnifiedModel(self)


def _require_equal(name: str, value: int, expected: int) -> None:
    if value != expected:
        raise ValueError(f"{name} is {value}, but the part it joins has {expected}")


class UnifiedModel(nn.Module):
    """Understands pictures and text, and plans pictures as features.

    Args:
        config: the parts.
    """

    def __init__(self, config: UnifiedModelConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = config.backbone.build()
        self.image_encoder = config.image_encoder.build()
        self.normalizer = FeatureNormalizer(config.normalizer, config.image_encoder.num_channels)
        self.query_tokens = QueryTokens(
            config.num_query_tokens, config.backbone.hidden_size, config.query_init_std
        )
        self.dit = config.dit.build()
        self.image_decoder = config.image_decoder.build()

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Returns the raw features of pictures.

        Args:
            pixels: [M, 3, P, P] in [-1, 1].

        Returns:
            Features [M, N, C], as the encoder gives them.
        """
        return self.image_encoder(pixels)

    def condition(
        self, input_ids: Tensor, attention_mask: Tensor, prompt_features: Tensor | None = None
    ) -> Tensor:
        """Returns the backbone's states at the query tokens, [B, Q, D].

        The mask is causal, so prompt states do not depend on the queries. Where nothing before the
        queries is trained, the prompt's keys and values are computed without gradient and only the
        Q query positions are back-propagated: the same gradients for less than half the work.

        Args:
            input_ids: prompts that end in the last column (left-padded), [B, T].
            attention_mask: True for real tokens, [B, T].
            prompt_features: raw features of the prompts' pictures, [M, N, C].

        Raises:
            ValueError: if a row is padded at its end.
        """
        if not bool(attention_mask[:, -1].all()):
            raise ValueError("prompts of pictures must be padded on the left")
        queries = self.query_tokens(len(input_ids))
        mask = torch.cat([attention_mask, attention_mask.new_ones(queries.shape[:2])], dim=1)
        frozen = not any(p.requires_grad for p in self.backbone.parameters())
        if frozen and torch.is_grad_enabled():
            cache = self.backbone.new_cache()
            with torch.no_grad():
                prompt = self.backbone.embed(input_ids, prompt_features)
                self.backbone(prompt, attention_mask, cache)
            return self.backbone(queries.to(prompt.dtype), mask, cache)
        prompt = self.backbone.embed(input_ids, prompt_features)
        embeds = torch.cat([prompt, queries.to(prompt.dtype)], dim=1)
        return self.backbone(embeds, mask)[:, -queries.shape[1] :]

    def velocity(
        self,
        noisy: Tensor,
        sigma: Tensor,
        condition: Tensor,
        reference: Tensor | None = None,
        context_cache: Any = None,  # noqa: ANN401  (owned by the DiT)
    ) -> Tensor:
        """Returns the DiT's velocity (noise - clean) in normalized feature space, [B, N, K].

        Args:
            noisy: normalized features on the path, [B, N, K].
            sigma: noise levels in [0, 1], [B].
            condition: backbone states at the queries, [B, Q, D]; zeros are the empty condition.
            reference: normalized features of a picture to edit, [B, N, K].
            context_cache: what `dit.prepare_context(condition)` returned, to reuse over steps.
        """
        return self.dit.velocity(
            noisy, sigma, condition, context_cache=context_cache, reference=reference
        )

    def text_states(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        prompt_features: Tensor | None = None,
        cache: "Cache | None" = None,
    ) -> Tensor:
        """Returns the backbone's hidden states of token rows, [B, T, D].

        Args:
            input_ids: [B, T].
            attention_mask: [B, past + T].
            prompt_features: raw features of the rows' pictures, [M, N, C].
            cache: keys and values of earlier tokens.
        """
        embeds = self.backbone.embed(input_ids, prompt_features)
        return self.backbone(embeds, attention_mask, cache)

    def compile_targets(self) -> list[nn.Module]:
        """Returns the modules worth compiling one by one (repeated blocks of one shape)."""
        return [*self.dit.layers, *self.image_decoder.layers]
