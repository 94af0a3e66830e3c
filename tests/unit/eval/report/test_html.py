"""The page: complete, escaped, and without requests."""

import base64
import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from blip3o.eval.benchmark import Item
from blip3o.eval.report.evaluation import Evaluation
from blip3o.eval.report.html import page

_VOID = {"meta", "img", "link", "br"}
BAD = "<script>alert('1')</script>\"&"


class Parsed(HTMLParser):
    """The elements and texts of a page; checks that elements are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def images(self) -> list[Image.Image]:
        sources = [values["src"] or "" for tag, values in self.elements if tag == "img"]
        files = [base64.b64decode(source.partition(",")[2]) for source in sources]
        return [Image.open(io.BytesIO(file)) for file in files]


def parsed(*folders: Path) -> Parsed:
    return Parsed(page([Evaluation.read(folder) for folder in folders]))


def test_a_page_requests_nothing_and_has_no_scripts(make_folder: Callable[..., Path]) -> None:
    text = page([Evaluation.read(make_folder("a")), Evaluation.read(make_folder("b"))])
    found = Parsed(text)
    for tag, values in found.elements:
        assert tag not in {"script", "link", "iframe", "object", "base", "form"}
        for name, value in values.items():
            assert not name.startswith("on")
            if name in {"src", "href", "srcset", "data", "action"}:
                assert (value or "").startswith("data:image/jpeg;base64,")
    assert "url(" not in text
    assert "@import" not in text
    policies = [values["content"] for tag, values in found.elements if "http-equiv" in values]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_everything_from_the_files_is_escaped(make_folder: Callable[..., Path]) -> None:
    changes = {
        "model": {"name": BAD},
        "notes": [BAD],
        "figures": {BAD: {BAD: BAD}},
        "settings": {BAD: BAD},
        "by_category": {BAD: 0.5, "half \ud800": 0.5},
        "title": f"fake(mask2former-tiny-00000000); {BAD}",
    }
    folder = make_folder(f"run{BAD.replace('/', '')}", changes=changes)
    lines = [json.loads(line) for line in (folder / "verdicts.jsonl").read_text().splitlines()]
    for line in lines:
        line["data"] = {"reason": BAD, BAD: BAD}
    (folder / "verdicts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = parsed(folder)
    assert not any(tag == "script" for tag, _ in found.elements)
    assert found.text.count("<script>") > 10
    page([Evaluation.read(folder)]).encode()


def test_the_figures_of_the_page_are_those_of_the_files(make_folder: Callable[..., Path]) -> None:
    changes = {
        "overall": 0.4321,
        "by_category": {"colors": 0.25, "counting": None},
        "figures": {"compat": {"total": 81.25}, "corrected": {"total": 79.75}},
        "notes": ["a note"],
        "settings": {"world": "small"},
        "lately": {"later": 5},
    }
    found = parsed(make_folder(changes=changes))
    for word in ("0.432", "0.250", "open", "81.25", "79.75", "a note", "world", "small", "lately"):
        assert word in found.text
    assert "width:25.0%" in [values.get("style") for _, values in found.elements]
    assert "fake(mask2former-tiny-00000000)" in found.text
    assert "72 of 72 samples judged" in found.text


def test_bars_and_intervals_have_their_lengths(make_folder: Callable[..., Path]) -> None:
    folder = make_folder()
    data = json.loads((folder / "results.json").read_text())
    data["overall"], data["by_category"] = 40.0, {"colors": 120.0, "counting": -5.0}
    data["intervals"] = {"overall": [30, 60.5]}
    (folder / "results.json").write_text(json.dumps(data))
    styles = [values["style"] for _, values in parsed(folder).elements if "style" in values]
    assert styles == ["width:33.33%", "left:25.0%;width:25.42%", "width:100.0%", "width:0.0%"]


def test_the_worst_samples_come_first_from_all_categories(
    make_folder: Callable[..., Path],
) -> None:
    found = parsed(make_folder(score=lambda item, number: (item.number + number) / 30))
    names = [values["alt"] for tag, values in found.elements if tag == "img"]
    assert names[:4] == ["00000/0", "00001/0", "00002/0", "00003/0"]
    assert names[12:] == ["00017/3", "00016/3", "00015/3", "00014/3", "00013/3", "00012/3"]
    # Equal scores: all categories in turn, one sample of each item.
    zeros = parsed(make_folder("zeros", score=lambda item, number: 0.0))
    names = [values["alt"] for tag, values in zeros.elements if tag == "img"]
    assert names[:6] == ["00000/0", "00006/0", "00012/0", "00001/0", "00007/0", "00013/0"]
    assert "no counting in sample 0" in zeros.text
    assert "prompt 6 about counting" in zeros.text


def test_images_are_scaled_down(make_folder: Callable[..., Path]) -> None:
    folder = make_folder(
        items_per_category=1, draw=lambda item, number: Image.new("RGB", (1000, 500), "red")
    )
    images = parsed(folder).images()
    assert len(images) == 6  # the worst and the best of each item
    assert {image.size for image in images} == {(320, 160)}
    (red, green, blue) = images[0].convert("RGB").getpixel((10, 10))  # pyrefly: ignore[not-iterable]
    assert red > 240
    assert max(green, blue) < 20


def test_tiles_of_a_grid_are_shown_alone(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_folder()
    grid = Image.new("RGB", (64, 64), "black")
    grid.paste("lime", (32, 0, 64, 32))
    grid.save(tmp_path / "grid.png")
    lines = [json.loads(line) for line in (folder / "verdicts.jsonl").read_text().splitlines()]
    for line in lines:
        line |= {"file": str(tmp_path / "grid.png"), "tile": [1, 0, 2, 2]}
    (folder / "verdicts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    image = parsed(folder).images()[0].convert("RGB")
    assert image.size == (32, 32)
    assert image.resize((1, 1)).getpixel((0, 0)) == pytest.approx((0, 255, 0), abs=4)


def test_files_that_cannot_be_shown_are_said(make_folder: Callable[..., Path]) -> None:
    folder = make_folder(score=lambda item, number: float(item.number))
    (folder / "samples/00000/0.png").unlink()
    (folder / "samples/00001/0.png").write_bytes(b"no image")
    (folder / "samples/00002/0.png").unlink()
    (folder / "samples/00002/0.txt").write_text(f"an answer {BAD}")
    text = parsed(folder).text
    assert "the file is missing" in text
    assert "the file cannot be read" in text
    assert f"an answer {BAD}" in text


def test_failures_and_samples_without_a_judgement_are_listed(
    make_folder: Callable[..., Path],
) -> None:
    def outcome(item: Item, number: int) -> str:
        ends = {0: "missing", 1: "broken", 2: "refusal"}
        return ends.get(item.number, "judged") if number == 3 else "judged"

    text = parsed(make_folder(outcome=outcome)).text
    assert "Missing and broken samples (2)" in text
    assert "00000/3, 00001/3" in text
    assert re.search(r"Samples without a judgement\s+refusal\s+00002/3", text)
    assert "at least" in text


def test_two_evaluations_are_compared_with_images(make_folder: Callable[..., Path]) -> None:
    def other(item: Item, number: int) -> float:
        return {3: 1.0, 5: 0.25 if number == 2 else 0.5}.get(item.number, 0.5)

    first = make_folder("first", score=lambda item, number: 0.5)
    found = parsed(first, make_folder("second", score=other))
    names = [values["alt"] for tag, values in found.elements if tag == "img"]
    assert names[:4] == [
        "first: 00003/0",
        "second: 00003/0",
        "first: 00005/2",
        "second: 00005/2",
    ]
    assert "second against first" in found.text
