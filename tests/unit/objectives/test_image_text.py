"""The image encoder's objective: region targets by hand, losses of perfect outputs, gradients."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from blip3o.core.types import Batch
from blip3o.models.unified import UnifiedModel
from blip3o.objectives.image_text import ImageText, ImageTextConfig, region_targets

MakeBatch = Callable[..., Batch]
UNUSED = [-1.0] * 5


def build(model: UnifiedModel, **weights: Any) -> ImageText:
    torch.manual_seed(3)
    return ImageTextConfig(
        text_size=8,
        text_layers=1,
        text_heads=2,
        embedding_size=8,
        things=("cat", "dog"),
        colors=("red", "blue", "green"),
        pixel_px=4,
        **weights,
    ).build(model.config)


def test_the_target_of_a_token_is_the_object_that_covers_it_most() -> None:
    # Four tokens: a large object covers the upper left token completely and an eighth of its
    # neighbors; a small object is in the lower right token.
    large = [0.25, 0.25, 0.625, 1.0, 2.0]  # from -0.0625 to 0.5625
    small = [0.75, 0.80, 0.20, 0.0, 1.0]
    thing, color, box, covered = region_targets(torch.tensor([[large, small, UNUSED]]), 2, 2)
    assert thing.tolist() == [[1, 1, 1, 0]]
    assert color.tolist() == [[2, 2, 2, 1]]
    assert covered.tolist() == [[True, True, True, True]]
    expected = [
        [0.0, 0.0, 1.25],  # same center as the token, 1.25 tokens wide
        [-1.0, 0.0, 1.25],  # the center lies one token to the left
        [0.0, -1.0, 1.25],  # the center lies one token above
        [0.0, 0.1, 0.4],
    ]
    torch.testing.assert_close(box[0], torch.tensor(expected))


def test_tokens_with_little_of_an_object_are_empty() -> None:
    scene = torch.tensor([[[0.25, 0.25, 0.53, 0.0, 1.0], UNUSED], [UNUSED, UNUSED]])
    thing, _, _, covered = region_targets(scene, 2, num_things=7)
    assert covered.tolist() == [[True, False, False, False], [False] * 4]
    assert thing.tolist() == [[0, 7, 7, 7], [7, 7, 7, 7]]
    assert bool(region_targets(scene, 2, 7, min_cover=0.01)[3][0, 1])


def test_a_nearer_object_wins_over_one_that_only_touches() -> None:
    first = [0.20, 0.5, 0.4, 0.0, 0.0]
    second = [0.80, 0.5, 0.9, 1.0, 1.0]
    for rows in ([first, second], [second, first]):
        thing, *_ = region_targets(torch.tensor([rows]), 4, 2)
        assert thing[0].view(4, 4)[1].tolist() == [0, 1, 1, 1]


def test_the_total_is_the_weighted_sum_of_its_parts(
    model: UnifiedModel, make_batch: MakeBatch
) -> None:
    batch = make_batch([1, 2, 3, 4], "contrastive")
    weights = {"contrastive_weight": 0.5, "region_weight": 2.0, "pixel_weight": 3.0}
    output = build(model, **weights)(model, batch, 0)
    parts = {name: float(total) for name, (total, _) in output.metrics.items()}
    expected = 0.5 * parts["contrastive_loss"] + 2 * parts["region_loss"] + 3 * parts["pixel_loss"]
    assert float(output.loss_sum.detach()) == pytest.approx(expected, rel=1e-5)
    assert output.count == 4
    assert all(float(total) >= 0 for total, _ in output.metrics.values())


def test_gradient_reaches_the_image_encoder_and_every_head(
    model: UnifiedModel, make_batch: MakeBatch
) -> None:
    objective = build(model)
    objective(model, make_batch([1, 2, 3], "contrastive"), 0).loss_sum.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == name.startswith("image_encoder."), name
    for name, parameter in objective.named_parameters():
        assert parameter.grad is not None, name


def test_equal_captions_are_all_positives(model: UnifiedModel, make_batch: MakeBatch) -> None:
    batch = make_batch([1, 2, 3], "contrastive")
    same = dataclasses.replace(
        batch,
        input_ids=batch.input_ids[:1].expand(3, -1),
        attention_mask=batch.attention_mask[:1].expand(3, -1),
    )
    output = build(model)(model, same, 0)
    assert float(output.metrics["retrieval_accuracy"][0]) == 3
    # All nine pairs are positive: at the initial bias of -10 each costs about ten.
    assert float(output.metrics["contrastive_loss"][0]) / 3 > 3 * 5


def test_padding_of_captions_changes_nothing(model: UnifiedModel, make_batch: MakeBatch) -> None:
    batch = make_batch([1, 2, 3], "contrastive")
    longer = dataclasses.replace(
        batch,
        input_ids=torch.nn.functional.pad(batch.input_ids, (0, 5)),
        attention_mask=torch.nn.functional.pad(batch.attention_mask, (0, 5)),
    )
    objective = build(model)
    with torch.no_grad():
        one, other = objective(model, batch, 0), objective(model, longer, 0)
    torch.testing.assert_close(one.loss_sum, other.loss_sum, rtol=1e-5, atol=0)


def test_pixels_are_regressed_token_by_token(model: UnifiedModel, make_batch: MakeBatch) -> None:
    """The pixel head's targets are the image itself, cut into the tokens' squares."""
    objective = build(model)
    batch = make_batch([1], "contrastive")
    assert batch.target_pixels is not None
    small = torch.nn.functional.avg_pool2d(batch.target_pixels, 2)  # 16 -> grid 2 * pixel_px 4
    tokens = [
        small[0, :, row : row + 4, column : column + 4].flatten()
        for row in (0, 4)
        for column in (0, 4)
    ]
    objective.pixel_head = torch.nn.Identity()  # type: ignore[assignment]
    loss = objective._pixel(torch.stack(tokens)[None], batch.target_pixels)
    assert float(loss) < 1e-10


def test_a_batch_without_regions_is_refused(model: UnifiedModel, make_batch: MakeBatch) -> None:
    batch = dataclasses.replace(make_batch([1], "contrastive"), regions=None)
    with pytest.raises(ValueError, match="'contrastive' batch needs target pixels and regions"):
        build(model)(model, batch, 0)
