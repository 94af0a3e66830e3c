"""A client of servers that draw or edit images by OpenAI's protocol."""

import base64
import contextlib
import dataclasses
import io
import json
import threading
from collections.abc import Mapping, Sequence
from typing import TypeVar

from PIL import Image

from blip3o.core.errors import UsageError, first_line, shown
from blip3o.remote.attempts import Attempts, Message
from blip3o.remote.bodies import FormFile, form, label, read_reply, with_extra
from blip3o.remote.chat import AnswerOutcome
from blip3o.remote.cost import Budget
from blip3o.remote.http import Server, ServerSettings
from blip3o.remote.usage import Usage, prompt_tokens

NumberT = TypeVar("NumberT", int, float)

_GENERATIONS, _EDITS = "/images/generations", "/images/edits"
_FIXED_FIELDS = ("image", "image[]", "model", "n", "prompt", "stream")
"""Fields of a request's body that settings may not replace."""
_MOST_TOKENS = 6240
"""What gpt-image-1 writes for its largest image of the best quality."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageRequest:
    """One image to draw, or to make of others by an instruction.

    Args:
        prompt: prompt or instruction.
        seed: seed of the noise; servers that know none ignore it.
        images: files of the input images; none to draw from the prompt alone.
        extra: further fields of the request's body; a field that is None removes a field.
    """

    prompt: str
    seed: int
    images: tuple[bytes, ...] = ()
    extra: Mapping[str, object] = dataclasses.field(default_factory=dict)

    def usage(self) -> Usage:
        """Returns the most that the request may use; its tokens are rough."""
        return Usage(
            prompt_tokens=prompt_tokens([self.prompt], self.images),
            completion_tokens=_MOST_TOKENS,
            num_images=len(self.images),
            num_drawn=1,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageAnswer:
    """The answer to a request.

    Args:
        outcome: how the request ended: "answered", "refusal" or "transport".
        data: the file of the image as the server sent it, which can be decoded; empty if there is
            none.
        text: reason of a refusal or of a transport error.
        model: name of the model that the server states; empty if it states none.
        prompt_tokens: tokens of the request; 0 if the server does not count them.
        completion_tokens: tokens of the image.
        num_inference_steps: steps of the generator; None if the server does not state them.
        guidance_scale: guidance scale; None as above.
    """

    outcome: AnswerOutcome
    data: bytes = dataclasses.field(default=b"", repr=False)
    text: str = ""
    model: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    num_inference_steps: int | None = None
    guidance_scale: float | None = None

    def usage(self) -> Usage:
        """Returns the image, and the tokens that the server counted."""
        return Usage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            num_drawn=1 if self.data else 0,
        )


class ImageClient:
    """Asks a server for images.

    Args:
        settings: the server and the pace.
        size: size of the images, "1024x1024"; None for the server's own.
        budget: counts and limits requests and money; None for no limit.
        extra: further fields of each request's body; a field that is None removes a field. Models
            that always send the file, such as gpt-image-1, refuse `response_format` and `seed`.

    Raises:
        UsageError: if the address is not valid, or the key is missing.
    """

    def __init__(
        self,
        settings: ServerSettings,
        size: str | None = None,
        budget: Budget | None = None,
        *,
        extra: Mapping[str, object] | None = None,
    ) -> None:
        self.model, self.url, self.size = settings.full_name, settings.url, size
        self._settings = settings
        self._server = Server(settings)
        self._extra = extra or {}
        self._attempts = Attempts(
            self._server, budget, write=self._message, read=self._read, end=ImageAnswer
        )

    def images(self, requests: Sequence[ImageRequest]) -> list[Image.Image | str]:
        """Returns the image for each request, in RGB; a text is the reason of a refusal.

        Raises:
            UsageError: if the server refuses all requests, cannot be reached, or gives no image
                after all attempts.
            PreemptedError: if a cap of the budget is reached.
        """
        return [
            decoded(answer.data) if answer.data else answer.text or "refused"
            for answer in self.answers(requests)
        ]

    def answers(self, requests: Sequence[ImageRequest]) -> list[ImageAnswer]:
        """Returns the answer to each request: an image or a refusal.

        Raises:
            UsageError: as `images`.
            PreemptedError: as `images`.
        """
        found: dict[int, ImageAnswer] = {}
        # closed at the first fault, which ends the attempts of the other requests
        with contextlib.closing(self._attempts.answers(requests)) as answers:
            for number, answer in answers:
                if answer.outcome == "transport":
                    prompt = shown(requests[number].prompt)
                    raise UsageError(f"{self.url} gave no image of {prompt}: {answer.text}")
                found[number] = answer
        return [found[number] for number in range(len(requests))]

    def ask(
        self, request: ImageRequest, stop: threading.Event, account: str = ""
    ) -> ImageAnswer | None:
        """Returns the answer to one request after all its attempts.

        Several threads may ask at the same time; `max_in_flight` does not limit them.

        Args:
            request: the request.
            stop: ends the pauses and prevents further attempts; one that is sent is waited for.
            account: account of the budget that pays; empty for none.

        Returns:
            The answer; None if the budget has no room or `stop` is set.

        Raises:
            UsageError: if the server refuses all requests (its message is repeated), cannot be
                reached at all, or sends addresses of images instead of images.
        """
        return self._attempts.ask(request, stop, account)

    def _message(self, request: ImageRequest) -> Message:
        given: dict[str, object] = {
            "model": self._settings.model,
            "prompt": request.prompt,
            "n": 1,
            "seed": request.seed,
            "response_format": "b64_json",
            "size": self.size,
        }
        fields = with_extra(given, {**self._extra, **request.extra}, _FIXED_FIELDS)
        if not request.images:
            address = self._server.address(_GENERATIONS)
            return Message(address=address, body=json.dumps(fields).encode())
        name = "image" if len(request.images) == 1 else "image[]"
        files = [
            FormFile(name, f"{number}.png", "image/png", data)
            for number, data in enumerate(request.images)
        ]
        body, content_type = form(fields, files)
        return Message(address=self._server.address(_EDITS), body=body, content_type=content_type)

    def _read(self, _: ImageRequest, data: bytes) -> ImageAnswer:
        reply = read_reply(data)
        try:
            drawn = reply["data"][0]
            if drawn.get("url") and not drawn.get("b64_json"):
                raise UsageError(
                    f"{self.url} sends the address of an image instead of the image: the server "
                    "must support response_format b64_json"
                )
            usage = reply.get("usage") or {}
            answer = ImageAnswer(
                outcome="answered",
                data=base64.b64decode(drawn["b64_json"], validate=True),
                model=label(reply.get("model")),
                prompt_tokens=int(usage.get("input_tokens") or 0),
                completion_tokens=int(usage.get("output_tokens") or 0),
                num_inference_steps=_stated(reply, "num_inference_steps", int),
                guidance_scale=_stated(reply, "guidance_scale", float),
            )
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"the answer holds no image: {data[:80]!r}") from error
        decoded(answer.data)
        return answer


def _stated(reply: Mapping[str, object], name: str, kind: type[NumberT]) -> NumberT | None:
    """Returns a number that the server states; None if it states none."""
    value = reply.get(name)
    return kind(value) if isinstance(value, int | float) else None


def decoded(data: bytes) -> Image.Image:
    """Returns the image of a file, in RGB.

    Raises:
        ValueError: if the file is damaged, cut, or not of an image.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"the answer holds no image: {first_line(error)}") from error
