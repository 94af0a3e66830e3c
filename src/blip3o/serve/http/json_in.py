"""Bodies in JSON: read as the standard says, bounded, and with words for what is wrong."""

import json
from collections.abc import Callable, Coroutine
from email.message import Message
from typing import Any

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.responses import Response

from blip3o.serve.http.errors import ApiError, invalid

_MOST_VALUES = 20_000
"""Of a body, items of lists and fields of objects. Conversations have hundreds; a schema keeps a
note of each value that is wrong, so millions would fill the memory."""
_MOST_MARKS = 500_000
"""Of a body, commas and opening brackets. Texts have some, but fewer than tokens."""
_INVALID = "invalid_json"


def check_marks(body: bytes | bytearray) -> None:
    """Checks that a body has not far too many values, before anything reads them.

    Args:
        body: text; each value of JSON but the first of a list or an object costs a comma.

    Raises:
        ApiError: 413 if it has.
    """
    if sum(body.count(mark) for mark in b",[{") > _MOST_MARKS:
        message = f"the body holds more than {_MOST_MARKS} commas and brackets"
        raise ApiError(413, message, code="request_too_large")


class JsonRoute(APIRoute):
    """A route that reads a body in JSON by `from_json`; one that takes forms is left alone."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Returns FastAPI's handler with our reading before it."""
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
    """A request whose body was read."""

    value: Any = None

    async def json(self) -> Any:  # noqa: ANN401  (as starlette has it)
        return self.value


def from_json(body: bytes) -> Any:  # noqa: ANN401  (any JSON)
    """Returns the value that a body holds.

    Args:
        body: JSON, in UTF-8 or another encoding of Unicode.

    Raises:
        ApiError: 400 for what is no JSON, an object that has a field twice, or too many values.
    """
    try:
        value = json.loads(body, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        message = f"the body is no valid JSON: {error.msg} (character {error.pos})"
        raise invalid(message, code=_INVALID) from error
    except UnicodeDecodeError as error:
        message = f"the body is no valid {error.encoding.upper()} (byte {error.start})"
        raise invalid(message, code=_INVALID) from error
    except RecursionError as error:
        raise invalid("the body is nested too deeply", code=_INVALID) from error
    except ValueError as error:  # Python reads no numbers of thousands of digits
        raise invalid("the body holds a number that is too long", code=_INVALID) from error
    _check_count(value)
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns an object; of a field that is there twice, one value would be lost in silence."""
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            raise invalid(f"{name!a:.100} is given twice", name[:100], _INVALID)
        fields[name] = value
    return fields


def _check_count(value: Any) -> None:  # noqa: ANN401  (any JSON)
    waiting, count = [value], 0
    while waiting:
        one = waiting.pop()
        inner = list(one.values()) if isinstance(one, dict) else one
        if isinstance(inner, list):
            count += len(inner)
            waiting += inner
        if count > _MOST_VALUES:
            message = f"the body holds more than {_MOST_VALUES} values"
            raise ApiError(413, message, code="request_too_large")


def _check_type(header: str) -> None:
    """Refuses other types of content: browsers send those to other sites without asking them."""
    message = Message()
    message["content-type"] = header or "none"
    kind, _, detail = message.get_content_type().partition("/")
    if kind != "application" or not (detail == "json" or detail.endswith("+json")):
        advice = "the body must be JSON, with the header Content-Type: application/json"
        raise invalid(advice, code="invalid_content_type")
