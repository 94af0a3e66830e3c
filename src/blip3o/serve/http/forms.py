"""Multipart forms: text fields validated by a schema, and image files."""

from typing import TypeVar

from PIL import Image
from pydantic import BaseModel
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from blip3o.serve.config import ServeConfig
from blip3o.serve.http.errors import invalid, validated
from blip3o.serve.http.service import Service

T = TypeVar("T", bound=BaseModel)
_FILE_FIELDS = ("image", "image[]")
_MOST_FIELDS = 50


async def read_form(
    request: Request, schema: type[T], service: Service
) -> tuple[T, list[Image.Image]]:
    """Returns the fields of a multipart body, validated by `schema`, and its images.

    The names of uploaded files are ignored.

    Raises:
        ApiError: 400 or 413 for a form that is malformed or over a limit, an unknown or duplicate
            field, or an image that cannot be read.
    """
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise invalid("the body must be multipart/form-data", code="invalid_content_type")
    config = service.config
    form = await _parsed(request, config)
    try:
        fields: dict[str, str | UploadFile] = {}
        uploads: list[UploadFile] = []
        for name, value in form.multi_items():
            if _is_blank(value, is_image=name in _FILE_FIELDS):
                continue
            if name in _FILE_FIELDS:
                if not isinstance(value, UploadFile):
                    raise invalid("image must be a file", "image", "invalid_image")
                uploads.append(value)
            elif name in fields:
                raise invalid(f"{name!r:.100} is given twice", name)
            else:
                fields[name] = value
        parsed = validated(schema, fields)
        if not uploads:
            raise invalid(
                "image is missing; send one as a file", "image", "missing_required_parameter"
            )
        check_count(len(uploads), config, "image")
        images = []
        for upload in uploads:
            data = await upload.read(config.max_image_bytes + 1)
            images.append(await service.reader.from_bytes(data, "image", is_shown=False))
        return parsed, images
    finally:
        await form.close()


def _is_blank(value: str | UploadFile, *, is_image: bool) -> bool:
    """Whether a field is empty; browsers send empty file fields if no file was chosen."""
    if isinstance(value, UploadFile):
        return not value.filename and not value.size
    return is_image and not value


async def _parsed(request: Request, config: ServeConfig) -> FormData:
    parser = MultiPartParser(
        request.headers, request.stream(), max_files=config.max_images + 1, max_fields=_MOST_FIELDS
    )
    # The body is already in memory, within its limit; this keeps files from being spooled to disk.
    parser.spool_max_size = config.max_body_bytes + 1
    try:
        return await parser.parse()
    except MultiPartException as error:
        raise invalid(f"the form cannot be read: {error.message}", code="invalid_form") from error


def check_count(count: int, config: ServeConfig, param: str) -> None:
    """Raises an `ApiError` with status 400 for too many input images."""
    if count > config.max_images:
        message = f"{count} images; at most {config.max_images} are allowed"
        raise invalid(message, param, "too_many_images")
