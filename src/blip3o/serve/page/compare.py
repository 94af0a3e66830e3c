"""Before and after: a slider between two images, and the second one to keep."""

from typing import Any, NamedTuple

import gradio as gr
from PIL import Image

from blip3o.serve.page.parts import saved


class Compared(NamedTuple):
    """The fields of a comparison."""

    slider: gr.ImageSlider
    state: gr.Markdown
    download: gr.DownloadButton

    @staticmethod
    def waiting() -> tuple[Any, ...]:
        """Returns what the fields show before there is an image."""
        return gr.skip(), "Waiting for the model\u2026", gr.DownloadButton(interactive=False)


def compared_fields() -> Compared:
    """Adds the fields."""
    slider = gr.ImageSlider(
        label="Before and after",
        format="png",
        height=460,
        interactive=False,
        buttons=["fullscreen"],
    )
    state = gr.Markdown("Ready.", elem_classes="state")
    download = gr.DownloadButton("Download the result", interactive=False, size="sm")
    return Compared(slider, state, download)


def pair(before: Image.Image, after: Image.Image, settings: dict[str, Any]) -> tuple[Any, ...]:
    """Returns what the fields show in the end: both images as large as the model's."""
    seen = before.resize(after.size, Image.Resampling.BICUBIC)
    path = saved(after, settings)
    download = gr.DownloadButton(value=path, interactive=True)
    return (seen, path), f"Done: seed {settings['seed']}.", download
