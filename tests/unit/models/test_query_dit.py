"""The plan of query tokens and NextDiT."""

import dataclasses

import pytest
import torch

from blip3o.models.generators.plan import join_plans
from blip3o.models.generators.query_dit import QueryDiT, QueryDiTConfig, QueryPlan
from blip3o.models.unified import UnifiedModelConfig


@pytest.fixture
def generator() -> QueryDiT:
    return QueryDiTConfig.tiny().build(UnifiedModelConfig.tiny().joints)


def test_empty_prompts_are_zeros_as_published(generator: QueryDiT) -> None:
    states = torch.randn(3, 4, 16)
    states[1, 0, 0] = float("nan")  # a dropped prompt leaves no trace
    plan = QueryPlan(generator, states).dropped(torch.tensor([False, True, False]))
    assert torch.equal(plan.states[1], torch.zeros(4, 16))
    assert torch.equal(plan.states[[0, 2]], states[[0, 2]])
    assert not plan.null().states.any()


def test_the_image_to_edit_stays_with_its_prompt(generator: QueryDiT) -> None:
    reference = torch.randn(2, 4, 8)
    plan = QueryPlan(generator, torch.randn(2, 4, 16), reference)
    for same in (plan.null(), plan.dropped(torch.tensor([True, True]))):
        assert same.reference is reference
    turned = plan.select(torch.tensor([1, 0, 0])).reference
    assert turned is not None
    assert torch.equal(turned, reference[[1, 0, 0]])


def test_edits_and_new_images_cannot_share_a_plan(generator: QueryDiT) -> None:
    states = torch.randn(1, 4, 16)
    plans = [QueryPlan(generator, states), QueryPlan(generator, states, torch.randn(1, 4, 8))]
    with pytest.raises(ValueError, match="cannot share a batch"):
        join_plans(plans)


def test_gates_of_fresh_weights_are_a_setting() -> None:
    config = dataclasses.replace(QueryDiTConfig.tiny(), fresh_gates="open")
    gates = [block.gate for block in config.build(UnifiedModelConfig.tiny().joints).dit.blocks]
    assert all(bool((gate == 1).all()) for gate in gates)


def test_sizes_of_the_neighbors_are_derived() -> None:
    model = UnifiedModelConfig.tiny()
    assert isinstance(model.generator, QueryDiTConfig)
    dit = model.generator.dit(model.joints)
    assert (dit.in_channels, dit.reference_channels) == (8, 8)
    assert (dit.condition_size, dit.grid) == (model.backbone.hidden_size, 2)
