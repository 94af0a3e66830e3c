"""Actions of a visitor: generates, chats, edits, looks inside, makes mistakes, uses a phone."""

import base64
import io
import json
import re
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from blip3o.imaging.settings import read_settings

STEPS = 6


def tab(page: Any, name: str) -> Any:
    """Goes to a tab and returns its panel."""
    page.get_by_role("tab", name=name).click()
    return page.get_by_role("tabpanel").and_(page.locator(":visible")).first


def set_number(panel: Any, label: str, value: int) -> None:
    field = panel.get_by_label(label).and_(panel.page.locator("input[type=number]")).first
    field.fill(str(value))
    field.press("Tab")


def keep_seed(panel: Any, seed: int) -> None:
    panel.get_by_label("New seed each time").uncheck()
    set_number(panel, "Seed", seed)


def sources(gallery: Any) -> list[str]:
    """Returns the URLs of a gallery's images."""
    return [image.get_attribute("src") for image in gallery.locator("img").all()]


def fetched(page: Any, url: str) -> bytes:
    return page.request.get(url).body()


def message(page: Any, text: str) -> None:
    """Reads an error message and closes it."""
    toast = page.get_by_test_id("toast-body").filter(has_text=text)
    toast.wait_for()
    assert "Traceback" not in toast.inner_text()
    toast.get_by_test_id("toast-close").click()
    toast.wait_for(state="detached")


def test_the_page_states_the_limits_of_the_bundled_model(page: Any) -> None:
    page.get_by_text("This model draws, edits and describes scenes of one to four").wait_for()


def test_nothing_is_filled_in_after_the_page_has_loaded(server: Any) -> None:
    # A seed that arrives late would overwrite one that the user has typed.
    with urllib.request.urlopen(f"{server.url}/config", timeout=60) as answer:
        events = json.loads(answer.read())["dependencies"]
    assert events
    assert [one for one in events if "load" in [name for _, name in one["targets"]]] == []


