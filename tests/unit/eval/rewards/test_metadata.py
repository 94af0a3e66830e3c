"""The schemas of the metadata, on published prompts and on changed ones."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("pydantic")
from pydantic import ValidationError

from blip3o.core.errors import UsageError
from blip3o.data.scenes.prompts import CATEGORIES, eval_prompts
from blip3o.eval.prompt_files import BUNDLED
from blip3o.eval.rewards import REWARDS
from blip3o.eval.rewards.geneval import GenEvalMetadata
from blip3o.eval.rewards.scenes import SceneMetadata, SceneRewards

LINES = (BUNDLED / "geneval/evaluation_metadata.jsonl").read_text(encoding="utf-8").splitlines()
COUNTING = next(json.loads(line) for line in LINES if '"counting"' in line)
POSITION = next(json.loads(line) for line in LINES if '"position"' in line)
PAIR = next(one for one in eval_prompts("position", 5) if one.relation is not None)


def scene(**changes: Any) -> str:
    return json.dumps({**dataclasses.asdict(PAIR), **changes})


@pytest.mark.parametrize("line", LINES[::7])
def test_every_line_of_geneval_is_accepted_and_kept(line: str) -> None:
    found = GenEvalMetadata.model_validate_json(line)
    assert found.model_dump(mode="json", by_alias=True, exclude_none=True) == json.loads(line)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda line: line.update(color="red"), "not permitted"),
        (lambda line: line["include"][0].update(count="2"), "integer"),
        (lambda line: line["include"][0].update(count=0), "greater than"),
        (lambda line: line["include"][0].update(position=["left of", "0"]), "integer"),
        (lambda line: line["include"][0].update(size="large"), "not permitted"),
        (lambda line: line["exclude"][0].update(color="red"), "not permitted"),
        (lambda line: line.update(include=[]), "at least 1"),
        (lambda line: line.pop("include"), "required"),
    ],
)
def test_changed_lines_of_geneval_are_refused(change: Callable[..., Any], fault: str) -> None:
    line = json.loads(json.dumps(COUNTING))
    change(line)
    with pytest.raises(ValidationError, match=fault):
        GenEvalMetadata.model_validate_json(json.dumps(line))


def test_geneval_makes_the_items_and_checks_the_names() -> None:
    pytest.importorskip("blip3o.eval.geneval.benchmark")
    from blip3o.eval.rewards.geneval import GenEvalRewards

    rewards = GenEvalRewards()
    item = rewards.item_of(GenEvalMetadata.model_validate_json(json.dumps(POSITION)))
    assert (item.category, item.prompt) == ("position", POSITION["prompt"])
    assert item.data["include"] == POSITION["include"]
    line = {**POSITION, "include": [{"class": "bench press", "count": 1}]}
    with pytest.raises(UsageError, match="80 classes"):  # the detector would never find it
        rewards.item_of(GenEvalMetadata.model_validate_json(json.dumps(line)))


@pytest.mark.parametrize("category", CATEGORIES)
def test_every_prompt_of_the_scenes_is_accepted(category: str) -> None:
    for prompt in eval_prompts(category, 5):
        text = json.dumps(dataclasses.asdict(prompt))
        item = SceneRewards().item_of(SceneMetadata.model_validate_json(text))
        assert (item.category, item.prompt) == (category, prompt.prompt)
        assert item.data["include"] == list(prompt.include)
        assert item.data["relation"] == (None if prompt.relation is None else [*prompt.relation])


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"category": "places"}, "known: "),
        ({"include": [{"thing": "red"}]}, "no thing"),
        ({"include": [{"thing": "cat", "color": "cat"}]}, "no color"),
        ({"include": [{"thing": "cat", "count": 1.0}]}, "integer"),
        ({"include": []}, "at least 1"),
        ({"relation": [0, "near", 1]}, "left of"),
        ({"relation": [0, "above", 2]}, "two different entries"),
        ({"relation": [0, "above", -1]}, "two different entries"),
        ({"relation": [1, "above", 1]}, "two different entries"),
        ({"size": 1}, "not permitted"),
    ],
)
def test_changed_prompts_of_the_scenes_are_refused(changes: dict[str, Any], fault: str) -> None:
    SceneMetadata.model_validate_json(scene())
    with pytest.raises(ValidationError, match=fault):
        SceneMetadata.model_validate_json(scene(**changes))


def test_settings_are_those_of_the_benchmark() -> None:
    rewards = REWARDS.get("scenes")(["world.max_objects=2"])
    assert rewards.settings["world"]["max_objects"] == 2
    with pytest.raises(UsageError, match="max_object"):
        REWARDS.get("scenes")(["world.max_object=2"])
    with pytest.raises(UsageError, match="scenes"):
        REWARDS.place("scene")
