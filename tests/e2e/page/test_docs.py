"""Runs the JavaScript example of docs/serving.md unchanged except for the port."""

import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[3] / "docs" / "serving.md"


def test_javascript(browser: Any, server: Any) -> None:
    (code,) = re.findall(r"```javascript\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    page = browser.new_context().new_page()
    page.goto(f"{server.url}/docs")
    page.evaluate("document.body.innerHTML = '<img>'")
    page.evaluate(f"async () => {{ {code.replace('http://127.0.0.1:8000', server.url)} }}")
    page.wait_for_function("() => document.querySelector('img').naturalWidth === 96")
    page.context.close()
