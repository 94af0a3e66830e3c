"""A CLIP vision transformer whose patch tokens are the features.

The layers are transformers' `CLIPVisionModel`, so published CLIP weights load by their own names.
This adapter chooses the layer, normalizes every token and pools the token grid.
"""

import dataclasses
from typing import Literal

from torch import Tensor

from blip3o.core.bounds import Whole
from blip3o.imaging.pixels import normalize_for_clip
from blip3o.models.encoders.grid import VisionTransformerConfig, check_pixels, pool_tokens
from blip3o.models.protocols import ImageEncoder


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipEncoderConfig(VisionTransformerConfig):
    """Sizes of a CLIP vision tower; see also `VisionTransformerConfig`.

    Args:
        hidden_act: activation of the MLPs: "quick_gelu" in OpenAI's CLIP, "gelu" in later models.
        skip_last: number of last layers to skip; above 0 the final norm is skipped as well (LLaVA
            reads the states before the last layer: 1).
    """

    kind: str = "clip"
    hidden_act: Literal["quick_gelu", "gelu"] = "quick_gelu"
    skip_last: Whole = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.skip_last <= self.num_layers:
            raise ValueError(f"skip_last must be 0 to {self.num_layers}, got {self.skip_last}")

    def build(self) -> "ClipEncoder":
        """Returns the encoder with fresh weights."""
        return ClipEncoder(self)


class ClipEncoder(ImageEncoder):
    """Pixels [B, 3, P, P] in [-1, 1] to features [B, N, C], tokens row by row.

    The encoder normalizes the pixels with CLIP's statistics; `tower` takes normalized pixels.

    Args:
        config: sizes.

    Reference:
        CLIP (arXiv 2103.00020); BLIP3-o section 3 pools the token grid the same way.
    """

    def __init__(self, config: ClipEncoderConfig) -> None:
        from transformers.models.clip.configuration_clip import CLIPVisionConfig
        from transformers.models.clip.modeling_clip import CLIPVisionModel

        super().__init__()
        self.config = config
        self.tower = CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=config.hidden_size,
                intermediate_size=config.intermediate_size,
                num_hidden_layers=config.num_layers,
                num_attention_heads=config.num_heads,
                hidden_act=config.hidden_act,
                image_size=config.image_px,
                patch_size=config.patch_px,
            )
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Returns the features of images, without the class token; see `ImageEncoder.forward`."""
        check_pixels(pixels, self.config.image_px)
        normalized = normalize_for_clip(pixels)
        if self.config.skip_last == 0:
            # The published model norms only the class token, but patch tokens are unscaled too.
            tokens = self.tower.post_layernorm(self.tower(normalized).last_hidden_state)
        else:
            states = self.tower(normalized, output_hidden_states=True).hidden_states
            tokens = states[-1 - self.config.skip_last]
        return pool_tokens(tokens[:, 1:], self.config.pool)
