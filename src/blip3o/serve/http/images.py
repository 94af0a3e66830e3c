"""`/v1/images/...`: images from prompts, edits and variations."""

import asyncio
import base64
import math
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from PIL import Image
from starlette.responses import JSONResponse, Response

from blip3o.core.types import IMAGE_MARK, Message
from blip3o.serve.http.errors import ApiError, invalid
from blip3o.serve.http.forms import read_form
from blip3o.serve.http.images_out import IMAGE_PATH, new_name, png
from blip3o.serve.http.json_in import JsonRoute
from blip3o.serve.http.schemas import (
    EditForm,
    GenerationRequest,
    ImageOptions,
    SampledOptions,
    VariationForm,
)
from blip3o.serve.http.service import Service, new_seed
from blip3o.serve.http.sse import GONE, event_stream
from blip3o.serve.jobs import Drawn, ImageRequest, Preview, Progress


def image_routes(service: Service) -> APIRouter:
    """Returns the routes for images."""
    router = APIRouter(tags=["images"], route_class=JsonRoute)

    @router.post("/v1/images/generations", summary="Images of a prompt")
    async def generations(body: GenerationRequest, request: Request) -> Response:
        return await _answer(service, generation_job(service, body), body, request)

    @router.post(
        "/v1/images/edits", summary="Images changed as told", openapi_extra=_form(EditForm)
    )
    async def edits(request: Request) -> Response:
        body, images = await read_form(request, EditForm, service.config, service.reader)
        return await _answer(service, edit_job(service, body, images), body, request)

    @router.post(
        "/v1/images/variations",
        summary="An image through its features",
        openapi_extra=_form(VariationForm),
    )
    async def variations(request: Request) -> Response:
        body, images = await read_form(request, VariationForm, service.config, service.reader)
        return await _answer(service, variation_job(service, body, images), body, request)

    @router.get(IMAGE_PATH + "{name}", summary="An image that an answer's url points to")
    async def image(name: str) -> Response:
        data = service.shelf.get(name)
        if data is None:
            raise ApiError(404, "there is no such image (any more)", code="not_found")
        return Response(data, media_type="image/png", headers={"Cache-Control": "no-store"})

    return router


def generation_job(service: Service, body: GenerationRequest) -> ImageRequest:
    """Returns the work that a request for images of a prompt asks for.

    Raises:
        ApiError: 400 or 404 for what the model or the server's limits do not allow.
    """
    check_options(service, body)
    messages = service.chat_template.generate_messages(body.prompt)
    prompt = service.prompt(messages, body.prompt, "prompt")
    return sampled(service, "generate", body, prompt, [], body.n)


def edit_job(service: Service, body: EditForm, images: list[Image.Image]) -> ImageRequest:
    """Returns the work that a request for changed images asks for.

    Raises:
        ApiError: 400 or 404 for what the model or the server's limits do not allow.
    """
    check_options(service, body)
    prompt = edit_prompt(service, body.prompt, len(images), "prompt")
    return sampled(service, "edit", body, prompt, images, body.n)


def variation_job(service: Service, body: VariationForm, images: list[Image.Image]) -> ImageRequest:
    """Returns the work that a request for an image through its features asks for.

    Raises:
        ApiError: 400 or 404 for what the model or the server's limits do not allow.
    """
    check_options(service, body)
    if len(images) > 1:
        raise invalid("a variation is of one image", "image", "too_many_images")
    seed = new_seed() if body.seed is None else body.seed
    return ImageRequest(kind="reconstruct", images=images, count=body.n, seed=seed)


def check_options(service: Service, body: ImageOptions) -> None:
    """Checks what depends on the model and the server's limits.

    Raises:
        ApiError: 404 for another model, 400 for another size or too many images.
    """
    service.check_model(body.model)
    check_size(service, body.size, "size")
    check_count_made(service, body.n)


def check_size(service: Service, size: str, param: str) -> None:
    """Checks the size of the images that a request asks for.

    Raises:
        ApiError: 400 for another than the model's.
    """
    side = service.image_px
    if size not in ("auto", f"{side}x{side}"):
        raise invalid(f"{param} must be auto or {side}x{side}: the model has one size", param)


def check_count_made(service: Service, count: int) -> None:
    """Checks how many images or answers a request asks for.

    Raises:
        ApiError: 400 for too many.
    """
    if count > service.config.max_n:
        raise invalid(f"n must be at most {service.config.max_n}, got {count}", "n")


def edit_prompt(service: Service, text: str, num_images: int, param: str) -> list[int]:
    """Returns the token ids of an instruction about one or several images."""
    (turn,) = service.chat_template.edit_messages(text)
    marks = f"{IMAGE_MARK}\n" * (num_images - 1)
    return service.prompt([Message(role="user", text=marks + turn.text)], text, param)


