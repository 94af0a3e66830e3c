"""Transfusion and LMFusion against recorded models (family `transfusion`), block by block."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from blip3o.core.types import IGNORE_LABEL, Batch, ImagePlace
from blip3o.flow.guidance import combine
from blip3o.flow.sigmas import UniformSigmas
from blip3o.generate.decoding import RowDecoder
from blip3o.models.backbones.base import Backbone
from blip3o.models.backbones.cache import KeyValueCache
from blip3o.models.backbones.qwen3 import Qwen3BackboneConfig
from blip3o.models.decoders.pocket import PocketDecoderConfig
from blip3o.models.encoders.siglip2 import Siglip2EncoderConfig
from blip3o.models.generators.blocks import BlockGenerator
from blip3o.models.generators.lmfusion import LMFusion, LMFusionConfig
from blip3o.models.generators.plan import Joints, RowOutput
from blip3o.models.generators.transfusion import TransfusionConfig
from blip3o.models.prompts import Prompts, Rows
from blip3o.models.unified import UnifiedModelConfig
from blip3o.objectives.flow_matching import FlowMatchingConfig

CONFIGS = {"transfusion": TransfusionConfig, "lmfusion": LMFusionConfig}
NEAR, SAMPLED, LOGITS = 2e-5, 5e-5, 1e-4

each_case = pytest.mark.parity_cases("transfusion/*/case.json")
each_method = pytest.mark.parametrize("method", CONFIGS)
each_rule = pytest.mark.parametrize("rule", ["sequential", "shared"])


class Times(nn.Module):
    """Returns recorded time embeddings in turn, in the place of the learned ones."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[Tensor] = []

    def forward(self, timestep: Tensor) -> Tensor:
        return self.waiting.pop(0).reshape(len(timestep), -1)


class Model:
    """A backbone and a generator with recorded weights."""

    def __init__(self, case: Any, method: str, rule: Any) -> None:
        self.facts = case.settings()
        sizes = dict(self.facts["config"])
        num_patches, channels = sizes.pop("patches"), sizes.pop("patch_channels")
        self.pad = sizes.pop("image_pad_id")
        del sizes["boi_id"], sizes["eoi_id"]
        config = Qwen3BackboneConfig(**sizes, image_token_id=self.pad, image_channels=channels)
        self.backbone: Backbone = config.build().eval()
        text = case.neighbor("text_weights.safetensors").tensors()
        self.backbone.decoder.load_state_dict(text, strict=True)
        joints = Joints(backbone=config, feature_channels=channels, grid=math.isqrt(num_patches))
        settings = CONFIGS[method](positions=rule, learned_positions=False)
        generator = settings.build(joints).eval()
        assert isinstance(generator, BlockGenerator)
        self.generator = generator
        for name, value in case.neighbor("patch_weights.safetensors").tensors().items():
            generator.get_parameter(name).data = value
        if isinstance(generator, LMFusion):
            images = case.neighbor("image_weights.safetensors").tensors()
            generator.decoder.load_state_dict(images, strict=True)
        self.times = Times()
        generator.time = self.times  # type: ignore[assignment]

    def text(self, ids: Tensor, positions: Tensor, cache: KeyValueCache) -> Tensor:
        """Returns the states of text tokens [T] that see the cache and themselves causally."""
        visible = torch.ones(1, cache.num_tokens, dtype=torch.bool)
        embeds = self.backbone.embed(ids[None])
        return self.backbone.block_states(embeds, visible, cache, positions[None], is_causal=True)[
            0
        ]

    def image(
        self, patches: Tensor, sigma: Tensor, time: Tensor, start: int, cache: KeyValueCache
    ) -> tuple[Tensor, Tensor]:
        """Returns the states and velocities of an image's patches [M, K]; the cache keeps them."""
        self.times.waiting.append(time)
        hidden, skips = self.generator.enter(patches[None], sigma.reshape(1))
        positions = self.generator.positions(torch.tensor([start]), len(patches))
        visible = torch.ones(1, cache.num_tokens, dtype=torch.bool)
        states = self.generator.block_states(self.backbone, hidden, visible, cache, positions)
        return states[0], self.generator.leave(states, skips)[0]


