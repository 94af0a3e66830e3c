"""The Qwen2.5-VL models against recorded training steps and answers (family `qwen`)."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from blip3o.core.types import Batch
from blip3o.flow.sigmas import DiscreteUniformSigmas
from blip3o.generate.decoding import RowDecoder
from blip3o.generate.text import generate_tokens, left_pad
from blip3o.models.backbones.qwen2_5_vl import Qwen2_5VLBackboneConfig
from blip3o.models.backbones.ragged import RowCache
from blip3o.models.backbones.vision import VisionInputs
from blip3o.models.dit.nextdit import NextDiTConfig
from blip3o.models.encoders.siglip2 import pool_tokens
from blip3o.models.generators.query_dit import QueryDiT, QueryPlan
from blip3o.models.prompts import PromptImages, Prompts
from blip3o.models.unified import UnifiedModel
from blip3o.objectives import flow_matching
from blip3o.objectives.flow_matching import FlowMatchingConfig
from blip3o.weights.keymaps.blip3o_qwen import (
    INFERENCE_PARTS,
    NAMES,
    TRAINING_PARTS,
    backbone_config,
    to_published,
)

STATE_TOLERANCE = 1e-4
OUTPUT_TOLERANCE = 2e-5
LOSS_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-4  # relative to the largest value of a gradient

Build = Callable[..., UnifiedModel]

each_training_step = pytest.mark.parity_cases("qwen/train_*.safetensors")
each_conversation = pytest.mark.parity_cases("qwen/und_*.safetensors")


def condition(
    model: UnifiedModel, ids: Tensor, mask: Tensor, images: PromptImages | None = None
) -> Tensor:
    """Returns the states at the query tokens."""
    plan = model.plan(Prompts(input_ids=ids, attention_mask=mask, images=images))
    assert isinstance(plan, QueryPlan)
    return plan.states


def near(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


def positions_asked(model: UnifiedModel) -> list[Tensor]:
    """Returns a list to which every run of the decoder adds its position ids."""
    seen: list[Tensor] = []
    model.backbone.decoder.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["position_ids"]), with_kwargs=True
    )
    return seen


class TrainingStep:
    """A recorded step in the form of the production code: left-padded prompts, pooled features."""

    def __init__(self, case: Any, build: Build) -> None:
        self.recorded = recorded = case.tensors()
        settings = case.neighbor("manifest.json").settings()
        weights = case.neighbor("weights.safetensors").tensors()
        self.num_queries = recorded["query_hidden_states"].shape[1]
        queries = weights["model.latent_queries"]
        weights["model.latent_queries"] = queries[:, : self.num_queries].clone()
        features, pooled = recorded["gen_tower_features"], recorded["noise"]
        kernel = math.isqrt(features.shape[1] // pooled.shape[2:].numel())
        self.clean = pool_tokens(features, kernel)
        self.model = build(settings, weights, self.num_queries, math.isqrt(self.clean.shape[1]))
        self.starts = recorded["i_s_pos"].tolist()
        self.rows = [
            ids[:start].tolist()
            for ids, start in zip(recorded["input_ids"], self.starts, strict=True)
        ]
        self.ids, self.mask = left_pad(self.rows, settings["token_ids"]["pad"])
        self.images = None
        if "und_image" in recorded:
            self.images = VisionInputs(
                patches=recorded["und_image"].flatten(0, 1), grid_thw=recorded["grid_thw"]
            )

    def batch(self) -> Batch:
        size = len(self.rows)
        pixels = None  # `run` replaces the pixels, so their values do not matter
        if self.images is not None:
            pixels = torch.zeros(len(self.images.grid_thw), 3, 1, 1)
        return Batch(
            task="text_to_image" if pixels is None else "reconstruct",
            indices=torch.arange(size),
            epochs=torch.zeros(size, dtype=torch.long),
            input_ids=self.ids,
            attention_mask=self.mask,
            prompt_pixels=pixels,
            target_features=self.clean,
        )

    def run(self, patch: pytest.MonkeyPatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the objective's loss with recorded random draws, and the inputs of the DiT."""
        recorded, model = self.recorded, self.model
        uniform = {
            "condition_dropout": 1 - recorded["drop_mask_1_means_dropped"],
            "sigma/0": recorded["u"],
        }
        noise = recorded["noise"].flatten(2).transpose(1, 2)
        patch.setattr(flow_matching, "sample_uniform", lambda _, stream, *keys: uniform[stream])
        patch.setattr(flow_matching, "sample_normal", lambda *_: noise)
        # The patches are recorded; the family `chat` tests their computation from pixels.
        patch.setattr(model.backbone, "vision_inputs", lambda _: self.images)
        seen: dict[str, Tensor] = {}
        assert isinstance(model.generator, QueryDiT)
        plain = model.generator.velocity

        def velocity(noisy: Tensor, sigma: Tensor, condition: Tensor, *rest: Any) -> Tensor:
            seen.update(noisy=noisy, sigma=sigma, condition=condition)
            seen["output"] = plain(noisy, sigma, condition, *rest)
            return seen["output"]

        patch.setattr(model.generator, "velocity", velocity)
        objective = FlowMatchingConfig(sigmas=DiscreteUniformSigmas()).build(model.config)
        loss = objective(model, self.batch(), 0)
        return loss.loss_sum / loss.count, seen