def sampled(
    service: Service,
    kind: Any,  # noqa: ANN401  (a literal of ImageRequest)
    body: Any,  # noqa: ANN401  (has the three fields below)
    prompt: list[int],
    images: list[Image.Image],
    count: int,
) -> ImageRequest:
    """Returns the request for sampled images, with the model's own numbers where none are said.

    Raises:
        ApiError: 400 for too many steps.
    """
    steps, scale = body.num_inference_steps, body.guidance_scale
    most = service.config.max_steps
    if steps is not None and steps > most:
        message = f"num_inference_steps must be at most {most}, got {steps}"
        raise invalid(message, "num_inference_steps")
    own = service.sampling
    return ImageRequest(
        kind=kind,
        prompt=prompt,
        images=images,
        count=count,
        seed=new_seed() if body.seed is None else body.seed,
        num_inference_steps=own.num_inference_steps if steps is None else steps,
        guidance_scale=float(own.guidance_scale if scale is None else scale),
    )


async def _answer(
    service: Service, job: ImageRequest, body: ImageOptions, request: Request
) -> Response:
    if isinstance(body, SampledOptions) and body.stream:
        return await event_stream(_streamed(service, job, body, request))
    images: dict[int, dict[str, Any]] = {}
    async with aclosing(service.events(job, request)) as events:
        async for event in events:
            if isinstance(event, Drawn):
                images[event.index] = await _shown(service, event.image, body, request)
                if len(images) == job.count:
                    break
    if len(images) < job.count:
        return GONE
    data = [images[index] for index in range(job.count)]
    answer = {"created": int(time.time()), "data": data, "seed": job.seed}
    facts = {"background": "opaque", "output_format": "png", "usage": _usage(service, job)}
    return JSONResponse({**answer, **facts})


async def _streamed(
    service: Service, job: ImageRequest, body: SampledOptions, request: Request
) -> AsyncIterator[dict[str, Any]]:
    """Yields an event for each step and for each image, and for partial images if asked."""
    left = job.count
    shown = dict.fromkeys(range(job.count), 0)  # partial images of each
    kind = "image_generation" if job.kind == "generate" else "image_edit"
    job = job.previewed(preview_steps(job, body.partial_images))
    async with aclosing(service.events(job, request)) as events:
        async for event in events:
            if isinstance(event, Progress):
                yield {
                    "type": f"{kind}.progress",
                    "step": event.step,
                    "num_steps": event.num_steps,
                }
            elif isinstance(event, Preview) and event.step < job.num_inference_steps:
                data = {"b64_json": await encoded(event.image)}
                place = {"partial_image_index": shown[event.index], **_facts(event.image)}
                yield {"type": f"{kind}.partial_image", **data, "index": event.index, **place}
                shown[event.index] += 1
            elif isinstance(event, Drawn):
                data = await _shown(service, event.image, body, request)
                place = {"index": event.index, "seed": job.seed, **_facts(event.image)}
                usage = _usage(service, job)
                yield {"type": f"{kind}.completed", **data, **place, "usage": usage}
                left -= 1
                if not left:
                    return


def preview_steps(job: ImageRequest, count: int) -> int:
    """Returns how many steps are between two partial images; 0 for none.

    Args:
        job: what is drawn.
        count: most partial images of each image; the image itself is not one of them.
    """
    return math.ceil(job.num_inference_steps / (count + 1)) if count else 0


def _facts(image: Image.Image) -> dict[str, Any]:
    """Returns what an event says of its image."""
    return {
        "created_at": int(time.time()),
        "background": "opaque",
        "output_format": "png",
        "quality": "auto",
        "size": f"{image.width}x{image.height}",
    }


def _usage(service: Service, job: ImageRequest) -> dict[str, Any]:
    """Returns the tokens of a prompt; images are not made of tokens."""
    total = len(job.prompt)
    read = service.chat_template.num_image_tokens * len(job.images) if total else 0
    return {
        "input_tokens": total,
        "input_tokens_details": {"image_tokens": read, "text_tokens": total - read},
        "output_tokens": 0,
        "total_tokens": total,
    }


async def encoded(image: Image.Image) -> str:
    """Returns an image as base64 of a PNG file."""
    data = await asyncio.to_thread(png, image)
    return base64.b64encode(data).decode()


async def _shown(
    service: Service, image: Image.Image, body: ImageOptions, request: Request
) -> dict[str, Any]:
    if body.response_format == "b64_json":
        return {"b64_json": await encoded(image)}
    data = await asyncio.to_thread(png, image)
    name = new_name()
    service.shelf.put(name, data, len(data))
    return {"url": f"{str(request.base_url).rstrip('/')}{IMAGE_PATH}{name}"}


def _form(schema: type[ImageOptions]) -> dict[str, Any]:
    """Returns the OpenAPI description of a form, which FastAPI cannot see."""
    described = schema.model_json_schema()
    file = {"type": "string", "format": "binary"}
    described["properties"] = {"image": {"type": "array", "items": file}, **described["properties"]}
    described["required"] = ["image", *described.get("required", [])]
    content = {"multipart/form-data": {"schema": described}}
    return {"requestBody": {"content": content, "required": True}}
