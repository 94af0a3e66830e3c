"""Verdicts on renders of known scenes, compared with the rules on their true objects."""

import dataclasses
import itertools
import json
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("pydantic")

from blip3o.data.scenes.render import render
from blip3o.data.scenes.scene import sample_scene
from blip3o.data.scenes.types import RELATIONS, Scene
from blip3o.eval.benchmark import Sample, Verdict
from blip3o.eval.rewards.scenes import SceneMetadata, SceneRewards
from blip3o.eval.scene_rules import WantedThing, judge_scene
from blip3o.eval.scenes import truth_of


def verdict(image: Image.Image, **metadata: Any) -> Verdict:
    item = SceneRewards().item_of(SceneMetadata.model_validate_json(json.dumps(metadata)))
    item = dataclasses.replace(item, id="i", number=3)
    sample = Sample(item=item, number=3, sha256="s", image=image)
    (found,) = SceneRewards().scorer().verdicts([sample])
    return found


def wanted(scene: Scene, count: int = 1) -> list[dict[str, Any]]:
    return [{"thing": one.thing, "color": one.color, "count": count} for one in scene.objects]


@pytest.mark.parametrize("index", range(12))
def test_scores_are_those_of_the_rules_on_the_true_objects(index: int) -> None:
    scene = sample_scene(11, index)
    image, truth = render(scene), truth_of(scene)
    include = wanted(scene)[:2]
    things = [WantedThing(**one) for one in include]
    cases: list[tuple[str, Any]] = [("colors", None), ("counting", None)]
    if len(include) > 1:
        cases += [
            ("position", (i, name, 1 - i)) for i, name in itertools.product((0, 1), RELATIONS)
        ]
    for category, relation in cases:
        found = verdict(image, category=category, include=include, relation=relation)
        is_right = judge_scene(truth, things, relation, exact_count=category == "counting")
        assert found.score == float(is_right), (category, relation)
        assert (found.item, found.number, found.sha256) == ("i", 3, "s")
        assert len(found.data["found"]) == len(truth)


def test_more_objects_than_asked_for_are_wrong_only_when_counting() -> None:
    scene = sample_scene(11, 0)
    first = scene.objects[0]
    corners = [dataclasses.replace(first, x=x, y=0.5, size=0.3) for x in (0.25, 0.75)]
    image = render(dataclasses.replace(scene, objects=tuple(corners)))
    include = wanted(scene)[:1]
    assert verdict(image, category="colors", include=include).score == 1
    assert verdict(image, category="counting", include=include).score == 0
    assert verdict(image, category="counting", include=[{**include[0], "count": 2}]).score == 1


def test_an_image_that_is_not_square_is_wrong() -> None:
    found = verdict(Image.new("RGB", (96, 64)), category="colors", include=[{"thing": "cat"}])
    assert (found.score, found.outcome) == (0.0, "judged")
    assert found.data["reason"] == "the image is not square: (96, 64)"
