"""Errors in the format of OpenAI's API: {"error": {"message", "type", "param", "code"}}."""

import json
from collections.abc import Mapping, Sequence
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from starlette.responses import Response

from blip3o.core.errors import HttpError
from blip3o.serve.http.fields import UNSUPPORTED, JsonObject
from blip3o.serve.http.schemas import ITEM_TYPES
from blip3o.serve.http.turns import PART_TYPES

T = TypeVar("T", bound=BaseModel)
_ERROR_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
_CODES = {
    "extra_forbidden": "unknown_parameter",
    "missing": "missing_required_parameter",
    UNSUPPORTED: "unsupported_value",
}
_TAGS = (*PART_TYPES, *ITEM_TYPES)
_LONGEST_NAME = 100
_LONGEST_VALUE = 60
_VALUE_TYPES = {
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


class ApiError(HttpError):
    """An error to send in the form of OpenAI's API."""

    @property
    def body(self) -> JsonObject:
        """The JSON body of the answer."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {
            "error": {
                "message": self.message,
                "type": _ERROR_TYPES.get(self.status, kind),
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self) -> Response:
        """Returns the answer in ASCII, because it may quote unpaired surrogates of a request."""
        return Response(
            json.dumps(self.body),
            self.status,
            {**self.headers, "x-should-retry": "true" if self.status == 429 else "false"},
            "application/json",
        )


def invalid(message: str, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """Returns the 400 error for an invalid request."""
    return ApiError(400, message, param=param, code=code)


def busy(message: str, headers: Mapping[str, str] | None = None) -> ApiError:
    """Returns the 429 error for a request that exceeds a limit of the server for now.

    The header `Retry-After` is 1 second unless `headers` contain it.
    """
    headers = {"Retry-After": "1", **(headers or {})}
    return ApiError(429, f"{message}; try again later", code="queue_full", headers=headers)


def validated(schema: type[T], fields: Mapping[str, object]) -> T:
    """Returns fields as an instance of a schema, or raises an `ApiError` with status 400."""
    try:
        return schema.model_validate(fields)
    except ValidationError as error:
        raise from_validation(error.errors()) from error


def from_validation(errors: Sequence[ErrorDetails]) -> ApiError:
    """Returns the error to send for pydantic's list of errors: unknown fields first."""
    first = min(errors, key=lambda error: error["type"] != "extra_forbidden")
    param = _field(first["loc"])
    code = _CODES.get(first["type"], "invalid_value")
    if first["type"] == "string_unicode":
        return invalid("the request contains text that is not valid Unicode")
    if code == "unknown_parameter":
        return invalid(f"unknown parameter {param!r}", param, code)
    if code == "missing_required_parameter":
        message = "the request has no body" if param is None else f"{param} is missing"
        return invalid(message, param, code)
    return invalid(f"{param or 'the body'} {_described(first)}", param, code)


def _field(place: Sequence[str | int]) -> str | None:
    """Returns the path of a field, without the names of union members."""
    names: list[str] = []
    for before, part in zip((None, *place), place, strict=False):
        is_tag = isinstance(before, int) and part in _TAGS
        if part != "body" and not is_tag and part != "[key]":
            names.append(str(part)[:_LONGEST_NAME])
    return ".".join(names) or None


def _described(error: ErrorDetails) -> str:
    """Returns a description of an error that continues a sentence after the field's name."""
    kind, context = error["type"], error.get("ctx", {})
    if kind in _VALUE_TYPES:
        return f"must be {_VALUE_TYPES[kind]}, got {_shown(error['input'])}"
    if kind in _BOUNDS:
        words, name = _BOUNDS[kind]
        bound = context[name]
        bound = int(bound) if bound == int(bound) else bound
        return f"must be {words} {bound}, got {_shown(error['input'])}"
    if kind in _LENGTHS:
        words, name, unit = _LENGTHS[kind]
        count = context[name]
        return f"must have {words} {count} {unit}{'' if count == 1 else 's'}"
    if kind == "literal_error":
        return f"must be {context['expected']}, got {_shown(error['input'])}"
    if kind == "union_tag_invalid":
        return f"has the type {_shown(context['tag'])}; allowed are {context['expected_tags']}"
    if kind == "union_tag_not_found":
        return "has no type"
    return str(error["msg"])


def _shown(value: object) -> str:
    """Returns a short ASCII form of a JSON value for a message."""
    match value:
        case str():
            text = json.dumps(value[:_LONGEST_VALUE])
            return text if len(value) <= _LONGEST_VALUE else f"{text}..."
        case None | bool() | float():
            return json.dumps(value)
        case int():
            return str(value) if abs(value) < 10**20 else "a huge number"
        case list() | tuple():
            return "a list"
        case _:
            return "an object"
