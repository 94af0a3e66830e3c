"""Batches of chat requests: files of requests that servers answer within a day, at a lower price.

The protocol is OpenAI's: a file of requests is uploaded, a batch is created of it and looked at
until it is over, and the answers are read from two more files. A batch costs money as soon as it
is created, and the server takes the same file twice without a word. So a caller notes the file
before it calls `start`, and after a loss of contact it asks whether the batch exists: every batch
names its input file, but not every server keeps metadata.
"""

import dataclasses
import json
import time
import urllib.parse
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Annotated, Any, TypeVar

from blip3o.core.bounds import Bounds, Positive
from blip3o.core.errors import UsageError, first_line
from blip3o.remote.bodies import FormFile, form, label, read_reply
from blip3o.remote.chat import Answer, ChatRequest
from blip3o.remote.client import chat_body, read_answer
from blip3o.remote.http import RefusedError, Server, ServerSettings, TransientError

LARGEST_FILE = 90 * 2**20
"""Most bytes of an input file: Together AI takes 100 MB, Groq and OpenAI 200 MB."""

BatchSize = Annotated[int, Bounds(1, 50_000)]
"""Number of requests in one batch, as OpenAI limits it."""
_ENDPOINT = "/v1/chat/completions"
_OVER = ("completed", "failed", "expired", "cancelled")
_JSON = {"content-type": "application/json"}
_PAGE = 100
_T = TypeVar("_T")


