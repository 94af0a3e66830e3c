"""A question to a chat model and its answer, whatever server gives it."""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, Protocol

from blip3o.remote.usage import Usage, prompt_tokens

AnswerOutcome = Literal["answered", "refusal", "empty", "cut", "transport"]
"""How a request ended: with a text, a refusal, no text, a text that was cut at the limit of tokens,
or no answer of the server."""


@dataclasses.dataclass(frozen=True)
class ChatImage:
    """An image of a request.

    Args:
        data: the file as it is sent.
        media_type: its type, "image/png" or "image/jpeg".
    """

    data: bytes = dataclasses.field(repr=False)
    media_type: str = "image/png"

    @property
    def sha256(self) -> str:
        """Hash of the file."""
        return hashlib.sha256(self.data).hexdigest()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatRequest:
    """One user message to a chat model.

    Args:
        parts: texts and images of the message, in their order.
        system: system message; empty for none.
        temperature: sampling temperature; None for the default of the server.
        max_tokens: longest answer.
        top_logprobs: number of likeliest first tokens whose log probabilities are asked for; 0 for
            none.
        attempt: number of earlier requests with the same content, so a cache keeps each answer.
        extra: further fields of the request's body, such as `chat_template_kwargs`.
    """

    parts: tuple[str | ChatImage, ...]
    system: str = ""
    temperature: float | None = 0.0
    max_tokens: int = 512
    top_logprobs: int = 0
    attempt: int = 0
    extra: Mapping[str, object] = dataclasses.field(default_factory=dict)

    def usage(self) -> Usage:
        """Returns the most that the request may use; the tokens that are read are rough."""
        texts = [self.system, *(part for part in self.parts if isinstance(part, str))]
        images = [part.data for part in self.parts if isinstance(part, ChatImage)]
        limits = [self.extra.get(name) for name in ("max_completion_tokens", "max_tokens")]
        written = [limit for limit in limits if isinstance(limit, int)]
        return Usage(
            prompt_tokens=prompt_tokens(texts, images),
            completion_tokens=written[0] if written else self.max_tokens,
            num_images=len(images),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """The answer to a request.

    Args:
        outcome: how the request ended.
        text: the text; of a refusal or a cut answer, as far as it goes; of a transport error, its
            description.
        model: name of the model that the server states; empty if it states none.
        fingerprint: the server's `system_fingerprint`; empty if it states none.
        first_token: likeliest first tokens and their log probabilities, if asked for.
        prompt_tokens: tokens of the request; 0 if the server does not count them.
        completion_tokens: tokens of the answer.
    """

    outcome: AnswerOutcome
    text: str
    model: str = ""
    fingerprint: str = ""
    first_token: tuple[tuple[str, float], ...] = ()
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def usage(self) -> Usage:
        """Returns the tokens that the server counted."""
        return Usage(prompt_tokens=self.prompt_tokens, completion_tokens=self.completion_tokens)


class ChatModel(Protocol):
    """Answers requests; implemented by the client of a server, recorded answers, and own models.

    Attributes:
        name: model and revision, as results state them: "gpt-4o-2024-05-13".
    """

    name: str

    def answers(self, requests: Sequence[ChatRequest]) -> Iterator[tuple[int, Answer]]:
        """Yields (position of the request, answer), each as soon as it is there, in any order."""
        ...
