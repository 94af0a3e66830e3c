"""A client of servers that speak OpenAI's chat protocol: several requests at once, with retries."""

import base64
import collections
import dataclasses
import json
import queue
import random
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from blip3o.core.errors import UsageError, first_line
from blip3o.core.log import say
from blip3o.remote.chat import Answer, ChatImage, ChatRequest
from blip3o.remote.cost import Budget, estimate
from blip3o.remote.http import (
    RefusedError,
    Server,
    ServerSettings,
    TransientError,
    error_message,
    valid_text,
)

_END = "/chat/completions"
_FIXED_FIELDS = ("messages", "model", "n", "stream")
"""Fields of a request's body that settings may not replace."""


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
        self.name = settings.full_name
        self._settings = settings
        self._server = Server(settings)
        self._address = self._server.address(_END)
        self._budget = budget
        self._is_announced = False

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
            if not self._server.pace.wait(stop):
                self._release(paid)
                return None
            try:
                answer = self._post(body, wants_logprobs=request.top_logprobs > 0)
            except TransientError as error:
                self._settle(paid, unknown if error.is_charged else None)
                fault = error
            except BaseException:
                self._settle(paid, None)
                raise
            else:
                self._settle(paid, answer)
                return answer
            if fault.pause_s is not None:
                if fault.pause_s > settings.longest_pause_s:
                    return Answer(
                        outcome="transport",
                        text=f"{fault}; the server asks for a pause of {fault.pause_s:.0f} s, more "
                        f"than longest_pause_s={settings.longest_pause_s:g}",
                    )
                self._server.pace.hold(fault.pause_s)
            if attempt == settings.retries:
                if not self._server.was_reached:
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
            TransientError: if another attempt may succeed.
            UsageError: if none can.
        """
        try:
            data = self._server.post(self._address, body, {"content-type": "application/json"})
            answer = read_answer(data)
        except RefusedError as error:
            return Answer(outcome="refusal", text=str(error))
        except ValueError as error:
            raise TransientError(first_line(error), is_charged=True) from error
        if wants_logprobs and answer.outcome == "answered" and not answer.first_token:
            raise UsageError(
                f"{self._address} gives no log probabilities of {self.name}, and this judgement "
                "needs them: choose a server that does (vLLM, SGLang, OpenAI)"
            )
        return answer


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
        raise ValueError(f"the server reports: {error_message(data)[0]}")
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
    return valid_text(content)


def _label(value: object) -> str:
    return valid_text(value) if isinstance(value, str) else ""


def _first_token(logprobs: Any) -> tuple[tuple[str, float], ...]:  # noqa: ANN401  (JSON)
    if not logprobs or not logprobs.get("content"):
        return ()
    likeliest = logprobs["content"][0]["top_logprobs"]
    return tuple((valid_text(one["token"]), float(one["logprob"])) for one in likeliest)


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
