"""A reviewer with a keyboard on the page of `write_review`; no server runs."""

import dataclasses
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from blip3o.curate.decisions import REASONS, DefectRate, defect_rates, read_decisions
from blip3o.curate.draft import Draft, Failure, Step
from blip3o.curate.images import ImageStore
from blip3o.curate.review import write_review

EVIL = '</script><img src=x onerror="window.stolen=1">\u202e\u05d0<b>"&amp;'
SIZES = {"animals": 40, "edits": 20, EVIL: 1}
NUM = 12
VERDICTS = ("accept", "reject", "accept", "accept", "reject", "reject", "accept")


@pytest.fixture
def drafts(tmp_path: Path) -> list[Draft]:
    images = ImageStore(tmp_path / "images")

    def add(red: int, blue: int) -> str:
        file = io.BytesIO()
        Image.new("RGB", (64, 48), (red, 120, blue)).save(file, "PNG")
        return images.add(file.getvalue())

    categories = [name for name, size in SIZES.items() for _ in range(size)]
    failure = Failure(image="0" * 64, prompt="a moat", stage="judge", reason="no moat")
    return [
        Draft(
            slot=slot,
            category=name,
            prompt=EVIL if name == EVIL else f"a moat number {slot}",
            source=add(slot, 200) if name == "edits" else "",
            image=add(slot, 0),
            scores={"clip": 0.25},
            steps=(Step(stage="judge", model="a judge", text="It shows a moat."),),
            failures=(failure,),
        )
        for slot, name in enumerate(categories)
    ]


@pytest.fixture
def sample(drafts: list[Draft], tmp_path: Path) -> list[Draft]:
    images = ImageStore(tmp_path / "images")
    out = tmp_path / "review.html"
    return write_review(drafts, images, out, num=NUM, seed=1, decisions=None)


