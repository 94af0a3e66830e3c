"""The tabs that edit or reconstruct an image, and compare it with the result."""

from collections.abc import AsyncGenerator, Callable, Sequence

import gradio as gr
from PIL import Image

from blip3o.serve.http.errors import validated
from blip3o.serve.http.request_jobs import image_job
from blip3o.serve.http.schemas import EditForm, VariationForm
from blip3o.serve.http.service import Service
from blip3o.serve.jobs import Drawn, ImageRequest, Progress
from blip3o.serve.page.examples import INSTRUCTIONS
from blip3o.serve.page.parts import (
    WAITING,
    chosen_seed,
    image_field,
    opened,
    sampled_fields,
    sampling_fields,
    saved,
    seed_fields,
    settings_of,
    wire,
    with_messages,
)

Updates = AsyncGenerator[tuple[object, ...]]
"""Values for the seed field and the fields of `_comparison`."""


def edit_tab(service: Service, images: list[str]) -> None:
    """Adds the fields of the tab Edit and their handler; `images` are example files."""

    @with_messages
    async def edit(
        path: str | None, prompt: str, seed: float, is_new: bool, steps: int, guidance: float
    ) -> Updates:
        before = await opened(service, path)
        fields = sampled_fields(prompt, seed, is_new, steps, guidance)
        job = image_job(service, validated(EditForm, fields), [before])
        async for update in _updates(service, job, before, prompt):
            yield update

    instruction = gr.Textbox(label="Instruction", placeholder="Describe the change", render=False)
    rows = [list(pair) for pair in zip(images, INSTRUCTIONS, strict=True)]
    _add_tab("Edit", edit, lambda: sampling_fields(service), rows, instruction)


def reconstruct_tab(service: Service, images: list[str]) -> None:
    """Adds the fields of the tab Reconstruct and their handler; `images` are example files."""

    @with_messages
    async def reconstruct(path: str | None, seed: float, is_new: bool) -> Updates:
        before = await opened(service, path)
        body = validated(VariationForm, {"seed": chosen_seed(seed, is_new)})
        async for update in _updates(service, image_job(service, body, [before]), before):
            yield update

    _add_tab("Reconstruct", reconstruct, seed_fields, [[path] for path in images])


def _add_tab(
    action: str,
    handler: Callable[..., Updates],
    add_settings: Callable[[], Sequence[gr.components.Component]],
    examples: list[list[str]],
    instruction: gr.Textbox | None = None,
) -> None:
    with gr.Row(elem_classes="studio"):
        with gr.Column(elem_classes="ask"):
            inputs: list[gr.components.Component] = [image_field()]
            if instruction is not None:
                inputs.append(instruction.render())
            button = gr.Button(action, variant="primary")
        with gr.Column(elem_classes="settings"):
            settings = add_settings()
        with gr.Column(elem_classes="result"):
            outputs = [settings[0], *_comparison()]
    offered = gr.Examples(examples, inputs, label=f"Examples: click one to {action.lower()} it")
    events = [button.click, offered.load_input_event.then]
    events += [instruction.submit] if instruction is not None else []
    wire(handler, [*inputs, *settings], outputs, *events)


def _comparison() -> tuple[gr.ImageSlider, gr.Markdown, gr.DownloadButton]:
    slider = gr.ImageSlider(
        label="Before and after",
        format="png",
        height=460,
        interactive=False,
        buttons=["fullscreen"],
    )
    state = gr.Markdown("Ready.", elem_classes="state")
    download = gr.DownloadButton("Download the result", interactive=False, size="sm")
    return slider, state, download


async def _updates(
    service: Service, job: ImageRequest, before: Image.Image, prompt: str = ""
) -> Updates:
    yield job.seed, gr.skip(), WAITING, gr.DownloadButton(interactive=False)
    async with service.events(job) as events:
        async for event in events:
            if isinstance(event, Progress):
                state = f"Step {event.step} of {event.num_steps}"
                yield gr.skip(), gr.skip(), state, gr.skip()
            elif isinstance(event, Drawn):
                path = saved(event.image, settings_of(service, job, 0, prompt))
                shown = before.resize(event.image.size, Image.Resampling.BICUBIC)
                download = gr.DownloadButton(value=path, interactive=True)
                yield job.seed, (shown, path), f"Done: seed {job.seed}.", download
                return
