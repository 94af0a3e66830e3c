"""A client of servers that speak OpenAI's chat protocol: several requests at once, with retries."""

import base64
import dataclasses
import json
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from blip3o.core.errors import UsageError
from blip3o.remote.attempts import Attempts, Message
from blip3o.remote.bodies import label, read_reply, valid_text, with_extra
from blip3o.remote.chat import Answer, ChatImage, ChatRequest
from blip3o.remote.cost import Budget
from blip3o.remote.http import CHAT_END, Server, ServerSettings

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
        self._address = self._server.address(CHAT_END)
        self._attempts = Attempts(
            self._server, budget, write=self._message, read=self._read, end=Answer
        )

    def answers(self, requests: Sequence[ChatRequest]) -> Iterator[tuple[int, Answer]]:
        """Yields (position of the request, answer), each as soon as it is there, in any order.

        Before an error, all answers in flight are yielded.

        Raises:
            UsageError: if the server refuses all requests (its message is repeated), cannot be
                reached at all, or gives no log probabilities though they are asked for.
            PreemptedError: if a cap of the budget is reached.
        """
        return self._attempts.answers(requests)

    def ask(self, request: ChatRequest, stop: threading.Event, account: str = "") -> Answer | None:
        """Returns the answer to one request after all its attempts.

        Several threads may ask at the same time; `max_in_flight` does not limit them.

        Args:
            request: the request.
            stop: ends the pauses and prevents further attempts; one that is sent is waited for.
            account: account of the budget that pays; empty for none.

        Returns:
            The answer; None if the budget has no room or `stop` is set.

        Raises:
            UsageError: as `answers`.
        """
        return self._attempts.ask(request, stop, account)

    def _message(self, request: ChatRequest) -> Message:
        body = json.dumps(chat_body(self._settings.model, request)).encode()
        return Message(address=self._address, body=body)

    def _read(self, request: ChatRequest, data: bytes) -> Answer:
        answer = read_answer(data)
        wants_logprobs = request.top_logprobs > 0
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
    reply = read_reply(data)
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
            model=label(reply.get("model")),
            fingerprint=label(reply.get("system_fingerprint")),
            first_token=first_token,
            prompt_tokens=int(usage.get("prompt_tokens") or 0),
            completion_tokens=int(usage.get("completion_tokens") or 0),
        )
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"the answer is not a chat completion: {data[:80]!r}") from error
    if refusal or reason == "content_filter":
        return dataclasses.replace(answer, outcome="refusal", text=label(refusal) or text)
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


def _first_token(logprobs: Any) -> tuple[tuple[str, float], ...]:  # noqa: ANN401  (JSON)
    if not logprobs or not logprobs.get("content"):
        return ()
    likeliest = logprobs["content"][0]["top_logprobs"]
    return tuple((valid_text(one["token"]), float(one["logprob"])) for one in likeliest)


def chat_body(model: str, request: ChatRequest) -> dict[str, object]:
    """Returns the body of a request; a field of `extra` that is None removes that field.

    Args:
        model: name of the model at the server.
        request: the request.

    Raises:
        UsageError: if `extra` holds a field that it may not replace.
    """
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
    return with_extra(fields, request.extra, _FIXED_FIELDS)


def _part(part: str | ChatImage) -> dict[str, object]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    data = base64.b64encode(part.data).decode()
    return {"type": "image_url", "image_url": {"url": f"data:{part.media_type};base64,{data}"}}
