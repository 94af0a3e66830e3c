"""Hooks of the documentation site (mkdocs.yml): API pages and titles of code blocks."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

PACKAGE = Path(__file__).parents[1] / "src" / "blip3o"
EXPORTED = (
    "blip3o.generate.pipeline.Blip3oPipeline",
    "blip3o.generate.outputs.ImageOutput",
    "blip3o.core.types.Message",
    "blip3o.core.errors.UsageError",
)
"""Names of `from blip3o import ...`, by the modules that define them."""


def api_pages() -> dict[str, str]:
    """Returns the text of each API page by path: the exported names, then each package."""
    options = "\n    options: {inherited_members: true, skip_local_inventory: true}\n"
    names = "\n".join(f"::: {name}{options}" for name in EXPORTED)
    pages = {"api/blip3o.md": f"# blip3o\n\nThe names of `from blip3o import ...`.\n\n{names}"}
    for package in sorted(one.parent.name for one in PACKAGE.glob("*/__init__.py")):
        options = "    options: {show_root_heading: false}\n"
        pages[f"api/{package}.md"] = f"# blip3o.{package}\n\n::: blip3o.{package}\n{options}"
    return pages


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Returns the config with the API pages in the navigation.

    Args:
        config: the config of mkdocs.yml.
    """
    titles = {path: f"blip3o.{Path(path).stem}" for path in api_pages()}
    titles["api/blip3o.md"] = "blip3o"
    if config.nav is not None:
        config.nav.append({"API": [{title: path} for path, title in titles.items()]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Returns the files of the site with the API pages.

    Args:
        files: the files of docs/.
        config: the config of mkdocs.yml.
    """
    for path, text in api_pages().items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Returns a page with titles of code blocks in the syntax of the site.

    The second word of a block such as "```json edit" names an example for the tests.

    Args:
        markdown: text of the page.
    """
    return re.sub(r"^```(\w+) (\w+)$", r'```\1 title="\2"', markdown, flags=re.M)
