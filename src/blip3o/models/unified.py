"""The unified model: a backbone, an image encoder, a normalizer, a generator and an image decoder.

    image -> image_encoder -> features -> normalizer -> normalized features
    normalized features -> image_decoder -> image (a `vae` decoder reads raw features)
    prompt -> backbone + generator -> plan -> velocity of noisy normalized features
    conversation -> backbone -> text states -> logits

`UnifiedModel` holds the parts and computes features, plans and text states. It contains no training
and no sampling: objectives compute losses from these values, and `blip3o.generate` draws features
from plans and text from text states. `UnifiedModelConfig` checks that the parts fit each other.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from blip3o.core.bounds import Count, Guidance
from blip3o.core.config import component
from blip3o.core.errors import UsageError
from blip3o.flow.sigmas import Schedule
from blip3o.imaging.fit import ImageFitConfig
from blip3o.models.absent import AbsentPart
from blip3o.models.backbones.base import Backbone, BackboneConfig
from blip3o.models.backbones.packed import BackboneCache
from blip3o.models.encoders.normalizer import FeatureNormalizer, FeatureNormalizerConfig
from blip3o.models.generators.plan import Generator, GeneratorConfig, Joints, Plan, RowOutput
from blip3o.models.prompts import PromptImages, Prompts, Rows, VisionInputs
from blip3o.models.protocols import (
    ImageDecoder,
    ImageDecoderConfig,
    ImageEncoder,
    ImageEncoderConfig,
)
from blip3o.nn.blocks import repeated_blocks
from blip3o.text.chat import ChatConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Default settings of sampling; they are stored with the weights of a model.

    Args:
        guidance_scale: strength of classifier-free guidance; 1 switches it off (published: 3).
        solver: name of the solver in `SOLVERS`; "heun" evaluates the generator twice per step
            (published: euler).
        num_inference_steps: steps of the solver (published: 30).
        sigma_shift: shift of the noise levels towards pure noise (published: 1).
        schedule: spacing of the noise levels, see `inference_sigmas` (published: linear).
        num_decoder_steps: steps of the image decoder; None for the decoder's own number.
        max_new_tokens: longest answer in tokens.
        truncate_timestep: round the generator's timesteps down to whole numbers, as the released
            sampler does.
    """

    guidance_scale: Guidance = 3.0
    solver: Literal["euler", "heun"] = "euler"
    num_inference_steps: Count = 30
    sigma_shift: float = 1.0
    schedule: Schedule = "linear"
    num_decoder_steps: Count | None = None
    max_new_tokens: Count = 128
    truncate_timestep: bool = False

    def __post_init__(self) -> None:
        if not self.sigma_shift > 0:
            raise ValueError(f"sigma_shift must be positive, got {self.sigma_shift}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnifiedModelConfig:
    """The parts of a unified model.

    Args:
        backbone: the autoregressive model, a config from `BACKBONES`.
        image_encoder: encodes images as features, a config from `ENCODERS`.
        normalizer: maps raw features to the space in which the generator draws.
        generator: draws normalized features, a config from `GENERATORS`.
        image_decoder: decodes features as pixels, a config from `DECODERS`.
        chat: the chat format of prompts.
        sampling: default settings of sampling.
        question_images: fit of the images of questions. Images to edit are always stretched to the
            square of the image encoder.
        absent_parts: parts that are not built, because their weights are missing; see `AbsentPart`.

    Raises:
        ValueError: if two neighbors do not fit each other.
    """

    backbone: BackboneConfig = component("blip3o.models.backbones:BACKBONES")
    image_encoder: ImageEncoderConfig = component("blip3o.models.encoders:ENCODERS")
    normalizer: FeatureNormalizerConfig = dataclasses.field(default_factory=FeatureNormalizerConfig)
    generator: GeneratorConfig = component("blip3o.models.generators:GENERATORS")
    image_decoder: ImageDecoderConfig = component("blip3o.models.decoders:DECODERS")
    chat: ChatConfig = dataclasses.field(default_factory=ChatConfig)
    sampling: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)
    question_images: ImageFitConfig = dataclasses.field(default_factory=ImageFitConfig)
    absent_parts: tuple[Literal["image_encoder", "image_decoder"], ...] = ()

    def __post_init__(self) -> None:
        channels = self.image_encoder.num_channels
        width = self.normalizer.width(channels)
        if self.backbone.image_channels is not None:
            _require_equal("backbone.image_channels", self.backbone.image_channels, channels)
        if self.question_images.mode == "aspect" and self.backbone.token_px is None:
            raise ValueError(
                f"question_images.mode aspect needs a backbone that sees images of any shape; "
                f"{self.backbone.kind} takes squares"
            )
        self.generator.check(self.joints)
        if not self.generator.is_guided and self.sampling.guidance_scale != 1:
            raise ValueError(
                f"the generator {self.generator.kind} has no guidance; set "
                f"sampling.guidance_scale to 1, got {self.sampling.guidance_scale}"
            )
        read = channels if self.image_decoder.reads_raw else width
        _require_equal("image_decoder.feature_channels", self.image_decoder.feature_channels, read)
        _require_equal("image_decoder.grid", self.image_decoder.grid, self.image_encoder.grid)

    @property
    def joints(self) -> Joints:
        """The sizes of the parts that the generator joins."""
        return Joints(
            backbone=self.backbone,
            feature_channels=self.normalizer.width(self.image_encoder.num_channels),
            grid=self.image_encoder.grid,
        )

    @property
    def num_prompt_image_tokens(self) -> int:
        """Number of backbone tokens of one image in a prompt."""
        if self.backbone.image_channels is None:
            return self.backbone.num_image_tokens(self.image_encoder.image_px)
        return self.image_encoder.num_tokens

    @property
    def feature_shape(self) -> tuple[int, int]:
        """Shape (N, K) of the normalized features of one image."""
        return (self.image_encoder.num_tokens, self.joints.feature_channels)

    @property
    def num_decoder_steps(self) -> int:
        """Default number of steps of the image decoder."""
        return self.sampling.num_decoder_steps or self.image_decoder.num_steps

    def guidance(self, scale: float | None) -> float:
        """Returns the guidance scale of a call.

        Args:
            scale: the scale that was asked for; None for the model's own.

        Raises:
            UsageError: if the generator has no guidance and the scale is not 1.
        """
        if scale is None or scale == 1 or self.generator.is_guided:
            return self.sampling.guidance_scale if scale is None else scale
        raise UsageError(
            f"this model ({self.generator.kind}) has no guidance: guidance_scale must be 1, got "
            f"{scale}"
        )

    @property
    def num_reserved_positions(self) -> int:
        """Positions of the backbone that the generator needs after a prompt."""
        return self.generator.num_reserved_positions(self.joints)

    @property
    def max_prompt_tokens(self) -> int:
        """Most tokens of a prompt: the backbone's positions without those of the generator."""
        return self.backbone.max_positions - self.num_reserved_positions

    @classmethod
    def tiny(cls) -> "UnifiedModelConfig":
        """Returns the smallest useful model, for tests."""
        from blip3o.models.backbones.qwen3 import Qwen3BackboneConfig
        from blip3o.models.decoders.pocket import PocketDecoderConfig
        from blip3o.models.encoders.siglip2 import Siglip2EncoderConfig
        from blip3o.models.generators.query_dit import QueryDiTConfig

        return cls(
            backbone=Qwen3BackboneConfig.tiny(),
            image_encoder=Siglip2EncoderConfig.tiny(),
            normalizer=FeatureNormalizerConfig(num_components=8),
            generator=QueryDiTConfig.tiny(),
            image_decoder=PocketDecoderConfig.tiny(),
        )

    def build(self) -> "UnifiedModel":
        """Returns the model with fresh weights."""
        return UnifiedModel(self)


