"""Qwen2.5-VL: the backbone of the released 4B and 8B models, with its own vision tower.

The layers are transformers' text model and vision tower. The released models use two kinds of
rotary positions. When the model generates an image, all three axes count the tokens of the prompt,
even if the prompt contains images. Only text about images uses the 3-axis positions of Qwen2.5-VL.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from blip3o.core.bounds import Count, Whole
from blip3o.imaging.pixels import resized_pixels
from blip3o.models.backbones.attention import with_attention
from blip3o.models.backbones.base import Backbone, DecoderSizes, vocabulary_head
from blip3o.models.backbones.vision import VisionTowerConfig, image_positions, to_vision_inputs
from blip3o.models.prompts import PromptImages, VisionInputs

if TYPE_CHECKING:
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLTextModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen2_5VLBackboneConfig(DecoderSizes):  # noqa: N801  (the model's own name)
    """Sizes of a Qwen2.5-VL; see also `DecoderSizes`.

    Args:
        vision: sizes of the vision tower.
        rotary_sections: numbers of a head's rotary frequencies that encode time, row and column.

    Raises:
        ValueError: if the rotary sections do not add up to half a head.
    """

    kind: str = "qwen2_5_vl"
    vision: VisionTowerConfig = dataclasses.field(default_factory=VisionTowerConfig)
    rotary_sections: tuple[Whole, Whole, Whole] = (16, 24, 24)
    max_positions: Count = 128_000

    def __post_init__(self) -> None:
        half = self.hidden_size // self.num_heads // 2
        if sum(self.rotary_sections) != half:
            raise ValueError(
                f"rotary_sections {list(self.rotary_sections)} must add up to half a head ({half})"
            )

    @classmethod
    def tiny(cls) -> "Qwen2_5VLBackboneConfig":
        """Returns the smallest useful config, for tests."""
        return cls(
            vocab_size=320,
            hidden_size=16,
            intermediate_size=32,
            num_layers=2,
            num_heads=2,
            num_kv_heads=1,
            image_token_id=5,
            tie_word_embeddings=False,
            vision=VisionTowerConfig(
                hidden_size=16,
                intermediate_size=24,
                num_layers=2,
                num_heads=2,
                patch_px=4,
                window_px=16,
                full_attention_layers=(1,),
            ),
            rotary_sections=(2, 1, 1),
            max_positions=512,
        )

    @classmethod
    def published_4b(cls) -> "Qwen2_5VLBackboneConfig":
        """Returns the Qwen2.5-VL-3B of the released 4B model: 3,754,074,112 parameters."""
        return cls(
            vocab_size=151_668,
            hidden_size=2048,
            intermediate_size=11_008,
            num_layers=36,
            num_heads=16,
            num_kv_heads=2,
            image_token_id=151_655,
            tie_word_embeddings=True,
        )

    @classmethod
    def published_8b(cls) -> "Qwen2_5VLBackboneConfig":
        """Returns the Qwen2.5-VL-7B of the released 8B model: 8,289,328,128 parameters."""
        return cls(
            vocab_size=151_668,
            hidden_size=3584,
            intermediate_size=18_944,
            num_layers=28,
            num_heads=28,
            num_kv_heads=4,
            image_token_id=151_655,
            tie_word_embeddings=False,
        )

    @property
    def image_channels(self) -> None:
        """None: the backbone sees pixels with its own tower."""
        return None

    @property
    def num_axes(self) -> int:
        """3: positions have a time, a row and a column."""
        return 3

    @property
    def token_px(self) -> int:
        """Side in pixels of the area that one token covers; the tower sees multiples of it."""
        return self.vision.patch_px * self.vision.merge

    def tower_px(self, side: int) -> int:
        """Returns the side that an image with a side of `side` pixels gets for the tower."""
        return max(1, round(side / self.token_px)) * self.token_px

    def num_image_tokens(self, image_px: int) -> int:
        """Returns the number of tokens of a square image with sides of `image_px`."""
        return (self.tower_px(image_px) // self.token_px) ** 2

    def build(self) -> "Qwen2_5VLBackbone":
        """Returns the backbone with fresh weights."""
        return Qwen2_5VLBackbone(self)

    def build_decoder(self) -> "Qwen2_5_VLTextModel":
        """Returns the text model alone, with fresh weights."""
        from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig
        from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLTextModel

        return with_attention(
            Qwen2_5_VLTextModel(
                Qwen2_5_VLTextConfig(
                    **self.for_transformers(),
                    rope_parameters={
                        "rope_type": "default",
                        "rope_theta": self.rope_theta,
                        "mrope_section": list(self.rotary_sections),
                    },
                )
            )
        )


class Qwen2_5VLBackbone(Backbone[Qwen2_5VLBackboneConfig]):  # noqa: N801
    """Qwen2.5-VL: a language model that sees images of any shape with its own vision tower.

    Args:
        config: sizes.

    Reference:
        Qwen2.5-VL (arXiv 2502.13923); parity families `qwen` and `generate_image`.
    """

    def __init__(self, config: Qwen2_5VLBackboneConfig) -> None:
        super().__init__(config)
        self.visual = config.vision.build(config.hidden_size)
        self.decoder = config.build_decoder()
        self.lm_head = vocabulary_head(
            config.vocab_size, config.hidden_size, is_tied=config.tie_word_embeddings
        )

    def vision_inputs(self, pixels: Tensor | Sequence[Tensor]) -> VisionInputs:
        """Returns images in the form that `embed` takes, resized to whole tokens of the tower."""
        if isinstance(pixels, Tensor):
            return self._patches_of(pixels)
        parts = [self._patches_of(one.unsqueeze(0)) for one in pixels]
        return VisionInputs(
            patches=torch.cat([part.patches for part in parts]),
            grid_thw=torch.cat([part.grid_thw for part in parts]),
        )

    def _patches_of(self, pixels: Tensor) -> VisionInputs:
        """Returns images [M, 3, H, W] as patches."""
        height, width = (self.config.tower_px(side) for side in pixels.shape[2:])
        vision = self.config.vision
        fitted = resized_pixels(pixels, height, width)
        return to_vision_inputs(fitted, vision.patch_px, vision.merge, vision.num_frames)

    def image_tokens(self, images: PromptImages) -> Tensor:
        """Returns the tokens of all images, [S / m**2, D], for S patches and m x m a token."""
        images = _patches(images)
        return self.visual(images.patches, grid_thw=images.grid_thw).pooler_output

    def count_tokens(self, images: PromptImages) -> int:
        """Returns the number of tokens of all images together."""
        return int(self._token_grids(images).prod(1).sum())

    def image_positions(
        self, input_ids: Tensor, attention_mask: Tensor, images: PromptImages
    ) -> Tensor:
        """Returns positions on three axes, [3, B, T]; see `Backbone.image_positions`.

        Raises:
            ValueError: if the placeholders do not form runs that match the images' tokens.
        """
        grids = self._token_grids(images)
        return image_positions(input_ids, attention_mask, grids, self.config.image_token_id)

    def _token_grids(self, images: PromptImages) -> Tensor:
        """Returns frames, rows and columns of tokens of each image, [M, 3]."""
        grids, merge = _patches(images).grid_thw, self.config.vision.merge
        return grids // grids.new_tensor([1, merge, merge])


def _patches(images: PromptImages) -> VisionInputs:
    assert isinstance(images, VisionInputs), "Qwen2.5-VL takes images cut into patches"
    return images
