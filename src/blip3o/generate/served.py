"""Images and answers of a running `blip3o serve`, without torch.

A server of the same model gives the same images and answers as this process would.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Unpack
from urllib.parse import urlsplit

from PIL import Image

from blip3o.core.errors import UsageError, shown
from blip3o.generate.text_settings import TextSettings
from blip3o.generate.write import GeneratedImage, NumberedPrompt, write_generated
from blip3o.remote.chat import ChatImage, ChatRequest
from blip3o.remote.client import ChatClient
from blip3o.remote.http import ServerSettings
from blip3o.remote.images import ImageAnswer, ImageClient, ImageRequest, decoded

_API = "/v1"
_TIMEOUT_S = 600.0
_RETRIES = 2
"""A person waits: a server that is not there is reported at once."""


def server_settings(url: str, model: str) -> ServerSettings:
    """Returns the settings of requests to a server.

    Args:
        url: address of the server, with or without `/v1`.
        model: name of the model at the server.
    """
    place = url.strip().rstrip("/")
    with contextlib.suppress(ValueError):  # the client refuses it
        if urlsplit(place).path == "":
            place += _API
    return ServerSettings(
        model=model, url=place, timeout_s=_TIMEOUT_S, retries=_RETRIES, pause_s=0.5
    )


def write_images(
    server: ServerSettings,
    prompts: Sequence[str],
    folder: Path,
    *,
    num_images: int = 1,
    seed: int = 0,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
) -> Path:
    """Generates images, writes them as `write_generated` does, and returns the path of the grid.

    Args:
        server: the server.
        prompts: one or more captions.
        folder: created if missing.
        num_images: images of each prompt.
        seed: together with the numbers of the prompt and the image, it determines the image.
        num_inference_steps: steps of the generator; None for the model's own number.
        guidance_scale: 1 or more; None for the model's own number.

    Raises:
        UsageError: if the server refuses a request or cannot be reached, or the folder cannot be
            written to.
    """
    client = ImageClient(server)
    sampling = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale}

    def draw(batch: Sequence[NumberedPrompt]) -> list[GeneratedImage]:
        requests = [
            ImageRequest(prompt=one.text, seed=seed, extra={**sampling, **_numbers(one)})
            for one in batch
        ]
        return [
            GeneratedImage(
                _image(answer, one.text, server),
                answer.num_inference_steps or num_inference_steps,
                answer.guidance_scale or guidance_scale,
            )
            for one, answer in zip(batch, client.answers(requests), strict=True)
        ]

    return write_generated(draw, prompts, folder, num_images=num_images, seed=seed)


def edit(
    server: ServerSettings,
    file: Path,
    instruction: str,
    *,
    seed: int = 0,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
) -> Image.Image:
    """Returns an image that is changed by an instruction.

    Args:
        server: the server.
        file: the image file.
        instruction: the instruction.
        seed: seed of the noise.
        num_inference_steps: as for `write_images`.
        guidance_scale: as for `write_images`.

    Raises:
        UsageError: as `write_images`.
    """
    sampling = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale}
    images = (file.read_bytes(),)
    request = ImageRequest(prompt=instruction, seed=seed, images=images, extra=sampling)
    (answer,) = ImageClient(server).answers([request])
    return _image(answer, instruction, server)


def ask(
    server: ServerSettings, files: Sequence[Path], question: str, **settings: Unpack[TextSettings]
) -> str:
    """Returns the answer to a question about images.

    Args:
        server: the server.
        files: the image files.
        question: the question.
        settings: settings of text generation; those that are missing are the model's own.

    Raises:
        UsageError: if the server refuses the request or cannot be reached.
    """
    given = dict(settings)
    extra = {"max_tokens": given.pop("max_new_tokens", None)}  # None: the model's own length
    request = ChatRequest(
        parts=(*(ChatImage(file.read_bytes()) for file in files), question),
        temperature=settings.get("temperature", 0.0),
        extra={**given, **extra},
    )
    ((_, answer),) = ChatClient(server).answers([request])
    if answer.outcome in ("transport", "refusal"):
        raise UsageError(f"{server.url} gave no answer: {answer.text}")
    return answer.text


def _numbers(prompt: NumberedPrompt) -> dict[str, int]:
    """Returns the numbers that belong to the seed; those of the first image need not be sent."""
    numbers = {"prompt_number": prompt.prompt_number, "image_number": prompt.image_number}
    return {name: number for name, number in numbers.items() if number}


def _image(answer: ImageAnswer, prompt: str, server: ServerSettings) -> Image.Image:
    if not answer.data:
        reason = answer.text or answer.outcome
        raise UsageError(f"{server.url} gave no image of {shown(prompt)}: {reason}")
    return decoded(answer.data)
