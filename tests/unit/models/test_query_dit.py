"""The plan of the query DiT: states at queries, of the prompt, or of the prompt in every layer."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from blip3o.models.generators.plan import join_plans
from blip3o.models.generators.query_dit import QueryDiT, QueryDiTConfig, QueryPlan
from blip3o.models.prompts import Prompts
from blip3o.models.unified import UnifiedModel, UnifiedModelConfig


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
    plan = QueryPlan(generator, torch.randn(2, 4, 16), reference=reference)
    for same in (plan.null(), plan.dropped(torch.tensor([True, True]))):
        assert same.reference is reference
    turned = plan.select(torch.tensor([1, 0, 0])).reference
    assert turned is not None
    assert torch.equal(turned, reference[[1, 0, 0]])


def test_edits_and_new_images_cannot_share_a_plan(generator: QueryDiT) -> None:
    states = torch.randn(1, 4, 16)
    plans = [
        QueryPlan(generator, states),
        QueryPlan(generator, states, reference=torch.randn(1, 4, 8)),
    ]
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


IDS = torch.tensor([[0, 0, 11, 12, 13], [14, 15, 16, 17, 18]])
MASK = IDS > 0
PROMPTS = Prompts(input_ids=IDS, attention_mask=MASK)


def reader(reads: str, **sizes: Any) -> UnifiedModel:
    """Returns a tiny model without queries; random weights, because fresh gates are zero."""
    tiny = UnifiedModelConfig.tiny()
    changes = {"reads": reads, "num_query_tokens": 0, "takes_reference": False, **sizes}
    torch.manual_seed(0)
    model = dataclasses.replace(
        tiny, generator=dataclasses.replace(tiny.generator, **changes)
    ).build()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)
    return model.eval()


def plan_of(model: UnifiedModel) -> QueryPlan:
    plan = model.plan(PROMPTS, keep_states=True)
    assert isinstance(plan, QueryPlan)
    return plan


@pytest.mark.parametrize(
    ("reads", "num_query_tokens", "wanted"),
    [("queries", 0, "at least 1"), ("prompt", 4, "0"), ("layers", 1, "0")],
)
def test_queries_that_do_not_fit_what_is_read_are_refused(
    reads: Any, num_query_tokens: int, wanted: str
) -> None:
    message = f"num_query_tokens must be {wanted} for a generator that reads {reads}, got"
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(QueryDiTConfig.tiny(), reads=reads, num_query_tokens=num_query_tokens)


@torch.no_grad()
def test_a_prompt_is_read_as_its_final_states_without_padding() -> None:
    model = reader("prompt")
    states = model.text_states(IDS, MASK)
    plan = plan_of(model)
    assert torch.equal(plan.states[MASK], states[MASK])
    assert not plan.states[~MASK].any()
    assert plan.backbone_states is not None
    assert torch.equal(plan.backbone_states, states)


@torch.no_grad()
def test_every_layer_reads_the_backbone_at_its_depth() -> None:
    for num_layers, depths in ((1, [1]), (2, [0, 1]), (3, [0, 1, 1])):
        model = reader("layers", num_layers=num_layers)
        every = model.backbone.layer_states(model.backbone.embed(IDS), MASK)
        assert len(every) == 2
        plan = plan_of(model)
        assert plan.states.shape == (2, num_layers, 5, 16)
        for layer, depth in enumerate(depths):
            wanted = nn.functional.normalize(every[depth], dim=-1) * 4  # a mean square of 1
            torch.testing.assert_close(plan.states[:, layer][MASK], wanted[MASK])


@torch.no_grad()
@pytest.mark.parametrize("reads", ["prompt", "layers"])
def test_hidden_tokens_leave_no_trace(reads: str) -> None:
    plan, noisy, sigma = plan_of(reader(reads)), torch.randn(2, 4, 8), torch.tensor([0.3, 0.7])
    noise = torch.randn_like(plan.states)
    real = MASK if reads == "prompt" else MASK.unsqueeze(1).expand(plan.states.shape[:3])
    other = dataclasses.replace(plan, states=torch.where(real.unsqueeze(-1), plan.states, noise))
    torch.testing.assert_close(other.velocity(noisy, sigma), plan.velocity(noisy, sigma))


@torch.no_grad()
@pytest.mark.parametrize("reads", ["prompt", "layers"])
def test_an_empty_prompt_has_no_length(reads: str) -> None:
    model, noisy = reader(reads), torch.randn(1, 4, 8)

    def null(length: int) -> Tensor:
        ids = torch.arange(12, 12 + length)[None]
        prompts = Prompts(input_ids=ids, attention_mask=torch.ones_like(ids).bool())
        return model.plan(prompts).null().velocity(noisy, torch.tensor([0.4]))

    expected = null(1)
    for length in (2, 5, 9):
        # fp32 kernels round by the shape; a length that leaks changes the first digits.
        torch.testing.assert_close(null(length), expected, rtol=1e-4, atol=1e-4)
