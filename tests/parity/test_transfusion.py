"""Transfusion and LMFusion against recorded models (family `transfusion`), block by block."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from blip3o.flow.guidance import combine
from blip3o.flow.path import velocity_target
from blip3o.models.backbones.base import Backbone
from blip3o.models.backbones.cache_of import cache_of
from blip3o.models.backbones.qwen3 import Qwen3BackboneConfig
from blip3o.models.generators.blocks import BlockGenerator
from blip3o.models.generators.lmfusion import LMFusion, LMFusionConfig
from blip3o.models.generators.plan import Joints
from blip3o.models.generators.transfusion import TransfusionConfig
from blip3o.models.prompts import Prompts

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

    def text(self, ids: Tensor, positions: Tensor, cache: Any) -> Tensor:
        """Returns the states of text tokens [T] that see the cache and themselves causally."""
        return self.backbone.decoder(
            inputs_embeds=self.backbone.embed(ids[None]),
            position_ids=positions[None],
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[0]

    def image(
        self, patches: Tensor, sigma: Tensor, time: Tensor, start: int, cache: Any
    ) -> tuple[Tensor, Tensor]:
        """Returns the states and velocities of an image's patches [M, K]; the cache keeps them."""
        self.times.waiting.append(time)
        hidden, skips = self.generator.enter(patches[None], sigma.reshape(1))
        positions = self.generator.positions(torch.tensor([start]), len(patches))
        visible = torch.ones(1, cache.get_seq_length(), dtype=torch.bool)
        states = self.generator.block_states(self.backbone, hidden, visible, cache, positions)
        return states[0], self.generator.leave(states, skips)[0]


def near(got: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=tolerance)


def run_rows(model: Model, recorded: dict[str, Tensor], rule: str) -> tuple[Tensor, Tensor]:
    """Returns the states [B, N, D] of rows, with padding 0, and the velocities of all images."""
    rows, velocities = [], []
    for row, length in enumerate(recorded["lengths"].tolist()):
        cache: Any = model.backbone.new_cache()
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
            assert cache.get_seq_length() == at  # every token once
        rows.append(nn.functional.pad(torch.cat(states), (0, 0, 0, len(ids) - length)))
    return torch.stack(rows), torch.stack(velocities)


@each_case
@each_method
@each_rule
def test_rows_of_text_and_images(case: Any, method: str, rule: str) -> None:
    model = Model(case, method, rule)
    if method == "lmfusion":
        model.backbone.requires_grad_(False)
    recorded = case.neighbor("forward.safetensors").tensors()
    start = f"{method}.{rule}."
    expected = {n.removeprefix(start): v for n, v in recorded.items() if n.startswith(start)}
    hidden, velocity = run_rows(model, recorded, rule)
    near(hidden, expected["hidden"], NEAR)
    near(velocity, expected["velocity"], NEAR)

    targets = recorded["targets_of_positions"]
    text_loss = nn.functional.cross_entropy(model.backbone.logits(hidden).mT, targets)
    target = velocity_target(recorded["clean_patches"], recorded["noise_patches"])
    image_loss = (velocity - target).square().mean()
    loss = text_loss + 5 * image_loss
    for name, one in {"text": text_loss, "image": image_loss}.items():
        torch.testing.assert_close(one, expected[f"{name}_loss"], rtol=1e-5, atol=0)
    torch.testing.assert_close(loss, expected["loss_lambda_5"], rtol=1e-5, atol=0)

    loss.backward()
    halves = {"image.": model.generator, "": model.backbone}
    gradients = {n.removeprefix("grad."): v for n, v in expected.items() if n.startswith("grad.")}
    assert gradients
    for name, gradient in gradients.items():
        if name.startswith("patch_"):
            parameter = model.generator.get_parameter(name)
        else:
            half = next(start for start in halves if name.startswith(start))
            parameter = halves[half].get_parameter(f"decoder.{name.removeprefix(half)}")
        assert parameter.grad is not None, name
        near(parameter.grad, gradient, 1e-4 * float(gradient.abs().max()))
    own = [model.generator, *([] if method == "lmfusion" else [model.backbone.decoder])]
    for name, parameter in [pair for half in own for pair in half.named_parameters()]:
        assert parameter.grad is not None, name
    if method == "lmfusion":
        assert all(parameter.grad is None for parameter in model.backbone.parameters())


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

    cache, length = cache_of(prompt.key_values), len(recorded["prompt"])
    model.image(state[0], sigmas[-1:], times[-1], length, cache)
    num_patches = state.shape[1]
    assert cache.get_seq_length() == length + num_patches
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