def near(got: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=tolerance)


def run_rows(model: Model, recorded: dict[str, Tensor], rule: str) -> tuple[Tensor, Tensor]:
    """Returns the states [B, N, D] of rows, with padding 0, and the velocities of all images."""
    rows, velocities = [], []
    for row, length in enumerate(recorded["lengths"].tolist()):
        cache = KeyValueCache()
        ids, positions = recorded["input_ids"][row], recorded[f"positions_{rule}"][row]
        spans = [span for span in recorded["image_spans"][row].tolist() if span[1]]
        states, at = [], 0
        for begin, size in [*spans, (length, 0)]:
            if at < begin:
                states.append(model.text(ids[at:begin], positions[at:begin], cache))
            if size:
                image = len(velocities)
                drawn, velocity = model.image(
                    recorded["noisy_patches"][image],
                    recorded["sigmas"][image],
                    recorded["time_embeddings"][image],
                    int(positions[begin]),
                    cache,
                )
                states.append(drawn)
                velocities.append(velocity)
            at = begin + size
            assert cache.num_tokens == at  # every token once
        rows.append(nn.functional.pad(torch.cat(states), (0, 0, 0, len(ids) - length)))
    return torch.stack(rows), torch.stack(velocities)


@each_case
@each_method
@each_rule
@torch.no_grad()
def test_rows_of_text_and_images(case: Any, method: str, rule: str) -> None:
    model = Model(case, method, rule)
    recorded = case.neighbor("forward.safetensors").tensors()
    hidden, velocity = run_rows(model, recorded, rule)
    near(hidden, recorded[f"{method}.{rule}.hidden"], NEAR)
    near(velocity, recorded[f"{method}.{rule}.velocity"], NEAR)


@each_case
@each_method
@each_rule
@torch.no_grad()
def test_text_before_the_first_image_is_that_of_the_text_model(
    case: Any, method: str, rule: str
) -> None:
    model = Model(case, method, rule)
    recorded = case.neighbor("forward.safetensors").tensors()
    hidden, _ = run_rows(model, recorded, rule)
    compared = 0
    for row, length in enumerate(recorded["lengths"].tolist()):
        begins = [begin for begin, size in recorded["image_spans"][row].tolist() if size]
        ids = recorded["input_ids"][row : row + 1, : min([*begins, length])]
        mask = torch.ones_like(ids, dtype=torch.bool)
        alone = model.backbone(model.backbone.embed(ids), mask)[0]
        assert torch.equal(hidden[row, : len(alone)], alone)
        near(recorded[f"{method}.{rule}.hidden"][row, : len(alone)], alone, NEAR)
        compared += len(alone)
    assert compared


