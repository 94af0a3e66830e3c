"""The tab that shows the features and their decoded images after each sampling step."""

import time
from collections.abc import AsyncGenerator
from functools import partial

import gradio as gr
import torch
from PIL import Image

from blip3o.imaging.pixels import component_images
from blip3o.serve.http.errors import validated
from blip3o.serve.http.request_jobs import image_job
from blip3o.serve.http.schemas import GenerationRequest
from blip3o.serve.http.service import Service
from blip3o.serve.jobs import Drawn, Preview
from blip3o.serve.page.examples import PROMPTS
from blip3o.serve.page.parts import WAITING, sampled_fields, sampling_fields, wire, with_messages

Updates = AsyncGenerator[tuple[object, ...]]
_ABOUT = (
    "The model does not sample pixels but features: a small grid of vectors that starts as noise. "
    "Below you see, after each step, the model's current estimate of the image, and the features "
    "(their three main directions as red, green and blue)."
)


def inside_tab(service: Service) -> None:
    """Adds the fields of the tab and their handlers."""
    gr.Markdown(_ABOUT)
    with gr.Row(elem_classes="studio"):
        with gr.Column(elem_classes="ask"):
            prompt = gr.Textbox(PROMPTS[2], label="Prompt", placeholder="Describe the image")
            button = gr.Button("Look inside", variant="primary")
        with gr.Column(elem_classes="settings"):
            sampling = sampling_fields(service)
            times = gr.Markdown("", label="Times")
        with gr.Column(elem_classes="result"):
            decoded = _gallery("Estimated image after each step")
            features = _gallery("Features after each step")
            state = gr.Markdown("Ready.", elem_classes="state")
    outputs = [sampling.seed, decoded, features, times, state]
    wire(partial(_show_steps, service), [prompt, *sampling], outputs, button.click, prompt.submit)


def _gallery(label: str) -> gr.Gallery:
    gr.Markdown(f"**{label}**")
    return gr.Gallery(
        label=label,
        show_label=False,
        columns=5,
        height=300,
        object_fit="contain",
        format="png",
        interactive=False,
        buttons=["fullscreen"],
    )


@with_messages
async def _show_steps(
    service: Service, prompt: str, seed: float, is_new: bool, steps: int, guidance: float
) -> Updates:
    fields = sampled_fields(prompt, seed, is_new, steps, guidance)
    job = image_job(service, validated(GenerationRequest, fields)).previewed(every=1)
    seen: list[Preview] = []
    yield job.seed, [], [], "", WAITING
    start = time.monotonic()
    waited = 0.0
    async with service.events(job) as events:
        async for event in events:
            if isinstance(event, Preview):
                waited = waited or max(0.0, time.monotonic() - start - event.seconds)
                seen.append(event)
                state = f"Step {event.step} of {job.num_inference_steps}"
                yield gr.skip(), _captioned(seen), gr.skip(), gr.skip(), state
            elif isinstance(event, Drawn):
                break
    total = time.monotonic() - start
    maps = component_images(torch.stack([one.features for one in seen]), 96)
    features = [(image, f"step {one.step}") for image, one in zip(maps, seen, strict=True)]
    done = f"Done: seed {job.seed}."
    yield job.seed, _captioned(seen), features, _times(seen, waited, total), done


def _captioned(seen: list[Preview]) -> list[tuple[Image.Image, str]]:
    return [(one.image, f"step {one.step}") for one in seen]


def _times(seen: list[Preview], waited: float, total: float) -> str:
    """Returns a table of the time spent in each phase."""
    first, last = seen[0].seconds, seen[-1].seconds
    rows = {
        "waiting in the queue": waited,
        "prompt and first step": first,
        f"{len(seen) - 1} more steps with previews": last - first,
        "decoding and transfer": max(0.0, total - waited - last),
        "**total**": total,
    }
    lines = [f"| {phase} | {1000 * seconds:.0f} ms |" for phase, seconds in rows.items()]
    return "\n".join(["| time | |", "|---|---:|", *lines])
