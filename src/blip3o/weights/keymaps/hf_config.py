"""Reads config.json files of transformers 4 and 5, which name the same fields differently.

Version 5 nests the language model's fields in `text_config`, joins `rope_theta` and `rope_scaling`
into `rope_parameters`, and leaves out what is a default.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from blip3o.core.errors import UsageError

_ACTIVATION = "silu"
_PLAIN_ROPE = ("default", "mrope")


class Rope(NamedTuple):
    """Rotary positions.

    Args:
        theta: base of the frequencies.
        sections: pairs of channels that turn with time, row and column; none for plain positions.
    """

    theta: float
    sections: tuple[int, ...]


def text_fields(data: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of the language model and of the whole model in one mapping.

    Args:
        data: the content of config.json, flat or nested. A nested field replaces a flat one, as in
            transformers.

    Raises:
        UsageError: if it describes a network that is not ours.
    """
    text = data.get("text_config")
    nested = dict(text) if isinstance(text, Mapping) else {}
    fields = {**data, **nested}
    # Tied embeddings concern the whole model, although either part may state them.
    ties = [part["tie_word_embeddings"] for part in (data, nested) if "tie_word_embeddings" in part]
    fields.pop("tie_word_embeddings", None)
    if ties and all(tie == ties[0] for tie in ties):
        fields["tie_word_embeddings"] = ties[0]
    if fields.get("num_key_value_heads", 0) is None:
        fields["num_key_value_heads"] = fields.get("num_attention_heads")
    if fields.get("image_token_id") is None and fields.get("image_token_index") is not None:
        fields["image_token_id"] = fields["image_token_index"]
    require_activation(fields, "")
    slides = fields.get("use_sliding_window")
    if slides and fields.get("max_window_layers", 0) < fields.get("num_hidden_layers", 0):
        raise UsageError("use_sliding_window must be false: layers with windows are not known here")
    return fields


def require_activation(fields: Mapping[str, Any], front: str) -> None:
    """Refuses a network with another activation than ours.

    Args:
        fields: of a part of config.json.
        front: prefix of the part's fields, for messages.

    Raises:
        UsageError: if it has another one.
    """
    if fields.get("hidden_act") not in (None, _ACTIVATION):
        raise UsageError(f"{front}hidden_act must be {_ACTIVATION}, got {fields['hidden_act']!r}")


def rope_of(fields: Mapping[str, Any]) -> Rope:
    """Returns the rotary positions of a language model.

    Args:
        fields: returned by `text_fields`.

    Raises:
        KeyError: if the base of the frequencies is missing.
        UsageError: for scaled positions, which this package does not compute.
    """
    scaling, joined = fields.get("rope_scaling") or {}, fields.get("rope_parameters") or {}
    inner = [one for one in joined.values() if isinstance(one, Mapping)]
    if inner and all(one == inner[0] for one in inner):
        joined = inner[0]  # one for each kind of attention, all equal
    rope = {**scaling, **joined}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in _PLAIN_ROPE:
        raise UsageError(f"rotary positions of type {kind!r} are not known here")
    theta = rope["rope_theta"] if "rope_theta" in rope else fields["rope_theta"]
    return Rope(theta, tuple(rope.get("mrope_section") or ()))


def first_of(fields: Mapping[str, Any], names: tuple[str, ...]) -> Any:  # noqa: ANN401
    """Returns the value of the first name that is present, or None.

    Two equal sides of a square become one number.

    Raises:
        UsageError: if the two sides differ.
    """
    value = next((fields[name] for name in names if fields.get(name) is not None), None)
    if isinstance(value, list) and value and all(isinstance(side, int) for side in value):
        if len(set(value)) > 1:
            raise UsageError(f"{names[0]} must be a square's side, got {value}")
        return value[0]
    return value
