"""Transfusion: image blocks run through the backbone's own layers; both share all weights."""

import dataclasses
from typing import Any, ClassVar

from torch import Tensor

from blip3o.models.backbones.base import Backbone
from blip3o.models.backbones.cache import KeyValueCache
from blip3o.models.generators.blocks import BlockConfig, BlockGenerator
from blip3o.models.generators.plan import Joints


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransfusionConfig(BlockConfig):
    """Settings of Transfusion; see `BlockConfig`. All layers are the backbone's."""

    kind: str = "transfusion"

    def build(self, joints: Joints) -> "Transfusion":
        """Returns the generator with fresh weights."""
        return Transfusion(self, joints)


class Transfusion(BlockGenerator):
    """Patch layers around the backbone.

    Args:
        config: settings.
        joints: sizes of the neighbors.
    """

    resident: ClassVar[tuple[str, ...]] = ("patch_in", "patch_out", "time", "unet")

    def __init__(self, config: TransfusionConfig, joints: Joints) -> None:
        super().__init__(config, joints)
        self.config = config

    def block_states(
        self,
        backbone: Backbone[Any],
        hidden: Tensor,
        visible: Tensor,
        cache: KeyValueCache,
        positions: Tensor,
    ) -> Tensor:
        """Returns the states of image tokens in the backbone's layers."""
        return backbone.block_states(hidden, visible, cache, positions)
