"""A client of servers that speak OpenAI's chat protocol: several requests at once, with retries."""

import base64
import collections
import dataclasses
import datetime
import email.utils
import json
import os
import queue
import random
import threading
import time
import urllib.parse
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from blip3o.core.bounds import Count, Positive, Whole
from blip3o.core.errors import UsageError, first_line, shown
from blip3o.core.log import say
from blip3o.remote.chat import Answer, ChatImage, ChatRequest
from blip3o.remote.cost import Budget, estimate

if TYPE_CHECKING:
    import httpx

OPENAI_URL = "https://api.openai.com/v1"
_END = "/chat/completions"
_FIXED_FIELDS = ("messages", "model", "n", "stream")
"""Fields of a request's body that settings may not replace."""
_AGAIN = (408, 409, 425, 429)
"""Statuses below 500 after which another attempt may succeed."""
_REFUSAL_CODES = ("content_filter", "content_policy_violation")
"""Error codes of servers that refuse a request before their model reads it."""
_NO_CREDIT = "insufficient_quota"
_CONNECT_S = 30.0
_LARGEST_BYTES = 64 * 2**20
_LONGEST_REASON = 300
"""Most characters of a server's message that an error repeats."""
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


class _TransientError(Exception):
    """A fault after which another attempt may succeed.

    Args:
        reason: the fault.
        pause_s: pause that the server asks for; None if it asks for none.
        is_charged: whether the server may charge for the attempt.
        is_reached: whether the server was reached.
    """

    def __init__(
        self,
        reason: str,
        *,
        pause_s: float | None = None,
        is_charged: bool = False,
        is_reached: bool = True,
    ) -> None:
        super().__init__(reason)
        self.pause_s = pause_s
        self.is_charged = is_charged
        self.is_reached = is_reached


class _Pace:
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


