"""Sizes of the image half at the released scale, and what stays frozen."""

import dataclasses

import pytest
import torch

from blip3o.models.backbones.llama3 import Llama3BackboneConfig
from blip3o.models.backbones.qwen2_5_vl import Qwen2_5VLBackboneConfig
from blip3o.models.backbones.qwen3 import Qwen3BackboneConfig
from blip3o.models.generators.lmfusion import LMFusion, LMFusionConfig
from blip3o.models.generators.plan import Joints
from blip3o.models.generators.transfusion import TransfusionConfig
from blip3o.models.prompts import Prompts
from blip3o.models.protocols import BackboneConfig
from blip3o.models.unified import UnifiedModel, UnifiedModelConfig

IMAGE_HALVES = {
    "qwen2_5_vl 3B": (Qwen2_5VLBackboneConfig.published_4b(), 2_774_773_760),
    "qwen2_5_vl 7B": (Qwen2_5VLBackboneConfig.published_8b(), 6_525_621_760),
    "qwen3 0.6B": (Qwen3BackboneConfig.published("0.6b"), 440_467_456),
    "qwen3 1.7B": (Qwen3BackboneConfig.published("1.7b"), 1_409_410_048),
    "qwen3 4B": (Qwen3BackboneConfig.published("4b"), 3_633_511_936),
    "qwen3 8B": (Qwen3BackboneConfig.published("8b"), 6_946_075_648),
    "llama3 1B": (Llama3BackboneConfig.published("3.2-1b"), 973_146_112),
}
"""Weights of all layers and of the final norm, counted outside this project."""


@pytest.mark.parametrize("name", IMAGE_HALVES)
def test_the_image_half_has_the_counted_weights(name: str) -> None:
    backbone, count = IMAGE_HALVES[name]
    joints = Joints(backbone=backbone, feature_channels=1792, grid=8)
    with torch.device("meta"):
        generator = LMFusionConfig().build(joints)
        ends = TransfusionConfig().build(joints)
    decoder = sum(parameter.numel() for parameter in generator.decoder.parameters())
    assert decoder == count
    whole = sum(parameter.numel() for parameter in generator.parameters())
    assert whole - decoder == sum(parameter.numel() for parameter in ends.parameters())


def lmfusion() -> UnifiedModel:
    torch.manual_seed(0)
    return dataclasses.replace(UnifiedModelConfig.tiny(), generator=LMFusionConfig()).build()


def plan_of(model: UnifiedModel) -> torch.Tensor:
    ids = torch.randint(10, 300, (2, 5), generator=torch.Generator().manual_seed(0))
    plan = model.plan(Prompts(input_ids=ids, attention_mask=torch.ones_like(ids).bool()))
    noisy = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(1))
    return plan.velocity(noisy, torch.tensor([0.3, 0.9]))


def test_training_the_image_half_leaves_the_text_half_alone() -> None:
    model = lmfusion()
    model.backbone.requires_grad_(False)
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    assert isinstance(model.generator, LMFusion)
    torch.nn.init.normal_(model.generator.patch_out.weight, std=0.1)  # fresh ones are zero
    optimizer = torch.optim.AdamW(model.generator.parameters(), lr=1e-2)
    plan_of(model).square().sum().backward()
    without = [n for n, p in model.generator.named_parameters() if p.grad is None]
    assert without == []
    optimizer.step()
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_fresh_generators_predict_no_velocity() -> None:
    assert not plan_of(lmfusion()).any()


@pytest.mark.parametrize("kind", [LMFusionConfig, TransfusionConfig])
def test_patches_must_fill_the_grid(kind: type[LMFusionConfig | TransfusionConfig]) -> None:
    config: BackboneConfig = Qwen3BackboneConfig.tiny()
    with pytest.raises(ValueError, match="grid 3 must be a multiple of patch_size 2"):
        kind(patch_size=2).check(Joints(backbone=config, feature_channels=4, grid=3))
