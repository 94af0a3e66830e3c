"""The tab that takes an image through the model's features: what they keep of it."""

from collections.abc import AsyncIterator
from typing import Any

import gradio as gr

from blip3o.serve.http.errors import validated
from blip3o.serve.http.images import variation_job
from blip3o.serve.http.schemas import VariationForm
from blip3o.serve.http.service import Service
from blip3o.serve.jobs import Drawn
from blip3o.serve.page.compare import Compared, compared_fields, pair
from blip3o.serve.page.parts import (
    QUIET,
    events,
    image_field,
    opened,
    rolled,
    seed_fields,
    sentences,
    settings_of,
)


def reconstruct_tab(service: Service, images: list[str]) -> None:
    """Adds the tab's fields and what they do.

    Args:
        service: what requests are handed to.
        images: files of examples.
    """
    with gr.Row(elem_classes="studio"):
        with gr.Column(elem_classes="ask"):
            image = image_field()
            button = gr.Button("Reconstruct", variant="primary")
        with gr.Column(elem_classes="settings"):
            seed, is_new = seed_fields()
        with gr.Column(elem_classes="result"):
            compared = compared_fields()
    work: dict[str, Any] = {
        "fn": _rebuilder(service),
        "inputs": [image, seed, is_new],
        "outputs": [seed, *compared],
        **QUIET,
    }
    button.click(**work)
    label = "Examples: one click reconstructs"
    gr.Examples([[path] for path in images], [image], label=label).load_input_event.then(**work)


def _rebuilder(service: Service) -> Any:  # noqa: ANN401  (a handler of Gradio's)
    @sentences
    async def rebuild(path: str | None, seed: float, is_new: bool) -> AsyncIterator[Any]:
        before = await opened(service, path)
        body = validated(VariationForm, {"seed": rolled(seed, is_new)})
        job = variation_job(service, body, [before])
        yield job.seed, *Compared.waiting()
        async with events(service, job) as arriving:
            async for event in arriving:
                if isinstance(event, Drawn):
                    yield job.seed, *pair(before, event.image, settings_of(service, job, 0))
                    return

    return rebuild