class WholeModel:
    """A unified model with recorded weights, whose image encoder gives the recorded patches."""

    def __init__(self, case: Any, method: str, rule: Any) -> None:
        small = Model(case, method, rule)
        channels, grid = small.backbone.config.image_channels, small.generator.grid[0]
        decoder = PocketDecoderConfig.tiny()
        scale = decoder.fine_grid // decoder.grid
        config = UnifiedModelConfig(
            backbone=small.backbone.config,
            image_encoder=Siglip2EncoderConfig(
                image_px=4 * grid,
                patch_px=4,
                hidden_size=channels,
                intermediate_size=4,
                num_layers=1,
                num_heads=1,
            ),
            generator=small.generator.config,
            image_decoder=dataclasses.replace(
                decoder, feature_channels=channels, grid=grid, image_px=scale * grid
            ),
        )
        self.model = config.build().eval()
        self.model.backbone, self.model.generator = small.backbone, small.generator
        self.recorded = case.neighbor("forward.safetensors").tensors()
        self.times, self.facts = small.times, small.facts
        clean = self.recorded["clean_patches"]
        self.model.encode_images = lambda _: clean  # type: ignore[method-assign]

    def batch(self) -> Batch:
        recorded, labels = self.recorded, self.recorded["targets_of_positions"].roll(1, dims=1)
        labels[:, 0] = IGNORE_LABEL
        spans = [[one for one in row if one[1]] for row in recorded["image_spans"].tolist()]
        places = tuple(
            tuple(
                ImagePlace(start, size, is_drawn=True, is_target=True, before_text=False)
                for start, size in row
            )
            for row in spans
        )
        ids = recorded["input_ids"]
        num_images = len(recorded["sigmas"])
        return Batch(
            task="interleaved",
            indices=torch.arange(len(ids)),
            epochs=torch.zeros(len(ids), dtype=torch.int64),
            input_ids=ids,
            attention_mask=torch.arange(ids.shape[1]) < recorded["lengths"][:, None],
            labels=labels,
            prompt_pixels=torch.zeros(num_images, 3, 8, 8),
            places=places,
        )

    def loss(self, monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, Tensor, RowOutput]:
        """Returns the mean text loss and the mean image loss of the recorded rows."""
        objective = FlowMatchingConfig(
            sigmas=UniformSigmas(), weight=5.0, text_weight=1.0, condition_dropout=0.0
        ).build(self.model.config)
        drawn = list(zip(self.recorded["noise_patches"], self.recorded["sigmas"], strict=True))
        monkeypatch.setattr(
            objective, "_draw", lambda *_: [one.unsqueeze(0) for one in drawn.pop(0)]
        )
        outputs: list[RowOutput] = []
        plain = self.model.read_rows

        def read_rows(*arguments: Any, **options: Any) -> RowOutput:
            outputs.append(plain(*arguments, **options))
            return outputs[-1]

        monkeypatch.setattr(self.model, "read_rows", read_rows)
        self.times.waiting.append(self.recorded["time_embeddings"])
        batch = self.batch()
        output = objective(self.model, batch, 0)
        assert output.text_sum is not None
        text = output.text_sum / objective.text_count(batch)
        return text, output.loss_sum / output.count, outputs[0]


