"""Activation checkpointing: the same gradients, blocks that run twice, caches filled once."""

import pytest
import torch
from torch import Tensor, nn

from blip3o.core.types import Batch
from blip3o.flow.sigmas import UniformSigmas
from blip3o.models.unified import UnifiedModel, UnifiedModelConfig
from blip3o.nn.checkpointing import checkpoint_blocks, repeated_blocks
from blip3o.objectives.flow_matching import FlowMatchingConfig


def build() -> UnifiedModel:
    torch.manual_seed(0)
    model = UnifiedModelConfig.tiny().build().train()
    for parameter in model.dit.parameters():  # fresh gates are zero
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
    """A frozen backbone uses its cache, a trained one does not."""
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
    for block in repeated_blocks(model.dit):
        plain = block.forward

        def counted(*args: object, block: nn.Module = block, plain: object = plain) -> Tensor:
            runs[id(block)] += 1
            return plain(*args)  # type: ignore[operator]

        block.forward = counted
    checkpoint_blocks(model)
    assert list(model.state_dict()) == names
    objective = FlowMatchingConfig(sigmas=UniformSigmas()).build(model.config)
    with torch.no_grad():
        objective(model, batch(), 0)
    assert [runs[id(block)] for block in model.dit.layers] == [1, 1]
    objective(model, batch(), 0).loss_sum.backward()
    assert [runs[id(block)] for block in model.dit.layers] == [3, 3]


def test_the_blocks_of_a_model_are_the_layers_of_its_parts() -> None:
    model = build()
    blocks = {id(block) for block in repeated_blocks(model)}
    expected = [*model.dit.layers, *model.backbone.decoder.layers, *model.image_decoder.layers]
    assert {id(block) for block in expected} <= blocks
