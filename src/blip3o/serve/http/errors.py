"""Errors as OpenAI's clients expect them: {"error": {"message", "type", "param", "code"}}."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.responses import Response

from blip3o.serve.http.fields import UNSUPPORTED
from blip3o.serve.http.response_schemas import ITEM_TYPES
from blip3o.serve.http.turns import PART_TYPES
from blip3o.serve.http.wording import in_words

T = TypeVar("T", bound=BaseModel)
_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
_KINDS = {
    "extra_forbidden": "unknown_parameter",
    "missing": "missing_required_parameter",
    UNSUPPORTED: "unsupported_value",
}
_TAGS = (*PART_TYPES, *ITEM_TYPES)
_LONGEST_NAME = 100


class ApiError(Exception):
    """A request that is answered with an error.

    Args:
        status: HTTP status.
        message: what is wrong and what to do.
        param: the field that is wrong.
        code: a short name for programs.
        headers: further headers of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """The error object."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {
            "error": {
                "message": self.message,
                "type": _TYPES.get(self.status, kind),
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self) -> Response:
        """Returns the answer, in ASCII so that half characters of a request cannot break it."""
        return Response(
            json.dumps(self.body),
            self.status,
            {**self.headers, "x-should-retry": "true" if self.status == 429 else "false"},
            "application/json",
        )


def invalid(message: str, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """Returns the error for a request that cannot be met as asked."""
    return ApiError(400, message, param=param, code=code)


def validated(schema: type[T], fields: Mapping[str, Any]) -> T:
    """Returns fields as what a schema says that they are.

    Raises:
        ApiError: 400 for what it does not allow.
    """
    try:
        return schema.model_validate(fields)
    except ValidationError as error:
        raise from_validation(error.errors()) from error


def from_validation(errors: Sequence[Any]) -> ApiError:
    """Returns the error for what a schema found first.

    Args:
        errors: as pydantic lists them.
    """
    first = min(errors, key=lambda error: error["type"] != "extra_forbidden")
    param = _field(first["loc"])
    code = _KINDS.get(first["type"], "invalid_value")
    if first["type"] == "string_unicode":
        return invalid("the request holds text that is not valid Unicode")
    if code == "unknown_parameter":
        return invalid(f"unknown parameter {param!r}", param, code)
    if code == "missing_required_parameter":
        message = "the request has no body" if param is None else f"{param} is missing"
        return invalid(message, param, code)
    return invalid(f"{param or 'the body'} {in_words(first)}", param, code)


def _field(place: Sequence[str | int]) -> str | None:
    """Returns the path of a field, without the names of members of unions."""
    names: list[str] = []
    for before, part in zip((None, *place), place, strict=False):
        is_tag = isinstance(before, int) and part in _TAGS
        if part != "body" and not is_tag and part != "[key]":
            names.append(str(part)[:_LONGEST_NAME])
    return ".".join(names) or None