@each_case
@each_method
@each_rule
def test_training_on_rows_of_text_and_images(
    case: Any, method: str, rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses and gradients of a padded batch of rows, through the objective of the recipes."""
    whole = WholeModel(case, method, rule)
    if method == "lmfusion":
        whole.model.backbone.requires_grad_(False)
    expected = {
        name.removeprefix(f"{method}.{rule}."): value
        for name, value in whole.recorded.items()
        if name.startswith(f"{method}.{rule}.")
    }
    text_loss, image_loss, output = whole.loss(monkeypatch)
    assert output.states is not None
    is_text = whole.batch().attention_mask & (
        whole.batch().input_ids != whole.facts["config"]["image_pad_id"]
    )
    near(output.states[is_text], expected["hidden"][is_text], NEAR)
    near(output.velocity, expected["velocity"], NEAR)
    total = text_loss + 5 * image_loss
    for name, loss in (("text_loss", text_loss), ("image_loss", image_loss)):
        torch.testing.assert_close(loss, expected[name], rtol=1e-5, atol=0)
    torch.testing.assert_close(total, expected["loss_lambda_5"], rtol=1e-5, atol=0)
    total.backward()
    model = whole.model
    modules = {"transfusion": model.backbone.decoder, "lmfusion": model.generator}
    recorded = {n.removeprefix("grad."): g for n, g in expected.items() if n.startswith("grad.")}
    assert recorded
    for name, gradient in recorded.items():
        if name.startswith("patch_"):
            found = model.generator.get_parameter(name).grad
        else:
            found = modules[method].get_parameter(name.replace("image.", "decoder.", 1)).grad
        assert found is not None
        near(found, gradient, 1e-4 * float(gradient.abs().max()))
    own = [model.generator, *([] if method == "lmfusion" else [model.backbone.decoder])]
    for name, parameter in [pair for half in own for pair in half.named_parameters()]:
        assert parameter.grad is not None, name
    if method == "lmfusion":
        assert all(one.grad is None for one in model.backbone.parameters())


@each_case
@each_method
@each_rule
@torch.no_grad()
def test_guided_sampling_and_the_text_after_it(case: Any, method: str, rule: str) -> None:
    model = Model(case, method, rule)
    recorded = case.neighbor("sample.safetensors").tensors()
    expected = {
        name.removeprefix(f"{method}.{rule}."): value
        for name, value in recorded.items()
        if name.startswith(f"{method}.{rule}.")
    }

    def plan(ids: Tensor) -> Any:
        mask = torch.ones_like(ids[None], dtype=torch.bool)
        prompts = Prompts(input_ids=ids[None], attention_mask=mask)
        return model.generator.plan(model.backbone, prompts)

    prompt, empty = plan(recorded["prompt"]), plan(recorded["empty_prompt"])
    before = [tensor.clone() for tensor in prompt.tensors()]
    state, sigmas = recorded["initial_noise"], recorded["sigmas"]
    times = recorded["time_embeddings_of_steps_and_of_clean"]
    for step in range(len(sigmas) - 1):
        model.times.waiting += [times[step], times[step]]
        conditional = prompt.velocity(state, sigmas[step : step + 1])
        null = empty.velocity(state, sigmas[step : step + 1])
        near(conditional, expected["conditional_velocities"][step], SAMPLED)
        near(null, expected["empty_velocities"][step], SAMPLED)
        velocity = combine(torch.cat([null, conditional]), 3.0)
        state = state + (sigmas[step + 1] - sigmas[step]) * velocity
    near(state, expected["clean_patches_guidance_3"], SAMPLED)
    # Sampling leaves no trace in the plan.
    assert all(torch.equal(*pair) for pair in zip(before, prompt.tensors(), strict=True))

    cache, length = KeyValueCache(prompt.key_values), len(recorded["prompt"])
    model.image(state[0], sigmas[-1:], times[-1], length, cache)
    num_patches = state.shape[1]
    assert cache.num_tokens == length + num_patches
    after = length + (num_patches if rule == "sequential" else 1)
    logits = []
    for step, token in enumerate(recorded["tokens_after"]):
        states = model.text(token[None], torch.tensor([after + step]), cache)
        logits.append(model.backbone.logits(states)[0])
    near(torch.stack(logits), expected["logits_after_image"], LOGITS)


@each_case
@each_method
@each_rule
@torch.no_grad()
def test_images_of_a_batch_have_their_own_noise_levels(case: Any, method: str, rule: str) -> None:
    model = Model(case, method, rule)
    recorded = case.neighbor("sample.safetensors").tensors()
    sigmas, times = recorded["sigmas"], recorded["time_embeddings_of_steps_and_of_clean"]
    steps = len(sigmas) - 1
    velocities = {
        name: recorded[f"{method}.{rule}.{name}_velocities"] for name in ("conditional", "empty")
    }
    states = [recorded["initial_noise"]]  # along the guided path
    for step, interval in enumerate(sigmas.diff()):
        both = torch.cat([velocities["empty"][step], velocities["conditional"][step]])
        states.append(states[-1] + interval * combine(both, 3.0))
    ids = recorded["prompt"].expand(steps, -1)
    prompts = Prompts(input_ids=ids, attention_mask=torch.ones_like(ids).bool())
    plan = model.generator.plan(model.backbone, prompts)
    before = [tensor.clone() for tensor in plan.tensors()]
    turned = torch.arange(steps).flip(0)
    model.times.waiting.append(times[turned])
    got = plan.velocity(torch.cat(states)[turned], sigmas[turned])
    near(got, velocities["conditional"][turned].squeeze(1), SAMPLED)
    assert all(torch.equal(*pair) for pair in zip(before, plan.tensors(), strict=True))


@each_case
@each_method
@each_rule
@torch.no_grad()
def test_a_row_that_is_continued_token_by_token(case: Any, method: str, rule: str) -> None:
    """The path of replies: read a row, draw from it, keep the clean image, go on with text."""
    whole = WholeModel(case, method, rule)
    model, generator = whole.model, whole.model.generator
    recorded = case.neighbor("sample.safetensors").tensors()
    times = recorded["time_embeddings_of_steps_and_of_clean"]
    ids = recorded["prompt"][None]
    rows = Rows(
        input_ids=ids, attention_mask=torch.ones_like(ids).bool(), places=((),), images=None
    )
    row, _ = generator.start_row(model.backbone, rows, recorded["initial_noise"][:0])
    whole.times.waiting.append(times[0])
    plan = generator.plan_row(model.backbone, row)
    velocity = plan.velocity(recorded["initial_noise"], recorded["sigmas"][:1])
    near(velocity, recorded[f"{method}.{rule}.conditional_velocities"][0], SAMPLED)
    whole.times.waiting.append(times[-1])
    clean = recorded[f"{method}.{rule}.clean_patches_guidance_3"]
    row = generator.keep_image(model.backbone, row, clean)
    decoder = RowDecoder(model)
    logits = [decoder.advance([row], [token]) for token in recorded["tokens_after"].tolist()]
    found, expected = torch.cat(logits), recorded[f"{method}.{rule}.logits_after_image"]
    is_word = found.isfinite()  # the placeholder is never chosen
    near(found[is_word], expected[is_word], LOGITS)


@each_case
@each_rule
@torch.no_grad()
def test_copied_image_layers_are_transfusion(case: Any, rule: str) -> None:
    one, two = Model(case, "transfusion", rule), Model(case, "lmfusion", rule)
    assert isinstance(two.generator, LMFusion)
    own = {k: v for k, v in one.backbone.decoder.state_dict().items() if "embed_tokens" not in k}
    two.generator.decoder.load_state_dict(own, strict=True)
    recorded = case.neighbor("sample.safetensors").tensors()
    velocities = []
    for model in (one, two):
        ids = recorded["prompt"][None]
        prompts = Prompts(input_ids=ids, attention_mask=torch.ones_like(ids).bool())
        model.times.waiting.append(recorded["time_embeddings_of_steps_and_of_clean"][0])
        plan = model.generator.plan(model.backbone, prompts)
        velocities.append(plan.velocity(recorded["initial_noise"], recorded["sigmas"][:1]))
    assert torch.equal(*velocities)


@pytest.mark.parity_cases("transfusion/masks.safetensors")
@pytest.mark.parametrize("method", CONFIGS)
def test_blocks_see_what_the_mask_of_the_paper_shows(case: Any, method: str) -> None:
    """Random layouts, by brute force: a gradient from a token to another means that it sees it."""
    recorded = case.tensors()
    config = Qwen3BackboneConfig.tiny()
    torch.manual_seed(0)
    backbone = config.build().eval()
    generator: Any = CONFIGS[method]().build(Joints(backbone=config, feature_channels=4, grid=2))
    for row, length in enumerate(recorded["lengths"].tolist()):
        embeds = torch.randn(1, length, config.hidden_size, requires_grad=True)
        cache, states, at = backbone.new_cache(), [], 0
        spans = [span for span in recorded["image_spans"][row].tolist() if span[1]]
        for begin, size in [*spans, (length, 0)]:
            if at < begin:
                mask = torch.ones(1, begin, dtype=torch.bool)
                states.append(backbone(embeds[:, at:begin], mask, cache))
            if size:
                block = embeds[:, begin : begin + size]
                visible = torch.ones(1, begin, dtype=torch.bool)
                positions = torch.arange(begin, begin + size)[None]
                states.append(generator.block_states(backbone, block, visible, cache, positions))
            at = begin + size
        hidden = torch.cat(states, dim=1)[0]
        weights = torch.randn(config.hidden_size)
        seen = []
        for token in range(length):
            total = (hidden[token] * weights).sum()
            (gradient,) = torch.autograd.grad(total, embeds, retain_graph=True)
            seen.append(gradient[0].abs().sum(-1) > 0)
        expected = recorded["visible_right_padded"][row, :length, :length].bool()
        assert torch.equal(torch.stack(seen), expected), f"row {row}"
