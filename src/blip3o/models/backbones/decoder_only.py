"""Decoder-only language models as backbones, with a projector for images and an optional tower.

The layers are the decoder's own; this adapter adds a two-layer projector for image tokens. Images
arrive either as features of the model's image encoder or as pixels for the backbone's own
understanding tower. Axes: M images, N tokens of an image, C feature channels, D width.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from torch import Tensor, nn

from blip3o.core.bounds import Count
from blip3o.core.config import component
from blip3o.imaging.pixels import resized_pixels
from blip3o.models.backbones.base import Backbone, BackboneConfig, DecoderSizes, vocabulary_head
from blip3o.models.encoders.normalizer import FeatureNormalizer, FeatureNormalizerConfig
from blip3o.models.prompts import PromptImages, TowerInputs
from blip3o.models.protocols import ImageEncoderConfig

if TYPE_CHECKING:
    from blip3o.models.backbones.cache import Decoder


class DecoderOnlyConfig(BackboneConfig, Protocol):
    """Config of a `DecoderOnlyBackbone`."""

    @property
    def image_normalizer(self) -> FeatureNormalizerConfig:
        """Normalization of the features before the projector."""

    @property
    def vision_tower(self) -> ImageEncoderConfig | None:
        """Config of the understanding tower, an entry of `ENCODERS`; None without a tower."""

    @property
    def tie_word_embeddings(self) -> bool:
        """Whether the embedding table is also the vocabulary head."""

    def build_decoder(self) -> "Decoder":
        """Returns the language model without its vocabulary head, with fresh weights."""


class SquareImages:
    """Sizes that follow when a tower resizes every image to its own square; a mixin of configs."""

    @property
    def token_px(self) -> None:
        """None: only squares are accepted."""
        return None

    def num_image_tokens(self: DecoderOnlyConfig, image_px: int) -> int:
        """Returns the number of tokens of an image seen by the tower, the same for every side."""
        del image_px
        assert self.vision_tower is not None, "without a tower, the image encoder sets the number"
        return self.vision_tower.num_tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeaturesOrTower(DecoderSizes, SquareImages):
    """Sizes of a decoder that sees features of the image encoder, or pixels with its own tower.

    Args:
        image_channels: channels (C) of the image encoder's features that the projector takes; None
            with a vision tower.
        image_normalizer: normalization of the features before the projector; by default none.
        vision_tower: config of the backbone's own tower for prompt images, an entry of `ENCODERS`;
            None if prompt images are features of the model's image encoder.

    Raises:
        ValueError: unless exactly one of `image_channels` and `vision_tower` is given.
    """

    image_channels: Count | None = None
    image_normalizer: FeatureNormalizerConfig = dataclasses.field(
        default_factory=FeatureNormalizerConfig
    )
    vision_tower: ImageEncoderConfig | None = component(
        "blip3o.models.encoders:ENCODERS", default=None
    )

    def __post_init__(self) -> None:
        if (self.image_channels is None) == (self.vision_tower is None):
            raise ValueError(
                f"a {self.kind} backbone needs either image_channels or a vision_tower"
            )


class DecoderOnlyBackbone(Backbone[DecoderOnlyConfig]):
    """A decoder-only language model that reads images through a projector.

    Args:
        config: sizes; its `vision_tower`, if any, is built here.

    Reference:
        The projector is the published `mlp2x_gelu`; parity family `qwen3_siglip2`.
    """

    def __init__(self, config: DecoderOnlyConfig) -> None:
        super().__init__(config)
        self.decoder = config.build_decoder()
        tower = config.vision_tower
        channels = config.image_channels if tower is None else tower.num_channels
        assert channels is not None, "a config has either image_channels or a vision_tower"
        self.image_normalizer = FeatureNormalizer(config.image_normalizer, channels)
        self.projector = nn.Sequential(
            nn.Linear(self.image_normalizer.num_components, config.hidden_size),
            nn.GELU(),  # exact, not the tanh approximation
            nn.Linear(config.hidden_size, config.hidden_size),
        )
        self.vision_tower = None if tower is None else tower.build()
        self.lm_head = vocabulary_head(
            config.vocab_size, config.hidden_size, is_tied=config.tie_word_embeddings
        )

    def vision_inputs(self, pixels: Tensor | Sequence[Tensor]) -> TowerInputs:
        """Returns images [M, 3, H, W] in the form that `embed` takes, resized for the tower."""
        assert isinstance(pixels, Tensor), "the tower takes images of one shape"
        tower = self.config.vision_tower
        assert tower is not None, "only a backbone with a tower takes pixels"
        return TowerInputs(pixels=resized_pixels(pixels, tower.image_px, tower.image_px))

    def image_tokens(self, images: PromptImages) -> Tensor:
        """Returns the tokens [M, N, D] of features [M, N, C] of the image encoder, or of pixels."""
        dtype = next(self.projector.parameters()).dtype
        if isinstance(images, TowerInputs):
            assert self.vision_tower is not None, "only a backbone with a tower takes pixels"
            images = self.vision_tower(images.pixels.to(dtype))
        return self.projector(self.image_normalizer(images).to(dtype))

    def count_tokens(self, images: PromptImages) -> int:
        """Returns the number of tokens of all images together."""
        if isinstance(images, TowerInputs):
            return len(images.pixels) * self.config.num_image_tokens(images.pixels.shape[-1])
        assert isinstance(images, Tensor), "a decoder-only backbone takes features or squares"
        return images.shape[:2].numel()
