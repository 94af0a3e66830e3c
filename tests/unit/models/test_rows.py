"""Rows of text and images in turn through image blocks: levels, masks, positions, sums."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from blip3o.core.types import IGNORE_LABEL, Batch, ImagePlace
from blip3o.flow.sigmas import UniformSigmas
from blip3o.models.backbones.qwen2_5_vl import Qwen2_5VLBackboneConfig
from blip3o.models.generators import GENERATORS
from blip3o.models.generators.blocks import BlockConfig
from blip3o.models.generators.plan import RowOutput
from blip3o.models.generators.regression import RegressionConfig
from blip3o.models.prompts import Rows, TowerInputs, VisionInputs, select_images
from blip3o.models.unified import SamplingConfig, UnifiedModel, UnifiedModelConfig
from blip3o.objectives.feature_regression import FeatureRegressionConfig
from blip3o.objectives.flow_matching import FlowMatchingConfig
from blip3o.objectives.generation import rows_of

BLOCKS = [
    name for name in GENERATORS.names() if isinstance(GENERATORS.get(name).tiny(), BlockConfig)
]
PAD = 5
"""The placeholder of the tiny model, whose images have 4 tokens."""


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=BLOCKS)
def model(request: pytest.FixtureRequest) -> UnifiedModel:
    torch.manual_seed(0)
    tiny, generator = UnifiedModelConfig.tiny(), GENERATORS.get(request.param).tiny()
    model = dataclasses.replace(tiny, generator=generator).build().eval()
    for parameter in model.generator.parameters():
        nn.init.normal_(parameter, std=0.2)
    for parameter in model.backbone.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)
    return model


def drawn(start: int, *, is_target: bool = True, before_text: bool = False) -> ImagePlace:
    return ImagePlace(start, 4, is_drawn=True, is_target=is_target, before_text=before_text)


def given(start: int) -> ImagePlace:
    return ImagePlace(start, 4, is_drawn=False, is_target=False, before_text=False)


LAYOUTS: tuple[tuple[int, tuple[ImagePlace, ...]], ...] = (
    (16, (drawn(3), drawn(9))),
    (12, (given(1), drawn(7))),
    (18, (drawn(2, is_target=False), drawn(8, before_text=True))),
)
"""Length of a row and its images."""


def rows(*numbers: int, seed: int = 0) -> Rows:
    lengths = [LAYOUTS[number][0] for number in numbers]
    ids = torch.zeros(len(numbers), max(lengths), dtype=torch.int64)
    for line, number in enumerate(numbers):
        words = torch.Generator().manual_seed(10 * seed + number)
        ids[line, : lengths[line]] = torch.randint(10, 300, (lengths[line],), generator=words)
        for place in LAYOUTS[number][1]:
            ids[line, place.start : place.start + 4] = PAD
    images = [
        random(4, 16, seed=50 + 10 * n + k) for n in numbers for k in range(len(LAYOUTS[n][1]))
    ]
    return Rows(
        input_ids=ids,
        attention_mask=torch.arange(ids.shape[1]) < torch.tensor(lengths)[:, None],
        places=tuple(LAYOUTS[number][1] for number in numbers),
        images=torch.stack(images),
    )


def read(model: UnifiedModel, some: Rows, noisy: Tensor, sigma: list[float]) -> RowOutput:
    dropped = torch.zeros(len(noisy), dtype=torch.bool)
    return model.read_rows(some, noisy, torch.tensor(sigma), dropped, keep_states=True)


@torch.no_grad()
def test_all_patches_of_an_image_see_each_other_through_the_whole_model(
    model: UnifiedModel,
) -> None:
    noisy, one = random(2, 4, 8), torch.zeros(2, 4, 8)
    plain = read(model, rows(0), noisy, [0.3, 0.8])
    one[0, -1] = 1.0  # the last patch of the first image
    changed = read(model, rows(0), noisy + one, [0.3, 0.8])
    assert plain.states is not None
    assert changed.states is not None
    moved = (changed.velocity - plain.velocity).abs().amax(-1)
    assert bool((moved > 1e-4).all())  # also its first patch, and the later image
    is_same = (changed.states - plain.states).abs().amax(-1)[0] < 1e-6
    assert bool(is_same[:7].all())
    assert not bool(is_same[7:9].any())  # the words after it
    one = one.flip(0, 1)  # the first patch of the second image
    later = read(model, rows(0), noisy + one, [0.3, 0.8])
    torch.testing.assert_close(later.velocity[0], plain.velocity[0], rtol=0, atol=1e-6)
    assert bool(((later.velocity[1] - plain.velocity[1]).abs().amax(-1) > 1e-4).all())


@torch.no_grad()
def test_every_image_of_a_row_has_its_own_level(model: UnifiedModel) -> None:
    noisy = random(2, 4, 8)
    found = [
        read(model, rows(0), noisy, list(s)).velocity for s in ((0.3, 0.8), (0.8, 0.3), (0.3, 0.3))
    ]
    near = {"rtol": 0, "atol": 1e-6}
    torch.testing.assert_close(found[0][0], found[2][0], **near)  # the level after it is not seen
    assert not torch.allclose(found[0][0], found[1][0], atol=1e-3)
    assert not torch.allclose(found[0][1], found[2][1], atol=1e-3)


@torch.no_grad()
def test_targets_are_told_from_images_that_are_only_context(model: UnifiedModel) -> None:
    some, noisy = rows(0, 1, 2), random(5, 4, 8)
    assert [row for row, _ in some.drawn] == [0, 0, 1, 2, 2]
    assert some.targets == [0, 1, 2, 4]
    sigma = [0.1, 0.2, 0.3, 0.0, 0.5]
    together = read(model, some, noisy, sigma).velocity
    assert len(together) == 4
    alone = [
        read(model, rows(number), noisy[first:last], sigma[first:last]).velocity
        for number, first, last in ((0, 0, 2), (1, 2, 3), (2, 3, 5))
    ]
    torch.testing.assert_close(torch.cat(alone), together, rtol=0, atol=1e-5)


def batch(*numbers: int) -> Batch:
    some = rows(*numbers)
    labels = some.input_ids.masked_fill(~some.attention_mask, IGNORE_LABEL)
    labels = labels.masked_fill(some.input_ids == PAD, IGNORE_LABEL)
    return Batch(
        task="interleaved",
        indices=torch.tensor(numbers),
        epochs=torch.zeros(len(numbers), dtype=torch.int64),
        input_ids=some.input_ids,
        attention_mask=some.attention_mask,
        labels=labels,
        prompt_pixels=torch.stack(
            [random(3, 16, 16, seed=10 * n + k).clamp(-1, 1) for n in numbers for k in range(2)]
        ),
        places=some.places,
    )


def test_levels_of_training_follow_what_an_image_is_for(
    model: UnifiedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = FlowMatchingConfig(sigmas=UniformSigmas()).build(model.config)
    seen: list[tuple[Tensor, Tensor]] = []
    plain = model.read_rows

    def read_rows(
        some: Rows, noisy: Tensor, sigma: Tensor, *rest: Any, **options: Any
    ) -> RowOutput:
        seen.append((noisy, sigma))
        return plain(some, noisy, sigma, *rest, **options)

    monkeypatch.setattr(model, "read_rows", read_rows)
    with torch.no_grad():
        for seed in range(40):
            objective(model, batch(0, 1, 2), seed)
        pixels = batch(2).prompt_pixels
        assert isinstance(pixels, Tensor)
        clean = model.normalizer(model.encode_images(pixels))
    levels = torch.stack([sigma for _, sigma in seen])
    assert bool((levels[:, 3] == 0).all())
    assert torch.equal(seen[0][0][3], clean[0])  # context is clean, to the last bit
    assert float(levels[:, 4].max()) <= 0.5 < float(levels[:, :3].max())
    assert float(levels[:, 4].max()) > 0.4
    assert len(set(levels[:, :2].flatten().tolist())) == 80  # independent of each other


def test_sums_of_rows_add_up_and_are_keyed_by_sample(model: UnifiedModel) -> None:
    objective = FlowMatchingConfig(sigmas=UniformSigmas(), text_weight=1.0).build(model.config)
    whole = objective(model, batch(0, 1, 2), 0)
    parts = [objective(model, batch(*some), 0) for some in ((2, 0), (1,))]
    assert whole.count == objective.count(batch(0, 1, 2)) == 4 * 4 * 8
    assert sum(one.count for one in parts) == whole.count
    for name in ("loss_sum", "text_sum"):
        added = sum(getattr(one, name) for one in parts)
        torch.testing.assert_close(added, getattr(whole, name), rtol=1e-4, atol=1e-5)
    assert whole.metrics["text_loss"][1] == objective.text_count(batch(0, 1, 2))
    assert objective(model, batch(0), 0).loss_sum != objective(model, batch(0), 1).loss_sum
    assert model.backbone.is_frozen is False
    whole.loss_sum.backward()
    assert all(one.grad is not None for one in model.generator.parameters())


def test_dropped_rows_hide_everything_from_their_images(model: UnifiedModel) -> None:
    objective = FlowMatchingConfig(sigmas=UniformSigmas(), condition_dropout=1.0).build(
        model.config
    )
    first, other = batch(0), batch(0)
    other.input_ids = torch.where(other.input_ids == PAD, PAD, other.input_ids.flip(1) % 290 + 10)
    with torch.no_grad():
        losses = [objective(model, one, 0).loss_sum for one in (first, other)]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=0)


def test_regression_learns_the_targets_of_rows_from_all_before_them(model: UnifiedModel) -> None:
    config = FeatureRegressionConfig(tasks=("interleaved",))
    with pytest.raises(ValueError, match="a later image would see an empty one"):
        config.build(model.config)
    torch.manual_seed(0)
    tiny, sampling = UnifiedModelConfig.tiny(), SamplingConfig(guidance_scale=1.0)
    other = dataclasses.replace(tiny, generator=RegressionConfig(), sampling=sampling).build()
    objective, some = config.build(other.config), batch(0, 1, 2)
    loss = objective(other, some, 0)
    assert loss.count == objective.count(some) == 4 * 4 * 8
    with torch.no_grad():
        whole, clean = rows_of(other, some)
        plan = other.plan(whole.prompts(other.backbone.filler_id))
        predicted = -plan.velocity(torch.zeros(4, 4, 8), torch.ones(4))
    expected = (predicted - clean[whole.targets]).square().sum()
    torch.testing.assert_close(loss.loss_sum, expected, rtol=1e-5, atol=0)


def test_images_of_every_form_can_be_selected() -> None:
    features = random(3, 4, 16)
    rows = select_images(features, [2, 0])
    assert isinstance(rows, Tensor)
    assert torch.equal(rows, features[[2, 0]])
    pixels = random(3, 3, 8, 8)
    chosen = select_images(TowerInputs(pixels=pixels), [1])
    assert isinstance(chosen, TowerInputs)
    assert torch.equal(chosen.pixels, pixels[1:2])
    backbone = Qwen2_5VLBackboneConfig.tiny().build()
    sizes = [(16, 8), (8, 8), (8, 24)]
    images = [random(3, *size, seed=k) for k, size in enumerate(sizes)]
    every = backbone.vision_inputs(images)
    some, alone = select_images(every, [2, 0]), backbone.vision_inputs([images[2], images[0]])
    assert isinstance(some, VisionInputs)
    assert isinstance(alone, VisionInputs)
    assert torch.equal(some.patches, alone.patches)
    assert torch.equal(some.grid_thw, alone.grid_thw)
    assert select_images(every, []) is select_images(None, [0]) is None
