"""JSON bodies: strict parsing with size limits and readable errors."""

import json
from collections.abc import Callable, Coroutine
from email.message import Message

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.responses import Response

from blip3o.serve.http.errors import ApiError, invalid
from blip3o.serve.http.fields import JsonObject

_MOST_VALUES = 20_000
"""Most list items and object fields of a body. Conversations have hundreds of them. Validation
records every invalid value, so millions would exhaust the memory."""
_MOST_MARKS = 500_000
"""Most commas and opening brackets of a body. A text has fewer commas and brackets than tokens."""
_INVALID = "invalid_json"


def check_marks(body: bytes | bytearray) -> None:
    """Raises an `ApiError` with status 413 for JSON with far too many values, before it is parsed.

    Each value except the first one of a list or an object requires a comma.
    """
    if sum(body.count(mark) for mark in b",[{") > _MOST_MARKS:
        message = f"the body contains more than {_MOST_MARKS} commas and brackets"
        raise ApiError(413, message, code="request_too_large")


class JsonRoute(APIRoute):
    """A route that reads a JSON body with `from_json`; routes for forms are unchanged."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[object, object, Response]]:
        """Returns FastAPI's handler, preceded by our parsing."""
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle

        async def handler(request: Request) -> Response:
            read = _JsonRequest(request.scope, request.receive)
            if body := await read.body():
                _check_type(request.headers.get("content-type", ""))
                read.value = from_json(body)
            return await handle(read)

        return handler


class _JsonRequest(Request):
    """A request whose body has been parsed."""

    value: object = None

    async def json(self) -> object:
        return self.value


def from_json(body: bytes) -> object:
    """Returns the value of a JSON body in UTF-8, UTF-16 or UTF-32.

    Raises:
        ApiError: 400 for invalid JSON or an object with a duplicate field, 413 for too many values.
    """
    try:
        value = json.loads(body, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        message = f"the body is not valid JSON: {error.msg} (character {error.pos})"
        raise invalid(message, code=_INVALID) from error
    except UnicodeDecodeError as error:
        message = f"the body is not valid {error.encoding.upper()} (byte {error.start})"
        raise invalid(message, code=_INVALID) from error
    except RecursionError as error:
        raise invalid("the body is nested too deeply", code=_INVALID) from error
    except ValueError as error:  # Python does not parse integers of thousands of digits
        raise invalid("the body contains a number that is too long", code=_INVALID) from error
    _check_count(value)
    return value


def _object(pairs: list[tuple[str, object]]) -> JsonObject:
    """Returns an object; refuses duplicate fields, whose first value would be lost silently."""
    fields: JsonObject = {}
    for name, value in pairs:
        if name in fields:
            raise invalid(f"{name!a:.100} is given twice", name[:100], _INVALID)
        fields[name] = value
    return fields


def _check_count(value: object) -> None:
    waiting, count = [value], 0
    while waiting:
        one = waiting.pop()
        inner = list(one.values()) if isinstance(one, dict) else one
        if isinstance(inner, list):
            count += len(inner)
            waiting += inner
        if count > _MOST_VALUES:
            message = f"the body contains more than {_MOST_VALUES} values"
            raise ApiError(413, message, code="request_too_large")


def _check_type(header: str) -> None:
    """Refuses other content types, which browsers send across sites without a CORS preflight."""
    message = Message()
    message["content-type"] = header or "none"
    kind, _, detail = message.get_content_type().partition("/")
    if kind != "application" or not (detail == "json" or detail.endswith("+json")):
        advice = "the body must be JSON, with the header Content-Type: application/json"
        raise invalid(advice, code="invalid_content_type")
