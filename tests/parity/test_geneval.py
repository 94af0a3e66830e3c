"""GenEval's rules, summary, folders and colors against its own program (`geneval`)."""

import base64
import dataclasses
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from blip3o.core.errors import UsageError
from blip3o.eval.benchmark import Item
from blip3o.eval.geneval.colors import (
    ColorClassifier,
    color_head,
    color_logits,
    color_texts,
    crop_of,
)
from blip3o.eval.geneval.layout import GenEvalLayout
from blip3o.eval.geneval.prompts import checked_metadata, item_of_metadata
from blip3o.eval.geneval.rules import COLORS, Rules, judge
from blip3o.eval.geneval.summary import ResultLine, summarize

each_rule_file = pytest.mark.parity_cases("geneval/rules*.jsonl")


def lines(case: Any) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in case.path.read_text(encoding="utf-8").splitlines()]
    assert found
    return found


@each_rule_file
def test_verdicts_equal_recorded_ones(case: Any) -> None:
    for line in lines(case):
        logits = line["color_logits"]
        asked: list[list[str | int]] = []

        def color_of(
            name: str,
            numbers: Sequence[int],
            logits: dict[str, list[list[float]]] = logits,
            asked: list[list[str | int]] = asked,
        ) -> list[str]:
            asked.extend([name, number] for number in numbers)
            return [COLORS[int(np.argmax(logits[name][number]))] for number in numbers]

        found = {
            name: np.array(rows, np.float32).reshape(-1, 5)
            for name, rows in line["detections"].items()
        }
        result = judge(line["metadata"], found, color_of, Rules(**line["settings"]))
        expected, place = line["expected"], line["id"]
        assert result.is_correct == expected["correct"], place
        assert "\n".join(result.reasons) in expected["reason_any_of"], place
        objects = {name: rows.tolist() for name, rows in result.objects.items()}
        assert objects == expected["details"], place
        assert asked == expected["color_asked_for"], place
        assert [list(one[:2]) for one in result.colors] == asked, place


@pytest.mark.parity_cases("geneval/summaries*.json")
def test_summaries_print_the_recorded_text(case: Any) -> None:
    summaries = case.settings()
    assert summaries
    for one in summaries:
        expected = one["expected"]
        found = summarize(
            ResultLine(tag=row["tag"], metadata=row["metadata"], is_correct=row["correct"])
            for row in one["rows"]
        )
        assert found.text == expected["text"], one["note"]
        assert found.total_images == expected["total_images"]
        assert found.total_prompts == expected["total_prompts"]
        assert f"{100 * found.correct_images:.2f}" == expected["correct_images_percent"]
        assert f"{100 * found.correct_prompts:.2f}" == expected["correct_prompts_percent"]
        assert f"{found.overall:.5f}" == expected["overall"]
        parts = {
            tag: {"percent": f"{100 * share:.2f}", "correct": right, "total": total}
            for (tag, (right, total)), share in zip(
                found.tasks.items(), found.by_task.values(), strict=True
            )
        }
        assert list(parts.items()) == list(expected["tasks"].items())


@pytest.mark.parity_cases("geneval/crops*.json")
def test_crops_equal_recorded_ones(case: Any) -> None:
    crops = case.settings()
    assert crops
    options = {
        "crop": lambda value: {"is_cut": value != "0"},
        "bgcolor": lambda value: {"background": None if value == "original" else value},
    }
    for one in crops:
        rows = one["mask_rows"]
        mask = None if rows is None else np.array([[mark == "1" for mark in row] for row in rows])
        settings: dict[str, Any] = {}
        for name, value in one["options"].items():
            settings |= options[name](value)
        crop = crop_of(opened(one["image_png"]), one["box"], mask, **settings)
        expected = one["expected"]
        assert crop.mode == expected["mode"]
        assert list(crop.size) == expected["size"]
        assert np.array_equal(np.asarray(crop), np.asarray(opened(expected["png"]))), one["note"]


def opened(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))


@pytest.mark.parity_cases("geneval/color_heads*.json")
def test_colors_equal_recorded_ones(case: Any) -> None:
    heads = case.settings()
    assert heads
    for one in heads:
        expected = one["expected"]
        assert color_texts(one["classname"]) == one["texts"]
        head = color_head(np.array(one["text_embeddings"], np.float32))
        np.testing.assert_allclose(head, expected["classifier"], rtol=0, atol=1e-6)
        embeddings = np.array(one["image_embeddings"], np.float32)
        logits = color_logits(embeddings, head)
        np.testing.assert_allclose(logits, expected["logits"], rtol=0, atol=1e-4)
        classifier = ColorClassifier(Recorded(one["texts"], one["text_embeddings"], embeddings))
        crops = [Image.new("RGB", (number + 1, 1)) for number in range(len(embeddings))]
        assert classifier.colors(one["classname"], crops) == expected["colors"]


class Recorded:
    """Returns recorded embeddings; the width of an image is its number."""

    name = "recorded"

    def __init__(
        self, texts: list[list[str]], embeddings: list[list[list[float]]], images: np.ndarray
    ) -> None:
        self._texts = {
            text: row
            for three, rows in zip(texts, embeddings, strict=True)
            for text, row in zip(three, rows, strict=True)
        }
        self._images = images

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([self._texts[text] for text in texts], np.float32)

    def embed_images(self, images: Sequence[Image.Image]) -> np.ndarray:
        return self._images[[image.width - 1 for image in images]]


@pytest.mark.parity_cases("geneval/layouts*.json")
def test_folders_hold_the_recorded_images(case: Any, tmp_path: Path) -> None:
    cases = case.settings()
    assert cases
    for one in cases:
        root = tmp_path / one["id"]
        files: dict[str, str] = one["files"]
        for path, content in files.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            if content == "<image>":
                Image.new("RGB", (2, 2)).save(root / path, format="PNG")
            else:
                (root / path).write_text(content, encoding="utf-8")
        expected = one["expected"]
        items = items_in(files)
        try:
            found = list(GenEvalLayout().read(root, items))
        except UsageError:
            # Only faults and names that the generator never writes are refused.
            is_plain = all(re.fullmatch(r"\d+/(samples/\d+\.png|[a-z.]+)", path) for path in files)
            assert expected["error"] or not is_plain, one["note"]
            continue
        assert expected["error"] is None, one["note"]
        prompts = {item.id: item.prompt for item in items}
        places = [[str(place.file.relative_to(root)), prompts[place.item]] for place in found]
        assert sorted(places) == expected["evaluated"], one["note"]


def items_in(files: dict[str, str]) -> list[Item]:
    """Returns an item for each line of metadata, which asks for all images."""
    texts = [text for path, text in files.items() if path.endswith("metadata.jsonl")]
    found: dict[str, Item] = {}
    for text in texts:
        place = 0
        while text[place:].strip():
            place += len(text[place:]) - len(text[place:].lstrip())
            metadata, place = json.JSONDecoder().raw_decode(text, place)
            item = item_of_metadata(checked_metadata(metadata, "metadata"))
            found[item.id] = dataclasses.replace(item, num_samples=len(files))
    return list(found.values())
