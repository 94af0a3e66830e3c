"""Jobs for requests: checks and defaults shared by all endpoints and the page."""

import dataclasses
from collections.abc import Sequence

from PIL import Image

from blip3o.core.types import IMAGE_MARK, Message
from blip3o.generate.text_settings import TextSampling
from blip3o.serve.http.errors import invalid
from blip3o.serve.http.fields import TextSettings
from blip3o.serve.http.schemas import (
    ChatCompletionRequest,
    EditForm,
    GenerationRequest,
    ResponseRequest,
    SampledOptions,
    VariationForm,
)
from blip3o.serve.http.service import Service, new_seed
from blip3o.serve.jobs import ImageRequest

_DEFAULT_TEMPERATURE = 1.0
"""For a request that asks for sampling without a temperature; OpenAI's default."""


def image_job(
    service: Service,
    body: GenerationRequest | EditForm | VariationForm,
    images: Sequence[Image.Image] = (),
) -> ImageRequest:
    """Returns the job for a request to `/v1/images/...`.

    Args:
        service: knows the model and the limits.
        body: the request.
        images: input images of an edit or a variation.

    Raises:
        ApiError: 400 or 404 if the model or the server's limits do not allow it.
    """
    service.check_model(body.model)
    check_size(service, body.size, "size")
    check_number(service, body.n)
    if not isinstance(body, VariationForm):
        job = prompted_job(service, body, body.prompt, images, "prompt", body.n)
        return dataclasses.replace(
            job, prompt_number=body.prompt_number, image_number=body.image_number
        )
    if len(images) > 1:
        raise invalid("a variation takes only one image", "image", "too_many_images")
    seed = new_seed() if body.seed is None else body.seed
    return ImageRequest(kind="reconstruct", images=images, count=body.n, seed=seed)


def prompted_job(
    service: Service,
    body: TextSettings | SampledOptions,
    text: str,
    images: Sequence[Image.Image],
    param: str,
    count: int = 1,
) -> ImageRequest:
    """Returns the job for images of a prompt, or for edits of images.

    Args:
        service: knows the model.
        body: contains seed, steps and guidance scale; the model's own are the defaults.
        text: the prompt or the instruction.
        images: images to edit, of which the first is changed and all are read; none for new images.
        param: the field that contains the text.
        count: number of images.

    Raises:
        ApiError: 400 for an empty or too long text, or too many steps.
    """
    if images:
        (turn,) = service.chat_template.edit_messages(text)
        marks = f"{IMAGE_MARK}\n" * (len(images) - 1)
        messages: Sequence[Message] = [Message(role="user", text=marks + turn.text)]
    else:
        messages = service.chat_template.generate_messages(text)
    prompt = service.prompt(messages, text, param)
    own, most = service.sampling, service.config.max_steps
    steps, scale = body.num_inference_steps, body.guidance_scale
    if steps is not None and steps > most:
        message = f"num_inference_steps must be at most {most}, got {steps}"
        raise invalid(message, "num_inference_steps")
    return ImageRequest(
        kind="edit" if images else "generate",
        prompt=prompt,
        images=list(images),
        count=count,
        seed=new_seed() if body.seed is None else body.seed,
        num_inference_steps=own.num_inference_steps if steps is None else steps,
        guidance_scale=float(service.guidance(scale)),
    )


def text_sampling(
    service: Service,
    body: TextSettings,
    limit: tuple[str, int | None],
    stop: tuple[str, ...] = (),
) -> TextSampling:
    """Returns the text settings of a request: greedy, unless it asks for sampling.

    Args:
        service: knows the limits and the model's default length of answers.
        body: the request.
        limit: name and value of the field that limits the tokens of an answer.
        stop: texts that end an answer.

    Raises:
        ApiError: 400 for too many tokens, or a setting that applies only to images.
    """
    for name, value in (
        ("num_inference_steps", body.num_inference_steps),
        ("guidance_scale", body.guidance_scale),
    ):
        if value is not None:
            raise invalid(f"{name} is only for answers with an image", name)
    name, asked = limit
    most = service.config.max_answer_tokens
    if asked is not None and asked > most:
        raise invalid(f"{name} must be at most {most}, got {asked}", name)
    longest = min(asked or service.sampling.max_new_tokens, most)
    temperature, top_p, top_k = body.temperature, body.top_p, max(body.top_k or 0, 0)
    if temperature is None:
        is_sampled = top_k > 0 or (top_p is not None and top_p < 1)
        temperature = _DEFAULT_TEMPERATURE if is_sampled else 0.0
    if temperature == 0 or top_p == 0:  # top_p 0 keeps only the most likely token
        return TextSampling(max_new_tokens=longest, stop=stop)
    return TextSampling(
        max_new_tokens=longest,
        temperature=temperature,
        top_p=1.0 if top_p is None else top_p,
        top_k=top_k,
        seed=new_seed() if body.seed is None else body.seed,
        stop=stop,
    )


def check_size(service: Service, size: str, param: str) -> None:
    """Raises an `ApiError` with status 400 if the model makes images of another size."""
    side = service.image_px
    if size not in ("auto", f"{side}x{side}"):
        raise invalid(f"{param} must be auto or {side}x{side}, the model's only size", param)


def check_number(service: Service, count: int) -> None:
    """Raises an `ApiError` with status 400 for too many images or answers."""
    if count > service.config.max_n:
        raise invalid(f"n must be at most {service.config.max_n}, got {count}", "n")


def check_stream_options(body: ChatCompletionRequest | ResponseRequest) -> None:
    """Raises an `ApiError` with status 400 for stream options without a streamed answer."""
    if body.stream_options is not None and not body.stream:
        raise invalid("stream_options requires stream to be true", "stream_options")
