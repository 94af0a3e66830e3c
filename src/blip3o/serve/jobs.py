"""Requests that the HTTP side sends to an engine, and the events that come back."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Literal

from PIL import Image
from torch import Tensor

from blip3o.core.types import Message
from blip3o.generate.text_settings import TextSampling


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ImageRequest:
    """A request for images.

    Args:
        kind: "generate" from a prompt, "edit" by an instruction, or "reconstruct" one image.
        prompt: token ids, without query tokens; empty for "reconstruct".
        images: input images; an edit changes the first and reads all.
        count: number of images to make.
        seed: with both numbers it determines an image, as in `blip3o generate`.
        prompt_number: number of the prompt in a list, from 0.
        image_number: number of the first image among those of the prompt, from 0.
        num_inference_steps: steps of the sampler.
        guidance_scale: 1 or more.
        preview_every: steps between two previews; 0 for none. It does not affect the images.
    """

    kind: Literal["generate", "edit", "reconstruct"]
    prompt: Sequence[int] = ()
    images: Sequence[Image.Image] = ()
    count: int = 1
    seed: int = 0
    prompt_number: int = 0
    image_number: int = 0
    num_inference_steps: int = 1
    guidance_scale: float = 1.0
    preview_every: int = 0

    @property
    def batch_key(self) -> tuple[object, ...]:
        """Key that is equal for requests that can share a batch."""
        if self.kind == "reconstruct":
            return (self.kind,)
        return (self.kind, self.num_inference_steps, self.guidance_scale != 1.0)

    def previewed(self, every: int) -> "ImageRequest":
        """Returns the same request with a preview after every `every` steps."""
        return dataclasses.replace(self, preview_every=every)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """A request for `count` answers to a conversation, with one image for each image mark.

    Answer k equals the single answer to the same request with the seed + k.
    """

    messages: Sequence[Message]
    images: Sequence[Image.Image]
    sampling: TextSampling
    count: int = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Progress:
    """The sampler has finished a step."""

    step: int
    num_steps: int


@dataclasses.dataclass(frozen=True, slots=True)
class Preview:
    """Preview of image number `index` of a request, while it is sampled.

    Args:
        index: number of the image within the request.
        step: number of finished steps.
        image: the current estimate of the clean image, decoded with few steps.
        features: normalized noisy features at this step, [N, K], fp32 on the CPU.
        seconds: time since the work on its batch began.
    """

    index: int
    step: int
    image: Image.Image
    features: Tensor
    seconds: float


@dataclasses.dataclass(frozen=True, slots=True)
class Drawn:
    """Image number `index` of a request is finished."""

    index: int
    image: Image.Image


@dataclasses.dataclass(frozen=True, slots=True)
class Text:
    """The next piece of answer number `index`."""

    piece: str
    index: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Answered:
    """The answer is finished.

    Args:
        reason: "stop" if the model or a stop text ended it, "length" if the token limit did.
        prompt_tokens: tokens of the conversation.
        answer_tokens: tokens of the answer.
        index: number of the answer within the request.
    """

    reason: Literal["stop", "length"]
    prompt_tokens: int
    answer_tokens: int
    index: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Failed:
    """The request ends without a result.

    Args:
        message: the reason, shown to the client.
        kind: "request" if the request is invalid, "work" if processing it failed, "engine" if the
            engine has stopped.
    """

    message: str
    kind: Literal["request", "work", "engine"]


Event = Progress | Preview | Drawn | Text | Answered | Failed


class Job:
    """An accepted request, and the function that an engine's thread calls with its events."""

    def __init__(
        self, request: ImageRequest | ChatRequest, deliver: Callable[[Event], None]
    ) -> None:
        self.request = request
        self.deliver = deliver
        self.arrived = time.monotonic()
        self.num_taken = 0  # images of which an engine has begun the work
        self.is_cancelled = False  # whether the client no longer waits for the result

    @property
    def num_pixels(self) -> int:
        """Pixels of the input images, which are held until the job is done."""
        return sum(image.width * image.height for image in self.request.images)

    def cancel(self) -> None:
        """Cancels the job: if queued, it is dropped; if running, it ends at its next step."""
        self.is_cancelled = True


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """A row of a batch: image number `index` of a job with an `ImageRequest`."""

    job: Job
    request: ImageRequest
    index: int
