"""The whole page: its title, tabs and style."""

import html
from pathlib import Path

import gradio as gr

from blip3o.serve.http.service import Service
from blip3o.serve.page.chat_tab import chat_tab
from blip3o.serve.page.compare_tabs import edit_tab, reconstruct_tab
from blip3o.serve.page.examples import example_images
from blip3o.serve.page.generate_tab import generate_tab
from blip3o.serve.page.inside_tab import inside_tab
from blip3o.weights.names import KNOWS

_CLEAN_EVERY_S, _KEEP_S = 600, 6 * 3600
"""Seconds between two deletions of old image files, and the age of an old file."""
CSS = """
.gradio-container { width: 100% !important; max-width: 72rem !important; }
.gradio-container { margin: 0 auto !important; }
.gradio-container .contain, .gradio-container main { width: 100%; }
.seed { align-items: end; }
.dice { flex-grow: 0 !important; }
.studio { display: grid !important; gap: var(--layout-gap); align-items: start; }
.studio { grid: "ask result" auto "settings result" 1fr / minmax(0, 2fr) minmax(0, 3fr); }
.studio > .ask { grid-area: ask; }
.studio > .result { grid-area: result; }
.studio > .settings { grid-area: settings; }
@media (max-width: 760px) {
  .studio { grid: "ask" auto "result" auto "settings" auto / minmax(0, 1fr); }
}
.whole .grid-wrap { max-height: none !important; }
button[aria-label="Share"], button[title="Share"] { display: none !important; }
.state { min-height: 1.6rem; }
.state p { margin: 0; }
.title h1 { margin: 0.4rem 0 0; }
"""
HEAD = '<meta name="color-scheme" content="light dark">'
_FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
_MONO = ("ui-monospace", "Consolas", "monospace")


def build_page(service: Service, folder: Path) -> gr.Blocks:
    """Returns the page of a service; writes its example images to a folder."""
    images = example_images(folder)
    limits = f" This model {KNOWS[service.name]}." if service.name in KNOWS else ""
    with gr.Blocks(
        title=f"blip3o {service.name}",
        analytics_enabled=False,
        delete_cache=(_CLEAN_EVERY_S, _KEEP_S),
    ) as page:
        gr.Markdown(
            f"# blip3o \u00b7 {html.escape(service.name)}\n"
            f"One model that generates, describes, edits and reconstructs images.{limits} "
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
    # Only the engine's queue limits the work: it treats the page and programs equally.
    page.queue(default_concurrency_limit=None, api_open=False)
    return page


def theme() -> gr.themes.Base:
    """Returns the theme; it uses system fonts, which need no request to another site."""
    return gr.themes.Default(
        primary_hue="indigo",
        secondary_hue="indigo",
        neutral_hue="slate",
        font=_FONTS,
        font_mono=_MONO,
    )
