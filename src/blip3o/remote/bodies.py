"""The bodies of requests and answers: fields of the user, replies in JSON, messages of errors."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from blip3o.core.errors import UsageError, first_line

_LONGEST_REASON = 300
"""Most characters of a server's message that an error repeats."""


def with_extra(
    fields: Mapping[str, object], extra: Mapping[str, object], fixed: Sequence[str]
) -> dict[str, object]:
    """Returns the fields of a body with those of the user; a field that is None is left out.

    Args:
        fields: fields of the request.
        extra: further fields, which replace or remove those of the request.
        fixed: fields that `extra` cannot hold.

    Raises:
        UsageError: if `extra` holds one of these.
    """
    for name in fixed:
        if name in extra:
            raise UsageError(f"extra cannot hold {name!r}: this field is not a setting")
    return {name: value for name, value in {**fields, **extra}.items() if value is not None}


def read_reply(data: bytes) -> Any:  # noqa: ANN401  (JSON)
    """Returns the JSON in the body of a successful response.

    Raises:
        ValueError: if it is not JSON, or reports an error; the message says why.
    """
    try:
        reply: Any = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the answer is not JSON: {first_line(error)}") from error
    if isinstance(reply, dict) and reply.get("error"):  # some relays send errors as a success
        raise ValueError(f"the server reports: {error_message(data)[0]}")
    return reply


def error_message(data: bytes) -> tuple[str, str]:
    """Returns the first line of an error's message, and its code, from the body of a response."""
    text, code = data.decode(errors="replace"), ""
    try:
        reply: Any = json.loads(data)
    except (ValueError, RecursionError):
        reply = None
    if isinstance(reply, dict):
        error = reply.get("error", reply)
        if isinstance(error, dict):
            code = str(error.get("code") or error.get("type") or "")
            error = error.get("message") or error.get("detail") or ""
        text = str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return valid_text(lines[0][:_LONGEST_REASON]) if lines else "", code


def label(value: object) -> str:
    """Returns a text that a server states; an empty one if it states none."""
    return valid_text(value) if isinstance(value, str) else ""


def valid_text(text: str) -> str:
    """Returns a text without halves of characters, which a cut answer may end with."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
