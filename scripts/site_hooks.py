"""Hooks of the documentation site (mkdocs.yml)."""

import re


def on_page_markdown(markdown: str, **_: object) -> str:
    """Returns a page whose code blocks have titles in the syntax of the site.

    Blocks such as "```json edit" name an example for the tests; GitHub ignores the second word.

    Args:
        markdown: text of the page.
    """
    return re.sub(r"^```(\w+) (\w+)$", r'```\1 title="\2"', markdown, flags=re.M)
