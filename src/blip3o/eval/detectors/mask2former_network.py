"""The network of Mask2Former with a Swin backbone, from the layers of transformers."""

import dataclasses
from typing import TYPE_CHECKING

from torch import Tensor, nn

from blip3o.core.bounds import Count

if TYPE_CHECKING:
    from transformers.models.mask2former.configuration_mask2former import Mask2FormerConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mask2FormerSizes:
    """Sizes of a network; the defaults are those of mmdetection's instance model on Swin-S.

    Args:
        swin_channels: channels of the first stage of the backbone; each stage doubles them.
        swin_layers: layers of each stage.
        swin_heads: attention heads of each stage.
        window: side of an attention window in tokens.
        hidden_size: channels of both decoders; a multiple of 32 and of `num_heads`.
        num_heads: attention heads of both decoders.
        pixel_layers: layers of the pixel decoder.
        pixel_intermediate_size: width of its feed-forward layers.
        query_layers: layers of the decoder of queries.
        query_intermediate_size: width of its feed-forward layers.
        num_queries: most objects in one image.
        num_classes: classes, without "no object".
    """

    swin_channels: Count = 96
    swin_layers: tuple[int, ...] = (2, 2, 18, 2)
    swin_heads: tuple[int, ...] = (3, 6, 12, 24)
    window: Count = 7
    hidden_size: Count = 256
    num_heads: Count = 8
    pixel_layers: Count = 6
    pixel_intermediate_size: Count = 1024
    query_layers: Count = 9
    query_intermediate_size: Count = 2048
    num_queries: Count = 100
    num_classes: Count = 80

    def __post_init__(self) -> None:
        if not len(self.swin_layers) == len(self.swin_heads) == 4:
            raise ValueError("swin_layers and swin_heads must have 4 numbers")
        if self.hidden_size % 32 or self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size must be a multiple of 32 and of num_heads, got {self.hidden_size}"
            )

    @classmethod
    def tiny(cls) -> "Mask2FormerSizes":
        """Returns sizes for tests."""
        return cls(
            swin_channels=8,
            swin_layers=(1, 1, 2, 1),
            swin_heads=(1, 2, 4, 8),
            window=4,
            hidden_size=32,
            num_heads=4,
            pixel_layers=1,
            pixel_intermediate_size=32,
            query_layers=3,
            query_intermediate_size=32,
            num_queries=8,
        )

    def build(self) -> "Mask2FormerNetwork":
        """Returns the network with fresh weights."""
        return Mask2FormerNetwork(self)


OFFICIAL_SIZES = Mask2FormerSizes()


class Mask2FormerNetwork(nn.Module):
    """Pixels [B, 3, H, W] to logits of classes [B, Q, C + 1] and of masks [B, Q, H / 4, W / 4].

    Names of weights are those of transformers' `Mask2FormerForUniversalSegmentation`. That class
    cannot be used: it builds its loss in any case, which needs scipy.

    Args:
        sizes: the sizes.

    Reference:
        Cheng et al. (arXiv 2112.01527); parity family `mask2former`.
    """

    def __init__(self, sizes: Mask2FormerSizes) -> None:
        from transformers.models.mask2former.modeling_mask2former import Mask2FormerModel

        super().__init__()
        self.model = Mask2FormerModel(_transformers_config(sizes))
        self.class_predictor = nn.Linear(sizes.hidden_size, sizes.num_classes + 1)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the logits of classes and of masks."""
        out = self.model(pixels, output_hidden_states=True)
        queries = out.transformer_decoder_intermediate_states[-1].transpose(0, 1)
        return self.class_predictor(queries), out.masks_queries_logits[-1]

    def pixel_features(self, pixels: Tensor) -> Tensor:
        """Returns the features [B, C, H / 4, W / 4] that masks are made of.

        All operations before them are continuous in the pixels.
        """
        return self.model.pixel_level_module(pixels).decoder_last_hidden_state


def _transformers_config(sizes: Mask2FormerSizes) -> "Mask2FormerConfig":
    from transformers.models.mask2former.configuration_mask2former import Mask2FormerConfig
    from transformers.models.swin.configuration_swin import SwinConfig

    swin = {
        "embed_dim": sizes.swin_channels,
        "depths": list(sizes.swin_layers),
        "num_heads": list(sizes.swin_heads),
        "window_size": sizes.window,
        "out_features": ["stage1", "stage2", "stage3", "stage4"],
    }
    both = {
        "backbone_config": SwinConfig.from_dict(swin),
        "feature_size": sizes.hidden_size,
        "mask_feature_size": sizes.hidden_size,
        "hidden_dim": sizes.hidden_size,
        "encoder_feedforward_dim": sizes.pixel_intermediate_size,
        "encoder_layers": sizes.pixel_layers,
        "decoder_layers": sizes.query_layers + 1,  # transformers counts the queries as a layer
        "num_attention_heads": sizes.num_heads,
        "dim_feedforward": sizes.query_intermediate_size,
        "num_queries": sizes.num_queries,
        "attn_implementation": "eager",  # fused kernels may multiply in TF32
    }
    return Mask2FormerConfig.from_dict(both)
