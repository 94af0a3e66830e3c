"""LMFusion: image blocks run through layers of their own, beside the backbone's.

The image's layers have the shape of the backbone's. In each layer they attend to the keys and
values of the text, which the backbone's layers computed, so the text half can stay frozen. With
both halves trained this is BAGEL's mixture of transformers.
"""

import dataclasses
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from blip3o.models.backbones.base import Backbone, block_states
from blip3o.models.backbones.cache import KeyValueCache
from blip3o.models.generators.blocks import BlockConfig, BlockGenerator
from blip3o.models.generators.plan import Joints


@dataclasses.dataclass(frozen=True, kw_only=True)
class LMFusionConfig(BlockConfig):
    """Settings of LMFusion; see `BlockConfig`.

    Args:
        fresh_layers: weights that the image's layers start from. "backbone": as a fresh backbone,
            to be replaced by a copy of the text's layers, as in the paper. "fan_in": normal with
            the standard deviation 1 / sqrt(fan in), which learned faster than copies in a trial at
            pocket size.
    """

    kind: str = "lmfusion"
    fresh_layers: Literal["backbone", "fan_in"] = "backbone"

    def build(self, joints: Joints) -> "LMFusion":
        """Returns the generator with fresh weights."""
        return LMFusion(self, joints)


class LMFusion(BlockGenerator):
    """A decoder of the backbone's shape, without an embedding table, between patch layers.

    Args:
        config: settings.
        joints: sizes of the neighbors.
    """

    quantizable: ClassVar[tuple[str, ...]] = ("decoder",)

    def __init__(self, config: LMFusionConfig, joints: Joints) -> None:
        super().__init__(config, joints)
        self.config = config
        self.decoder = joints.build_decoder()
        del self.decoder.embed_tokens  # the image enters through patches
        if config.fresh_layers == "fan_in":
            for layer in self.decoder.modules():
                if isinstance(layer, nn.Linear):
                    nn.init.normal_(layer.weight, std=layer.in_features**-0.5)

    def block_states(
        self,
        backbone: Backbone[Any],
        hidden: Tensor,
        visible: Tensor,
        cache: KeyValueCache,
        positions: Tensor,
    ) -> Tensor:
        """Returns the states of image tokens in the image's own layers."""
        axes = backbone.num_axes
        return block_states(self.decoder, axes, hidden, visible, cache, positions)
