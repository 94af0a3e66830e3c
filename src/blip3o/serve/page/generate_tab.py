"""The tab that generates images from a prompt, with previews and a history."""

import math
from collections.abc import AsyncGenerator
from functools import partial
from pathlib import Path

import gradio as gr
from PIL import Image

from blip3o.core.errors import UsageError
from blip3o.imaging.settings import read_settings
from blip3o.serve.http.errors import validated
from blip3o.serve.http.request_jobs import image_job
from blip3o.serve.http.schemas import GenerationRequest
from blip3o.serve.http.service import Service
from blip3o.serve.jobs import Drawn, Preview
from blip3o.serve.page.examples import PROMPTS
from blip3o.serve.page.parts import (
    WAITING,
    own_file,
    sampled_fields,
    sampling_fields,
    saved,
    settings_of,
    shown,
    wire,
    with_messages,
)

_MOST_KEPT = 48
_NUM_PREVIEWS = 8
History = list[tuple[str, str]]
"""Path and caption of each earlier image, the newest first."""
Updates = AsyncGenerator[tuple[object, ...]]


def generate_tab(service: Service) -> None:
    """Adds the fields of the tab and their handlers."""
    history = gr.State([])
    with gr.Row(elem_classes="studio"):
        with gr.Column(elem_classes="ask"):
            prompt = gr.Textbox(
                label="Prompt", placeholder="Describe the image", lines=2, max_lines=6
            )
            with gr.Row():
                button = gr.Button("Generate", variant="primary")
                stop = gr.Button("Stop", min_width=80)
            examples = gr.Examples(
                [[text] for text in PROMPTS], [prompt], label="Examples: click one to generate it"
            )
        with gr.Column(elem_classes="settings"):
            most = service.config.max_n
            count = gr.Slider(1, most, min(4, most), step=1, label="Number of images", buttons=[])
            sampling = sampling_fields(service)
            upload = gr.UploadButton(
                "Settings from a PNG\u2026", file_types=[".png"], size="sm", variant="secondary"
            )
        with gr.Column(elem_classes="result"):
            gallery = gr.Gallery(
                label="Images",
                show_label=False,
                columns=2,
                elem_classes="whole",
                object_fit="contain",
                format="png",
                interactive=False,
                buttons=["download", "fullscreen"],
            )
            state = gr.Markdown("Ready.", elem_classes="state")
    gr.Markdown("**History of this visit** \u00b7 click an image to load its settings")
    past = gr.Gallery(
        label="History",
        show_label=False,
        columns=8,
        fit_columns=False,
        height=170,
        object_fit="contain",
        interactive=False,
        allow_preview=False,
    )
    fields = [prompt, *sampling, count]
    outputs = [sampling.seed, gallery, state, history, past]
    events = (button.click, prompt.submit, examples.load_input_event.then)
    started = wire(partial(_generate, service), [*fields, history], outputs, *events)
    wire(lambda: "Stopped.", None, state, stop.click, cancels=started)
    wire(_from_file, upload, fields, upload.upload)
    wire(_from_history, history, fields, past.select)


@with_messages
async def _generate(
    service: Service,
    prompt: str,
    seed: float,
    is_new: bool,
    steps: int,
    guidance: float,
    count: int,
    history: History,
) -> Updates:
    fields = {**sampled_fields(prompt, seed, is_new, steps, guidance), "n": int(count)}
    job = image_job(service, validated(GenerationRequest, fields))
    job = job.previewed(every=max(1, job.num_inference_steps // _NUM_PREVIEWS))
    latest: dict[int, Image.Image | str] = {}
    done: dict[int, tuple[str, str]] = {}
    empty = gr.Gallery(value=[], columns=math.ceil(math.sqrt(job.count)))
    yield job.seed, empty, WAITING, gr.skip(), gr.skip()
    async with service.events(job) as events:
        async for event in events:
            if isinstance(event, Preview):
                latest[event.index] = event.image
                state = f"Step {event.step} of {job.num_inference_steps}"
            elif isinstance(event, Drawn):
                path = saved(event.image, settings_of(service, job, event.index, prompt))
                latest[event.index] = path
                done[event.index] = (path, prompt)
                state = f"{len(done)} of {job.count} done"
            else:
                continue
            if len(done) == job.count:
                break
            if isinstance(event, Drawn) or event.index == max(latest):
                images = [latest[index] for index in sorted(latest)]
                yield gr.skip(), images, state, gr.skip(), gr.skip()
    made = [done[index] for index in range(job.count)]
    history = [*made, *history][:_MOST_KEPT]
    state = f"Done: seed {job.seed}. Downloaded PNG files contain their settings."
    yield job.seed, [path for path, _ in made], state, history, history


def _from_file(path: str) -> list[object]:
    """Returns the values of prompt, seed, "new seed", steps, guidance and number."""
    try:
        return _settings(own_file(path))
    except UsageError as error:
        raise shown(error) from error


def _from_history(history: History, chosen: gr.SelectData) -> list[object]:
    index = chosen.index if isinstance(chosen.index, int) else -1
    if not 0 <= index < len(history):
        return [gr.skip()] * 6
    return _from_file(history[index][0])


def _settings(path: Path) -> list[object]:
    settings = read_settings(path)
    try:
        return [
            str(settings["prompt"]),
            int(settings["seed"]),
            False,  # keep the seed, to make the same image
            int(settings["num_inference_steps"]),
            float(settings["guidance_scale"]),
            int(settings["image_number"]) + 1,
        ]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UsageError("the image has no settings of a generated image") from error
