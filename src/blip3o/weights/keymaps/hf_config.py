"""Reads config.json files of transformers 4 and 5, which name the same fields differently.

Version 5 nests the language model's fields in `text_config`, joins `rope_theta` and `rope_scaling`
into `rope_parameters`, and omits fields with default values.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from blip3o.core.errors import UsageError
from blip3o.weights.small_files import require_mapping

DECODER_FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "tie_word_embeddings": "tie_word_embeddings",
    "rms_norm_eps": "norm_eps",
    "max_position_embeddings": "max_positions",
}
"""Fields of a language model that every family has, and our names for them."""

_ACTIVATION = "silu"
_UNSCALED_ROPE = ("default", "mrope")


@contextmanager
def reported() -> Iterator[None]:
    """Converts errors about the content of a config.json to a `UsageError`."""
    try:
        yield
    except KeyError as error:
        raise UsageError(f"config.json of the published model lacks {error}") from error
    except (TypeError, ValueError, ArithmeticError, UsageError) as error:
        raise UsageError(f"config.json of the published model is unfit: {error}") from error


def text_fields(data: Mapping[str, object]) -> dict[str, object]:
    """Returns the fields of the language model and of the whole model in one mapping.

    Args:
        data: content of config.json, flat or nested. A nested field replaces a flat one, as in
            transformers.

    Raises:
        UsageError: if it describes a network that this package does not have.
    """
    text = data.get("text_config")
    nested = dict(text) if isinstance(text, Mapping) else {}
    fields: dict[str, object] = {**data, **nested}
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
    first, count = fields.get("max_window_layers", 0), fields.get("num_hidden_layers", 0)
    has_full_layers_only = isinstance(first, int) and isinstance(count, int) and first >= count
    if fields.get("use_sliding_window") and not has_full_layers_only:
        raise UsageError("use_sliding_window must be false: windowed attention is not supported")
    return fields


def require_activation(fields: Mapping[str, object], prefix: str) -> None:
    """Refuses a network with another activation than SiLU.

    Args:
        fields: fields of a part of config.json.
        prefix: prefix of the names of these fields, for messages.

    Raises:
        UsageError: if it has another activation.
    """
    if fields.get("hidden_act") not in (None, _ACTIVATION):
        raise UsageError(f"{prefix}hidden_act must be {_ACTIVATION}, got {fields['hidden_act']!r}")


def rope_of(fields: Mapping[str, object]) -> tuple[object, object]:
    """Returns the rotary positions of a language model, not validated.

    Args:
        fields: returned by `text_fields`.

    Returns:
        The base of the frequencies, and a list with the numbers of frequencies that encode time,
        row and column; the list is empty for one-dimensional positions.

    Raises:
        KeyError: if the base of the frequencies is missing.
        UsageError: for scaled positions, which this package does not compute.
    """
    scaling, joined = (
        require_mapping(fields.get(name) or {}, name)
        for name in ("rope_scaling", "rope_parameters")
    )
    inner = [one for one in joined.values() if isinstance(one, Mapping)]
    if inner and all(one == inner[0] for one in inner):
        joined = inner[0]  # one for each kind of attention, all equal
    rope = {**scaling, **joined}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in _UNSCALED_ROPE:
        raise UsageError(f"rotary positions of type {kind!r} are not supported")
    theta = rope["rope_theta"] if "rope_theta" in rope else fields["rope_theta"]
    return theta, rope.get("mrope_section") or []


def first_of(fields: Mapping[str, object], names: tuple[str, ...]) -> object:
    """Returns the first value that is present under one of some names, or None.

    A list of equal sides, as of a square, becomes one number.

    Raises:
        UsageError: if the sides differ.
    """
    value = next((fields[name] for name in names if fields.get(name) is not None), None)
    if isinstance(value, list) and value and all(isinstance(side, int) for side in value):
        if len(set(value)) > 1:
            raise UsageError(f"{names[0]} must be a square's side, got {value}")
        return value[0]
    return value
