"""Padding-free passes of all backbones have the losses, states and gradients of padded ones."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from blip3o.core.types import IGNORE_LABEL, Batch
from blip3o.flow.sigmas import UniformSigmas
from blip3o.generate.decoding import RowDecoder
from blip3o.generate.text import generate_tokens, left_pad
from blip3o.models.backbones import packed
from blip3o.models.backbones.llama3 import Llama3BackboneConfig
from blip3o.models.backbones.pocket import PocketBackboneConfig
from blip3o.models.backbones.qwen2_5_vl import Qwen2_5VLBackboneConfig
from blip3o.models.backbones.qwen3 import Qwen3BackboneConfig
from blip3o.models.encoders.siglip2 import Siglip2EncoderConfig
from blip3o.models.unified import UnifiedModel, UnifiedModelConfig
from blip3o.nn.blocks import checkpoint_blocks
from blip3o.objectives.flow_matching import FlowMatchingConfig
from blip3o.objectives.next_token import NextTokenConfig

IMAGE_TOKEN = 5
TOWER = dataclasses.replace(Siglip2EncoderConfig.tiny(), image_px=24, patch_px=6)
BACKBONES: dict[str, Any] = {
    "pocket": PocketBackboneConfig.tiny(),
    "qwen3": Qwen3BackboneConfig.tiny(),
    "llama3": dataclasses.replace(Llama3BackboneConfig.tiny(), vision_tower=TOWER),
    "qwen2_5_vl": Qwen2_5VLBackboneConfig.tiny(),
}
LENGTHS = ((2, 3), (4, 9), (1, 1))
"""Text tokens before and after each row's image."""


def build(name: str, *, is_packed: bool) -> UnifiedModel:
    torch.manual_seed(0)
    model = dataclasses.replace(UnifiedModelConfig.tiny(), backbone=BACKBONES[name]).build().eval()
    for part in (model.backbone, model.get_submodule("generator.dit")):
        for parameter in part.parameters():
            nn.init.normal_(parameter, std=0.3)
    model.backbone.padding_free = is_packed
    return model


def batch(model: UnifiedModel, task: str) -> Batch:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(2, len(LENGTHS), 3, 16, 16, generator=generator) * 2 - 1
    holders = [IMAGE_TOKEN] * model.config.num_prompt_image_tokens
    rows = [
        torch.randint(10, 300, (before,), generator=generator).tolist()
        + holders
        + torch.randint(10, 300, (after,), generator=generator).tolist()
        for before, after in LENGTHS
    ]
    ids, mask = left_pad(rows, 0)
    labels = None
    if task == "image_to_text":  # padded on the right
        ids = torch.stack([r.roll(int(m.sum())) for r, m in zip(ids, mask, strict=True)])
        mask = mask.flip(1)
        labels = ids.masked_fill(~mask | (ids == IMAGE_TOKEN), IGNORE_LABEL)
    return Batch(
        task=task,
        indices=torch.arange(len(rows)),
        epochs=torch.zeros(len(rows), dtype=torch.long),
        input_ids=ids,
        attention_mask=mask,
        labels=labels,
        prompt_pixels=images[0],
        target_pixels=images[1] if task == "edit" else None,
    )


def learn(model: UnifiedModel, task: str) -> tuple[Tensor, dict[str, Tensor]]:
    objectives: dict[str, Any] = {
        "edit": FlowMatchingConfig(sigmas=UniformSigmas()),
        "image_to_text": NextTokenConfig(),
    }
    model.zero_grad()
    output = objectives[task].build(model.config)(model, batch(model, task), 0)
    (output.loss_sum / output.count).backward()
    named = model.named_parameters()
    return output.loss_sum.detach(), {n: p.grad for n, p in named if p.grad is not None}


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Query shapes that attention receives in packed passes."""
    seen: list[torch.Size] = []
    plain = packed.Packing.attend

    def attend(self: packed.Packing, query: Tensor, *others: Any) -> Tensor:
        seen.append(query.shape)
        return plain(self, query, *others)

    monkeypatch.setattr(packed.Packing, "attend", attend)
    return seen


@pytest.mark.parametrize("name", list(BACKBONES))
@pytest.mark.parametrize("kind", ["edit", "image_to_text", "edit, frozen", "edit, checkpointed"])
def test_losses_and_gradients_are_those_of_padded_rows(
    name: str, kind: str, passes: list[torch.Size]
) -> None:
    task = kind.split(",")[0]
    results = []
    for is_packed in (False, True):
        model = build(name, is_packed=is_packed)
        if kind == "edit, frozen":
            model.backbone.requires_grad_(False)
        if kind == "edit, checkpointed":
            checkpoint_blocks(model)
        results.append(learn(model, task))
        assert bool(passes) == is_packed
    tokens = sum(map(sum, LENGTHS)) + len(LENGTHS) * model.config.num_prompt_image_tokens
    queries = len(LENGTHS) * model.config.num_reserved_positions if task == "edit" else 0
    expected = {tokens, queries} if kind == "edit, frozen" else {tokens + queries}
    assert {shape[2] for shape in passes} == expected
    (loss, gradients), (own_loss, own_gradients) = results
    torch.testing.assert_close(own_loss, loss, rtol=1e-5, atol=0)
    assert own_gradients.keys() == gradients.keys()
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    for key, gradient in gradients.items():
        torch.testing.assert_close(own_gradients[key], gradient, rtol=1e-3, atol=1e-5 * largest)


@pytest.mark.parametrize("name", list(BACKBONES))
def test_batches_without_padding_and_answers_are_as_before(
    name: str, passes: list[torch.Size]
) -> None:
    found = []
    for is_packed in (False, True):
        model = build(name, is_packed=is_packed)
        ids = torch.arange(10, 40).reshape(3, 10)
        ones = torch.ones_like(ids, dtype=torch.bool)
        rows, mask = left_pad([[10, 11], [12, 13, 14, 15], [16]], 0)
        with torch.no_grad():
            states = model.text_states(ids, ones)
            answer = generate_tokens(
                RowDecoder(model), rows, mask, None, stop_id=-1, pad_id=0, max_new_tokens=4
            )
            found.append((states, torch.stack(list(answer), 1)))
    assert not passes
    for plain, own in zip(*found, strict=True):
        assert torch.equal(plain, own)


def test_rows_do_not_see_each_other() -> None:
    packing = packed.Packing(new=[2, 3], seen=[4, 3], device=torch.device("cpu"))
    query, key = torch.randn(1, 2, 5, 8), torch.randn(1, 1, 7, 8)
    before = packing.attend(query, key, key, None)
    assert before.shape == (1, 5, 2, 8)
    other = key.clone()
    other[:, :, 4:] += 1.0  # the second row
    after = packing.attend(query, other, other, None)
    assert torch.equal(before[:, :2], after[:, :2])
    assert not torch.isclose(before[:, 2:], after[:, 2:]).any()
    later = key.clone()
    later[:, :, 3] += 1.0  # the last token of the first row, seen only by its last query
    assert torch.equal(packing.attend(query, later, later, None)[:, 0], before[:, 0])
