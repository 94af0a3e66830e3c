"""A real browser on the page of a real server; BLIP3O_SCREENSHOTS=FOLDER saves screenshots.

The screenshots of docs/serving.md are made by
`BLIP3O_SCREENSHOTS=docs/images pytest tests/e2e/page`.
"""

import io
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from PIL import Image

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
PATIENCE_MS = 120_000


@pytest.fixture(scope="session")
def server(launch: Callable[..., Any]) -> Iterator[Any]:
    pytest.importorskip("gradio", reason="needs the page: pip install 'blip3o[page]'")
    running = launch("--max-image-bytes", "1000000", "--max-batch", "4")
    yield running
    assert running.stop(40) == 0


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs: pip install playwright")
    if CHROMIUM is None:
        pytest.skip("needs a browser: apt-get install chromium")
    with playwright.sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def visit(browser: Any, server: Any) -> Iterator[Callable[..., Any]]:
    """Opens the page; checks at the end that it contacted only the server and no script failed."""
    hosts: set[str] = set()
    failures: list[str] = []

    def open_page(**options: Any) -> Any:
        options = {"viewport": {"width": 1180, "height": 900}, **options}
        context = browser.new_context(**options)
        context.set_default_timeout(PATIENCE_MS)
        context.on("request", lambda request: hosts.add(_host(request.url)))
        page = context.new_page()
        page.on("pageerror", lambda error: failures.append(str(error)))
        page.goto(server.url)
        page.get_by_label("Prompt").first.wait_for()
        return page

    yield open_page
    assert hosts - {""} <= {server.url.removeprefix("http://")}
    assert failures == []


@pytest.fixture(scope="session")
def page(visit: Callable[..., Any]) -> Any:
    """A visit shared by several tests, like a long session of a user."""
    return visit()


@pytest.fixture(scope="session")
def shoot() -> Callable[[Any, str], None]:
    """Saves a screenshot if screenshots are requested."""
    folder = os.environ.get("BLIP3O_SCREENSHOTS")

    def save(page: Any, name: str) -> None:
        if folder:
            page.evaluate("window.scrollTo(0, 0)")
            page.wait_for_timeout(500)  # until animations have ended
            image = Image.open(io.BytesIO(page.screenshot()))
            image.save(Path(folder) / f"{name}.webp", quality=80, method=6)

    return save


def _host(url: str) -> str:
    """Returns the host of a URL; data and blob URLs have none."""
    parts = urlsplit(url)
    return parts.netloc if parts.scheme not in ("data", "blob") else ""
