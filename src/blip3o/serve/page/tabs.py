"""The whole page: a title and its tabs."""

import html
from pathlib import Path

import gradio as gr

from blip3o.serve.http.service import Service
from blip3o.serve.page.chat import chat_tab
from blip3o.serve.page.edit import edit_tab
from blip3o.serve.page.examples import example_images
from blip3o.serve.page.generate import generate_tab
from blip3o.serve.page.inside import inside_tab
from blip3o.serve.page.reconstruct import reconstruct_tab
from blip3o.weights.names import KNOWS

_CLEAN_EVERY_S, _KEEP_S = 600, 6 * 3600
"""How often the files of images are looked through, and how long they are kept."""


def build_page(service: Service, folder: Path) -> gr.Blocks:
    """Returns the page of a service.

    Args:
        service: what its requests are handed to.
        folder: for the example images.
    """
    images = example_images(folder)
    limits = f" This model {KNOWS[service.name]}." if service.name in KNOWS else ""
    with gr.Blocks(
        title=f"blip3o {service.name}",
        analytics_enabled=False,
        delete_cache=(_CLEAN_EVERY_S, _KEEP_S),
    ) as page:
        gr.Markdown(
            f"# blip3o \u00b7 {html.escape(service.name)}\n"
            f"One model that draws, talks about, changes and rebuilds images.{limits} "
            "[API of this server](/docs)",
            elem_classes="title",
        )
        with gr.Tab("Generate"):
            generate_tab(service)
        with gr.Tab("Chat"):
            chat_tab(service, images)
        with gr.Tab("Edit"):
            edit_tab(service, images)
        with gr.Tab("Reconstruct"):
            reconstruct_tab(service, images)
        with gr.Tab("Inside"):
            inside_tab(service)
    # The engine's queue is the only one: it is fair to the page and to programs alike.
    page.queue(default_concurrency_limit=None, api_open=False)
    return page