class UnknownBatchError(UsageError):
    """A server does not tell whether it has a batch, so none may be created of the same file."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchSettings:
    """When requests go into a batch, and when it is looked at.

    Args:
        wait_s: time without a further request after which a batch is sent.
        size: most requests of a batch.
        poll_s: time between two looks at a batch.
    """

    wait_s: Positive = 10.0
    size: BatchSize = 10_000
    poll_s: Positive = 60.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """The state of a batch.

    Args:
        id: its name at the server.
        file: name of its input file.
        status: "validating", "in_progress", "completed" and so on.
        output_file: name of the file of answers; empty for none.
        error_file: name of the file of failed requests; empty for none.
        fault: what is wrong with the whole batch; empty for nothing.
        is_final: whether the fault is in the requests themselves.
    """

    id: str
    file: str
    status: str
    output_file: str = ""
    error_file: str = ""
    fault: str = ""
    is_final: bool = False

    @property
    def is_over(self) -> bool:
        """Whether the server works on it no more."""
        return self.status in _OVER


class BatchClient:
    """Sends batches of chat requests to a server.

    Each call has the attempts and the pauses of a request. All calls raise a TransientError if no
    attempt succeeds, and a UsageError if none can.

    Args:
        settings: the server.

    Raises:
        UsageError: if the address is not valid, or the key is missing.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._server = Server(settings)
        self._files = self._server.address("/files")
        self._batches = self._server.address("/batches")

    def line(self, key: str, request: ChatRequest) -> bytes:
        """Returns the line of a request in an input file.

        Args:
            key: key of the request, which comes back with its answer; at most 64 characters.
            request: the request.

        Raises:
            UsageError: if `extra` of the request holds a field that it may not replace.
        """
        body = chat_body(self._settings.model, request)
        whole = {"custom_id": key, "method": "POST", "url": _ENDPOINT, "body": body}
        return json.dumps(whole).encode() + b"\n"

    def upload(self, lines: Sequence[bytes]) -> str:
        """Returns the name of a new input file at the server."""
        file = FormFile("file", "requests.jsonl", "application/jsonl", b"".join(lines))
        body, content_type = form({"purpose": "batch"}, [file])
        headers = {"content-type": content_type}
        return self._patiently(
            lambda: _name(
                _reply(self._server.post(self._files, body, headers, is_file=True)).get("id")
            )
        )

    def start(self, file: str, *, may_exist: bool) -> Batch:
        """Returns the batch of an input file; creates it unless the server has it.

        Args:
            file: name of the input file.
            may_exist: whether an earlier call with this file may have created it.

        Raises:
            UnknownBatchError: if it may exist, and the server does not list its batches.
        """
        body = {"input_file_id": file, "endpoint": _ENDPOINT, "completion_window": "24h"}
        data = json.dumps(body).encode()
        is_new = not may_exist

        def attempt() -> Batch:
            nonlocal is_new
            found = None if is_new else self._find(file)
            is_new = False  # an answer that is lost on its way leaves a batch behind
            return found or _batch(_reply(self._server.post(self._batches, data, _JSON)))

        return self._patiently(attempt)

    def look(self, name: str) -> Batch:
        """Returns the present state of a batch.

        Args:
            name: its name at the server.
        """
        address = self._server.address(f"/batches/{urllib.parse.quote(name, safe='')}")
        return self._patiently(lambda: _batch(_reply(self._server.get(address))))

    def results(
        self, batch: Batch, keys: Collection[str]
    ) -> dict[str, Answer | TransientError | UsageError]:
        """Returns the answer to each request of a batch that is over, or the reason for none.

        A TransientError means that the request may go into a further batch; it states whether the
        server may charge for this one.

        Args:
            batch: the batch.
            keys: keys of its requests.
        """
        found: dict[str, Answer | TransientError | UsageError] = {}
        for file in (batch.output_file, batch.error_file):
            for row in self._rows(file) if file else ():
                key = row.get("custom_id")
                if isinstance(key, str) and key in keys and key not in found:
                    found[key] = self._result(row)
        missing: TransientError | UsageError = TransientError(
            f"the batch {batch.id} is {batch.status}"
            + (f": {batch.fault}" if batch.fault else " without an answer to this request"),
            is_charged=batch.status == "completed",  # its line is broken
        )
        if batch.is_final:
            missing = UsageError(f"{self._batches} refuses the batch {batch.id}: {batch.fault}")
        return {key: found.get(key, missing) for key in keys}

    def _find(self, file: str) -> Batch | None:
        """Returns the batch of an input file; None if the server has none.

        Raises:
            UnknownBatchError: if the server does not list its batches.
        """
        mark = "&" if "?" in self._batches else "?"
        first = address = f"{self._batches}{mark}limit={_PAGE}"
        while True:
            try:
                page = _reply(self._server.get(address))
            except UsageError as error:
                raise UnknownBatchError(
                    f"{error}; so it is unknown whether the server has made a batch of the file "
                    f"{file}"
                ) from error
            listed = page.get("data")
            if not isinstance(listed, list):
                raise TransientError("the answer is no list of batches")
            batches = [_batch(one) for one in listed]
            for one in batches:
                if one.file == file:
                    return one
            if not page.get("has_more") or not batches:
                return None
            address = f"{first}&after={urllib.parse.quote(batches[-1].id, safe='')}"

    def _rows(self, file: str) -> Iterator[Mapping[str, Any]]:
        """Yields the rows of a file of results; lines that are broken count as missing."""
        place = self._server.address(f"/files/{urllib.parse.quote(file, safe='')}/content")
        for line in self._patiently(lambda: self._server.get(place, is_file=True)).splitlines():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(row, dict):
                yield row

    def _result(self, row: Mapping[str, Any]) -> Answer | TransientError | UsageError:
        """Returns the answer in a row, by the rules for an answer to one request."""
        response = row.get("response")
        try:
            if response:
                status, body = int(response["status_code"]), json.dumps(response["body"]).encode()
            else:  # the request was not sent to the model, or the server failed
                status, body = 500, json.dumps({"error": row.get("error")}).encode()
            if 200 <= status < 300:
                return read_answer(body)
        except (ValueError, LookupError, TypeError) as error:
            return TransientError(first_line(error), is_charged=True)
        fault = self._server.fault(self._batches, status, {}, body)
        if isinstance(fault, RefusedError):
            return Answer(outcome="refusal", text=str(fault))
        return fault

    def _patiently(self, call: Callable[[], _T]) -> _T:
        """Returns what a call returns after all its attempts."""
        settings = self._settings
        for attempt in range(settings.retries + 1):
            try:
                return call()
            except RefusedError as error:
                raise UsageError(f"{self._batches} refuses the batch: {error}") from error
            except TransientError as error:
                asked_s = error.pause_s or 0.0
                if attempt == settings.retries or asked_s > settings.longest_pause_s:
                    if not self._server.was_reached:
                        raise UsageError(
                            f"cannot reach {settings.url}: {error}; check the url"
                        ) from error
                    raise
                pause_s = min(settings.pause_s * 2**attempt, settings.longest_pause_s)
                time.sleep(max(asked_s, pause_s))
        raise AssertionError("the last attempt returns")


def _reply(data: bytes) -> Mapping[str, Any]:
    try:
        reply = read_reply(data)
    except ValueError as error:
        raise TransientError(first_line(error)) from error
    if not isinstance(reply, dict):
        raise TransientError(f"the answer is no object: {data[:80]!r}")
    return reply


def _name(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise TransientError("the answer names no file or batch")
    return value


def _batch(reply: object) -> Batch:
    if not isinstance(reply, dict):
        raise TransientError("the answer is no batch")
    listed = (reply.get("errors") or {}).get("data") or []
    errors = [one for one in listed if isinstance(one, dict)]
    status = label(reply.get("status"))
    return Batch(
        id=_name(reply.get("id")),
        file=label(reply.get("input_file_id")),
        status=status,
        output_file=label(reply.get("output_file_id")),
        error_file=label(reply.get("error_file_id")),
        fault="; ".join(label(one.get("message")) or label(one.get("code")) for one in errors[:3]),
        # An error with a line is in that request; one without may pass, such as a full queue.
        is_final=status == "failed" and any(one.get("line") is not None for one in errors),
    )
