"""Sizes of the image half at the released scale, and what stays frozen."""

import dataclasses

import pytest
import torch

from blip3o.generate.offload import groups_of
from blip3o.models.backbones.llama3 import Llama3BackboneConfig
from blip3o.models.backbones.qwen2_5_vl import Qwen2_5VLBackboneConfig
from blip3o.models.backbones.qwen3 import Qwen3BackboneConfig
from blip3o.models.generators.lmfusion import LMFusion, LMFusionConfig
from blip3o.models.generators.patch_unet import PatchUNetConfig
from blip3o.models.generators.plan import Joints
from blip3o.models.generators.transfusion import TransfusionConfig
from blip3o.models.prompts import Prompts
from blip3o.models.protocols import BackboneConfig
from blip3o.models.quantize import quantize_backbone
from blip3o.models.unified import UnifiedModel, UnifiedModelConfig
from blip3o.nn.blocks import repeated_blocks
from blip3o.nn.convolution import ResidualBlock
from blip3o.nn.quantized import Quantization
from blip3o.nn.transformer import TransformerBlock
from blip3o.train.flops import count_flops

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


def test_every_tool_sees_the_image_half_and_the_unet() -> None:
    unet = PatchUNetConfig(hidden_size=16, num_blocks=1, num_heads=2)
    config = dataclasses.replace(UnifiedModelConfig.tiny(), generator=LMFusionConfig(unet=unet))
    model = config.build().eval()
    generator = model.generator
    assert isinstance(generator, LMFusion)
    own = set(generator.decoder.layers)
    own |= {one for one in generator.modules() if isinstance(one, ResidualBlock | TransformerBlock)}
    assert len(own) == 2 + 2 + 2  # layers, residual blocks of one level, transformer blocks
    assert set(repeated_blocks(generator)) == own  # groups of FSDP and of checkpointing
    assert own <= set(model.compile_targets())
    _, *groups = groups_of(generator, by_block=True)
    assert {group[0] for group in groups} == own
    with count_flops(model) as count:
        plan_of(model)
    with count_flops(model) as text, torch.no_grad():
        ids = torch.zeros(2, 5, dtype=torch.int64)
        model.plan(Prompts(input_ids=ids, attention_mask=torch.ones_like(ids).bool()))
    linear = [one for one in generator.decoder.modules() if isinstance(one, torch.nn.Linear)]
    image_tokens = 2 * 4
    assert count.total - text.total > 2 * image_tokens * sum(one.weight.numel() for one in linear)


@pytest.mark.parametrize("kind", ["int8", "int4"])
@torch.no_grad()
def test_the_image_half_is_quantized_with_the_text_half(kind: Quantization) -> None:
    model = lmfusion().eval()
    for parameter in model.generator.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    plain = plan_of(model)
    names = quantize_backbone(model, kind)
    halves = [name.replace("generator.", "backbone.") for name in names]
    assert len(names) == 2 * len(set(halves)) > 0
    quantized = plan_of(model)
    error = float((quantized - plain).norm() / plain.norm())
    assert 0 < error < {"int8": 0.05, "int4": 0.5}[kind]


def test_fresh_layers_follow_their_fan_in() -> None:
    config = dataclasses.replace(Qwen3BackboneConfig.tiny(), hidden_size=64, intermediate_size=256)
    joints = Joints(backbone=config, feature_channels=4, grid=2)
    generator = LMFusionConfig(fresh_layers="fan_in").build(joints)
    layers = [one for one in generator.decoder.modules() if isinstance(one, torch.nn.Linear)]
    assert len(layers) == 7 * config.num_layers
    for layer in layers:
        spread = float(layer.weight.detach().std()) * layer.in_features**0.5
        assert spread == pytest.approx(1.0, abs=0.1)


def test_fresh_generators_predict_no_velocity() -> None:
    assert not plan_of(lmfusion()).any()


def test_grids_need_axes_for_rows_and_columns() -> None:
    rule = LMFusionConfig(positions="grid", patch_size=2)
    one = Joints(backbone=Qwen3BackboneConfig.tiny(), feature_channels=4, grid=4)
    with pytest.raises(ValueError, match=r"positions grid needs .*; qwen3 counts tokens only"):
        rule.check(one)
    three = dataclasses.replace(one, backbone=Qwen2_5VLBackboneConfig.tiny())
    rule.check(three)
    positions = rule.build(three).positions(torch.tensor([7, 20]), 4)
    time, row, column = [0, 0, 0, 0], [0, 0, 1, 1], [0, 1, 0, 1]
    expected = torch.tensor([time, row, column])
    assert torch.equal(positions, torch.stack([expected + 7, expected + 20], dim=1))


@pytest.mark.parametrize("kind", [LMFusionConfig, TransfusionConfig])
@torch.no_grad()
def test_only_shared_positions_do_not_tell_places(
    kind: type[LMFusionConfig | TransfusionConfig],
) -> None:
    # A low base of the rotary frequencies, because rows and columns have the slowest ones.
    tiny = dataclasses.replace(Qwen2_5VLBackboneConfig.tiny(), rope_theta=4.0)
    backbone = tiny.build().eval()
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ids = torch.tensor([[7, 8, 9]])
    noisy = torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(0))
    turned = torch.tensor([2, 0, 3, 1])
    moved, drawn = {}, {}
    for rule in ("sequential", "shared", "grid"):
        torch.manual_seed(0)
        config = kind(positions=rule, learned_positions=False)
        generator = config.build(Joints(backbone=backbone.config, feature_channels=4, grid=2))
        for parameter in generator.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        plan = generator.plan(
            backbone, Prompts(input_ids=ids, attention_mask=torch.ones_like(ids).bool())
        )
        drawn[rule] = plan.velocity(noisy, torch.tensor([0.5]))
        other = plan.velocity(noisy[:, turned], torch.tensor([0.5]))
        moved[rule] = float((other - drawn[rule][:, turned]).abs().max())
    assert moved["shared"] < 1e-6
    assert moved["sequential"] > 1e-4
    assert moved["grid"] > 1e-4
    assert not torch.allclose(drawn["grid"], drawn["sequential"], atol=1e-4)


@pytest.mark.parametrize("kind", [LMFusionConfig, TransfusionConfig])
def test_patches_must_fill_the_grid(kind: type[LMFusionConfig | TransfusionConfig]) -> None:
    config: BackboneConfig = Qwen3BackboneConfig.tiny()
    with pytest.raises(ValueError, match="grid 3 must be a multiple of patch_size 2"):
        kind(patch_size=2).check(Joints(backbone=config, feature_channels=4, grid=3))
