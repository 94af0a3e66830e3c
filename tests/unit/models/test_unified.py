"""The unified model: its methods, prompts without gradients, padding and errors."""

import dataclasses

import pytest
import torch
from torch import Tensor

from blip3o.core.config import from_dict, override, to_dict
from blip3o.core.errors import UsageError
from blip3o.models.generators.query_dit import QueryPlan
from blip3o.models.prompts import PromptImages, Prompts
from blip3o.models.unified import SamplingConfig, UnifiedModel, UnifiedModelConfig

IMAGE_TOKEN = 5


def condition(
    model: UnifiedModel, ids: Tensor, mask: Tensor, images: PromptImages | None = None
) -> Tensor:
    """Returns the states at the query tokens."""
    plan = model.plan(Prompts(input_ids=ids, attention_mask=mask, images=images))
    assert isinstance(plan, QueryPlan)
    return plan.states


@pytest.fixture
def model() -> UnifiedModel:
    torch.manual_seed(0)
    return UnifiedModelConfig.tiny().build().eval()


def prompt(length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(10, 300, (1, length), generator=torch.Generator().manual_seed(seed))


def test_config_survives_a_round_trip_through_plain_data() -> None:
    config = UnifiedModelConfig.tiny()
    assert from_dict(UnifiedModelConfig, to_dict(config)) == config


def test_neighbors_with_different_widths_are_refused() -> None:
    config = UnifiedModelConfig.tiny()
    decoder = dataclasses.replace(config.image_decoder, feature_channels=5)
    with pytest.raises(ValueError, match=r"image_decoder\.feature_channels is 5"):
        dataclasses.replace(config, image_decoder=decoder)
    data = to_dict(config)
    data["generator"]["patch_size"] = 3
    with pytest.raises(UsageError, match="grid 2 must be a multiple of patch_size 3"):
        from_dict(UnifiedModelConfig, data)


def test_padded_prompts_of_a_batch_give_the_condition_of_each_alone(model: UnifiedModel) -> None:
    short, long = prompt(5, 1), prompt(9, 2)
    ids = torch.cat([torch.cat([torch.zeros(1, 4, dtype=torch.long), short], 1), long])
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[0, :4] = False
    both = condition(model, ids, mask)
    for row, alone in zip(both, (short, long), strict=True):
        expected = condition(model, alone, torch.ones_like(alone, dtype=torch.bool))[0]
        torch.testing.assert_close(row, expected, rtol=0, atol=1e-5)


def test_padding_after_a_prompt_is_refused(model: UnifiedModel) -> None:
    mask = torch.tensor([[True, True, False]])
    with pytest.raises(ValueError, match="padded on the left"):
        condition(model, prompt(3), mask)


def test_prompt_without_gradient_gives_the_same_condition_and_query_gradients(
    model: UnifiedModel,
) -> None:
    ids, weight = prompt(7), model.get_parameter("generator.query_tokens.weight")
    mask = torch.ones_like(ids, dtype=torch.bool)

    def run() -> tuple[torch.Tensor, torch.Tensor]:
        states = condition(model, ids, mask)
        (gradient,) = torch.autograd.grad(states.square().sum(), weight)
        return states.detach(), gradient

    plain, plain_gradient = run()  # the backbone is trainable: one full pass
    for parameter in model.backbone.parameters():
        parameter.requires_grad_(False)
    fast, fast_gradient = run()
    torch.testing.assert_close(fast, plain, rtol=0, atol=1e-5)
    scale = float(plain_gradient.abs().max())
    torch.testing.assert_close(fast_gradient, plain_gradient, rtol=0, atol=1e-5 * scale)


def test_prompt_images_change_the_condition_and_must_match_their_placeholders(
    model: UnifiedModel,
) -> None:
    num_tokens = model.config.image_encoder.num_tokens
    ids = torch.cat([prompt(3), torch.full((1, num_tokens), IMAGE_TOKEN), prompt(2)], dim=1)
    mask = torch.ones_like(ids, dtype=torch.bool)
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    first, second = (model.encode_images(image[None]) for image in images)
    assert not torch.equal(condition(model, ids, mask, first), condition(model, ids, mask, second))
    with pytest.raises(ValueError, match="image placeholders"):
        condition(model, ids, mask, torch.cat([first, second]))
    with pytest.raises(ValueError, match="image placeholders"):
        condition(model, ids, mask)


def test_images_of_another_size_are_refused(model: UnifiedModel) -> None:
    with pytest.raises(ValueError, match=r"\[B, 3, 16, 16\]"):
        model.encode_images(torch.zeros(1, 3, 8, 8))


def test_cached_text_states_equal_one_pass(model: UnifiedModel) -> None:
    ids = prompt(8)
    mask = torch.ones_like(ids, dtype=torch.bool)
    whole = model.text_states(ids, mask)
    cache = model.backbone.new_cache()
    first = model.text_states(ids[:, :5], mask[:, :5], None, cache)
    rest = model.text_states(ids[:, 5:], mask, None, cache)
    torch.testing.assert_close(torch.cat([first, rest], 1), whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shift", [0.0, -1.0, float("nan")])
def test_a_shift_that_makes_no_noise_levels_is_refused(shift: float) -> None:
    with pytest.raises(UsageError, match=r"sigma_shift must be (positive|a finite number)"):
        override(SamplingConfig(), [f"sigma_shift={shift}"])
