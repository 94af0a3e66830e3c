"""Reads requests for rewards: JSON with images in base64, or a multipart form with files."""

import asyncio
import base64
import binascii
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import contextmanager
from typing import Annotated

from pydantic import BaseModel, Field, TypeAdapter, ValidationError, create_model
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from blip3o.eval.rewards.config import RewardServerConfig
from blip3o.eval.rewards.errors import ApiError, busy, from_validation, invalid, too_large
from blip3o.eval.rewards.schemas import Strict

_FORMS = "application/json or multipart/form-data"
_LONGEST_ITEMS = 16_000_000
"""Most bytes of the field `items` of a form."""


class RequestReader:
    """Reads requests within the limits.

    Args:
        metadata: schema of the objects in `items`.
        config: the limits.
    """

    def __init__(self, metadata: type[BaseModel], config: RewardServerConfig) -> None:
        self._config = config
        self._items = TypeAdapter(list[metadata])
        self._json = create_model(
            "RewardRequest",
            __base__=Strict,
            images=(Annotated[list[str], Field(min_length=1)], ...),
            items=(Annotated[list[metadata], Field(min_length=1)], ...),
        )
        self._held_bytes = 0

    async def read(self, request: Request) -> tuple[list[bytes], Sequence[BaseModel]]:
        """Returns the image files and the object of each.

        Raises:
            ApiError: 408, 413, 415 or 422 for an invalid request, 429 if too many bytes are held.
            ClientDisconnect: if the client leaves.
        """
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in ("application/json", "multipart/form-data"):
            raise ApiError(415, f"the body must be {_FORMS}", code="invalid_content_type")
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise ApiError(415, "send the body without compression", code="invalid_encoding")
        with self._holding() as body:
            await self._receive(request, body)
            if kind == "application/json":
                files, items = await asyncio.to_thread(self._of_json, body)
            else:
                files, items = await self._of_form(request, bytes(body))
        if len(files) != len(items):
            raise invalid(f"{len(files)} images, but {len(items)} items; send one for each image")
        if len(files) > self._config.max_images:
            raise too_large(f"{len(files)} images; at most {self._config.max_images} are allowed")
        for number, file in enumerate(files):
            if len(file) > self._config.max_image_bytes:
                limit = f"at most {self._config.max_image_bytes} are allowed"
                message = f"image {number} has {len(file)} bytes; {limit}"
                raise too_large(message, f"images.{number}")
        return files, items

    @contextmanager
    def _holding(self) -> Generator[bytearray, None, None]:
        """Yields an empty body, whose bytes are counted as held until the end."""
        body = bytearray()
        try:
            yield body
        finally:
            self._held_bytes -= len(body)

    async def _receive(self, request: Request, body: bytearray) -> None:
        config, length = self._config, request.headers.get("content-length", "")
        message = f"the request is over {config.max_body_bytes} bytes; send fewer images at once"
        if length.isdigit() and int(length) > config.max_body_bytes:
            raise too_large(message)
        try:
            async with asyncio.timeout(config.body_timeout_s):
                async for piece in request.stream():
                    if len(body) + len(piece) > config.max_body_bytes:
                        raise too_large(message)
                    others = self._held_bytes - len(body)
                    if others and self._held_bytes + len(piece) > config.max_bodies_bytes:
                        raise busy("too many bytes of requests are being held")
                    self._held_bytes += len(piece)
                    body += piece
        except TimeoutError as error:
            seconds = f"{config.body_timeout_s:g} seconds"
            raise ApiError(
                408, f"the body did not arrive within {seconds}", headers={"Connection": "close"}
            ) from error

    def _of_json(self, body: bytearray) -> tuple[list[bytes], Sequence[BaseModel]]:
        try:
            # The schema is made at run time, so a type checker does not know its fields.
            fields = dict(self._json.model_validate_json(body))
        except ValidationError as error:
            raise from_validation(error.errors()) from error
        files: list[bytes] = []
        for number, text in enumerate(fields["images"]):
            try:
                files.append(base64.b64decode(text, validate=True))
            except (binascii.Error, ValueError) as error:
                place = f"images.{number}"
                raise invalid(f"{place} is not base64: {error}", place) from error
        return files, fields["items"]

    async def _of_form(
        self, request: Request, body: bytes
    ) -> tuple[list[bytes], Sequence[BaseModel]]:
        async def stream() -> AsyncGenerator[bytes, None]:
            yield body

        parser = MultiPartParser(
            request.headers,
            stream(),
            max_files=self._config.max_images + 1,
            max_fields=2,
            max_part_size=_LONGEST_ITEMS,
        )
        parser.spool_max_size = self._config.max_body_bytes + 1  # never on the disk
        try:
            form = await parser.parse()
        except MultiPartException as error:
            raise invalid(
                f"the form cannot be read: {error.message}", code="invalid_form"
            ) from error
        try:
            files: list[bytes] = []
            texts: list[str] = []
            for name, value in form.multi_items():
                if name == "images" and isinstance(value, UploadFile):
                    files.append(await value.read())
                elif name == "items" and isinstance(value, str):
                    texts.append(value)
                else:
                    message = "the form must have files named images and one text named items"
                    raise invalid(f"{message}, not {name!r:.100}", name, "unknown_field")
        finally:
            await form.close()
        if len(texts) != 1:
            raise invalid(f"the form has {len(texts)} texts named items; send one", "items")
        if not files:
            raise invalid("the form has no file named images; send one for each item", "images")
        try:
            return files, self._items.validate_json(texts[0])
        except ValidationError as error:
            raise from_validation(error.errors(), "items") from error
