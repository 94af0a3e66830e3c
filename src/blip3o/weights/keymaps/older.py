"""Model folders that earlier versions of this package wrote.

before                                          now
num_query_tokens, query_init_std, dit           generator (`query_dit`)
question_pictures                               question_images
query_tokens.*, dit.*                           generator.query_tokens.*, generator.dit.*
"""

from collections.abc import Mapping

from blip3o.weights.keymaps.spellings import Spellings

NAMES = Spellings(((r"^(query_tokens|dit)\.", r"generator.\1."),))
"""The names of weights."""

_QUERIES = ("num_query_tokens", "query_init_std")
_DERIVED = ("kind", "in_channels", "condition_size", "grid", "reference_channels")
"""Fields of the former `dit` that follow from its neighbors, or from the new fields."""


def upgraded_config(
    data: Mapping[str, object], num_query_tokens: object = None
) -> Mapping[str, object]:
    """Returns the content of a config in today's form; a config in today's form is unchanged.

    Args:
        data: content of config.json, or of a part of it.
        num_query_tokens: value to use if `data` holds a `dit` and no `num_query_tokens`.
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