def _require_equal(name: str, value: int, expected: int) -> None:
    if value != expected:
        raise ValueError(f"{name} is {value}, but the part it joins has {expected}")


class UnifiedModel(nn.Module):
    """The parts of a model, and the computations in which several parts take part.

    Args:
        config: configs of the parts.
    """

    def __init__(self, config: UnifiedModelConfig) -> None:
        super().__init__()
        self.config = config
        absent = config.absent_parts
        self.backbone: Backbone[Any] = config.backbone.build()
        self.image_encoder: ImageEncoder = (
            AbsentPart("image_encoder")
            if "image_encoder" in absent
            else config.image_encoder.build()
        )
        self.normalizer = FeatureNormalizer(config.normalizer, config.image_encoder.num_channels)
        self.generator: Generator = config.generator.build(config.joints)
        self.image_decoder: ImageDecoder = (
            AbsentPart("image_decoder")
            if "image_decoder" in absent
            else config.image_decoder.build()
        )
        # Holds the model's device, because weights may be elsewhere while they are offloaded.
        self.register_buffer("_anchor", torch.empty(0), persistent=False)

    @property
    def device(self) -> torch.device:
        """The device that computes; with several devices, the backbone's."""
        return self._anchor.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the generator's weights, which the features and their noise share."""
        return next(self.generator.parameters()).dtype

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Returns the raw features [M, N, C] of images [M, 3, P, P] in [-1, 1]."""
        return self.image_encoder(pixels)

    def decoder_features(self, features: Tensor) -> Tensor:
        """Returns normalized features [B, N, K] in the form that the image decoder reads."""
        if self.config.image_decoder.reads_raw:
            return self.normalizer.inverse(features)
        return features

    def prompt_images(
        self, pixels: Tensor | Sequence[Tensor] | None, features: Tensor | None = None
    ) -> PromptImages | None:
        """Returns the images of prompts in the form that `Prompts` and `text_states` take.

        Args:
            pixels: [M, 3, P, P] in [-1, 1], or images [3, H, W] of several shapes for a backbone
                that accepts any shape. None if there are no images, or features are given.
            features: raw features of the images, [M, N, C], if known.

        Raises:
            ValueError: if the backbone reads pixels and only features are given.
        """
        if self.config.backbone.image_channels is not None:
            if features is None and isinstance(pixels, Tensor):
                features = self.encode_images(pixels)
            return None if features is None else features.to(self.dtype)
        if pixels is None and features is not None:
            raise ValueError("this backbone sees the pixels of prompts; features are not enough")
        return None if pixels is None else self.backbone.vision_inputs(pixels)

    def reference(
        self, pixels: Tensor | Sequence[Tensor] | None, features: PromptImages | None = None
    ) -> Tensor | None:
        """Returns normalized features [M, N, K] of images to edit.

        Args:
            pixels: [M, 3, P, P] in [-1, 1].
            features: raw features of the images, [M, N, C], if known; other forms are ignored.

        Returns:
            None if there are no images, or the generator does not read images to edit.
        """
        if not self.config.generator.takes_reference:
            return None
        if not isinstance(features, Tensor):
            features = self.encode_images(pixels) if isinstance(pixels, Tensor) else None
        if features is None:
            return None
        return self.normalizer(features.to(self.dtype))

    def plan(
        self, prompts: Prompts, *, prompt_gradient: bool = False, keep_states: bool = False
    ) -> Plan:
        """Returns the plan of prompts, from which features are drawn.

        Args:
            prompts: tokenized prompts of images.
            prompt_gradient: back-propagate through the prompts even if no weight of the backbone is
                trained. The gradients are the same; the pass is slower.
            keep_states: keep the backbone's states in `Plan.backbone_states`.
        """
        return self.generator.plan(
            self.backbone, prompts, prompt_gradient=prompt_gradient, keep_states=keep_states
        )

    def read_rows(
        self,
        rows: Rows,
        noisy: Tensor,
        sigma: Tensor,
        is_dropped: Tensor,
        *,
        keep_states: bool = False,
    ) -> RowOutput:
        """Returns velocities and states of rows of text and images in turn, to train on them.

        The arguments are those of `Generator.read_rows`.
        """
        return self.generator.read_rows(
            self.backbone, rows, noisy, sigma, is_dropped, keep_states=keep_states
        )

    def text_states(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        prompt_images: PromptImages | None = None,
        cache: "BackboneCache | None" = None,
    ) -> Tensor:
        """Returns the backbone's hidden states of token rows, [B, T, D].

        Args:
            input_ids: [B, T].
            attention_mask: [B, past + T].
            prompt_images: images of the rows, from `prompt_images`. A row with images must be
                complete: no part of it may be in the cache.
            cache: cache from `backbone.new_cache()` with keys and values of earlier tokens.
        """
        embeds = self.backbone.embed(input_ids, prompt_images)
        if not isinstance(prompt_images, VisionInputs):
            return self.backbone(embeds, attention_mask, cache)
        # In text about images, positions follow the grids of the images. In prompts for images,
        # which `plan` reads, they count tokens.
        positions = self.backbone.image_positions(input_ids, attention_mask, prompt_images)
        return self.backbone(embeds, attention_mask, cache, positions)

    def compile_targets(self) -> list[nn.Module]:
        """Returns the modules that are worth compiling: repeated blocks of one shape."""
        drawing = repeated_blocks(self.generator)
        return [*self.backbone.decoder.layers, *drawing, *self.image_decoder.layers]
