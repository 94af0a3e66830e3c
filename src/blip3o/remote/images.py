"""A client of servers that draw or edit images by OpenAI's protocol."""

import base64
import dataclasses
import io
import itertools
import json
import random
import threading
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from PIL import Image

from blip3o.core.errors import UsageError, first_line, shown
from blip3o.remote.http import RefusedError, Server, ServerSettings, TransientError

_GENERATIONS, _EDITS = "/images/generations", "/images/edits"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageRequest:
    """One image to draw, or to make of others by an instruction.

    Args:
        prompt: prompt or instruction.
        seed: seed of the noise; servers that know none ignore it.
        images: files of the input images; none to draw from the prompt alone.
    """

    prompt: str
    seed: int
    images: tuple[bytes, ...] = ()


class ImageClient:
    """Asks a server for images.

    Args:
        settings: the server and the pace.
        size: size of the images, "1024x1024"; None for the server's own.

    Raises:
        UsageError: if the address is not valid, or the key is missing.
    """

    def __init__(self, settings: ServerSettings, size: str | None = None) -> None:
        self.model, self.url, self.size = settings.full_name, settings.url, size
        self._settings = settings
        self._server = Server(settings)

    def images(self, requests: Sequence[ImageRequest]) -> list[Image.Image | str]:
        """Returns the image for each request, in RGB; a text is the reason of a refusal.

        Raises:
            UsageError: if the server refuses all requests, cannot be reached, or gives no image
                after all attempts.
        """
        stop = threading.Event()
        with ThreadPoolExecutor(self._settings.max_in_flight) as pool:
            answers = [pool.submit(self._image, request, stop) for request in requests]
            try:
                return [answer.result() for answer in answers]
            finally:  # the first fault ends the waiting of all
                stop.set()
                pool.shutdown(cancel_futures=True)

    def _image(self, request: ImageRequest, stop: threading.Event) -> Image.Image | str:
        """Returns the image for a request after all its attempts.

        Args:
            request: the request.
            stop: ends the attempts; the result is then unused.
        """
        settings = self._settings
        for attempt in itertools.count():
            if not self._server.pace.wait(stop):
                break
            try:
                return _read(self._post(request))
            except RefusedError as error:
                return str(error) or "refused"
            except TransientError as error:
                if attempt == settings.retries and not self._server.was_reached:
                    raise UsageError(
                        f"cannot reach {settings.url}: {error}; check the url, and start the "
                        "server if it is your own"
                    ) from error
                if attempt == settings.retries:
                    raise UsageError(
                        f"{settings.url} gave no image of {shown(request.prompt)} in "
                        f"{attempt + 1} attempts: {error}"
                    ) from error
                if error.pause_s is not None:
                    self._server.pace.hold(min(error.pause_s, settings.longest_pause_s))
                    continue
            pause_s = min(settings.pause_s * 2**attempt, settings.longest_pause_s)
            stop.wait(pause_s * random.uniform(0.5, 1.0))
        return "stopped"

    def _post(self, request: ImageRequest) -> bytes:
        fields: dict[str, object] = {
            "model": self._settings.model,
            "prompt": request.prompt,
            "n": 1,
            "seed": request.seed,
            "response_format": "b64_json",
        }
        if self.size is not None:
            fields["size"] = self.size
        if not request.images:
            headers = {"content-type": "application/json"}
            body = json.dumps(fields).encode()
            return self._server.post(self._server.address(_GENERATIONS), body, headers)
        body, content_type = _form(fields, request.images)
        address = self._server.address(_EDITS)
        return self._server.post(address, body, {"content-type": content_type})


def _form(fields: dict[str, object], images: Sequence[bytes]) -> tuple[bytes, str]:
    """Returns the body of a form with files, and its content type."""
    mark = uuid.uuid4().hex
    name = "image" if len(images) == 1 else "image[]"
    parts = [
        (f'name="{key}"', "text/plain; charset=utf-8", str(value).encode())
        for key, value in fields.items()
    ]
    parts += [
        (f'name="{name}"; filename="{number}.png"', "image/png", data)
        for number, data in enumerate(images)
    ]
    start = f"--{mark}\r\nContent-Disposition: form-data;"
    body = b"".join(
        f"{start} {head}\r\nContent-Type: {kind}\r\n\r\n".encode() + data + b"\r\n"
        for head, kind, data in parts
    )
    return body + f"--{mark}--\r\n".encode(), f"multipart/form-data; boundary={mark}"


def _read(data: bytes) -> Image.Image:
    """Returns the image in the body of an answer.

    Raises:
        TransientError: if it holds none.
    """
    try:
        reply: Any = json.loads(data)
        file = base64.b64decode(reply["data"][0]["b64_json"], validate=True)
        with Image.open(io.BytesIO(file)) as image:
            return image.convert("RGB")
    except (ValueError, LookupError, TypeError, OSError) as error:
        raise TransientError(f"the answer holds no image: {first_line(error)}") from error
