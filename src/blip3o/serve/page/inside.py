"""The tab that shows what the model does: its features and what they decode to, step by step."""

import time
from collections.abc import AsyncIterator
from typing import Any

import gradio as gr
import torch

from blip3o.core.errors import UsageError
from blip3o.imaging.pixels import component_images
from blip3o.serve.http.errors import validated
from blip3o.serve.http.images import generation_job
from blip3o.serve.http.schemas import GenerationRequest
from blip3o.serve.http.service import Service
from blip3o.serve.jobs import Drawn, Preview
from blip3o.serve.page.examples import PROMPTS
from blip3o.serve.page.parts import QUIET, events, rolled, sampling_fields, sentences

_ABOUT = (
    "An image is sampled as features: a small grid of vectors that begins as noise. Below is what "
    "they look like after each step (their three main directions as red, green and blue), and the "
    "image that the model is heading for at that moment."
)


def inside_tab(service: Service) -> None:
    """Adds the tab's fields and what they do."""
    gr.Markdown(_ABOUT)
    with gr.Row(elem_classes="studio"):
        with gr.Column(elem_classes="ask"):
            prompt = gr.Textbox(PROMPTS[2], label="Prompt", placeholder="What to draw")
            button = gr.Button("Look inside", variant="primary")
        with gr.Column(elem_classes="settings"):
            sampling = sampling_fields(service)
            times = gr.Markdown("", label="Times")
        with gr.Column(elem_classes="result"):
            decoded = _film("Decoded at each step")
            features = _film("Features at each step")
            state = gr.Markdown("Ready.", elem_classes="state")
    work: dict[str, Any] = {
        "fn": _looker(service),
        "inputs": [prompt, *sampling],
        "outputs": [sampling.seed, decoded, features, times, state],
        **QUIET,
    }
    button.click(**work)
    prompt.submit(**work)


def _film(label: str) -> gr.Gallery:
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


def _looker(service: Service) -> Any:  # noqa: ANN401  (a handler of Gradio's)
    @sentences
    async def look(
        prompt: str, seed: float, is_new: bool, steps: int, guidance: float
    ) -> AsyncIterator[Any]:
        if not prompt.strip():
            raise UsageError("write what to draw first")
        fields = {"num_inference_steps": int(steps), "guidance_scale": float(guidance)}
        asked = {"prompt": prompt, "seed": rolled(seed, is_new), **fields}
        job = generation_job(service, validated(GenerationRequest, asked)).previewed(every=1)
        seen: list[Preview] = []
        yield job.seed, [], [], "", "Waiting for the model\u2026"
        start = time.monotonic()
        waited = 0.0
        async with events(service, job) as arriving:
            async for event in arriving:
                if isinstance(event, Preview):
                    waited = waited or max(0.0, time.monotonic() - start - event.seconds)
                    seen.append(event)
                    state = f"Step {event.step} of {job.num_inference_steps}"
                    yield gr.skip(), _decoded(seen), gr.skip(), gr.skip(), state
                elif isinstance(event, Drawn):
                    break
        total = time.monotonic() - start
        maps = component_images(torch.stack([one.features for one in seen]), 96)
        captions = [f"step {one.step}" for one in seen]
        film = list(zip(maps, captions, strict=True))
        yield job.seed, _decoded(seen), film, _times(seen, waited, total), f"Done: seed {job.seed}."

    return look


def _decoded(seen: list[Preview]) -> list[Any]:
    return [(one.image, f"step {one.step}") for one in seen]


def _times(seen: list[Preview], waited: float, total: float) -> str:
    """Returns a table of where the time went."""
    first, last = seen[0].seconds, seen[-1].seconds
    rows = {
        "waiting in the queue": waited,
        "reading the prompt, first step": first,
        f"{len(seen) - 1} more steps, a preview each": last - first,
        "decoding, and the way here": max(0.0, total - waited - last),
        "**all of it**": total,
    }
    lines = [f"| {what} | {1000 * seconds:.0f} ms |" for what, seconds in rows.items()]
    return "\n".join(["| time | |", "|---|---:|", *lines])
