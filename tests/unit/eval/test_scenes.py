"""The scenes benchmark: its items, its rules, and the command that runs it."""

from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from blip3o.core.errors import UsageError
from blip3o.data.scenes.render import render
from blip3o.eval.benchmark import Item, Row, Sample, Task, Verdict
from blip3o.eval.report.results import Results
from blip3o.eval.scenes import ScenesBenchmark
from blip3o.eval.start import run_benchmark

FEW = (
    *("prompts_per_category=1", "images_per_prompt=1", "num_edits=2", "num_reconstructions=1"),
    *("num_questions=0", "num_captions=0", "wording_prompts_per_category=0"),
    *("num_wording_questions=0", "num_wording_edits=2"),
)
SMALL = ScenesBenchmark(
    prompts_per_category=2,
    num_questions=8,
    num_captions=3,
    num_edits=4,
    num_reconstructions=3,
    wording_prompts_per_category=1,
    num_wording_questions=9,
    num_wording_edits=5,
)


def test_the_command_stores_the_settings_of_the_model(tiny_folder: Path, tmp_path: Path) -> None:
    results = run_benchmark(
        *("scenes", str(tiny_folder), tmp_path, FEW),
        model_overrides=["sampling.num_inference_steps=2"],
        device="cpu",
        dtype="fp32",
    )
    assert results == Results.read(tmp_path)
    assert results is not None
    assert results.model["model_overrides"] == ["sampling.num_inference_steps=2"]
    assert results.sampler["num_inference_steps"] == 2
    assert len(results.by_category) == 6
    assert results.num_samples == 6 + 2 + 1 + 2


def test_a_folder_that_cannot_be_written_is_refused_before_a_model_is_loaded(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write to"):
        run_benchmark("scenes", "no such model", tmp_path / "file")


def test_more_prompts_than_exist_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="different prompts, not 600"):
        run_benchmark("scenes", str(tiny_folder), tmp_path, ["prompts_per_category=600"])


def test_a_part_of_zero_items_is_skipped() -> None:
    assert Counter(item.data["part"] for item in SMALL.items()) == {
        **{"text_to_image": 12, "vqa": 8, "caption": 3, "edit": 4, "reconstruct": 3},
        **{"wording_prompts": 8, "wording_questions": 9, "wording_edits": 5},
    }
    none = ScenesBenchmark(
        prompts_per_category=0,
        num_questions=0,
        num_captions=0,
        num_edits=0,
        num_reconstructions=0,
        wording_prompts_per_category=0,
        num_wording_questions=0,
        num_wording_edits=0,
    )
    assert none.items() == []
    assert none.reduce([]).overall is None


def answered(item: Item) -> Sample:
    """Returns the right output for an item: the truth as a text, or a render of the truth."""
    image: Image.Image | None = None
    text: str | None = None
    if "truth" in item.data and item.data["part"] != "caption":
        text = f"{item.data['truth'].upper()}."
    elif item.data["part"] == "caption":
        text = ", ".join(f"a {color} {thing}" for color, thing in item.data["truth"])
    elif item.task == "edit":
        image = render(SMALL.edit_of(item).target, 96)
    else:
        image = render(SMALL.scene_of(item), 96)
    return Sample(item=item, number=0, sha256="", image=image, text=text)


def verdicts_on(samples: list[Sample]) -> list[Verdict]:
    return list(SMALL.scorer().verdicts(samples))


def test_the_truth_is_judged_right_and_another_output_wrong() -> None:
    items = [item for item in SMALL.items() if item.task != "text_to_image"]
    right = [answered(item) for item in items]
    assert [verdict.score for verdict in verdicts_on(right)] == [1.0] * len(items)
    blank = Image.new("RGB", (96, 96), "white")
    wrong = [
        Sample(item=one.item, number=0, sha256="", text="?")
        if one.image is None
        else Sample(item=one.item, number=0, sha256="", image=blank)
        for one in right
    ]
    assert [verdict.score for verdict in verdicts_on(wrong)] == [0.0] * len(items)


def test_an_image_that_is_not_square_is_wrong() -> None:
    (item, *_) = SMALL.items()
    (verdict,) = verdicts_on(
        [Sample(item=item, number=0, sha256="", image=Image.new("RGB", (96, 80)))]
    )
    assert verdict.score == 0.0
    assert verdict.data["reason"] == "the image is not square: (96, 80)"


def test_the_headline_is_the_mean_of_the_categories_of_text_to_image() -> None:
    def row(part: str, category: str, task: Task, score: float | None) -> Row:
        item = Item(id="a", number=0, task=task, category=category, data={"part": part})
        if score is None:
            return Row(item, 0, None)
        return Row(item, 0, Verdict(item="a", number=0, sha256="", judge="j", score=score))

    scores = SMALL.reduce(
        [
            row("text_to_image", "colors", "text_to_image", 1.0),
            row("text_to_image", "counting", "text_to_image", 1.0),
            row("text_to_image", "counting", "text_to_image", None),
            row("vqa", "what", "question", 1.0),
            row("vqa", "where", "question", 0.0),
            row("edit", "recolor", "edit", None),
            row("caption", "", "question", 0.5),
            row("wording_prompts", "colors", "text_to_image", 1.0),
            row("wording_prompts", "counting", "text_to_image", 0.0),
            row("wording_prompts", "counting", "text_to_image", 1.0),
            row("wording_prompts", "counting", "text_to_image", 1.0),
            row("wording_prompts", "counting", "text_to_image", 0.0),
            row("wording_questions", "what", "question", 0.0),
        ]
    )
    assert scores.by_category == {"colors": 1.0, "counting": 0.5}
    assert scores.overall == 0.75
    assert scores.figures == {
        "vqa_accuracy": 0.5,
        "vqa_by_kind": {"what": 1.0, "where": 0.0},
        "edit_accuracy": 0.0,
        "edit_by_kind": {"recolor": 0.0},
        "caption_attribute_accuracy": 0.5,
        "wording_prompts": 0.75,
        "wording_prompts_by_category": {"colors": 1.0, "counting": 0.5},
        "wording_questions": 0.0,
        "wording_questions_by_category": {"what": 0.0},
    }