class ChatClient:
    """A `ChatModel` that asks a server.

    Each request has its own thread. A further request starts only after the caller has taken an
    answer, so a killed process loses at most `max_in_flight` answers.

    Args:
        settings: the server and the pace.
        budget: counts and limits requests and money; None for no limit.

    Raises:
        UsageError: if the address is not valid, or the key is missing.
    """

    def __init__(self, settings: ServerSettings, budget: Budget | None = None) -> None:
        import httpx

        self.name = settings.full_name
        self._settings = settings
        self._address = _address(settings.url)
        self._key = _key(settings)
        self._budget = budget
        self._pace = _Pace(settings.requests_per_minute)
        self._was_reached = False
        self._is_announced = False
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=32)
        headers = {"content-type": "application/json", "accept": "application/json"}
        if self._key:
            headers["authorization"] = f"Bearer {self._key}"
        self._http = httpx.Client(
            timeout=httpx.Timeout(
                settings.timeout_s, connect=min(settings.timeout_s, _CONNECT_S), pool=None
            ),
            limits=limits,
            headers=headers,
        )

    def answers(self, requests: Sequence[ChatRequest]) -> Iterator[tuple[int, Answer]]:
        """Yields (position of the request, answer), each as soon as it is there, in any order.

        Before an error, all answers in flight are yielded.

        Raises:
            UsageError: if the server refuses all requests (its message is repeated), cannot be
                reached at all, or gives no log probabilities though they are asked for.
            PreemptedError: if a cap of the budget is reached.
        """
        self._announce(requests)
        waiting = collections.deque(range(len(requests)))
        done: queue.SimpleQueue[tuple[int, Answer | Exception | None]] = queue.SimpleQueue()
        stop = threading.Event()
        num_in_flight = 0
        fault: Exception | None = None

        def work(number: int, reserved: float) -> None:
            result: Answer | Exception | None
            try:
                result = self._ask(requests[number], reserved, stop)
            except Exception as error:  # noqa: BLE001  (the waiting thread raises it)
                result = error
            done.put((number, result))

        try:
            while True:
                while waiting and fault is None and num_in_flight < self._settings.max_in_flight:
                    reserved = self._reserve(requests[waiting[0]])
                    if reserved is None:
                        break
                    arguments = (waiting.popleft(), reserved)
                    threading.Thread(target=work, args=arguments, daemon=True).start()
                    num_in_flight += 1
                if not num_in_flight:
                    break
                number, result = done.get()
                num_in_flight -= 1
                if isinstance(result, Answer):
                    yield number, result
                elif result is None:  # the budget had no room for a further attempt
                    waiting.appendleft(number)
                else:
                    fault = fault or result
            if fault is not None:
                raise fault
            if waiting and self._budget is not None:
                raise self._budget.reached(requests[waiting[0]])
        finally:
            stop.set()

    def _announce(self, requests: Sequence[ChatRequest]) -> None:
        """Prints the estimate of the first requests, if they cost money."""
        if self._is_announced or not requests or self._budget is None:
            return
        self._is_announced = True
        if self._budget.prices is not None:
            expected = estimate(requests, self._budget.prices)
            spent = self._budget.spent()
            say(f"first requests to {self.name}: {expected}; spent so far: {spent.cost:.4g}")

    def _reserve(self, request: ChatRequest) -> float | None:
        return 0.0 if self._budget is None else self._budget.reserve(request)

    def _settle(self, reserved: float, answer: Answer | None) -> None:
        if self._budget is not None:
            self._budget.settle(reserved, answer)

    def _release(self, reserved: float) -> None:
        if self._budget is not None:
            self._budget.release(reserved)

    def _ask(self, request: ChatRequest, reserved: float, stop: threading.Event) -> Answer | None:
        """Returns the answer after all attempts; None if the budget or `stop` ends them."""
        settings = self._settings
        try:
            body = _body(settings.model, request)
        except UsageError:
            self._release(reserved)
            raise
        paid: float | None = reserved
        unknown = Answer(outcome="transport", text="")  # costs what was paid in advance
        for attempt in range(settings.retries + 1):
            if attempt:
                paid = self._reserve(request)
            if paid is None:
                return None
            if not self._pace.wait(stop):
                self._release(paid)
                return None
            try:
                answer = self._post(body, wants_logprobs=request.top_logprobs > 0)
            except _TransientError as error:
                self._settle(paid, unknown if error.is_charged else None)
                fault = error
            except BaseException:
                self._settle(paid, None)
                raise
            else:
                self._settle(paid, answer)
                return answer
            self._was_reached = self._was_reached or fault.is_reached
            if fault.pause_s is not None:
                if fault.pause_s > settings.longest_pause_s:
                    return Answer(
                        outcome="transport",
                        text=f"{fault}; the server asks for a pause of {fault.pause_s:.0f} s, more "
                        f"than longest_pause_s={settings.longest_pause_s:g}",
                    )
                self._pace.hold(fault.pause_s)
            if attempt == settings.retries:
                if not self._was_reached:
                    raise UsageError(
                        f"cannot reach {self._address}: {fault}; check the url, and start the "
                        "server if it is your own"
                    )
                return Answer(outcome="transport", text=f"{fault} ({attempt + 1} attempts)")
            pause_s = min(settings.pause_s * 2**attempt, settings.longest_pause_s)
            if stop.wait(pause_s * random.uniform(0.5, 1.0)):  # also if the server asks for less
                return None
        raise AssertionError("the last attempt returns")

    def _post(self, body: bytes, *, wants_logprobs: bool) -> Answer:
        """Returns the answer of one attempt.

        Raises:
            _TransientError: if another attempt may succeed.
            UsageError: if none can.
        """
        import httpx

        limit_s = self._settings.timeout_s
        ends = time.monotonic() + limit_s
        data = bytearray()
        try:
            with self._http.stream("POST", self._address, content=body) as response:
                for chunk in response.iter_bytes():
                    data += chunk
                    if time.monotonic() > ends:  # some servers send spaces while they work
                        raise _TransientError(
                            f"no complete answer in {limit_s:g} s", is_charged=True
                        )
                    if len(data) > _LARGEST_BYTES:
                        raise _TransientError("the answer is too large", is_charged=True)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            reason = first_line(error)
            raise _TransientError(reason, is_reached=False) from error
        except httpx.TimeoutException as error:
            raise _TransientError(f"no answer in {limit_s:g} s", is_charged=True) from error
        except (httpx.UnsupportedProtocol, httpx.LocalProtocolError) as error:
            raise UsageError(f"cannot ask {self._address}: {first_line(error)}") from error
        except httpx.HTTPError as error:
            reason = f"the connection broke: {first_line(error)}"
            raise _TransientError(reason, is_charged=True) from error
        self._was_reached = True
        hidden = bytes(data)
        if len(self._key) >= _SHORTEST_SECRET:  # some servers repeat the key in their messages
            hidden = hidden.replace(self._key.encode(), b"[key]")
        if not 200 <= response.status_code < 300:
            return self._refused(response, hidden)
        try:
            answer = read_answer(hidden)
        except ValueError as error:
            raise _TransientError(first_line(error), is_charged=True) from error
        if wants_logprobs and answer.outcome == "answered" and not answer.first_token:
            raise UsageError(
                f"{self._address} gives no log probabilities of {self.name}, and this judgement "
                "needs them: choose a server that does (vLLM, SGLang, OpenAI)"
            )
        return answer

    def _refused(self, response: "httpx.Response", data: bytes) -> Answer:
        """Returns the answer to a status that is not a success, or raises as `_post`."""
        status = response.status_code
        message, code = _message(data)
        fault = f"HTTP {status}" + (f": {message}" if message else "")
        if code in _REFUSAL_CODES:
            return Answer(outcome="refusal", text=message)
        if code == _NO_CREDIT:
            raise UsageError(f"{self._address} answers {fault}: add credit to the account")
        if status in _AGAIN or status >= 500:
            raise _TransientError(fault, pause_s=_retry_after(response))
        if 300 <= status < 400:
            target = response.headers.get("location", "another address")
            raise UsageError(f"{self._address} answers {fault}: it redirects to {target}; use that")
        variable = self._settings.key_variable
        remedies = {
            401: f"check the key in the environment variable {variable}"
            if self._key
            else f"set the environment variable {variable or '(key_variable)'} to the key",
            403: f"the key in {variable or 'key_variable'} does not permit this model",
            404: f"check the url and the model name {shown(self._settings.model)}",
        }
        remedy = remedies.get(status, "correct the settings; extra={name: null} removes a field")
        raise UsageError(f"{self._address} answers {fault}; {remedy}")


