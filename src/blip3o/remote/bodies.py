"""The bodies of requests and answers: fields of the user, replies in JSON, messages of errors."""

import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

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


class FormFile(NamedTuple):
    """A file of a form.

    Args:
        field: name of its field.
        name: name of the file.
        media_type: its type.
        data: its content.
    """

    field: str
    name: str
    media_type: str
    data: bytes


def form(fields: Mapping[str, object], files: Sequence[FormFile]) -> tuple[bytes, str]:
    """Returns the body of a form with files, and its content type.

    Args:
        fields: fields of the form; values that are no texts are written as JSON.
        files: its files.
    """
    mark = uuid.uuid4().hex
    parts = [
        (f'name="{key}"', "text/plain; charset=utf-8", _text(value).encode())
        for key, value in fields.items()
    ]
    parts += [
        (f'name="{one.field}"; filename="{one.name}"', one.media_type, one.data) for one in files
    ]
    start = f"--{mark}\r\nContent-Disposition: form-data;"
    body = b"".join(
        f"{start} {head}\r\nContent-Type: {kind}\r\n\r\n".encode() + data + b"\r\n"
        for head, kind, data in parts
    )
    return body + f"--{mark}--\r\n".encode(), f"multipart/form-data; boundary={mark}"


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


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
