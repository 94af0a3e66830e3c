"""What the server's front hands to an engine, and what comes back."""

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
    """Images to make.

    Args:
        kind: "generate" from a prompt, "edit" images as told, "reconstruct" one image.
        prompt: token ids after which the query tokens stand; empty for "reconstruct".
        images: given images; an edit changes the first and sees all.
        count: images to make.
        seed: with its number it decides an image, as in `blip3o generate`.
        num_inference_steps: steps of the DiT.
        guidance_scale: 1 or more.
        preview_every: steps between two previews; 0 for none. What is made does not depend on it.
    """

    kind: Literal["generate", "edit", "reconstruct"]
    prompt: Sequence[int] = ()
    images: Sequence[Image.Image] = ()
    count: int = 1
    seed: int = 0
    num_inference_steps: int = 1
    guidance_scale: float = 1.0
    preview_every: int = 0

    @property
    def batch_key(self) -> tuple[object, ...]:
        """Requests with equal keys can share a batch."""
        if self.kind == "reconstruct":
            return (self.kind,)
        return (self.kind, self.num_inference_steps, self.guidance_scale != 1.0)

    def previewed(self, every: int) -> "ImageRequest":
        """Returns the same request with a preview after each so many steps."""
        return dataclasses.replace(self, preview_every=every)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """An answer to write.

    Args:
        messages: the turns so far.
        images: one for each image mark, in order.
        sampling: how each answer is written. Answer number k is the one that a request for a
            single answer gets with seed + k.
        count: answers to write, each with its own number.
    """

    messages: Sequence[Message]
    images: Sequence[Image.Image]
    sampling: TextSampling
    count: int = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Progress:
    """So many steps of the sampler are done."""

    step: int
    num_steps: int


@dataclasses.dataclass(frozen=True, slots=True)
class Preview:
    """What image number `index` of a request looks like on its way.

    Args:
        index: number of the image within the request.
        step: steps that are done.
        image: the clean image that the sampler is heading for, decoded with few steps.
        features: normalized features at this step, noise and all, [N, K], fp32 on the CPU.
        seconds: since the work on its batch began.
    """

    index: int
    step: int
    image: Image.Image
    features: Tensor
    seconds: float


@dataclasses.dataclass(frozen=True, slots=True)
class Drawn:
    """Image number `index` of a request is there."""

    index: int
    image: Image.Image


@dataclasses.dataclass(frozen=True, slots=True)
class Text:
    """The next piece of answer number `index`."""

    piece: str
    index: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Answered:
    """The answer is whole.

    Args:
        reason: "stop" where the model or a stop text ended it, "length" where the limit did.
        prompt_tokens: tokens of the conversation.
        answer_tokens: tokens that were written.
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
        message: what went wrong, for the client.
        kind: "request" if the request cannot be met, "work" if making it failed, "engine" if the
            engine is gone.
    """

    message: str
    kind: Literal["request", "work", "engine"]


Event = Progress | Preview | Drawn | Text | Answered | Failed


class Job:
    """A request on its way.

    Args:
        request: what to do.
        deliver: called with every event, from an engine's thread.
    """

    def __init__(
        self, request: ImageRequest | ChatRequest, deliver: Callable[[Event], None]
    ) -> None:
        self.request = request
        self.deliver = deliver
        self.arrived = time.monotonic()
        self.num_taken = 0
        self._is_cancelled = False

    @property
    def num_pixels(self) -> int:
        """Pixels of the images that came with the request; they are kept until it is done."""
        return sum(image.width * image.height for image in self.request.images)

    @property
    def is_cancelled(self) -> bool:
        """Whether nobody waits for the result any more."""
        return self._is_cancelled

    def cancel(self) -> None:
        """Says that nobody waits; a queued job is dropped, a running one ends at its next step."""
        self._is_cancelled = True


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One image of a job: what a batch is made of.

    Args:
        job: its job, with a `ImageRequest`.
        request: the job's request.
        index: number of the image within the request.
    """

    job: Job
    request: ImageRequest
    index: int