def read_answer(data: bytes) -> Answer:
    """Returns the answer in the body of a successful response.

    Raises:
        ValueError: if the body is not a chat completion; the message says why.
    """
    try:
        reply: Any = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the answer is not JSON: {first_line(error)}") from error
    if isinstance(reply, dict) and reply.get("error"):  # some relays send errors as a success
        raise ValueError(f"the server reports: {_message(data)[0]}")
    try:
        choice = reply["choices"][0]
        message = choice["message"]
        content, refusal = message.get("content"), message.get("refusal")
        reason = choice.get("finish_reason")
        usage = reply.get("usage") or {}
        text = _text(content)
        first_token = _first_token(choice.get("logprobs"))
        answer = Answer(
            outcome="answered",
            text=text,
            model=_label(reply.get("model")),
            fingerprint=_label(reply.get("system_fingerprint")),
            first_token=first_token,
            prompt_tokens=int(usage.get("prompt_tokens") or 0),
            completion_tokens=int(usage.get("completion_tokens") or 0),
        )
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"the answer is not a chat completion: {data[:80]!r}") from error
    if refusal or reason == "content_filter":
        return dataclasses.replace(answer, outcome="refusal", text=_label(refusal) or text)
    if reason == "length":
        return dataclasses.replace(answer, outcome="cut")
    if not text.strip():
        return dataclasses.replace(answer, outcome="empty")
    return answer


def _text(content: object) -> str:
    """Returns the text of a message's content: a text, none, or a list of parts."""
    if content is None:
        return ""
    if isinstance(content, list):
        parts = [part["text"] for part in content if part.get("type", "text") == "text"]
        content = "".join(parts)
    if not isinstance(content, str):
        raise TypeError("the content is not a text")
    return _valid(content)


def _label(value: object) -> str:
    return _valid(value) if isinstance(value, str) else ""


def _valid(text: str) -> str:
    """Returns a text without halves of characters, which a cut answer may end with."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _first_token(logprobs: Any) -> tuple[tuple[str, float], ...]:  # noqa: ANN401  (JSON)
    if not logprobs or not logprobs.get("content"):
        return ()
    likeliest = logprobs["content"][0]["top_logprobs"]
    return tuple((_valid(one["token"]), float(one["logprob"])) for one in likeliest)


def _message(data: bytes) -> tuple[str, str]:
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
    return _valid(lines[0][:_LONGEST_REASON]) if lines else "", code


def _retry_after(response: "httpx.Response") -> float | None:
    """Returns the pause in seconds that a server asks for; None if it asks for none."""
    text = response.headers.get("retry-after", "").strip()
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        until = _date(text)
        if until is None:
            return None
        now = _date(response.headers.get("date", "")) or datetime.datetime.now(datetime.UTC)
        seconds = (until - now).total_seconds()
    return max(0.0, seconds) if seconds == seconds else None  # NaN


def _date(text: str) -> datetime.datetime | None:
    try:
        date = email.utils.parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError):
        return None
    return date if date.tzinfo is not None else date.replace(tzinfo=datetime.UTC)


def _body(model: str, request: ChatRequest) -> bytes:
    """Returns the body of a request; a field of `extra` that is None removes that field.

    Raises:
        UsageError: if `extra` holds a field that it may not replace.
    """
    for name in _FIXED_FIELDS:
        if name in request.extra:
            raise UsageError(f"extra cannot hold {name!r}: this field is not a setting")
    only_text = len(request.parts) == 1 and isinstance(request.parts[0], str)
    content: object = request.parts[0] if only_text else [_part(part) for part in request.parts]
    messages = [{"role": "user", "content": content}]
    if request.system:
        messages.insert(0, {"role": "system", "content": request.system})
    fields: dict[str, object] = {
        "model": model,
        "messages": messages,
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
    }
    if request.top_logprobs:
        fields |= {"logprobs": True, "top_logprobs": request.top_logprobs}
    fields |= request.extra
    kept = {name: value for name, value in fields.items() if value is not None}
    return json.dumps(kept).encode()


def _part(part: str | ChatImage) -> dict[str, object]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    data = base64.b64encode(part.data).decode()
    return {"type": "image_url", "image_url": {"url": f"data:{part.media_type};base64,{data}"}}


def _address(url: str) -> str:
    """Returns the address of the requests.

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
    path = place.path.rstrip("/")
    return place._replace(path=path if path.endswith(_END) else path + _END, fragment="").geturl()


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
