"""The tab that changes an image as told, with before and after to compare."""

from collections.abc import AsyncIterator
from typing import Any

import gradio as gr

from blip3o.core.errors import UsageError
from blip3o.serve.http.errors import validated
from blip3o.serve.http.images import edit_job
from blip3o.serve.http.schemas import EditForm
from blip3o.serve.http.service import Service
from blip3o.serve.jobs import Drawn, Progress
from blip3o.serve.page.compare import Compared, compared_fields, pair
from blip3o.serve.page.examples import INSTRUCTIONS
from blip3o.serve.page.parts import (
    QUIET,
    events,
    image_field,
    opened,
    rolled,
    sampling_fields,
    sentences,
    settings_of,
)


def edit_tab(service: Service, images: list[str]) -> None:
    """Adds the tab's fields and what they do.

    Args:
        service: what requests are handed to.
        images: files of examples.
    """
    with gr.Row(elem_classes="studio"):
        with gr.Column(elem_classes="ask"):
            image = image_field()
            prompt = gr.Textbox(label="Instruction", placeholder="What to change")
            button = gr.Button("Edit", variant="primary")
        with gr.Column(elem_classes="settings"):
            sampling = sampling_fields(service)
        with gr.Column(elem_classes="result"):
            compared = compared_fields()
    work: dict[str, Any] = {
        "fn": _editor(service),
        "inputs": [image, prompt, *sampling],
        "outputs": [sampling.seed, *compared],
        **QUIET,
    }
    button.click(**work)
    prompt.submit(**work)
    examples = [list(pair) for pair in zip(images, INSTRUCTIONS, strict=True)]
    label = "Examples: one click edits"
    gr.Examples(examples, [image, prompt], label=label).load_input_event.then(**work)


def _editor(service: Service) -> Any:  # noqa: ANN401  (a handler of Gradio's)
    @sentences
    async def edit(
        path: str | None, prompt: str, seed: float, is_new: bool, steps: int, guidance: float
    ) -> AsyncIterator[Any]:
        before = await opened(service, path)
        if not prompt.strip():
            raise UsageError("write what to change first")
        fields = {"num_inference_steps": int(steps), "guidance_scale": float(guidance)}
        asked = {"prompt": prompt, "seed": rolled(seed, is_new), **fields}
        job = edit_job(service, validated(EditForm, asked), [before])
        yield job.seed, *Compared.waiting()
        async with events(service, job) as arriving:
            async for event in arriving:
                if isinstance(event, Progress):
                    state = f"Step {event.step} of {event.num_steps}"
                    yield gr.skip(), gr.skip(), state, gr.skip()
                elif isinstance(event, Drawn):
                    settings = settings_of(service, job, 0, prompt)
                    yield job.seed, *pair(before, event.image, settings)
                    return

    return edit
