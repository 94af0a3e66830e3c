"""The errors of schemas in words: a field's name, and what it must be."""

import json
from collections.abc import Mapping
from typing import Any

_MOST_CHARACTERS = 60
_PLURAL = {1: ""}
_TYPES = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a smaller whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}
_BOUNDS = {
    "greater_than_equal": ("at least", "ge"),
    "less_than_equal": ("at most", "le"),
    "greater_than": ("above", "gt"),
    "less_than": ("below", "lt"),
}
_LENGTHS = {
    "string_too_short": ("at least", "min_length", "character"),
    "string_too_long": ("at most", "max_length", "character"),
    "too_short": ("at least", "min_length", "item"),
    "too_long": ("at most", "max_length", "item"),
}


def in_words(error: Mapping[str, Any]) -> str:
    """Returns what is wrong with a field, as the end of a sentence that begins with its name.

    Args:
        error: as pydantic lists it.
    """
    kind, context = error["type"], error.get("ctx", {})
    if kind in _TYPES:
        return f"must be {_TYPES[kind]}, got {shown(error['input'])}"
    if kind in _BOUNDS:
        words, name = _BOUNDS[kind]
        bound = context[name]
        bound = int(bound) if bound == int(bound) else bound
        return f"must be {words} {bound}, got {shown(error['input'])}"
    if kind in _LENGTHS:
        words, name, unit = _LENGTHS[kind]
        count = context[name]
        return f"must have {words} {count} {unit}{_PLURAL.get(count, 's')}"
    if kind == "literal_error":
        return f"must be {context['expected']}, got {shown(error['input'])}"
    if kind == "union_tag_invalid":
        return f"has the type {shown(context['tag'])}; there are {context['expected_tags']}"
    if kind == "union_tag_not_found":
        return "has no type"
    return str(error["msg"])


def shown(value: Any) -> str:  # noqa: ANN401  (whatever a client sent)
    """Returns a value of JSON as it may stand in a message: short, in ASCII."""
    match value:
        case str():
            text = json.dumps(value[:_MOST_CHARACTERS])
            return text if len(value) <= _MOST_CHARACTERS else f"{text}..."
        case None | bool() | float():
            return json.dumps(value)
        case int():
            return str(value) if abs(value) < 10**20 else "a huge number"
        case list() | tuple():
            return "a list"
        case _:
            return "an object"
