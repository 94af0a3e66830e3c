"""Measurements of models and images with known values."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from PIL import Image

from blip3o.data.scenes.render import render
from blip3o.eval.scene_detector import detect
from blip3o.eval.scene_rules import WantedThing, judge_scene
from blip3o.eval.scenes import ScenesBenchmark
from blip3o.generate.outputs import ImageOutput
from blip3o.generate.pipeline import Blip3oPipeline
from blip3o.recipes.pocket_parts import SMALL_WORLD
from blip3o.study import measures
from blip3o.study.measures import MethodEvaluation

BENCHMARK = ScenesBenchmark(batch_size=4, world=SMALL_WORLD)
SETTINGS = MethodEvaluation(
    benchmark=BENCHMARK,
    num_diverse_prompts=4,
    num_repeats=3,
    num_frechet_images=8,
    num_psnr_images=4,
    num_texts=2,
    sample_prompts=("a red cat", "a blue car"),
)


def test_the_spread_is_that_within_the_groups() -> None:
    rows = np.array([[0.0, 0.0], [3.0, 3.0], [100.0, 0.0], [100.0, 0.0]])
    assert measures._spread(rows, 2) == pytest.approx(1.5)


def test_real_images_of_a_prompt_show_what_it_names() -> None:
    """The detector finds it, and places and backgrounds differ."""
    for number, prompt in enumerate(measures._diverse_prompts(BENCHMARK, 6)):
        scenes = measures._scenes_of(prompt, BENCHMARK, number, 3)
        assert len({scene.objects for scene in scenes}) == 3
        wanted = [WantedThing(**item) for item in prompt.include]
        for scene in scenes:
            assert judge_scene(detect(render(scene, 96)), wanted, prompt.relation), prompt.prompt
    categories = [one.category for one in measures._diverse_prompts(BENCHMARK, 6)]
    assert categories == ["two_object", "position", "color_attr"] * 2


def test_psnr_of_equal_images_and_of_other_ones(
    tiny_pipe: Blip3oPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 0 < measures.psnr(tiny_pipe, SETTINGS)["psnr"] < 30
    monkeypatch.setattr(tiny_pipe, "reconstruct", lambda image, generator: ImageOutput(image))
    assert measures.psnr(tiny_pipe, SETTINGS)["psnr"] == math.inf


def test_equal_images_have_no_diversity_and_real_ones_have_that_of_the_data(
    tiny_pipe: Blip3oPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    side = tiny_pipe.model.config.image_encoder.image_px
    prompts = measures._diverse_prompts(BENCHMARK, SETTINGS.num_diverse_prompts)
    real = [
        render(scene, side)
        for number, prompt in enumerate(prompts)
        for scene in measures._scenes_of(prompt, BENCHMARK, number, SETTINGS.num_repeats)
    ]
    equal = [Image.new("RGB", (side, side), "red")] * len(real)
    for images, expected in ((real, 1.0), (equal, 0.0)):
        monkeypatch.setattr(measures, "_drawn_images", lambda *_, images=images: images)
        found = measures.diversity(tiny_pipe, SETTINGS)
        assert found["image_diversity"] == pytest.approx(expected)
        assert found["feature_diversity"] > 0


def test_the_frechet_distance_of_the_real_images_is_zero(
    tiny_pipe: Blip3oPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    side = tiny_pipe.model.config.image_encoder.image_px
    real = [render(scene, side) for scene in measures._unseen(BENCHMARK, 8)]
    monkeypatch.setattr(measures, "_drawn_images", lambda *_: real)
    assert measures.frechet(tiny_pipe, SETTINGS)["frechet"] == pytest.approx(0, abs=1e-4)


@torch.no_grad()
def test_text_logits_change_with_the_backbone_only(tiny_pipe: Blip3oPipeline) -> None:
    before = measures.text_logits(tiny_pipe, SETTINGS)
    single = dataclasses.replace(SETTINGS, num_texts=1)
    alone = measures.text_logits(tiny_pipe, single)
    torch.testing.assert_close(before[:1, -alone.shape[1] :], alone)
    assert not torch.equal(before[0, -1], before[1, -1])
    for name, changes in (("generator", False), ("backbone", True)):
        weight = next(tiny_pipe.model.get_submodule(name).parameters())
        stored = weight.clone()
        weight += 0.01
        change = measures.text_change(before, measures.text_logits(tiny_pipe, SETTINGS))
        weight.copy_(stored)
        assert (change["text_change"] > 0) == changes


def test_a_batch_changes_no_image(tiny_pipe: Blip3oPipeline) -> None:
    whole = measures.sample_images(tiny_pipe, SETTINGS)
    single = dataclasses.replace(SETTINGS, benchmark=dataclasses.replace(BENCHMARK, batch_size=1))
    pairs = zip(whole, measures.sample_images(tiny_pipe, single), strict=True)
    assert all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in pairs)
