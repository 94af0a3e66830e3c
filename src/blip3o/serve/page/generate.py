"""The tab that draws: prompt to images, with a look at them on their way, and a history."""

import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import gradio as gr

from blip3o.core.errors import UsageError
from blip3o.imaging.settings import read_settings
from blip3o.serve.http.errors import validated
from blip3o.serve.http.images import generation_job
from blip3o.serve.http.schemas import GenerationRequest
from blip3o.serve.http.service import Service
from blip3o.serve.jobs import Drawn, Preview
from blip3o.serve.page.examples import PROMPTS
from blip3o.serve.page.parts import (
    QUIET,
    Sampling,
    events,
    own_file,
    rolled,
    sampling_fields,
    saved,
    sentences,
    settings_of,
    shown,
)

_MOST_KEPT = 48
_NUM_PREVIEWS = 8
Kept = list[tuple[str, str]]
"""Path and caption of each image of the history, the newest first."""


def generate_tab(service: Service) -> None:
    """Adds the tab's fields and what they do."""
    history = gr.State([])
    with gr.Row(elem_classes="studio"):
        with gr.Column(elem_classes="ask"):
            prompt = gr.Textbox(label="Prompt", placeholder="What to draw", lines=2, max_lines=6)
            with gr.Row():
                button = gr.Button("Generate", variant="primary")
                stop = gr.Button("Stop", min_width=80)
            examples = gr.Examples(
                [[text] for text in PROMPTS], [prompt], label="Examples: one click draws"
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
    gr.Markdown("**History of this visit** \u00b7 choose an image to take its settings")
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
    fields = [prompt, sampling.seed, sampling.is_new, sampling.steps, sampling.guidance, count]
    work: dict[str, Any] = {
        "fn": _drawer(service),
        "inputs": [*fields, history],
        "outputs": [sampling.seed, gallery, state, history, past],
        **QUIET,
    }
    started: list[Any] = [button.click(**work), prompt.submit(**work)]
    started.append(examples.load_input_event.then(**work))
    stop.click(lambda: "Stopped.", None, state, cancels=started, **QUIET)
    _settings_events(upload, past, history, [prompt, *_told(sampling), count])


def _told(sampling: Sampling) -> list[Any]:
    return [sampling.seed, sampling.is_new, sampling.steps, sampling.guidance]


def _drawer(service: Service) -> Any:  # noqa: ANN401  (a handler of Gradio's)
    @sentences
    async def draw(
        prompt: str, seed: float, is_new: bool, steps: int, guidance: float, count: int, kept: Kept
    ) -> AsyncIterator[Any]:
        if not prompt.strip():
            raise UsageError("write what to draw first")
        fields = {"num_inference_steps": int(steps), "guidance_scale": float(guidance)}
        asked = {"prompt": prompt, "n": int(count), "seed": rolled(seed, is_new), **fields}
        job = generation_job(service, validated(GenerationRequest, asked))
        job = job.previewed(every=max(1, job.num_inference_steps // _NUM_PREVIEWS))
        on_way: dict[int, Any] = {}
        done: dict[int, tuple[str, str]] = {}
        columns = math.ceil(math.sqrt(job.count))
        empty = gr.Gallery(value=[], columns=columns)
        yield job.seed, empty, "Waiting for the model\u2026", gr.skip(), gr.skip()
        async with events(service, job) as arriving:
            async for event in arriving:
                if isinstance(event, Preview):
                    on_way[event.index] = event.image
                    state = f"Step {event.step} of {job.num_inference_steps}"
                elif isinstance(event, Drawn):
                    path = saved(event.image, settings_of(service, job, event.index, prompt))
                    on_way[event.index] = path
                    done[event.index] = (path, prompt)
                    state = f"{len(done)} of {job.count} done"
                else:
                    continue
                if len(done) == job.count:
                    break
                if isinstance(event, Drawn) or event.index == max(on_way):
                    images = [on_way[index] for index in sorted(on_way)]
                    yield gr.skip(), images, state, gr.skip(), gr.skip()
        made = [done[index] for index in range(job.count)]
        kept = [*made, *kept][:_MOST_KEPT]
        told = f"Done: seed {job.seed}. A downloaded PNG holds its settings."
        yield job.seed, [path for path, _ in made], told, kept, kept

    return draw


def _settings_events(
    upload: gr.UploadButton, past: gr.Gallery, history: gr.State, fields: list[Any]
) -> None:
    def from_file(path: str) -> list[Any]:
        try:
            return _fields_of(own_file(path))
        except UsageError as error:
            raise shown(error) from error

    def from_history(kept: Kept, chosen: gr.SelectData) -> list[Any]:
        index = chosen.index if isinstance(chosen.index, int) else -1
        if not 0 <= index < len(kept):
            return [gr.skip()] * len(fields)
        return from_file(kept[index][0])

    upload.upload(from_file, upload, fields, **QUIET)
    past.select(from_history, history, fields, **QUIET)


def _fields_of(path: Path) -> list[Any]:
    """Returns the values of prompt, seed, "new seed", steps, guidance and number.

    Raises:
        UsageError: if the file holds no settings of a drawn image.
    """
    settings = read_settings(path)
    try:
        return [
            str(settings["prompt"]),
            int(settings["seed"]),
            False,  # or the next image would be another one
            int(settings["num_inference_steps"]),
            float(settings["guidance_scale"]),
            int(settings["image_number"]) + 1,
        ]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UsageError("the image's settings are not those of a drawn image") from error
