"""The transport of requests to servers: address, key, pace, and the faults of an attempt."""

import dataclasses
import datetime
import email.utils
import math
import os
import threading
import time
import urllib.parse
from collections.abc import Mapping

from blip3o.core.bounds import Count, Positive, Whole
from blip3o.core.errors import UsageError, first_line, shown
from blip3o.remote.bodies import error_message

OPENAI_URL = "https://api.openai.com/v1"
CHAT_END = "/chat/completions"
"""End of the address of chat requests, which users may write after that of the server."""
_AGAIN = (408, 409, 425, 429)
"""Statuses below 500 after which another attempt may succeed."""
_REFUSAL_CODES = ("content_filter", "content_policy_violation")
"""Error codes of servers that refuse a request before their model reads it."""
_NO_CREDIT = "insufficient_quota"
_CONNECT_S = 30.0
_LARGEST_BYTES = 64 * 2**20
_LARGEST_FILE = 2**30
_SHORTEST_SECRET = 8
"""Shorter keys are placeholders of servers without keys; hiding "1" would damage the answers."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """A model of a server, and the pace of the requests.

    Args:
        model: name of the model at the server.
        url: address of the server, with or without `/chat/completions` at the end.
        revision: version of the model, if the name does not state it; part of the name in results
            and of the key of a cache.
        key_variable: environment variable that holds the key; empty for none. The key itself
            belongs into no setting.
        max_in_flight: most requests at the same time.
        timeout_s: longest wait for a complete answer.
        retries: further attempts after 429, a server error, a broken answer or a lost connection.
        pause_s: pause before the first further attempt; it doubles each time.
        longest_pause_s: longest pause. If a server asks for a longer one by `Retry-After`, the
            request ends at once with the outcome "transport".
        requests_per_minute: most requests in a minute, evenly spaced; None for no limit.
    """

    model: str
    url: str = OPENAI_URL
    revision: str = ""
    key_variable: str = "OPENAI_API_KEY"
    max_in_flight: Count = 8
    timeout_s: Positive = 120.0
    retries: Whole = 6
    pause_s: Positive = 1.0
    longest_pause_s: Positive = 300.0
    requests_per_minute: Positive | None = None

    @property
    def full_name(self) -> str:
        """The model and its revision."""
        return f"{self.model}@{self.revision}" if self.revision else self.model


class TransientError(Exception):
    """A fault after which another attempt may succeed.

    Args:
        reason: the fault.
        pause_s: pause that the server asks for; None if it asks for none.
        is_charged: whether the server may charge for the attempt.
    """

    def __init__(
        self,
        reason: str,
        *,
        pause_s: float | None = None,
        is_charged: bool = False,
    ) -> None:
        super().__init__(reason)
        self.pause_s = pause_s
        self.is_charged = is_charged


class RefusedError(Exception):
    """The server refuses the content of a request; the message is its reason."""


class Pace:
    """Spaces the requests of several threads.

    Args:
        per_minute: most requests in a minute; None for no limit.
    """

    def __init__(self, per_minute: float | None) -> None:
        self._gap_s = 60.0 / per_minute if per_minute else 0.0
        self._next = 0.0
        self._mutex = threading.Lock()

    def hold(self, seconds: float) -> None:
        """Lets no further request start for a time, because the server asked for a pause."""
        with self._mutex:
            self._next = max(self._next, time.monotonic() + seconds)

    def wait(self, stop: threading.Event) -> bool:
        """Waits until a request may start; returns False if `stop` is set before."""
        while True:
            with self._mutex:
                left = self._next - time.monotonic()
                if left <= 0:
                    self._next = time.monotonic() + self._gap_s
                    return not stop.is_set()
            if stop.wait(left):
                return False


class Server:
    """Sends requests to a server, one attempt at a time.

    Args:
        settings: the server and the pace.

    Attributes:
        settings: the server and the pace.
        pace: spaces the requests of all threads.
        was_reached: whether any attempt has reached the server.

    Raises:
        UsageError: if the address is not valid, or the key is missing.
    """

    def __init__(self, settings: ServerSettings) -> None:
        import httpx

        self.pace = Pace(settings.requests_per_minute)
        self.was_reached = False
        self.settings = settings
        _check_address(settings.url)
        self._key = _key(settings)
        headers = {"accept": "application/json"}
        if self._key:
            headers["authorization"] = f"Bearer {self._key}"
        self._http = httpx.Client(
            timeout=httpx.Timeout(
                settings.timeout_s, connect=min(settings.timeout_s, _CONNECT_S), pool=None
            ),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=32),
            headers=headers,
        )

    def address(self, end: str) -> str:
        """Returns the address of an endpoint.

        Args:
            end: path of the endpoint after that of the server, "/chat/completions".
        """
        place = urllib.parse.urlsplit(self.settings.url.strip())
        path = place.path.rstrip("/")
        if not path.endswith(end):
            path = path.removesuffix(CHAT_END) + end
        return place._replace(path=path, fragment="").geturl()

    def post(
        self, address: str, body: bytes, headers: Mapping[str, str], *, is_file: bool = False
    ) -> bytes:
        """Returns the body of the answer to one attempt; the key is hidden in it.

        Args:
            address: address of the endpoint.
            body: body of the request.
            headers: headers of the request, with its content type.
            is_file: whether the body or the answer is a file, which may be large and take any time
                as long as it goes on.

        Raises:
            TransientError: if another attempt may succeed.
            RefusedError: if the server refuses the content of the request.
            UsageError: if no attempt can succeed.
        """
        return self._exchange("POST", address, body, headers, is_file=is_file)

    def get(self, address: str, *, is_file: bool = False) -> bytes:
        """Returns the body of the answer to one attempt; the arguments and errors are `post`'s."""
        return self._exchange("GET", address, b"", {}, is_file=is_file)

    def _exchange(
        self, method: str, address: str, body: bytes, headers: Mapping[str, str], *, is_file: bool
    ) -> bytes:
        import httpx

        limit_s = self.settings.timeout_s
        ends = math.inf if is_file else time.monotonic() + limit_s
        most_bytes = _LARGEST_FILE if is_file else _LARGEST_BYTES
        data = bytearray()
        try:
            with self._http.stream(method, address, content=body, headers=headers) as response:
                self.was_reached = True
                for chunk in response.iter_bytes():
                    data += chunk
                    if time.monotonic() > ends:  # some servers send spaces while they work
                        raise TransientError(
                            f"no complete answer in {limit_s:g} s", is_charged=True
                        )
                    if len(data) > most_bytes:
                        raise TransientError("the answer is too large", is_charged=True)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            reason = first_line(error)
            raise TransientError(reason) from error
        except httpx.TimeoutException as error:
            self.was_reached = True
            raise TransientError(f"no answer in {limit_s:g} s", is_charged=True) from error
        except (httpx.UnsupportedProtocol, httpx.LocalProtocolError) as error:
            raise UsageError(f"cannot ask {address}: {first_line(error)}") from error
        except httpx.HTTPError as error:
            self.was_reached = True
            reason = f"the connection broke: {first_line(error)}"
            raise TransientError(reason, is_charged=True) from error
        hidden = bytes(data)
        if len(self._key) >= _SHORTEST_SECRET:  # some servers repeat the key in their messages
            hidden = hidden.replace(self._key.encode(), b"[key]")
        if not 200 <= response.status_code < 300:
            raise self.fault(address, response.status_code, response.headers, hidden)
        return hidden

    def fault(
        self, address: str, status: int, headers: Mapping[str, str], data: bytes
    ) -> TransientError | RefusedError | UsageError:
        """Returns the error for a status that is not a success.

        Args:
            address: address of the endpoint.
            status: the status.
            headers: headers of the answer, whose names are found in any case.
            data: body of the answer.
        """
        message, code = error_message(data)
        fault = f"HTTP {status}" + (f": {message}" if message else "")
        if code in _REFUSAL_CODES:
            return RefusedError(message)
        if code == _NO_CREDIT:
            return UsageError(f"{address} answers {fault}: add credit to the account")
        if status in _AGAIN or status >= 500:
            return TransientError(fault, pause_s=retry_after_s(headers))
        if 300 <= status < 400:
            target = headers.get("location", "another address")
            return UsageError(f"{address} answers {fault}: it redirects to {target}; use that")
        variable = self.settings.key_variable
        remedies = {
            401: f"check the key in the environment variable {variable}"
            if self._key
            else f"set the environment variable {variable or '(key_variable)'} to the key",
            403: f"the key in {variable or 'key_variable'} does not permit this model",
            404: f"check the url and the model name {shown(self.settings.model)}",
        }
        remedy = remedies.get(status, "correct the settings; extra={name: null} removes a field")
        return UsageError(f"{address} answers {fault}; {remedy}")


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Returns the pause in seconds that a server asks for; None if it asks for none.

    Args:
        headers: the headers of its answer, whose names are found in any case.
    """
    text = headers.get("retry-after", "").strip()
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        until = _date(text)
        if until is None:
            return None
        now = _date(headers.get("date", "")) or datetime.datetime.now(datetime.UTC)
        seconds = (until - now).total_seconds()
    return max(0.0, seconds) if seconds == seconds else None  # NaN


def _date(text: str) -> datetime.datetime | None:
    try:
        date = email.utils.parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError):
        return None
    return date if date.tzinfo is not None else date.replace(tzinfo=datetime.UTC)


def _check_address(url: str) -> None:
    """Checks the address of a server.

    Raises:
        UsageError: if the text is not the address of a server, or holds a password.
    """
    if "@" in url:  # the message does not repeat it
        raise UsageError("the url holds a password: put the key into an environment variable")
    refusal = UsageError(f"{shown(url)} is not an address: write http://HOST:PORT/v1")
    try:
        place = urllib.parse.urlsplit(url.strip())
        _ = place.port  # raises if it is not a number
    except ValueError as error:
        raise refusal from error
    if place.scheme not in ("http", "https") or not place.hostname:
        raise refusal


def _key(settings: ServerSettings) -> str:
    """Returns the key of a server, or an empty text.

    Raises:
        UsageError: if it cannot be sent, or OpenAI's own server is asked without one.
    """
    name = settings.key_variable
    key = os.environ.get(name, "").strip() if name else ""
    if any(not letter.isascii() or not "!" <= letter <= "~" for letter in key):
        raise UsageError(f"the environment variable {name} does not hold a key: it has other signs")
    is_openai = urllib.parse.urlsplit(settings.url).hostname == "api.openai.com"
    if not key and is_openai:
        raise UsageError(f"{settings.url} needs a key: set the environment variable {name}")
    return key
