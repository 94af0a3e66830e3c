"""Translates other spellings of published names: newer transformers, and models without a head.

    transformers 4.51                   4.52 and later, where its converters do not rename
    visual.*                            model.visual.*
    model.layers.*                      model.language_model.layers.*
    model.vision_tower.vision_model.*   model.vision_tower.*  (SigLIP lost the middle part in 5)

A model saved without its head (`Qwen2_5_VLModel`) has no `model.` in front. The maps in this folder
know the spelling of 4.51 only.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import TypeVar

from blip3o.core.errors import UsageError
from blip3o.weights.strict import fold

Held = TypeVar("Held")

_ADDED = r"latent_queries$|dit\.model\.|gen_vision_tower\.|vision_tower\.|mm_projector\."
_DECODER = r"embed_tokens\.|layers\.\d|norm\.weight$"
_TOWER = r"embeddings\.|encoder\.layers\.|post_layernorm\.|head\."


@dataclasses.dataclass(frozen=True)
class Spellings:
    """Rules that turn any spelling of a name into one.

    Args:
        rules: patterns and their replacements; all apply, in order.
    """

    rules: tuple[tuple[str, str], ...]

    def name(self, name: str) -> str:
        """Returns the one spelling of a name."""
        for pattern, new in self.rules:
            name = re.sub(pattern, new, name)
        return name

    def respelled(self, tensors: Mapping[str, Held], where: str) -> dict[str, Held]:
        """Returns weights under the one spelling of their names.

        Args:
            tensors: by any spelling.
            where: the place of the weights, for messages.

        Raises:
            UsageError: if two of them are spellings of one name.
        """
        result: dict[str, Held] = {}
        twice: list[str] = []
        for name, tensor in tensors.items():
            own = self.name(name)
            twice += [f"{own} (also as {name})"] if own in result else []
            result[own] = tensor
        if twice:
            raise UsageError(f"weights in {where} come twice, in two spellings: {fold(twice)}")
        return result


BLIP3O = Spellings(
    (
        (r"^(model\.)?language_model\.(model\.)?lm_head\.", "lm_head."),
        (rf"^(model\.)?language_model\.(model\.)?(?={_DECODER}|{_ADDED})", "model."),
        (r"^model\.(language_model\.)?visual\.", "visual."),
        (rf"^(?={_DECODER}|{_ADDED})", "model."),
        (rf"^model\.vision_tower\.(?={_TOWER})", "model.vision_tower.vision_model."),
    )
)
"""Models of the BLIP3-o family, whatever their language model."""

SIGLIP2_SANA = Spellings(
    (
        (rf"^encoder\.model\.(?={_TOWER})", "encoder.model.vision_model."),
        (rf"^encoder\.(?={_TOWER})", "encoder.vision_model."),
    )
)
"""The SigLIP2 + SANA folder."""

DIFFUSERS_VAE = Spellings(
    (
        (r"(^|\.)(attentions\.\d+)\.query\.", r"\1\2.to_q."),
        (r"(^|\.)(attentions\.\d+)\.key\.", r"\1\2.to_k."),
        (r"(^|\.)(attentions\.\d+)\.value\.", r"\1\2.to_v."),
        (r"(^|\.)(attentions\.\d+)\.proj_attn\.", r"\1\2.to_out.0."),
    )
)
"""Auto-encoders that diffusers saved before 0.14."""
