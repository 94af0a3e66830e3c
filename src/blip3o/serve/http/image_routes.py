"""`/v1/images/...`: images from prompts, edits and variations."""

import math
import secrets
import time
from collections.abc import AsyncGenerator, Sequence

from fastapi import APIRouter, Request
from PIL import Image
from starlette.responses import JSONResponse, Response

from blip3o.serve.http.errors import ApiError
from blip3o.serve.http.fields import JsonObject
from blip3o.serve.http.forms import read_form
from blip3o.serve.http.json_in import JsonRoute
from blip3o.serve.http.output import GONE, IMAGE_PATH, base64_png, event_stream, png
from blip3o.serve.http.request_jobs import image_job
from blip3o.serve.http.schemas import (
    EditForm,
    GenerationRequest,
    ImageOptions,
    SampledOptions,
    VariationForm,
)
from blip3o.serve.http.service import Service
from blip3o.serve.jobs import Drawn, ImageRequest, Preview, Progress


def image_routes(service: Service) -> APIRouter:
    """Returns the routes for images."""
    router = APIRouter(tags=["images"], route_class=JsonRoute)

    @router.post("/v1/images/generations", summary="Images from a prompt")
    async def generations(body: GenerationRequest, request: Request) -> Response:
        return await _answer(service, body, (), request)

    @router.post(
        "/v1/images/edits",
        summary="Images edited by an instruction",
        openapi_extra=_form(EditForm),
    )
    async def edits(request: Request) -> Response:
        return await _answer(service, *await read_form(request, EditForm, service), request)

    @router.post(
        "/v1/images/variations",
        summary="An image reconstructed from its features",
        openapi_extra=_form(VariationForm),
    )
    async def variations(request: Request) -> Response:
        return await _answer(service, *await read_form(request, VariationForm, service), request)

    @router.get(IMAGE_PATH + "{name}", summary="The image at a URL of an answer")
    async def image(name: str) -> Response:
        data = service.url_images.get(name)
        if data is None:
            message = "there is no such image; the server keeps only the latest images"
            raise ApiError(404, message, code="not_found")
        return Response(data, media_type="image/png", headers={"Cache-Control": "no-store"})

    return router


async def _answer(
    service: Service,
    body: GenerationRequest | EditForm | VariationForm,
    images: Sequence[Image.Image],
    request: Request,
) -> Response:
    job = image_job(service, body, images)
    if not isinstance(body, VariationForm) and body.stream:
        return await event_stream(_streamed(service, job, body, request))
    made: dict[int, JsonObject] = {}
    async with service.events(job) as events:
        async for event in events:
            if isinstance(event, Drawn):
                made[event.index] = await _data(service, event.image, body, request)
                if len(made) == job.count:
                    break
    if len(made) < job.count:
        return GONE
    data = [made[index] for index in range(job.count)]
    answer: JsonObject = {"created": int(time.time()), "data": data, "seed": job.seed}
    if job.kind != "reconstruct":
        answer["num_inference_steps"] = job.num_inference_steps
        answer["guidance_scale"] = job.guidance_scale
    facts = {"background": "opaque", "output_format": "png", "usage": _usage(service, job)}
    return JSONResponse({**answer, **facts})


async def _streamed(
    service: Service, job: ImageRequest, body: SampledOptions, request: Request
) -> AsyncGenerator[JsonObject]:
    """Yields an event for each step, each requested partial image, and each finished image."""
    left = job.count
    num_partial = dict.fromkeys(range(job.count), 0)
    kind = "image_generation" if job.kind == "generate" else "image_edit"
    job = job.previewed(preview_steps(job, body.partial_images))
    async with service.events(job) as events:
        async for event in events:
            if isinstance(event, Progress):
                place = {"step": event.step, "num_steps": event.num_steps}
                yield {"type": f"{kind}.progress", **place}
            elif isinstance(event, Preview) and event.step < job.num_inference_steps:
                data: JsonObject = {"b64_json": await base64_png(event.image)}
                place = {"partial_image_index": num_partial[event.index], **_facts(event.image)}
                yield {"type": f"{kind}.partial_image", **data, "index": event.index, **place}
                num_partial[event.index] += 1
            elif isinstance(event, Drawn):
                data = await _data(service, event.image, body, request)
                place = {"index": event.index, "seed": job.seed, **_facts(event.image)}
                usage = _usage(service, job)
                yield {"type": f"{kind}.completed", **data, **place, "usage": usage}
                left -= 1
                if not left:
                    return


def preview_steps(job: ImageRequest, count: int) -> int:
    """Returns the steps between two of at most `count` partial images; 0 for no partial images."""
    return math.ceil(job.num_inference_steps / (count + 1)) if count else 0


def _facts(image: Image.Image) -> JsonObject:
    """Returns the fields of an event that describe its image."""
    return {
        "created_at": int(time.time()),
        "background": "opaque",
        "output_format": "png",
        "quality": "auto",
        "size": f"{image.width}x{image.height}",
    }


def _usage(service: Service, job: ImageRequest) -> JsonObject:
    """Returns the token counts of a prompt; output images have no tokens."""
    total = len(job.prompt)
    read = service.chat_template.num_image_tokens * len(job.images) if total else 0
    return {
        "input_tokens": total,
        "input_tokens_details": {"image_tokens": read, "text_tokens": total - read},
        "output_tokens": 0,
        "total_tokens": total,
    }


async def _data(
    service: Service, image: Image.Image, body: ImageOptions, request: Request
) -> JsonObject:
    if body.response_format == "b64_json":
        return {"b64_json": await base64_png(image)}
    data, name = await png(image), f"{secrets.token_urlsafe(24)}.png"
    service.url_images.put(name, data, len(data))
    return {"url": f"{str(request.base_url).rstrip('/')}{IMAGE_PATH}{name}"}


def _form(schema: type[ImageOptions]) -> JsonObject:
    """Returns the OpenAPI description of a form, which FastAPI cannot derive."""
    described = schema.model_json_schema()
    file = {"type": "string", "format": "binary"}
    described["properties"] = {"image": {"type": "array", "items": file}, **described["properties"]}
    described["required"] = ["image", *described.get("required", [])]
    content = {"multipart/form-data": {"schema": described}}
    return {"requestBody": {"content": content, "required": True}}