def test_images_equal_those_of_the_api_and_files_and_history_restore_settings(
    page: Any, server: Any, shoot: Any, tmp_path: Path
) -> None:
    panel = tab(page, "Generate")
    page.evaluate(
        """() => { window.states = [];
        new MutationObserver(() => window.states.push(document.querySelector(".state").innerText))
        .observe(document.querySelector(".state"), {subtree: true, childList: true,
        characterData: true}); }"""
    )
    panel.get_by_label("Prompt").fill("a blue cat to the left of a green tree")
    set_number(panel, "Number of images", 2)
    set_number(panel, "Steps", STEPS)
    keep_seed(panel, 3)
    panel.get_by_role("button", name="Generate").click()
    panel.get_by_text("Done: seed 3").wait_for()
    assert any(re.match(rf"Step \d of {STEPS}", state) for state in page.evaluate("states"))

    images = panel.locator(".grid-wrap").first
    urls = sources(images)
    assert len(urls) == 2
    files = [fetched(page, url) for url in urls]
    settings = read_settings(files[1])
    asked = {"prompt": "a blue cat to the left of a green tree", "seed": 3}
    assert asked.items() <= settings.items()
    assert (settings["image_number"], settings["num_inference_steps"]) == (1, STEPS)
    body = json.dumps({**asked, "n": 2, "num_inference_steps": STEPS}).encode()
    request = urllib.request.Request(
        f"{server.url}/v1/images/generations", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        data = [base64.b64decode(one["b64_json"]) for one in json.loads(answer.read())["data"]]
    pixels = [[Image.open(io.BytesIO(one)).tobytes() for one in some] for some in (files, data)]
    assert pixels[0] == pixels[1]
    shoot(page, "page-generate")

    panel.get_by_label("Prompt").fill("something else")
    set_number(panel, "Seed", 9)
    (tmp_path / "a.png").write_bytes(files[1])
    with page.expect_file_chooser() as chooser:
        panel.get_by_role("button", name="Settings from a PNG").click()
    chooser.value.set_files(tmp_path / "a.png")
    page.wait_for_function(
        "() => document.querySelector('textarea').value.startsWith('a blue cat')"
    )
    assert panel.get_by_label("Seed", exact=True).input_value() == "3"

    set_number(panel, "Seed", 5)
    panel.get_by_role("button", name="a red car", exact=True).click()
    panel.get_by_text("Done: seed 5").wait_for()
    assert panel.get_by_label("Prompt").input_value() == "a red car"
    history = panel.locator(".grid-wrap").last
    assert len(sources(history)) >= 4
    history.get_by_role("button", name="Thumbnail 3").click()
    page.wait_for_function(
        "() => document.querySelector('textarea').value.startsWith('a blue cat')"
    )
    assert panel.get_by_label("Seed", exact=True).input_value() == "3"


def test_generates_with_the_keyboard_alone(page: Any) -> None:
    panel = tab(page, "Generate")
    panel.get_by_label("Prompt").focus()
    page.keyboard.press("Control+A")
    page.keyboard.type("three yellow stars")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.innerText") == "Generate"
    page.keyboard.press("Enter")
    panel.get_by_text("Waiting for the model").or_(panel.get_by_text("Step ")).first.wait_for()
    panel.get_by_text("Done: seed").wait_for()
    page.get_by_role("tab", name="Chat").focus()
    page.keyboard.press("Enter")
    page.get_by_text("Answer with").wait_for()


def test_chats_about_an_image_and_answers_with_one(page: Any, shoot: Any) -> None:
    panel = tab(page, "Chat")
    panel.get_by_text("Describe the image in detail.").first.click()
    answer = panel.get_by_test_id("bot").last
    answer.wait_for()
    panel.locator("textarea:enabled").wait_for()
    assert "cat" in answer.inner_text()
    panel.get_by_placeholder("A message").fill("what color is the tree?")
    page.keyboard.press("Enter")
    page.wait_for_function(
        """() => document.querySelectorAll('[data-testid="bot"]').length === 2"""
    )
    panel.locator("textarea:enabled").wait_for()
    assert panel.get_by_test_id("bot").last.inner_text().strip()
    panel.get_by_label("Image", exact=True).check()
    panel.get_by_placeholder("A message").fill("a red car")
    page.keyboard.press("Enter")
    drawn = panel.get_by_test_id("bot").last.locator("img")
    drawn.wait_for()
    panel.locator("textarea:enabled").wait_for()
    assert read_settings(fetched(page, drawn.get_attribute("src")))["prompt"] == "a red car"
    shoot(page, "page-chat")


def test_edits(page: Any, shoot: Any) -> None:
    panel = tab(page, "Edit")
    keep_seed(panel, 1)
    panel.get_by_text("remove the tree").click()
    panel.get_by_text("Done: seed 1").wait_for()
    assert panel.get_by_label("Instruction").input_value() == "remove the tree"
    with page.expect_download() as download:
        panel.get_by_text("Download the result").click()
    settings = read_settings(Path(download.value.path()))
    assert (settings["kind"], settings["prompt"]) == ("edit", "remove the tree")
    shoot(page, "page-edit")


def test_reconstructs(page: Any) -> None:
    panel = tab(page, "Reconstruct")
    panel.locator(".gallery button, .gallery-item").first.click()
    panel.get_by_text("Done: seed").wait_for()
    assert panel.locator("img").count() >= 2


def test_shows_the_steps_inside(page: Any, shoot: Any) -> None:
    panel = tab(page, "Inside")
    set_number(panel, "Steps", STEPS)
    panel.get_by_role("button", name="Look inside").click()
    panel.get_by_text("Done: seed").wait_for()
    films = panel.locator(".grid-wrap")
    decoded, features = (sources(films.nth(number)) for number in (0, 1))
    assert len(set(decoded)) == len(set(features)) == STEPS
    assert "ms" in panel.locator("table").inner_text()
    shoot(page, "page-inside")


def test_mistakes_get_a_readable_message(visit: Any, shoot: Any, tmp_path: Path) -> None:
    page = visit()  # with empty fields
    panel = tab(page, "Generate")
    panel.get_by_label("Prompt").fill(" ")
    panel.get_by_role("button", name="Generate").click()
    message(page, "Describe what you want first.")
    panel.get_by_label("Prompt").fill("<image> of <b>a cat</b>")
    panel.get_by_role("button", name="Generate").click()
    message(page, "a prompt cannot hold <image>")
    panel.get_by_label("Prompt").fill("word " * 2000)
    panel.get_by_role("button", name="Generate").click()
    page.get_by_test_id("toast-body").wait_for()
    shoot(page, "page-error")
    message(page, "tokens; at most")
    panel = tab(page, "Edit")
    (tmp_path / "a.png").write_bytes(b"this is no image")
    panel.locator("input[type=file]").first.set_input_files(tmp_path / "a.png")
    panel.get_by_role("button", name="Edit", exact=True).click()
    message(page, "is not an image")
    page.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_fits_a_phone_in_both_modes(visit: Any, shoot: Any, scheme: str) -> None:
    phone = {"width": 390, "height": 844}
    page = visit(viewport=phone, color_scheme=scheme, has_touch=True)
    for name in ("Generate", "Chat", "Edit"):
        tab(page, name)
        assert page.evaluate("document.documentElement.scrollWidth") <= phone["width"]
    color = page.evaluate("getComputedStyle(document.body).backgroundColor")
    levels = [int(level) for level in re.findall(r"\d+", color)[:3]]
    assert (max(levels) < 80) == (scheme == "dark")
    shoot(tab(page, "Generate").page, f"page-phone-{scheme}")
    page.context.close()


@pytest.mark.parametrize("width", [390, 768, 1280, 1920])
def test_everything_is_fully_visible_at_every_width(visit: Any, width: int) -> None:
    page = visit(viewport={"width": width, "height": 900})
    panel = tab(page, "Generate")
    keep_seed(panel, 2**31 - 1)
    seed = panel.get_by_label("Seed", exact=True)
    assert seed.evaluate("field => field.scrollWidth <= field.clientWidth")
    set_number(panel, "Number of images", 4)
    set_number(panel, "Steps", STEPS)
    panel.get_by_label("Prompt").fill("a red car")
    panel.get_by_role("button", name="Generate").click()
    panel.get_by_text("Done: seed").wait_for()
    gallery = panel.locator(".grid-wrap").first
    assert len(sources(gallery)) == 4
    assert gallery.evaluate("grid => grid.scrollHeight <= grid.clientHeight + 1")
    is_above = panel.locator(".result").bounding_box()["y"] < seed.bounding_box()["y"]
    assert is_above, "the result is next to the prompt, or between it and the settings"
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.context.close()


def test_a_growing_gallery_is_served_completely(visit: Any) -> None:
    page = visit()
    failed: list[str] = []
    page.on("requestfailed", lambda request: failed.append(f"{request.url} {request.failure}"))
    panel = tab(page, "Inside")
    set_number(panel, "Steps", STEPS)
    panel.get_by_role("button", name="Look inside").click()
    panel.get_by_text("Done: seed").wait_for()
    page.wait_for_timeout(500)  # until the last images have loaded
    assert [one for one in failed if "LENGTH_MISMATCH" in one] == []
    page.context.close()


def test_leaving_frees_the_engine(visit: Any, server: Any) -> None:
    page = visit()
    panel = tab(page, "Generate")
    panel.get_by_label("Prompt").fill("a red car")
    set_number(panel, "Number of images", 10)
    set_number(panel, "Steps", 100)
    panel.get_by_role("button", name="Generate").click()
    panel.get_by_text("Step ").first.wait_for()
    page.context.close()
    end = time.monotonic() + 30
    while "blip3o_open_requests 0.0" not in _get(f"{server.url}/metrics"):
        assert time.monotonic() < end, "the work continues although the client left"
        time.sleep(0.1)


def test_the_page_cannot_contact_other_hosts(browser: Any, server: Any) -> None:
    """In addition, the fixture `visit` checks that no request leaves for another host."""
    page = browser.new_context().new_page()
    page.goto(server.url)
    asked = "fetch('http://example.invalid/').then(() => 'answered', error => error.message)"
    errors: list[str] = []
    page.on("console", lambda line: errors.append(line.text))
    assert page.evaluate(asked) == "Failed to fetch"
    assert any("Content Security Policy" in error for error in errors)
    page.context.close()


def test_the_page_serves_no_other_files_and_fetches_no_urls(server: Any) -> None:
    outside = "https://example.com/a.png"
    for path in ("/etc/passwd", __file__, outside, "http://169.254.169.254/"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            _get(f"{server.url}/gradio_api/file={path}")
        assert refused.value.code in (403, 404)
    config = json.loads(_get(f"{server.url}/config"))
    (number,) = (
        dependency["id"]
        for dependency in config["dependencies"]
        if len(dependency["inputs"]) == 3 and len(dependency["outputs"]) == 4
        if dependency["targets"][0][1] == "click"
    )
    for path in (outside, "/etc/passwd"):
        file = {"path": path, "meta": {"_type": "gradio.FileData"}}
        asked = {"data": [file, 1, False], "fn_index": number, "session_hash": "abc"}
        body = json.dumps(asked).encode()
        request = urllib.request.Request(
            f"{server.url}/gradio_api/queue/join", body, {"Content-Type": "application/json"}
        )
        urllib.request.urlopen(request, timeout=30).close()
        answer = _get(f"{server.url}/gradio_api/queue/data?session_hash=abc")
        assert '"success":false' in answer.replace(" ", "")
        assert "does not read URLs" in answer or path == "/etc/passwd"
        assert "not an image" not in answer  # it was not opened at all


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return answer.read().decode()
