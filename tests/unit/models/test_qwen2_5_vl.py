"""A unified model over Qwen2.5-VL: positions, padding, its vision tower and refused inputs."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from blip3o.core.config import from_dict, to_dict
from blip3o.core.types import IGNORE_LABEL, Batch
from blip3o.flow.sigmas import UniformSigmas
from blip3o.models.backbones.qwen2_5_vl import Qwen2_5VLBackboneConfig
from blip3o.models.backbones.vision import VisionInputs, image_positions, to_vision_inputs
from blip3o.models.generators.query_dit import QueryPlan
from blip3o.models.prompts import PromptImages, Prompts
from blip3o.models.unified import UnifiedModel, UnifiedModelConfig
from blip3o.objectives.flow_matching import FlowMatchingConfig
from blip3o.objectives.next_token import NextTokenConfig

IMAGE_TOKEN = 5


def condition(
    model: UnifiedModel, ids: Tensor, mask: Tensor, images: PromptImages | None = None
) -> Tensor:
    """Returns the states at the query tokens."""
    plan = model.plan(Prompts(input_ids=ids, attention_mask=mask, images=images))
    assert isinstance(plan, QueryPlan)
    return plan.states


def config() -> UnifiedModelConfig:
    return dataclasses.replace(UnifiedModelConfig.tiny(), backbone=Qwen2_5VLBackboneConfig.tiny())


@pytest.fixture
def model() -> UnifiedModel:
    torch.manual_seed(0)
    model = config().build().eval()
    for part in (model.backbone, model.get_submodule("generator.dit")):
        for parameter in part.parameters():
            nn.init.normal_(parameter, std=0.3)
    return model


def noise_images(count: int, seed: int = 0, size: tuple[int, int] = (16, 16)) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, *size, generator=generator) * 2 - 1


def text(length: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(10, 300, (length,), generator=generator).tolist()


def question(num_tokens: int, before: int, after: int, seed: int) -> list[int]:
    return text(before, seed) + [IMAGE_TOKEN] * num_tokens + text(after, seed + 1)


def padded(rows: list[list[int]], side: str) -> tuple[Tensor, Tensor]:
    length = max(len(row) for row in rows)
    space = [[0] * (length - len(row)) for row in rows]
    left = side == "left"
    ids = [s + r if left else r + s for s, r in zip(space, rows, strict=True)]
    mask = [
        [False] * len(s) + [True] * len(r) if left else [True] * len(r) + [False] * len(s)
        for s, r in zip(space, rows, strict=True)
    ]
    return torch.tensor(ids), torch.tensor(mask)


def test_config_survives_a_round_trip_and_checks_its_rotary_sections() -> None:
    assert from_dict(UnifiedModelConfig, to_dict(config())) == config()
    with pytest.raises(ValueError, match="must add up to half a head"):
        dataclasses.replace(Qwen2_5VLBackboneConfig.tiny(), rotary_sections=(2, 2, 2))


def test_images_are_resized_to_whole_tokens_of_the_tower() -> None:
    """An image encoder may have any side, for example a VAE of 256 px and tokens of 28 px."""
    encoder = dataclasses.replace(config().image_encoder, image_px=20, patch_px=5)
    changed = dataclasses.replace(config(), image_encoder=encoder)
    backbone = changed.backbone.build()
    smooth = torch.linspace(-1, 1, 20).expand(2, 3, 20, 20)
    images = backbone.vision_inputs(smooth)
    assert backbone.count_tokens(images) == 2 * changed.num_prompt_image_tokens == 2 * 2 * 2
    expected = backbone.vision_inputs(torch.linspace(-1, 1, 16).expand(2, 3, 16, 16))
    assert isinstance(images, VisionInputs)
    assert isinstance(expected, VisionInputs)
    assert torch.equal(images.grid_thw, expected.grid_thw)
    torch.testing.assert_close(images.patches, expected.patches, rtol=0, atol=0.2)
    with pytest.raises(ValueError, match="multiples of 8"):
        to_vision_inputs(torch.zeros(1, 3, 16, 12), 4, 2, 2)


def test_positions_of_text_with_images() -> None:
    """Text counts tokens, an image spans its grid, and text resumes after the longest side."""
    ids = torch.tensor([[9, 7, *[IMAGE_TOKEN] * 6, 7, 7], [*[IMAGE_TOKEN] * 2, 7, *[0] * 7]])
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, 3:] = False
    grids = torch.tensor([[1, 2, 3], [1, 1, 2]])
    positions = image_positions(ids, mask, grids, IMAGE_TOKEN)
    assert positions[:, 0].tolist() == [
        [0, 1, 2, 2, 2, 2, 2, 2, 5, 6],
        [0, 1, 2, 2, 2, 3, 3, 3, 5, 6],
        [0, 1, 2, 3, 4, 2, 3, 4, 5, 6],
    ]
    assert positions[:, 1, :3].tolist() == [[0, 0, 2], [0, 0, 2], [0, 1, 2]]


@pytest.mark.parametrize(
    ("row", "grids"),
    [
        ([IMAGE_TOKEN, 7, IMAGE_TOKEN], [[1, 1, 2]]),
        ([7, IMAGE_TOKEN], [[1, 1, 2]]),
        ([IMAGE_TOKEN, IMAGE_TOKEN], [[1, 1, 1]]),
        ([7, IMAGE_TOKEN], [[1, 1, 1], [1, 1, 1]]),
    ],
)
def test_placeholder_runs_that_do_not_match_the_images_are_refused(
    row: list[int], grids: list[list[int]]
) -> None:
    ids = torch.tensor([row])
    with pytest.raises(ValueError, match="runs"):
        image_positions(ids, torch.ones_like(ids), torch.tensor(grids), IMAGE_TOKEN)


@pytest.mark.parametrize("side", ["left", "right"])
def test_questions_about_images_of_several_sizes_batch(model: UnifiedModel, side: str) -> None:
    small, wide = noise_images(1, 1), noise_images(1, 2, (8, 40))
    inputs = [model.backbone.vision_inputs(one) for one in (small, wide)]
    parts = [one for one in inputs if isinstance(one, VisionInputs)]
    rows = [question(4, 2, 3, 1), question(5, 4, 6, 3)]
    both = VisionInputs(
        patches=torch.cat([one.patches for one in parts]),
        grid_thw=torch.cat([one.grid_thw for one in parts]),
    )
    ids, mask = padded(rows, side)
    with torch.no_grad():
        hidden = model.text_states(ids, mask, both)
        for row, (tokens, images) in enumerate(zip(rows, parts, strict=True)):
            alone_ids = torch.tensor([tokens])
            alone = model.text_states(alone_ids, torch.ones_like(alone_ids).bool(), images)
            torch.testing.assert_close(hidden[row, mask[row]], alone[0], rtol=0, atol=2e-5)


def test_a_cached_answer_equals_one_pass(model: UnifiedModel) -> None:
    images = model.prompt_images(noise_images(2))
    ids, mask = padded([question(4, 2, 3, 1), question(4, 3, 5, 3)], "left")
    more = torch.tensor([text(3, 8), text(3, 9)])
    ones = torch.ones_like(more, dtype=torch.bool)
    with torch.no_grad():
        whole = model.text_states(torch.cat([ids, more], 1), torch.cat([mask, ones], 1), images)
        cache = model.backbone.new_cache()
        model.text_states(ids, mask, images, cache)
        for step in range(3):
            mask = torch.cat([mask, ones[:, :1]], dim=1)
            hidden = model.text_states(more[:, step : step + 1], mask, None, cache)
            expected = whole[:, ids.shape[1] + step]
            torch.testing.assert_close(hidden[:, 0], expected, rtol=0, atol=2e-5)


def test_condition_has_plain_positions_and_the_same_gradients_without_prompt_gradient(
    model: UnifiedModel,
) -> None:
    images = model.prompt_images(noise_images(2))
    ids, mask = padded([question(4, 2, 3, 1), question(4, 3, 5, 3)], "left")
    seen: list[Tensor] = []
    model.backbone.decoder.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["position_ids"]), with_kwargs=True
    )

    def run() -> tuple[Tensor, Tensor]:
        states = condition(model, ids, mask, images)
        (gradient,) = torch.autograd.grad(
            states.square().sum(), model.get_parameter("generator.query_tokens.weight")
        )
        return states.detach(), gradient

    plain, plain_gradient = run()
    length = ids.shape[1] + model.config.num_reserved_positions
    assert torch.equal(seen[0][:, 1], torch.arange(length).expand(3, -1))
    for parameter in model.backbone.parameters():
        parameter.requires_grad_(False)
    fast, fast_gradient = run()
    torch.testing.assert_close(fast, plain, rtol=0, atol=2e-5)
    scale = float(plain_gradient.abs().max())
    torch.testing.assert_close(fast_gradient, plain_gradient, rtol=0, atol=1e-4 * scale)


def batch(task: str) -> Batch:
    rows = [question(4, 2, 3, 1), question(4, 3, 5, 3)]
    ids, mask = padded(rows, "right" if task == "image_to_text" else "left")
    labels = ids.clone()
    labels[:, :8] = IGNORE_LABEL
    return Batch(
        task=task,
        indices=torch.arange(2),
        epochs=torch.zeros(2, dtype=torch.long),
        input_ids=ids,
        attention_mask=mask,
        labels=labels if task == "image_to_text" else None,
        prompt_pixels=noise_images(2, 4),
        target_pixels=noise_images(2, 5),
        reference_rows=torch.arange(2) if task == "edit" else None,
    )


def test_objectives_train_it_and_its_tower(model: UnifiedModel) -> None:
    text_loss = NextTokenConfig().build(model.config)(model, batch("image_to_text"), 0)
    text_loss.loss_sum.backward()
    for name, parameter in model.backbone.named_parameters():
        assert parameter.grad is not None, name
        if not name.endswith("k_proj.bias"):  # softmax ignores a term that all keys share
            assert parameter.grad.abs().sum() > 0, name
    objective = FlowMatchingConfig(sigmas=UniformSigmas()).build(model.config)
    loss = objective(model, batch("edit"), 0).loss_sum
    changed = dataclasses.replace(batch("edit"), prompt_pixels=noise_images(2, 6))
    assert loss != objective(model, changed, 0).loss_sum


def test_cached_features_do_not_replace_the_pixels_of_a_prompt(model: UnifiedModel) -> None:
    with pytest.raises(ValueError, match="sees the pixels"):
        model.prompt_images(None, torch.zeros(1, 4, 16))


def test_text_about_images_of_several_shapes_has_the_loss_of_single_samples(
    model: UnifiedModel,
) -> None:
    small, wide = noise_images(1, 1)[0], noise_images(1, 2, (8, 40))[0]
    rows = [question(4, 2, 3, 1), question(5, 4, 6, 3)]

    def loss(shown: list[Tensor], texts: list[list[int]]) -> Tensor:
        ids, mask = padded(texts, "right")
        labels = ids.where(mask & (ids != IMAGE_TOKEN), IGNORE_LABEL)
        one = dataclasses.replace(
            batch("image_to_text"),
            input_ids=ids,
            attention_mask=mask,
            labels=labels,
            prompt_pixels=tuple(shown),
        )
        return NextTokenConfig().build(model.config)(model, one, 0).loss_sum

    alone = loss([small], rows[:1]) + loss([wide], rows[1:])
    torch.testing.assert_close(loss([small, wide], rows), alone, rtol=1e-5, atol=0)
