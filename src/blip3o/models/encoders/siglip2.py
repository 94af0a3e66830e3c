"""A SigLIP2 vision transformer whose patch tokens are the features.

The layers are transformers' `SiglipVisionModel`, so published SigLIP2 weights load by their own
names. This adapter chooses the layer and pools the token grid.
"""

import dataclasses

from torch import Tensor

from blip3o.core.bounds import Whole
from blip3o.models.encoders.grid import VisionTransformerConfig, check_pixels, pool_tokens
from blip3o.models.protocols import ImageEncoder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Siglip2EncoderConfig(VisionTransformerConfig):
    """Sizes of a SigLIP2 vision tower; see also `VisionTransformerConfig`.

    Args:
        skip_last: number of last layers to skip; above 0 the final norm is skipped as well (the
            published SANA decoder reads the states before the last layer: 1).
        keep_head: include the published pooling head, frozen. Features do not use it, but
            checkpoints that contain it load and save completely.
    """

    kind: str = "siglip2"
    skip_last: Whole = 0
    keep_head: bool = False

    @classmethod
    def so400m(
        cls, image_px: int, patch_px: int, *, keep_head: bool = False
    ) -> "Siglip2EncoderConfig":
        """Returns the sizes of SigLIP2 so400m, with one feature token per patch.

        Args:
            image_px: side of the square input image: 512 for patches of 16, 378 for patches of 14
                (the release named 384, whose 27 x 27 patches cover 378 pixels).
            patch_px: side of a patch.
            keep_head: see the class.
        """
        return cls(
            image_px=image_px,
            patch_px=patch_px,
            hidden_size=1152,
            intermediate_size=4304,
            num_layers=27,
            num_heads=16,
            keep_head=keep_head,
        )

    def build(self) -> "Siglip2Encoder":
        """Returns the encoder with fresh weights."""
        return Siglip2Encoder(self)


class Siglip2Encoder(ImageEncoder):
    """Pixels [B, 3, P, P] in [-1, 1] to features [B, N, C], tokens row by row.

    Args:
        config: sizes.

    Reference:
        SigLIP 2 (arXiv 2502.14786); BLIP3-o section 3 pools the token grid the same way.
    """

    def __init__(self, config: Siglip2EncoderConfig) -> None:
        from transformers.models.siglip.configuration_siglip import SiglipVisionConfig
        from transformers.models.siglip.modeling_siglip import SiglipVisionModel

        super().__init__()
        self.config = config
        tower_config = SiglipVisionConfig(
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            image_size=config.image_px,
            patch_size=config.patch_px,
        )
        tower_config.vision_use_head = config.keep_head
        self.tower = SiglipVisionModel(tower_config)
        if config.keep_head:
            self.tower.head.requires_grad_(False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Returns the features of images; see `ImageEncoder.forward`."""
        check_pixels(pixels, self.config.image_px)
        if self.config.skip_last == 0:
            tokens = self.tower(pixels).last_hidden_state
        else:
            states = self.tower(pixels, output_hidden_states=True).hidden_states
            tokens = states[-1 - self.config.skip_last]
        return pool_tokens(tokens, self.config.pool)