@each_training_step
def test_training_input_embeddings_and_positions(case: Any, published_model: Build) -> None:
    step = TrainingStep(case, published_model)
    asked = positions_asked(step.model)
    with torch.no_grad():
        prompt = step.model.backbone.embed(step.ids, step.images)
        condition(step.model, step.ids, step.mask, step.images)
    for row, start in enumerate(step.starts):
        length = start + step.num_queries
        embeds = torch.cat(
            [prompt[row, -start:], step.model.get_parameter("generator.query_tokens.weight")]
        )
        near(embeds, step.recorded["inputs_embeds"][row, :length], STATE_TOLERANCE)
        positions = asked[0][:, row, -length:]
        assert torch.equal(positions, step.recorded["position_ids"][:, row, :length])
        assert bool(step.recorded["attention_mask"][row, :length].all())


@each_training_step
def test_training_states_with_padding_on_the_right(case: Any, published_model: Build) -> None:
    """Rows have the form of the released collator: query tokens inside, then padding."""
    step = TrainingStep(case, published_model)
    recorded, backbone = step.recorded, step.model.backbone
    with torch.no_grad():
        embeds = backbone.embed(recorded["input_ids"], step.images).clone()
        for row, start in enumerate(step.starts):
            embeds[row, start : start + step.num_queries] = step.model.get_parameter(
                "generator.query_tokens.weight"
            )
        hidden = backbone(embeds, recorded["attention_mask"])
        logits = backbone.logits(hidden[:1])[recorded["attention_mask"][:1]]
    for row, start in enumerate(step.starts):
        states = hidden[row, start : start + step.num_queries]
        near(states, recorded["query_hidden_states"][row], STATE_TOLERANCE)
    expected = recorded["logits_on_valid_positions_sample0"][recorded["attention_mask"][:1]]
    near(logits, expected, STATE_TOLERANCE)


