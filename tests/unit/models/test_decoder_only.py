"""Unified models over decoder-only backbones: padding, batches, caches, vision towers and sizes."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from blip3o.core.config import from_dict, to_dict
from blip3o.core.errors import UsageError
from blip3o.core.types import IGNORE_LABEL, Batch
from blip3o.flow.sigmas import UniformSigmas
from blip3o.generate.decoding import RowDecoder
from blip3o.generate.text import generate_tokens, left_pad
from blip3o.models.backbones.llama3 import Llama3BackboneConfig
from blip3o.models.backbones.pocket import PocketBackboneConfig
from blip3o.models.backbones.qwen3 import Qwen3BackboneConfig
from blip3o.models.encoders.clip import ClipEncoderConfig
from blip3o.models.encoders.normalizer import FeatureNormalizerConfig
from blip3o.models.encoders.siglip2 import Siglip2EncoderConfig
from blip3o.models.generators.query_dit import QueryPlan
from blip3o.models.prompts import PromptImages, Prompts, TowerInputs
from blip3o.models.unified import UnifiedModel, UnifiedModelConfig
from blip3o.objectives.flow_matching import FlowMatchingConfig
from blip3o.objectives.next_token import NextTokenConfig

IMAGE_TOKEN = 5
NUM_IMAGE_TOKENS = 4
TOWER = dataclasses.replace(Siglip2EncoderConfig.tiny(), image_px=24, patch_px=6)

BACKBONES: dict[str, Any] = {
    "pocket": PocketBackboneConfig.tiny(),
    "qwen3": Qwen3BackboneConfig.tiny(),
    "qwen3 with a tower": dataclasses.replace(
        Qwen3BackboneConfig.tiny(),
        image_channels=None,
        vision_tower=TOWER,
        tie_word_embeddings=False,
    ),
    "llama3 with siglip2": dataclasses.replace(Llama3BackboneConfig.tiny(), vision_tower=TOWER),
    "llama3 with clip": dataclasses.replace(
        Llama3BackboneConfig.tiny(),
        vision_tower=dataclasses.replace(ClipEncoderConfig.tiny(), hidden_size=24, skip_last=1),
        tie_word_embeddings=True,
    ),
}
WITH_TOWER = [name for name in BACKBONES if name not in ("pocket", "qwen3")]


def condition(
    model: UnifiedModel, ids: Tensor, mask: Tensor, images: PromptImages | None = None
) -> Tensor:
    """Returns the states at the query tokens."""
    plan = model.plan(Prompts(input_ids=ids, attention_mask=mask, images=images))
    assert isinstance(plan, QueryPlan)
    return plan.states


def config(name: str) -> UnifiedModelConfig:
    return dataclasses.replace(UnifiedModelConfig.tiny(), backbone=BACKBONES[name])


def build(name: str) -> UnifiedModel:
    torch.manual_seed(0)
    model = config(name).build().eval()
    for part in (model.backbone, model.get_submodule("generator.dit")):
        for parameter in part.parameters():
            nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture(params=list(BACKBONES))
def model(request: pytest.FixtureRequest) -> UnifiedModel:
    return build(request.param)


def noise_images(count: int, seed: int = 0, side: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, side, side, generator=generator) * 2 - 1


def text(length: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(10, 300, (length,), generator=generator).tolist()


def question(before: int, after: int, seed: int) -> list[int]:
    return text(before, seed) + [IMAGE_TOKEN] * NUM_IMAGE_TOKENS + text(after, seed + 1)


def padded(rows: list[list[int]], side: str) -> tuple[Tensor, Tensor]:
    ids, mask = left_pad(rows, 0)
    if side == "left":
        return ids, mask
    return torch.stack([r.roll(int(m.sum())) for r, m in zip(ids, mask, strict=True)]), mask.flip(1)


QUESTIONS = [question(2, 3, 1), question(4, 6, 3), question(1, 1, 5)]


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_of_a_padded_batch_are_those_of_each_alone(model: UnifiedModel, side: str) -> None:
    pixels = noise_images(3)
    ids, mask = padded(QUESTIONS, side)
    with torch.no_grad():
        hidden = model.text_states(ids, mask, model.prompt_images(pixels))
        for row, tokens in enumerate(QUESTIONS):
            images = model.prompt_images(pixels[row : row + 1])
            alone_ids = torch.tensor([tokens])
            alone = model.text_states(alone_ids, torch.ones_like(alone_ids).bool(), images)
            torch.testing.assert_close(hidden[row, mask[row]], alone[0], rtol=0, atol=2e-5)


def test_conditions_of_a_batch_are_those_of_each_alone(model: UnifiedModel) -> None:
    pixels = noise_images(3)
    ids, mask = padded(QUESTIONS, "left")
    with torch.no_grad():
        together = condition(model, ids, mask, model.prompt_images(pixels))
        for row, tokens in enumerate(QUESTIONS):
            images = model.prompt_images(pixels[row : row + 1])
            alone_ids = torch.tensor([tokens])
            alone = condition(model, alone_ids, torch.ones_like(alone_ids).bool(), images)
            torch.testing.assert_close(together[row], alone[0], rtol=0, atol=2e-5)


def test_decoding_with_a_cache_equals_the_whole_pass(model: UnifiedModel) -> None:
    images = model.prompt_images(noise_images(3))
    ids, mask = padded(QUESTIONS, "left")
    more = torch.tensor([text(3, 8), text(3, 9), text(3, 10)])
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


def test_greedy_answers_are_the_best_tokens_of_whole_passes(model: UnifiedModel) -> None:
    images = model.prompt_images(noise_images(3))
    ids, mask = padded(QUESTIONS, "left")
    decoder = RowDecoder(model)
    answer = torch.stack(
        list(generate_tokens(decoder, ids, mask, images, stop_id=-1, pad_id=0, max_new_tokens=4)), 1
    )
    if bool((answer == IMAGE_TOKEN).any()):
        pytest.fail("the answer holds a placeholder: choose another seed")
    rows, length = torch.cat([ids, answer], 1), ids.shape[1]
    whole_mask = torch.cat([mask, torch.ones_like(answer, dtype=torch.bool)], 1)
    with torch.no_grad():
        logits = model.backbone.logits(model.text_states(rows, whole_mask, images))
    assert torch.equal(logits[:, length - 1 : -1].argmax(-1), answer)


def test_a_frozen_backbone_gives_the_queries_the_same_gradients(model: UnifiedModel) -> None:
    ids, mask = padded(QUESTIONS, "left")
    images = model.prompt_images(noise_images(3))

    def run() -> tuple[Tensor, Tensor]:
        states = condition(model, ids, mask, images)
        (gradient,) = torch.autograd.grad(
            states.square().sum(), model.get_parameter("generator.query_tokens.weight")
        )
        return states.detach(), gradient

    plain, plain_gradient = run()
    model.backbone.requires_grad_(False)
    fast, fast_gradient = run()
    torch.testing.assert_close(fast, plain, rtol=0, atol=2e-5)
    scale = float(plain_gradient.abs().max())
    torch.testing.assert_close(fast_gradient, plain_gradient, rtol=0, atol=1e-4 * scale)


def batch(task: str, seed: int) -> Batch:
    ids, mask = padded(QUESTIONS, "right" if task == "image_to_text" else "left")
    labels = ids.clone()
    labels[~mask | (ids == IMAGE_TOKEN)] = IGNORE_LABEL
    return Batch(
        task=task,
        indices=torch.arange(3),
        epochs=torch.zeros(3, dtype=torch.long),
        input_ids=ids,
        attention_mask=mask,
        labels=labels if task == "image_to_text" else None,
        prompt_pixels=noise_images(3, seed),
        target_pixels=noise_images(3, 5),
        reference_rows=torch.arange(3) if task == "edit" else None,
    )


@pytest.mark.parametrize("name", WITH_TOWER)
def test_objectives_train_the_backbone_and_its_tower(name: str) -> None:
    model = build(name)
    loss = NextTokenConfig().build(model.config)(model, batch("image_to_text", 4), 0)
    loss.loss_sum.backward()
    for part in ("decoder", "projector", "vision_tower"):
        gradients = [p.grad for p in model.backbone.get_submodule(part).parameters()]
        assert any(g is not None and float(g.abs().sum()) > 0 for g in gradients), part
    assert all(parameter.grad is None for parameter in model.image_encoder.parameters())
    objective = FlowMatchingConfig(sigmas=UniformSigmas()).build(model.config)
    first, other = (objective(model, batch("edit", seed), 0).loss_sum for seed in (4, 6))
    assert first != other


@pytest.mark.parametrize("name", WITH_TOWER)
def test_the_tower_takes_images_of_the_image_encoders_side(name: str) -> None:
    model = build(name)
    side = model.backbone.config.vision_tower.image_px
    inputs = model.backbone.vision_inputs(noise_images(2, side=40))
    assert isinstance(inputs, TowerInputs)
    assert inputs.pixels.shape == (2, 3, side, side)
    own = noise_images(2, side=side)
    kept = model.backbone.vision_inputs(own)
    assert isinstance(kept, TowerInputs)
    assert kept.pixels is own
    assert model.config.num_prompt_image_tokens == NUM_IMAGE_TOKENS
    with pytest.raises(ValueError, match="sees the pixels"):
        model.prompt_images(None, torch.zeros(1, 4, 16))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", WITH_TOWER)
def test_the_tower_takes_such_images_in_half_precision(name: str, dtype: torch.dtype) -> None:
    model, pixels = build(name).to(dtype), noise_images(2, side=18)
    tower = model.prompt_images(pixels.to(dtype))
    whole = build(name).prompt_images(pixels)
    assert isinstance(tower, TowerInputs)
    assert isinstance(whole, TowerInputs)
    assert tower.pixels.dtype == dtype
    torch.testing.assert_close(tower.pixels.float(), whole.pixels, rtol=0, atol=0.01)
    with torch.no_grad():
        assert model.backbone.image_tokens(tower).dtype == dtype


def test_features_pass_the_normalizer_before_the_projector() -> None:
    backbone = dataclasses.replace(
        Qwen3BackboneConfig.tiny(),
        image_normalizer=FeatureNormalizerConfig(num_components=6, power=1.0),
    ).build()
    features = torch.randn(20, NUM_IMAGE_TOKENS, 16) * torch.linspace(0.1, 9.0, 16) + 4.0
    backbone.image_normalizer.fit(features)
    seen = backbone.image_normalizer(features)
    assert seen.shape[-1] == 6
    torch.testing.assert_close(seen.flatten(0, 1).var(0), torch.ones(6), rtol=0, atol=1e-3)
    torch.testing.assert_close(backbone.image_tokens(features), backbone.projector(seen))


@pytest.mark.parametrize("name", list(BACKBONES))
def test_configs_survive_a_round_trip(name: str) -> None:
    assert from_dict(UnifiedModelConfig, to_dict(config(name))) == config(name)


def test_images_come_either_as_features_or_through_a_tower() -> None:
    tiny = Qwen3BackboneConfig.tiny()
    for channels, tower in ((None, None), (16, TOWER)):
        with pytest.raises(ValueError, match="either image_channels or a vision_tower"):
            dataclasses.replace(tiny, image_channels=channels, vision_tower=tower)
    with pytest.raises(ValueError, match="num_heads 3 does not divide hidden_size 16"):
        dataclasses.replace(Llama3BackboneConfig.tiny(), num_heads=3)


def test_a_kept_head_changes_no_feature_and_is_not_trained() -> None:
    plain = TOWER.build().eval()
    full = dataclasses.replace(TOWER, keep_head=True).build().eval()
    head = {name for name in full.state_dict() if name.startswith("tower.head.")}
    assert full.state_dict().keys() - plain.state_dict().keys() == head != set()
    plain.load_state_dict({k: v for k, v in full.state_dict().items() if k not in head})
    pixels = noise_images(2, side=24)
    assert torch.equal(full(pixels), plain(pixels))
    assert not any(parameter.requires_grad for parameter in full.tower.head.parameters())


def test_llama_slows_its_slow_rotary_frequencies() -> None:
    """Waves shorter than 1/4 of the pretraining length stay; those longer than it are stretched."""
    sizes = Llama3BackboneConfig.tiny()
    with_stretch = sizes.build_decoder().rotary_emb.inv_freq
    plain = dataclasses.replace(sizes, rope_stretch=1.0).build_decoder().rotary_emb.inv_freq
    torch.testing.assert_close(plain, 500_000.0 ** -(torch.arange(0, 8, 2) / 8))
    turns = sizes.first_positions * plain / (2 * torch.pi)
    share = ((turns - 1) / 3).clamp(0, 1)
    expected = plain * (share + (1 - share) / sizes.rope_stretch)
    torch.testing.assert_close(with_stretch, expected)
    assert bool((share == 1).any())
    assert bool((share == 0).any())


@pytest.mark.parametrize(
    ("sizes", "size", "vocab_size", "count"),
    [
        (Qwen3BackboneConfig, "0.6b", 151_936, 596_049_920),
        (Qwen3BackboneConfig, "1.7b", 151_936, 1_720_574_976),
        (Qwen3BackboneConfig, "4b", 151_936, 4_022_468_096),
        (Qwen3BackboneConfig, "8b", 151_936, 8_190_735_360),
        (Qwen3BackboneConfig, "14b", 151_936, 14_768_307_200),
        (Qwen3BackboneConfig, "32b", 151_936, 32_762_123_264),
        (Llama3BackboneConfig, "3-8b", 128_256, 8_030_261_248),
        (Llama3BackboneConfig, "3.1-8b", 128_256, 8_030_261_248),
        (Llama3BackboneConfig, "3.2-1b", 128_256, 1_235_814_400),
        (Llama3BackboneConfig, "3.2-3b", 128_256, 3_212_749_824),
    ],
)
def test_published_sizes_have_the_known_number_of_weights(
    sizes: Any, size: str, vocab_size: int, count: int
) -> None:
    own = dataclasses.replace(sizes.published(size), vocab_size=vocab_size, vision_tower=TOWER)
    with torch.device("meta"):
        backbone = own.build()
    parts = [backbone.decoder, *filter(None, [backbone.lm_head])]
    assert sum(p.numel() for part in parts for p in part.parameters()) == count


@pytest.mark.parametrize("sizes", [Qwen3BackboneConfig, Llama3BackboneConfig])
def test_unknown_published_sizes_are_refused(sizes: Any) -> None:
    with pytest.raises(UsageError, match="'5t'"):
        sizes.published("5t")
    assert sizes.published("4b" if sizes is Qwen3BackboneConfig else "3.1-8b").max_positions > 8192
