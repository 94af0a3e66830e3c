"""The unified model: backbone, image encoder, query tokens, DiT and image decoder, composed.

It offers the seams the rest of the package joins (features, condition, velocity, logits) and
neither trains nor samples. `UnifiedModelConfig` checks that the widths of neighbours agree.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from blip3o.core.bounds import Count, Guidance, NotNegative
from blip3o.core.config import component
from blip3o.imaging.fit import ImageFitConfig
from blip3o.models.absent import AbsentPart
from blip3o.models.backbones.decoder_only import TowerInputs
from blip3o.models.backbones.packed import is_packed
from blip3o.models.backbones.vision import VisionInputs
from blip3o.models.encoders.normalizer import FeatureNormalizer, FeatureNormalizerConfig
from blip3o.models.query_tokens import QueryTokens
from blip3o.text.chat import ChatConfig

PromptImages = Tensor | TowerInputs | VisionInputs
"""Images of prompts: raw features [M, N, C] of the image encoder for a backbone that projects
them, pixels or patches of pixels for a backbone with a vision tower of its own."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How a model samples unless told otherwise; they belong to its weights.

    Args:
        guidance_scale: strength of classifier-free guidance; 1 switches it off (published: 3).
        solver: how the DiT's velocity is followed, a name out of `SOLVERS`; "heun" asks the DiT
            twice a step (published: euler).
        num_inference_steps: steps of the solver (published: 30).
        sigma_shift: shift of the noise levels towards pure noise (published: 1).
        num_decoder_steps: steps of the image decoder (published: 50).
        max_new_tokens: longest answer in tokens.
        truncate_timestep: tell the DiT whole timesteps, rounded down, as the released sampler does.
    """

    guidance_scale: Guidance = 3.0
    solver: Literal["euler", "heun"] = "euler"
    num_inference_steps: Count = 30
    sigma_shift: float = 1.0
    num_decoder_steps: Count = 50
    max_new_tokens: Count = 128
    truncate_timestep: bool = False

    def __post_init__(self) -> None:
        if not self.sigma_shift > 0:
            raise ValueError(f"sigma_shift must be positive, got {self.sigma_shift}")


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
        question_images: how images that are asked about are fitted; images to edit are always
            stretched to the image encoder's square.
        absent_parts: parts that are not built because their weights are not at hand; see
            `AbsentPart`.
    """

    backbone: Any = component("blip3o.models.backbones:BACKBONES")
    image_encoder: Any = component("blip3o.models.encoders:ENCODERS")
    normalizer: FeatureNormalizerConfig = dataclasses.field(default_factory=FeatureNormalizerConfig)
    num_query_tokens: Count
    query_init_std: NotNegative = 1.0
    dit: Any = component("blip3o.models.dit:DITS")
    image_decoder: Any = component("blip3o.models.decoders:DECODERS")
    chat: ChatConfig = dataclasses.field(default_factory=ChatConfig)
    sampling: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)
    question_images: ImageFitConfig = dataclasses.field(default_factory=ImageFitConfig)
    absent_parts: tuple[Literal["image_encoder", "image_decoder"], ...] = ()

    def __post_init__(self) -> None:
        channels = self.image_encoder.num_channels
        width = self.normalizer.width(channels)
        if self.backbone.image_channels is not None:
            _require_equal("backbone.image_channels", self.backbone.image_channels, channels)
        else:  # refuses images that its vision tower cannot take
            self.backbone.num_image_tokens(self.image_encoder.image_px)
        if self.question_images.mode == "aspect" and self.backbone.token_px is None:
            raise ValueError(
                f"question_images.mode aspect needs a backbone that sees images of any shape; "
                f"{self.backbone.kind} takes squares"
            )
        _require_equal("dit.condition_size", self.dit.condition_size, self.backbone.hidden_size)
        _require_equal("dit.in_channels", self.dit.in_channels, width)
        if self.dit.reference_channels:
            _require_equal("dit.reference_channels", self.dit.reference_channels, width)
        _require_equal("dit.grid", self.dit.grid, self.image_encoder.grid)
        _require_equal("image_decoder.feature_channels", self.image_decoder.feature_channels, width)
        _require_equal("image_decoder.grid", self.image_decoder.grid, self.image_encoder.grid)

    @property
    def num_prompt_image_tokens(self) -> int:
        """Tokens that stand for one image of a prompt."""
        if self.backbone.image_channels is None:
            return self.backbone.num_image_tokens(self.image_encoder.image_px)
        return self.image_encoder.num_tokens

    @property
    def feature_shape(self) -> tuple[int, int]:
        """Shape (N, K) of the normalized features of one image."""
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
    """Understands images and text, and plans images as features.

    Args:
        config: the parts.
    """

    def __init__(self, config: UnifiedModelConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = config.backbone.build()
        self.image_encoder = self._build("image_encoder")
        self.normalizer = FeatureNormalizer(config.normalizer, config.image_encoder.num_channels)
        self.query_tokens = QueryTokens(
            config.num_query_tokens, config.backbone.hidden_size, config.query_init_std
        )
        self.dit = config.dit.build()
        self.image_decoder = self._build("image_decoder")

    def _build(self, part: Literal["image_encoder", "image_decoder"]) -> Any:  # noqa: ANN401
        if part in self.config.absent_parts:
            return AbsentPart(part)
        return getattr(self.config, part).build()

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Returns the raw features of images.

        Args:
            pixels: [M, 3, P, P] in [-1, 1].

        Returns:
            Features [M, N, C], as the encoder gives them.
        """
        return self.image_encoder(pixels)

    def prompt_images(
        self, pixels: Tensor | Sequence[Tensor] | None, features: Tensor | None = None
    ) -> PromptImages | None:
        """Returns the images of prompts as `condition` and `text_states` take them.

        Args:
            pixels: [M, 3, P, P] in [-1, 1], or images [3, H, W] of several shapes for a backbone
                that takes any; None where there are no images or features are given.
            features: their raw features [M, N, C] if they are known already.

        Raises:
            ValueError: if the backbone sees pixels itself and only features are given.
        """
        if self.config.backbone.image_channels is not None:
            if features is None and isinstance(pixels, Tensor):
                features = self.encode_images(pixels)
            return None if features is None else features.to(self.query_tokens.weight.dtype)
        if pixels is None and features is not None:
            raise ValueError("this backbone sees the pixels of prompts; features are not enough")
        return None if pixels is None else self.backbone.vision_inputs(pixels)

    def reference(
        self, pixels: Tensor | Sequence[Tensor] | None, features: PromptImages | None = None
    ) -> Tensor | None:
        """Returns normalized features [M, N, K] of images to edit; None if the DiT takes none.

        Args:
            pixels: [M, 3, P, P] in [-1, 1].
            features: their raw features [M, N, C] if they are known already; other forms are
                ignored.
        """
        if not self.config.dit.reference_channels:
            return None
        if not isinstance(features, Tensor):
            features = self.encode_images(pixels) if isinstance(pixels, Tensor) else None
        if features is None:
            return None
        return self.normalizer(features.to(self.query_tokens.weight.dtype))

    def condition(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        prompt_images: PromptImages | None = None,
    ) -> Tensor:
        """Returns the backbone's states at the query tokens, [B, Q, D].

        Args:
            input_ids: prompts that end in the last column (left-padded), [B, T].
            attention_mask: True for real tokens, [B, T].
            prompt_images: what `prompt_images` made of the prompts' images.

        Raises:
            ValueError: if a row is padded at its end.
        """
        states = self.sequence_states(input_ids, attention_mask, prompt_images)
        return states[:, input_ids.shape[1] :]

    def sequence_states(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        prompt_images: PromptImages | None = None,
        *,
        prompt_gradient: bool = False,
    ) -> Tensor:
        """Returns the backbone's states at prompts and the query tokens after them, [B, T + Q, D].

        The mask is causal, so prompt states do not depend on the queries. Where nothing before the
        queries is trained, the prompt's keys and values are computed without gradient and only the
        Q query positions are back-propagated: the same gradients for less than half the work.

        Args:
            input_ids: prompts that end in the last column (left-padded), [B, T].
            attention_mask: True for real tokens, [B, T].
            prompt_images: what `prompt_images` made of the prompts' images.
            prompt_gradient: back-propagate through the prompt, too, where it changes nothing.

        Raises:
            ValueError: if a row is padded at its end.
        """
        if not bool(attention_mask[:, -1].all()):
            raise ValueError("prompts of images must be padded on the left")
        queries = self.query_tokens(len(input_ids))
        mask = torch.cat([attention_mask, attention_mask.new_ones(queries.shape[:2])], dim=1)
        frozen = not any(p.requires_grad for p in self.backbone.parameters())
        if frozen and torch.is_grad_enabled() and not prompt_gradient:
            new_cache = self.backbone.new_cache
            packed = is_packed(self.backbone, attention_mask)
            cache = new_cache(packed=True) if packed else new_cache()
            with torch.no_grad():
                prompt = self.backbone.embed(input_ids, prompt_images)
                prompt_states = self.backbone(prompt, attention_mask, cache)
            query_states = self.backbone(queries.to(prompt.dtype), mask, cache)
            return torch.cat([prompt_states, query_states], dim=1)
        prompt = self.backbone.embed(input_ids, prompt_images)
        embeds = torch.cat([prompt, queries.to(prompt.dtype)], dim=1)
        return self.backbone(embeds, mask)

    def velocity(
        self,
        noisy: Tensor,
        sigma: Tensor,
        condition: Tensor,
        reference: Tensor | None = None,
        context_cache: Any = None,  # noqa: ANN401  (owned by the DiT)
        truncate_timestep: bool = False,
    ) -> Tensor:
        """Returns the DiT's velocity (noise - clean) in normalized feature space, [B, N, K].

        Args:
            noisy: normalized features on the path, [B, N, K].
            sigma: noise levels in [0, 1], [B].
            condition: backbone states at the queries, [B, Q, D]; zeros are the empty condition.
            reference: normalized features of an image to edit, [B, N, K].
            context_cache: what `dit.prepare_context(condition)` returned, to reuse over steps.
            truncate_timestep: see `SamplingConfig`.
        """
        return self.dit.velocity(
            noisy,
            sigma,
            condition,
            context_cache=context_cache,
            reference=reference,
            truncate_timestep=truncate_timestep,
        )

    def text_states(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        prompt_images: PromptImages | None = None,
        cache: Any = None,  # noqa: ANN401  (owned by the backbone)
    ) -> Tensor:
        """Returns the backbone's hidden states of token rows, [B, T, D].

        Args:
            input_ids: [B, T].
            attention_mask: [B, past + T].
            prompt_images: what `prompt_images` made of the rows' images; rows with images come
                whole.
            cache: what `backbone.new_cache()` returned, with keys and values of earlier tokens.
        """
        embeds = self.backbone.embed(input_ids, prompt_images)
        if not isinstance(prompt_images, VisionInputs):
            return self.backbone(embeds, attention_mask, cache)
        # Only text about images is placed by their grids; prompts of images count tokens.
        positions = self.backbone.image_positions(input_ids, attention_mask, prompt_images)
        return self.backbone(embeds, attention_mask, cache, positions)

    def compile_targets(self) -> list[nn.Module]:
        """Returns the modules worth compiling one by one (repeated blocks of one shape)."""
        return [*self.backbone.decoder.layers, *self.dit.layers, *self.image_decoder.layers]
