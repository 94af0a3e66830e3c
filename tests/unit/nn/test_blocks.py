"""Repeated blocks, and activation checkpointing: equal gradients, blocks that run twice."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from blip3o.core.types import Batch
from blip3o.flow.sigmas import UniformSigmas
from blip3o.models.generators.query_dit import QueryDiT
from blip3o.models.unified import UnifiedModel, UnifiedModelConfig
from blip3o.nn.blocks import checkpoint_blocks, repeated_blocks
from blip3o.objectives.flow_matching import FlowMatchingConfig


def build() -> UnifiedModel:
    torch.manual_seed(0)
    model = UnifiedModelConfig.tiny().build().train()
    for parameter in model.get_submodule("generator.dit").parameters():  # fresh gates are zero
        nn.init.normal_(parameter, std=0.2)
    return model


def batch() -> Batch:
    generator = torch.Generator().manual_seed(1)
    return Batch(
        task="text_to_image",
        indices=torch.arange(3),
        epochs=torch.zeros(3, dtype=torch.int64),
        input_ids=torch.randint(10, 300, (3, 6), generator=generator),
        attention_mask=torch.ones(3, 6, dtype=torch.bool),
        target_features=torch.randn(3, 4, 16, generator=generator),
    )


@pytest.mark.parametrize("frozen_backbone", [False, True])
def test_gradients_are_the_same_bit_for_bit(frozen_backbone: bool) -> None:
    """A frozen backbone goes through its cache, a trained one does not."""
    found = []
    for is_checkpointed in (False, True):
        model = build()
        model.backbone.requires_grad_(not frozen_backbone)
        if is_checkpointed:
            checkpoint_blocks(model)
        objective = FlowMatchingConfig(sigmas=UniformSigmas()).build(model.config)
        objective(model, batch(), 0).loss_sum.backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    plain, checkpointed = found
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        assert torch.equal(gradient, checkpointed[name]), name


def test_every_layer_runs_again_and_keeps_its_name() -> None:
    model = build()
    names = list(model.state_dict())
    runs = {id(block): 0 for block in repeated_blocks(model)}
    for block in repeated_blocks(model.generator):
        plain: Callable[..., Tensor] = block.forward

        def counted(
            *args: object, block: nn.Module = block, plain: Callable[..., Tensor] = plain
        ) -> Tensor:
            runs[id(block)] += 1
            return plain(*args)

        block.forward = counted
    checkpoint_blocks(model)
    assert list(model.state_dict()) == names
    objective = FlowMatchingConfig(sigmas=UniformSigmas()).build(model.config)
    with torch.no_grad():
        objective(model, batch(), 0)
    assert [runs[id(block)] for block in repeated_blocks(model.generator)] == [1, 1]
    objective(model, batch(), 0).loss_sum.backward()
    assert [runs[id(block)] for block in repeated_blocks(model.generator)] == [3, 3]


def test_the_blocks_of_a_model_are_the_layers_of_its_parts() -> None:
    model = build()
    assert isinstance(model.generator, QueryDiT)
    expected = [
        *model.backbone.decoder.layers,
        *model.generator.dit.layers,
        *model.image_decoder.layers,
    ]
    found = repeated_blocks(model)
    assert [block for block in found if block in expected] == expected
    assert repeated_blocks(model.generator.dit.layers) == list(model.generator.dit.layers)


class Layer(nn.Module):
    """A layer with a child, like a linear layer that has an adapter."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.base_layer = nn.Linear(width, width)


class Block(nn.Module):
    """A block whose output projection stands in a list of its own, as in NextDiT."""

    def __init__(self, *projection: nn.Module) -> None:
        super().__init__()
        self.mlp = nn.Linear(4, 16)
        self.to_out = nn.ModuleList(projection)


@pytest.mark.parametrize("projection", [nn.Linear(4, 4), Layer()])
def test_a_list_that_wraps_one_projection_is_not_a_stack(projection: nn.Module) -> None:
    blocks = nn.ModuleList([Block(projection), Block(projection)])
    assert repeated_blocks(nn.ModuleDict({"layers": blocks})) == list(blocks)


def test_a_stack_of_stacks_yields_the_inner_blocks() -> None:
    inner = [nn.ModuleList([Layer(), Layer()]) for _ in range(2)]
    model = nn.ModuleList([nn.ModuleDict({"layers": layers}) for layers in inner])
    assert repeated_blocks(model) == [*inner[0], *inner[1]]


def test_layers_of_several_classes_or_without_children_are_not_blocks() -> None:
    plain = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
    mixed = nn.ModuleList([Layer(), nn.Sequential(nn.Linear(4, 4))])
    assert repeated_blocks(nn.ModuleDict({"plain": plain, "mixed": mixed})) == []