@pytest.fixture
def open_review(browser: Any, sample: list[Draft], tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Opens the page; checks at the end that it requested nothing and no script failed."""
    assert sample
    requests: list[str] = []
    failures: list[str] = []
    contexts = []

    def visit(**options: Any) -> Any:
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: failures.append(str(error)))
        page.on("console", lambda message: failures.append(message.text))
        page.goto((tmp_path / "review.html").as_uri())
        return page

    yield visit
    for context in contexts:
        context.close()
    assert {url.partition(":")[0] for url in requests} <= {"file", "data", "blob"}
    assert failures == []


def press(page: Any, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


def saved(page: Any, file: Path) -> Path:
    with page.expect_download() as download:
        press(page, "s")
    assert download.value.suggested_filename == "decisions.jsonl"
    download.value.save_as(file)
    return file


def figures(rows: Any) -> list[tuple[float, ...]]:
    """Returns the numbers of each row of a table; rounded ones in full."""
    return [
        (
            *(int(row.locator("td").nth(place).inner_text()) for place in range(3)),
            *(float(one.get_attribute("value")) for one in row.locator("data").all()),
        )
        for row in rows.all()
    ]


def as_figures(rate: DefectRate) -> tuple[float, ...]:
    counts = (rate.num_drafts, rate.num_reviewed, rate.num_rejected)
    return counts if rate.rate is None else (*counts, rate.rate, *rate.interval)


def test_the_figures_and_the_file_are_those_of_python(
    open_review: Callable[..., Any], drafts: list[Draft], sample: list[Draft], tmp_path: Path
) -> None:
    page = open_review()
    page.get_by_label("Reviewer", exact=True).fill("Mia")
    press(page, "Tab")
    for number, verdict in enumerate(VERDICTS):
        press(page, *("a" if verdict == "accept" else ("r", "r") if number % 2 else ("3",)))
    decisions = read_decisions(saved(page, tmp_path / "decisions.jsonl"))
    assert list(decisions) == [(one.slot, one.image) for one in sample[: len(VERDICTS)]]
    assert tuple(one.decision for one in decisions.values()) == VERDICTS
    assert {one.reviewer for one in decisions.values()} == {"Mia"}
    reasons = [one.reason for one in decisions.values() if one.decision == "reject"]
    assert reasons == ["", REASONS[2], ""]
    lines = (tmp_path / "decisions.jsonl").read_text().splitlines()
    assert [json.loads(one) for one in lines] == [
        dataclasses.asdict(one) for one in decisions.values()
    ]

    found = defect_rates(drafts, decisions)
    shown = figures(page.locator("#categories tr"))
    wanted = [as_figures(one) for one in found.by_category.values()]
    assert shown == [pytest.approx(one, rel=1e-12) for one in wanted]
    (total,) = figures(page.locator("#overall tr"))
    assert total == pytest.approx(as_figures(found.overall), rel=1e-12)


def test_a_review_goes_on_after_the_page_was_closed_and_can_be_undone(
    open_review: Callable[..., Any], sample: list[Draft], tmp_path: Path
) -> None:
    page = open_review()
    press(page, "a", "r", "2", "ArrowLeft", "ArrowLeft", "1", "u", "ArrowRight")
    page.reload()
    assert page.locator("#count").inner_text() == f"2 of {NUM} reviewed"
    assert page.locator("#title").inner_text() == f"Draft {sample[2].name}"
    press(page, "a", "u", "u")  # what was done before the page was closed stays
    assert page.get_by_role("status").inner_text() == "There is nothing to undo"
    decisions = [*read_decisions(saved(page, tmp_path / "decisions.jsonl")).values()]
    assert [one.decision for one in decisions] == ["accept", "reject"]
    assert decisions[1].reason == REASONS[1]

    images = ImageStore(tmp_path / "images")
    earlier = tmp_path / "decisions.jsonl"
    out = tmp_path / "review.html"
    write_review(sample, images, out, num=NUM, seed=2, decisions=None)
    page.reload()
    assert page.locator("#count").inner_text() == f"0 of {NUM} reviewed"
    write_review(sample, images, out, num=NUM - 1, seed=1, decisions=earlier)
    page.reload()  # another sample, so the browser has nothing of it
    assert page.locator("#count").inner_text() == f"2 of {NUM - 1} reviewed"


def test_texts_of_drafts_are_shown_and_never_run(
    open_review: Callable[..., Any], sample: list[Draft]
) -> None:
    page = open_review()
    press(page, *["ArrowRight"] * [one.category for one in sample].index(EVIL))
    shown = EVIL.replace("\u202e", "U+202E")
    assert page.locator(".prompt").inner_text() == shown
    assert page.locator("#categories th").first.inner_text() == shown
    assert page.locator("#card img").count() == 1
    assert page.evaluate("window.stolen") is None


def test_no_other_script_may_run(browser: Any, sample: list[Draft], tmp_path: Path) -> None:
    assert sample
    context = browser.new_context()
    page = context.new_page()
    page.goto((tmp_path / "review.html").as_uri())
    with page.expect_console_message() as message:
        page.evaluate("document.body.append(document.createElement('script'))")
        page.evaluate("document.body.lastChild.textContent = 'window.stolen = 1'")
    assert "violates the following Content Security Policy" in message.value.text
    assert page.evaluate("window.stolen") is None
    context.close()


def test_keys_of_the_page_leave_those_of_controls_alone(
    open_review: Callable[..., Any],
) -> None:
    page = open_review()
    large, help_text = page.locator("#large"), page.locator("#help-text")
    press(page, " ")
    assert large.is_visible()
    press(page, " ")
    assert large.is_hidden()
    press(page, "?", "a", "Control+r")
    assert help_text.is_visible()
    assert page.locator("#count").inner_text() == f"0 of {NUM} reviewed"
    page.get_by_label("Single keys act.").uncheck()
    page.get_by_role("button", name="Close").click()
    press(page, "a", "r", "1")
    assert page.locator("#count").inner_text() == f"0 of {NUM} reviewed"
    page.get_by_role("button", name="Help").press("Enter")
    page.get_by_label("Single keys act.").check()
    press(page, "?")
    page.get_by_label("Reviewer", exact=True).fill("")
    page.keyboard.type("ar1 s?")
    assert page.locator("#count").inner_text() == f"0 of {NUM} reviewed"
    page.get_by_role("button", name="Accept").focus()
    press(page, " ")  # presses the button, and does not enlarge
    assert page.locator("#count").inner_text() == f"1 of {NUM} reviewed"
    assert large.is_hidden()
    page.keyboard.down("a")
    page.keyboard.down("a")  # held down: repeats
    assert page.locator("#count").inner_text() == f"2 of {NUM} reviewed"


def test_an_edit_shows_both_images_and_failures_on_demand(
    open_review: Callable[..., Any], sample: list[Draft]
) -> None:
    page = open_review()
    press(page, *["ArrowRight"] * [one.category for one in sample].index("edits"))
    assert page.locator("figure figcaption").all_inner_texts() == ["Source", "Result"]
    assert page.get_by_text("It shows a moat.").is_visible()
    assert page.get_by_text("no moat").is_hidden()
    page.get_by_text("Earlier failures (1)").click()
    assert page.get_by_text("no moat").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_buttons_suffice_on_a_phone(
    open_review: Callable[..., Any], scheme: str, tmp_path: Path
) -> None:
    size = {"width": 360, "height": 740}
    page = open_review(viewport=size, has_touch=True, is_mobile=True, color_scheme=scheme)
    page.get_by_role("button", name="Accept").tap()
    page.get_by_role("button", name="Reject").tap()
    page.get_by_role("button", name="unsafe").tap()
    page.get_by_role("button", name="Previous draft").tap()
    assert page.locator("#state").inner_text() == "rejected: unsafe"
    assert page.evaluate("document.activeElement.id") == "card"
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    with page.expect_download() as download:
        page.get_by_role("button", name="Save decisions").tap()
    download.value.save_as(tmp_path / "decisions.jsonl")
    assert len(read_decisions(tmp_path / "decisions.jsonl")) == 2
