"""Translates other spellings of names: of newer libraries, and of earlier versions of this package.

    transformers 4.51                   4.52 and later, where its converters do not rename
    visual.*                            model.visual.*
    model.layers.*                      model.language_model.layers.*
    model.vision_tower.vision_model.*   model.vision_tower.*  (version 5 has no such part in SigLIP)

A model saved without its head (`Qwen2_5_VLModel`) has no `model.` in front. The other maps in this
folder know only the spelling of 4.51.

    earlier versions of this package            now
    num_query_tokens, query_init_std, dit       generator (`query_dit`)
    question_pictures                           question_images
    query_tokens.*, dit.*                       generator.query_tokens.*, generator.dit.*
"""

import dataclasses
import re
from collections.abc import Mapping

from blip3o.core.errors import UsageError
from blip3o.weights.strict import TensorT, fold

_ADDED = r"latent_queries$|dit\.model\.|gen_vision_tower\.|vision_tower\.|mm_projector\."
_DECODER = r"embed_tokens\.|layers\.\d|norm\.weight$"
_TOWER = r"embeddings\.|encoder\.layers\.|post_layernorm\.|head\."


@dataclasses.dataclass(frozen=True)
class Spellings:
    """Rules that translate every spelling of a name to one.

    Args:
        rules: patterns and their replacements, applied in order.
    """

    rules: tuple[tuple[str, str], ...]

    def respelled(self, tensors: Mapping[str, TensorT], where: str) -> dict[str, TensorT]:
        """Returns weights with each name in its one spelling.

        Args:
            tensors: weights by names in any spelling.
            where: the source of the weights, for messages.

        Raises:
            UsageError: if two names are spellings of the same one.
        """
        result: dict[str, TensorT] = {}
        twice: list[str] = []
        for name, tensor in tensors.items():
            own = name
            for pattern, new in self.rules:
                own = re.sub(pattern, new, own)
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
"""Spellings in BLIP3-o folders, for each language model."""

SIGLIP2_SANA = Spellings(
    (
        (rf"^encoder\.(model\.)?(vision_model\.)?(?={_TOWER})", "encoder.model.vision_model."),
        (r"^connector\.", "transformer.connector."),
        (r"^transformer\.(?!connector\.|transformer\.)", "transformer.transformer."),
    )
)
"""Spellings in SigLIP2 + SANA folders, and in checkpoints of the reconstruction training."""

DIFFUSERS_VAE = Spellings(
    (
        (r"(^|\.)(attentions\.\d+)\.query\.", r"\1\2.to_q."),
        (r"(^|\.)(attentions\.\d+)\.key\.", r"\1\2.to_k."),
        (r"(^|\.)(attentions\.\d+)\.value\.", r"\1\2.to_v."),
        (r"(^|\.)(attentions\.\d+)\.proj_attn\.", r"\1\2.to_out.0."),
    )
)
"""Spellings in auto-encoders that diffusers saved before 0.14."""

OWN = Spellings(((r"^(query_tokens|dit)\.", r"generator.\1."),))
"""Spellings in folders of earlier versions of this package."""

_QUERIES = ("num_query_tokens", "query_init_std")
_DERIVED = ("kind", "in_channels", "condition_size", "grid", "reference_channels")
"""Fields of the former `dit` that follow from other parts of the model, or from the new fields."""


def upgraded_config(data: object, num_query_tokens: object = None) -> object:
    """Returns the content of a config in its present form; other data is returned unchanged.

    Args:
        data: content of config.json, or of a part of it, in the former or the present form.
        num_query_tokens: value to use if `data` contains a `dit` and no `num_query_tokens`.
    """
    if not isinstance(data, Mapping):
        return data
    new = {name: value for name, value in data.items() if name != "question_pictures"}
    if "question_pictures" in data:
        new["question_images"] = data["question_pictures"]
    dit = new.pop("dit", None)
    if isinstance(dit, Mapping):
        queries = {name: new.pop(name) for name in _QUERIES if name in new}
        new["generator"] = {
            "kind": "query_dit",
            "num_query_tokens": num_query_tokens,
            **queries,
            **{name: value for name, value in dit.items() if name not in _DERIVED},
            "takes_reference": bool(dit.get("reference_channels", 0)),
        }
    return new