@each_training_step
@pytest.mark.parametrize("frozen", [True, False])
def test_training_step_and_gradients(
    case: Any, frozen: bool, published_model: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = TrainingStep(case, published_model)
    recorded, model = step.recorded, step.model
    for parameter in model.backbone.parameters():
        parameter.requires_grad_(not frozen)
    near(
        condition(model, step.ids, step.mask, step.images),
        recorded["query_hidden_states"],
        STATE_TOLERANCE,
    )
    loss, seen = step.run(monkeypatch)
    near(seen["condition"], recorded["dit_condition_after_drop"], STATE_TOLERANCE)
    near(1000 * seen["sigma"], recorded["timesteps"], 1e-4)
    for name, ours in (("noisy_latents", "noisy"), ("dit_output", "output")):
        near(seen[ours], recorded[name].flatten(2).transpose(1, 2), OUTPUT_TOLERANCE)
    near(loss, recorded["img_loss"], LOSS_TOLERANCE)
    loss.backward()
    gradients = to_published(
        {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    )
    names = [name for name in recorded if name.startswith("grad.")]
    assert names
    for name in names:
        expected = recorded[name]
        near(
            gradients[name.removeprefix("grad.")],
            expected,
            GRADIENT_TOLERANCE * float(expected.abs().max()),
        )


class Conversation:
    """A recorded question, with or without images."""

    def __init__(self, case: Any, build: Build) -> None:
        self.recorded = recorded = case.tensors()
        self.settings = case.neighbor("manifest.json").settings()
        weights = case.neighbor("weights.safetensors").tensors()
        self.model = build(self.settings, weights, self.settings["n_query"])
        self.ids, self.mask = recorded["input_ids"], recorded["attention_mask"].bool()
        self.images = None
        if "pixel_values" in recorded:
            self.images = VisionInputs(
                patches=recorded["pixel_values"], grid_thw=recorded["image_grid_thw"]
            )


@each_conversation
def test_understanding_states_and_logits(case: Any, published_model: Build) -> None:
    one = Conversation(case, published_model)
    backbone, recorded, mask = one.model.backbone, one.recorded, one.mask
    asked = positions_asked(one.model)
    cache = backbone.new_cache()
    with torch.no_grad():
        if one.images is not None:
            near(backbone.image_tokens(one.images), recorded["image_embeds"], STATE_TOLERANCE)
        hidden = one.model.text_states(one.ids, mask, one.images, cache)
        logits = backbone.logits(hidden)
    assert torch.equal(asked[0][:, mask], recorded["position_ids"][:, mask])
    # The reference counts padded tokens; this package counts only real tokens.
    deltas = torch.zeros(len(mask)) if cache.rope_deltas is None else cache.rope_deltas
    padding = (~mask).sum(1)
    assert torch.equal((deltas - padding).long(), recorded["rope_deltas"].squeeze(1))
    near(hidden[mask], recorded["last_hidden_state"][mask], STATE_TOLERANCE)
    near(logits[mask], recorded["logits"][mask], STATE_TOLERANCE)


@each_conversation
def test_understanding_answers(
    case: Any, published_model: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Conversation(case, published_model)
    recorded = one.recorded
    asked = positions_asked(one.model)
    logits: list[Tensor] = []

    positions: list[list[int]] = []
    advance = RowDecoder.advance

    def note(decoder: RowDecoder, rows: list[RowCache], tokens: list[int]) -> Tensor:
        positions.append([row.position for row in rows])
        return advance(decoder, rows, tokens)

    monkeypatch.setattr(RowDecoder, "advance", note)

    def choose(found: Tensor) -> Tensor:
        logits.append(found.clone())
        return found.argmax(-1)

    expected = recorded["generated_ids_greedy"]
    answer = generate_tokens(
        RowDecoder(one.model),
        one.ids,
        one.mask,
        one.images,
        stop_id=-1,
        pad_id=one.settings["token_ids"]["pad"],
        max_new_tokens=expected.shape[1],
        choose=choose,
    )
    assert torch.equal(torch.stack(list(answer), dim=1), expected)
    steps = recorded["generated_step_logits"]
    found = torch.stack(logits, dim=1)
    can_say = found.isfinite()  # all but the placeholder
    near(found[can_say], steps[can_say], STATE_TOLERANCE)
    prefill = recorded["generated_prefill_position_ids"]
    assert torch.equal(asked[0][:, one.mask], prefill[:, one.mask])
    decode = recorded["generated_decode_position_ids"]
    assert torch.equal(torch.tensor(positions[: len(decode)]), decode[:, 0, :, 0])


@each_conversation
def test_batched_states_equal_single_states(case: Any, published_model: Build) -> None:
    one = Conversation(case, published_model)
    assert isinstance(one.model.config.backbone, Qwen2_5VLBackboneConfig)
    merge = one.model.config.backbone.vision.merge
    placeholders = (one.ids == one.model.config.backbone.image_token_id).sum(1).tolist()
    with torch.no_grad():
        hidden = one.model.text_states(one.ids, one.mask, one.images)
    image, patch = 0, 0
    for row, num_tokens in enumerate(placeholders):
        images, real = None, one.mask[row]
        if one.images is not None and num_tokens:
            first, start = image, patch
            while patch - start < num_tokens * merge**2:
                patch += int(one.images.grid_thw[image].prod())
                image += 1
            images = VisionInputs(
                patches=one.images.patches[start:patch],
                grid_thw=one.images.grid_thw[first:image],
            )
        ids = one.ids[row : row + 1, real]
        with torch.no_grad():
            alone = one.model.text_states(ids, torch.ones_like(ids, dtype=torch.bool), images)
        near(alone[0], hidden[row, real], STATE_TOLERANCE)


@each_conversation
def test_understanding_with_quantized_weights(
    case: Any,
    quantized: Callable[[UnifiedModel], float],
    published_model: Build,
    say_error: Callable[[str, float, float], None],
) -> None:
    one = Conversation(case, published_model)
    bound = quantized(one.model)
    with torch.no_grad():
        hidden = one.model.text_states(one.ids, one.mask, one.images)
        logits = one.model.backbone.logits(hidden)
    for actual, name in ((hidden, "last_hidden_state"), (logits, "logits")):
        expected = one.recorded[name][one.mask]
        error = float((actual[one.mask] - expected).norm() / expected.norm())
        say_error(name, error, bound)
        assert 0 < error < bound


@pytest.mark.parity_cases("manifests/blip3o_qwen_*.json")
def test_published_names_shapes_and_count(
    case: Any,
    dit_config: Callable[[dict[str, Any]], NextDiTConfig],
    capsys: pytest.CaptureFixture[str],
) -> None:
    manifest = case.settings()
    config, dit = manifest["config"], manifest["config"]["dit"]
    backbone = backbone_config(config)
    with torch.device("meta"):
        parts = {
            "backbone": backbone.build(),
            "generator.dit": dit_config(dit).build(),
        }
    ours = {
        f"{part}.{name}": value
        for part, module in parts.items()
        for name, value in module.state_dict().items()
    }
    queries = torch.empty(config["n_query"], backbone.hidden_size, device="meta")
    state = to_published(ours | {"generator.query_tokens.weight": queries})
    recorded, held = manifest["weights"], set()
    for name in recorded:
        own = NAMES.ours(name)
        assert own is not None, name
        assert NAMES.published(own) == name
        if own.partition(".")[0] in INFERENCE_PARTS:
            held.add(name)
        else:
            assert own.partition(".")[0] in TRAINING_PARTS
    assert {name: list(value.shape) for name, value in state.items()} == {
        name: recorded[name] for name in held
    }
    count = sum(value.numel() for value in state.values())
    rest = sum(math.prod(shape) for name, shape in recorded.items() if name not in held)
    assert count + rest == manifest["n_params"]
    assert len(recorded) == manifest["n_tensors"]
    with capsys.disabled():
        print(f"\n{case.path.stem}: {count:,} parameters, {rest:,} of the encoder")  # noqa: T201
