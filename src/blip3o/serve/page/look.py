"""Colors, fonts and the little style of the page."""

import gradio as gr

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


def theme() -> gr.themes.Base:
    """Returns the theme; its fonts are the reader's own, so none is loaded from anywhere."""
    return gr.themes.Default(
        primary_hue="indigo",
        secondary_hue="indigo",
        neutral_hue="slate",
        font=_FONTS,
        font_mono=_MONO,
    )
