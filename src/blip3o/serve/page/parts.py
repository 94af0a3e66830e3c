"""What the tabs share: fields, errors as sentences, files of images."""

import functools
import html
import inspect
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
from gradio.utils import get_upload_folder
from PIL import Image

from blip3o import __version__
from blip3o.core.errors import UsageError
from blip3o.core.log import say
from blip3o.imaging.settings import png_with_settings
from blip3o.serve.http.errors import ApiError
from blip3o.serve.http.service import Service, new_seed
from blip3o.serve.http.uploads import is_full, no_room
from blip3o.serve.jobs import ChatRequest, Event, ImageRequest
from blip3o.serve.page.files import kept

_MOST_NAME = 40
QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
"""Of every event: programs have the API, and progress is told in words and images."""


def image_field() -> gr.Image:
    """Adds a field for an image; its file comes as it is, to be read within the limits."""
    sources: list[Any] = ["upload", "clipboard"]
    return gr.Image(label="Image", type="filepath", sources=sources, height=300, buttons=[])


class Sampling(NamedTuple):
    """The fields that say how an image is sampled."""

    seed: gr.Number
    is_new: gr.Checkbox
    steps: gr.Slider
    guidance: gr.Slider


def sampling_fields(service: Service) -> Sampling:
    """Adds seed, steps and guidance, with the model's own numbers."""
    own, most = service.sampling, service.config.max_steps
    seed, is_new = seed_fields()
    with gr.Row():
        steps = gr.Slider(
            1,
            most,
            min(own.num_inference_steps, most),
            step=1,
            label="Steps",
            buttons=[],
            min_width=150,
        )
        guidance = gr.Slider(
            1, 15, own.guidance_scale, step=0.5, label="Guidance", buttons=[], min_width=150
        )
    return Sampling(seed, is_new, steps, guidance)


def seed_fields() -> tuple[gr.Number, gr.Checkbox]:
    """Adds a seed and a button that draws another one."""
    with gr.Row(elem_classes="seed"):
        # A number, not the function: what Gradio fetches on load may come after what was typed.
        seed = gr.Number(new_seed(), label="Seed", precision=0, minimum=0, min_width=160)
        dice = gr.Button("Roll", elem_classes="dice", min_width=90)
    is_new = gr.Checkbox(True, label="New seed each time")
    dice.click(new_seed, None, seed, **QUIET)
    return seed, is_new


def rolled(seed: float | None, is_new: bool) -> int:
    """Returns the seed of a request: that of the field, or a new one."""
    return new_seed() if is_new or seed is None else int(seed)


def sentences(handler: Callable[..., AsyncIterator[Any]]) -> Callable[..., AsyncIterator[Any]]:
    """Returns a handler of events whose errors are shown as one sentence."""

    @functools.wraps(handler)
    async def told(*values: Any) -> AsyncIterator[Any]:  # noqa: ANN401
        try:
            async with aclosing(handler(*values)) as results:  # type: ignore[type-var]
                async for result in results:
                    yield result
        except (ApiError, UsageError) as error:
            raise shown(error) from error
        except gr.Error:
            raise
        except Exception as error:
            if is_full(error):
                raise shown(no_room()) from error
            # A bug: one line in the log, one on the page.
            say(f"blip3o: the page failed: {type(error).__name__}: {error}")
            raise shown(UsageError("an internal error; the server's log says more")) from error

    told.__signature__ = inspect.signature(handler)  # type: ignore[attr-defined]
    return told


def shown(error: ApiError | UsageError) -> gr.Error:
    """Returns an error as the page shows it; what a user wrote is not taken for HTML."""
    text = str(error).strip().rstrip(".")
    sentence = f"{text[:1].upper()}{text[1:]}."
    return gr.Error(html.escape(sentence), print_exception=False)


def events(service: Service, job: ImageRequest | ChatRequest) -> aclosing[AsyncGenerator[Event]]:
    """Returns the events of a job; leaving the block ends it."""
    return aclosing(service.events(job))


async def opened(service: Service, path: str | None) -> Image.Image:
    """Returns the image of a field.

    Raises:
        ApiError: 400 or 413 if there is none or it cannot be read within the limits.
    """
    if path is None:
        raise UsageError("choose an image first")
    with own_file(path).open("rb") as file:
        data = file.read(service.config.max_image_bytes + 1)
    return await service.reader.from_bytes(data, "image")


def own_file(path: str) -> Path:
    """Returns the path of a file that was uploaded, or made here.

    Raises:
        UsageError: for any other file of this machine.
    """
    file = Path(path).resolve()
    if not file.is_relative_to(Path(get_upload_folder()).resolve()):
        raise UsageError("choose a file of your own")
    return file


def saved(image: Image.Image, settings: dict[str, Any]) -> str:
    """Writes an image with its settings where the page can show it; returns the path."""
    words = re.findall(r"[a-z0-9]+", str(settings.get("prompt", settings["kind"])).lower())
    name = f"{'-'.join(words)[:_MOST_NAME].strip('-') or 'image'}-{settings['seed']}"
    number = settings["image_number"]
    data = png_with_settings(image, {"software": f"blip3o {__version__}", **settings})
    return kept(data, f"{name}-{number}.png", get_upload_folder())


def settings_of(
    service: Service, job: ImageRequest, index: int, prompt: str = ""
) -> dict[str, Any]:
    """Returns what an image of a job was made from."""
    made: dict[str, Any] = {"model": service.name, "kind": job.kind}
    if prompt:
        made["prompt"] = prompt
    if job.kind != "reconstruct":
        made["num_inference_steps"] = job.num_inference_steps
        made["guidance_scale"] = job.guidance_scale
    return {**made, "seed": job.seed, "image_number": index}
