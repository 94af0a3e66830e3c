"""Shared parts of the tabs: fields, event handlers, errors and image files."""

import functools
import html
import re
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import NamedTuple, ParamSpec, TypeVar

import gradio as gr
from gradio.events import Dependency
from gradio.utils import get_upload_folder
from PIL import Image

from blip3o import __version__
from blip3o.core.errors import UsageError
from blip3o.core.log import say
from blip3o.imaging.settings import png_with_settings
from blip3o.serve.http.errors import ApiError
from blip3o.serve.http.fields import JsonObject
from blip3o.serve.http.service import Service, new_seed
from blip3o.serve.http.uploads import is_full, no_room
from blip3o.serve.jobs import ImageRequest
from blip3o.serve.page.files import kept

P = ParamSpec("P")
T = TypeVar("T")
WAITING = "Waiting for the model\u2026"
_MOST_NAME = 40
_Fields = Sequence[gr.components.Component] | gr.components.Component | None


def wire(
    handler: Callable[..., object],
    inputs: _Fields,
    outputs: _Fields,
    *events: Callable[..., Dependency],
    cancels: list[Dependency] | None = None,
) -> list[Dependency]:
    """Connects a handler to events, and returns the connections.

    They are not part of Gradio's API, because programs use the server's API. They show no progress
    bar, because handlers report progress themselves.

    Args:
        handler: called with the values of the inputs.
        inputs: fields to read.
        outputs: fields to update.
        events: for example `button.click`.
        cancels: connections whose running handlers are stopped.
    """
    return [
        event(
            handler,
            inputs,
            outputs,
            cancels=cancels,
            api_visibility="private",
            show_progress="hidden",
        )
        for event in events
    ]


def image_field() -> gr.Image:
    """Adds an image field; its file is not decoded, but read within the limits later."""
    return gr.Image(
        label="Image", type="filepath", sources=["upload", "clipboard"], height=300, buttons=[]
    )


class Sampling(NamedTuple):
    """The fields for sampling settings."""

    seed: gr.Number
    is_new: gr.Checkbox
    steps: gr.Slider
    guidance: gr.Slider


def sampling_fields(service: Service) -> Sampling:
    """Adds seed, steps and, if it has a meaning for the model, guidance, with its defaults."""
    own, most = service.sampling, service.config.max_steps
    seed, is_new = seed_fields()
    with gr.Row():
        default = min(own.num_inference_steps, most)
        steps = gr.Slider(1, most, default, step=1, label="Steps", buttons=[], min_width=150)
        guidance = gr.Slider(
            1,
            15,
            own.guidance_scale,
            step=0.5,
            label="Guidance",
            buttons=[],
            min_width=150,
            visible=service.is_guided,
        )
    return Sampling(seed, is_new, steps, guidance)


def seed_fields() -> tuple[gr.Number, gr.Checkbox]:
    """Adds a seed, a button for a random one, and a checkbox for a new one each time."""
    with gr.Row(elem_classes="seed"):
        # A number, because Gradio would call a function on load and overwrite a typed seed.
        seed = gr.Number(new_seed(), label="Seed", precision=0, minimum=0, min_width=160)
        dice = gr.Button("Random", elem_classes="dice", min_width=90)
    is_new = gr.Checkbox(True, label="New seed each time")
    wire(new_seed, None, seed, dice.click)
    return seed, is_new


def chosen_seed(seed: float | None, is_new: bool) -> int:
    """Returns the seed of a request: the field's, or a new one."""
    return new_seed() if is_new or seed is None else int(seed)


def sampled_fields(
    prompt: str, seed: float | None, is_new: bool, steps: int, guidance: float
) -> JsonObject:
    """Returns the fields of a request for sampled images; `is_new` replaces the seed.

    Raises:
        UsageError: if the prompt is blank.
    """
    if not prompt.strip():
        raise UsageError("describe what you want first")
    return {
        "prompt": prompt,
        "seed": chosen_seed(seed, is_new),
        "num_inference_steps": int(steps),
        "guidance_scale": float(guidance),
    }


def with_messages(handler: Callable[P, AsyncGenerator[T]]) -> Callable[P, AsyncGenerator[T]]:
    """Returns an event handler whose errors the page shows as one sentence."""

    @functools.wraps(handler)
    async def wrapped(*values: P.args, **named: P.kwargs) -> AsyncGenerator[T]:
        try:
            async with aclosing(handler(*values, **named)) as results:
                async for result in results:
                    yield result
        except (ApiError, UsageError) as error:
            raise shown(error) from error
        except gr.Error:
            raise
        except Exception as error:
            if is_full(error):
                raise shown(no_room()) from error
            # A bug is reported with one line in the log and one on the page.
            say(f"blip3o: the page failed: {type(error).__name__}: {error}")
            raise shown(UsageError("an internal error; the server's log says more")) from error

    return wrapped


def shown(error: ApiError | UsageError) -> gr.Error:
    """Returns an error for the page; user input in it is not interpreted as HTML."""
    text = str(error).strip().rstrip(".")
    sentence = f"{text[:1].upper()}{text[1:]}."
    return gr.Error(html.escape(sentence), print_exception=False)


async def opened(service: Service, path: str | None) -> Image.Image:
    """Returns the image of an image field.

    Raises:
        UsageError: if no image was chosen.
        ApiError: 400 or 413 if it cannot be read within the limits.
    """
    if path is None:
        raise UsageError("choose an image first")
    with own_file(path).open("rb") as file:
        data = file.read(service.config.max_image_bytes + 1)
    return await service.reader.from_bytes(data, "image")


def own_file(path: str) -> Path:
    """Returns the path of a file that was uploaded, or written by the page.

    Raises:
        UsageError: for any other file of this machine.
    """
    file = Path(path).resolve()
    if not file.is_relative_to(Path(get_upload_folder()).resolve()):
        raise UsageError("choose a file to upload")
    return file


def saved(image: Image.Image, settings: JsonObject) -> str:
    """Writes an image with its settings where browsers can fetch it; returns the path."""
    words = re.findall(r"[a-z0-9]+", str(settings.get("prompt", settings["kind"])).lower())
    name = f"{'-'.join(words)[:_MOST_NAME].strip('-') or 'image'}-{settings['seed']}"
    number = settings["image_number"]
    data = png_with_settings(image, {"software": f"blip3o {__version__}", **settings})
    return kept(data, f"{name}-{number}.png", get_upload_folder())


def settings_of(service: Service, job: ImageRequest, index: int, prompt: str = "") -> JsonObject:
    """Returns the settings from which an image of a job was made."""
    made: JsonObject = {"model": service.name, "kind": job.kind}
    if prompt:
        made["prompt"] = prompt
    if job.kind != "reconstruct":
        made["num_inference_steps"] = job.num_inference_steps
        made["guidance_scale"] = job.guidance_scale
    return {**made, "seed": job.seed, "image_number": index}
