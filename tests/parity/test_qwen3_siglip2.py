"""The Qwen3-SigLIP2 variant against recorded steps and features (family `qwen3_siglip2`)."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from blip3o.core.config import evolve
from blip3o.core.types import Batch
from blip3o.flow.sigmas import DiscreteUniformSigmas
from blip3o.generate.draw import draw
from blip3o.generate.text import left_pad
from blip3o.models.dit.nextdit import NextDiTConfig
from blip3o.models.encoders.eva_clip import EvaClipEncoderConfig
from blip3o.models.encoders.siglip2 import pool_tokens
from blip3o.models.generators.query_dit import QueryDiT, QueryPlan
from blip3o.models.prompts import PromptImages, Prompts
from blip3o.models.unified import UnifiedModel
from blip3o.objectives import flow_matching
from blip3o.objectives.flow_matching import FlowMatchingConfig
from blip3o.objectives.next_token import NextTokenConfig
from blip3o.weights.keymaps.blip3o_qwen3 import (
    INFERENCE_PARTS,
    NAMES,
    TRAINING_PARTS,
    backbone_config,
    to_published,
)

STATE_TOLERANCE = 1e-4
OUTPUT_TOLERANCE = 2e-5
LOSS_TOLERANCE = 1e-5
FEATURE_TOLERANCE = 2e-4
GRADIENT_TOLERANCE = 1e-4  # relative to the largest value of a gradient

Build = Callable[..., UnifiedModel]

each_training_step = pytest.mark.parity_cases("qwen3_siglip2/train_*.safetensors")
each_run = pytest.mark.parity_cases("qwen3_siglip2/generate_*.safetensors")


def condition(
    model: UnifiedModel, ids: Tensor, mask: Tensor, images: PromptImages | None = None
) -> Tensor:
    """Returns the states at the query tokens."""
    plan = model.plan(Prompts(input_ids=ids, attention_mask=mask, images=images))
    assert isinstance(plan, QueryPlan)
    return plan.states


def near(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


def tokens_of(grid: Tensor) -> Tensor:
    """Returns a recorded grid [B, C, H, W] as tokens [B, N, C]."""
    return grid.flatten(2).transpose(1, 2)


class TrainingStep:
    """A recorded step, split into the two batches of the production code.

    The released batch mixes rows that ask for an image with rows that ask about one. Here, rows of
    the first kind form the batch for flow matching. All rows, cut before the query tokens, form the
    batch for the text loss. Attention is causal, so no earlier token depends on the query tokens.
    """

    def __init__(self, case: Any, build: Build) -> None:
        self.recorded = recorded = case.tensors()
        manifest = case.neighbor("manifest.json").settings()
        self.text_counts = manifest["cases"][case.path.stem]["text_ce_is_part_of_the_loss"]
        self.pad = manifest["token_ids"]["pad"]
        weights = case.neighbor("weights.safetensors").tensors()
        self.num_queries = weights["model.latent_queries"].shape[1]
        self.starts = recorded["i_s_pos"].tolist()
        self.draws = any(start >= 0 for start in self.starts)  # otherwise all rows ask about images
        grid = None
        if self.draws:
            self.clean = self.pooled(recorded["gen_tower_features"], recorded["pooled_target"])
            grid = math.isqrt(self.clean.shape[1])
        self.model = build(manifest, weights, self.num_queries, grid)
        self.pixels = recorded.get("und_image")

    @staticmethod
    def pooled(features: Tensor, like: Tensor) -> Tensor:
        kernel = math.isqrt(features.shape[1] // like.shape[2:].numel())
        return pool_tokens(features, kernel)

    def image_batch(self) -> Batch:
        ids = self.recorded["input_ids"]
        rows = [row[:at].tolist() for row, at in zip(ids, self.starts, strict=True) if at >= 0]
        input_ids, mask = left_pad(rows, self.pad)
        return Batch(
            task="text_to_image",
            indices=torch.arange(len(rows)),
            epochs=torch.zeros(len(rows), dtype=torch.long),
            input_ids=input_ids,
            attention_mask=mask,
            target_features=self.clean,
        )

    def text_batch(self) -> Batch:
        mask, labels = self.recorded["attention_mask"].clone(), self.recorded["labels"].clone()
        for row, start in enumerate(self.starts):
            if start >= 0:
                mask[row, start:] = False
                labels[row, start:] = -100
        return Batch(
            task="image_to_text",
            indices=torch.arange(len(mask)),
            epochs=torch.zeros(len(mask), dtype=torch.long),
            input_ids=self.recorded["input_ids"],
            attention_mask=mask,
            labels=labels,
            prompt_pixels=self.pixels,
        )

    def image_loss(self, patch: pytest.MonkeyPatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the objective's loss with recorded random draws, and the inputs of the DiT."""
        recorded = self.recorded
        uniform = {
            "condition_dropout": 1 - recorded["drop_mask_1_means_dropped"],
            "sigma/0": recorded["u"],
        }
        noise = tokens_of(recorded["noise"])
        patch.setattr(flow_matching, "sample_uniform", lambda _, stream, *keys: uniform[stream])
        patch.setattr(flow_matching, "sample_normal", lambda *_: noise)
        seen: dict[str, Tensor] = {}
        assert isinstance(self.model.generator, QueryDiT)
        plain = self.model.generator.velocity

        def velocity(noisy: Tensor, sigma: Tensor, condition: Tensor, *rest: Any) -> Tensor:
            seen.update(noisy=noisy, sigma=sigma, output=plain(noisy, sigma, condition, *rest))
            return seen["output"]

        patch.setattr(self.model.generator, "velocity", velocity)
        objective = FlowMatchingConfig(sigmas=DiscreteUniformSigmas()).build(self.model.config)
        loss = objective(self.model, self.image_batch(), 0)
        return loss.loss_sum / loss.count, seen

    def text_loss(self) -> Tensor:
        objective = NextTokenConfig().build(self.model.config)
        loss = objective(self.model, self.text_batch(), 0)
        return loss.loss_sum / loss.count


@each_training_step
def test_states_tokens_and_logits(case: Any, published_model: Build) -> None:
    step = TrainingStep(case, published_model)
    model, recorded, texts = step.model, step.recorded, step.text_batch()
    with torch.no_grad():
        if step.draws:
            near(step.clean, tokens_of(recorded["pooled_target"]), 1e-6)
            images = step.image_batch()
            states = condition(model, images.input_ids, images.attention_mask)
            near(states, recorded["query_hidden_states"], STATE_TOLERANCE)
        seen = model.prompt_images(step.pixels)
        if seen is not None:
            tokens = model.backbone.image_tokens(seen).flatten(0, 1)
            near(tokens, recorded["und_image_embeds_after_projector"], STATE_TOLERANCE)
        states = model.text_states(texts.input_ids, texts.attention_mask, seen)
        logits = model.backbone.logits(states)
    for name in (name for name in recorded if name.startswith("logits_sample")):
        row = int(name.removeprefix("logits_sample"))
        real = texts.attention_mask[row]
        near(logits[row, real], recorded[name][real], STATE_TOLERANCE)


@each_training_step
def test_states_of_a_quantized_backbone(
    case: Any,
    quantized: Callable[[UnifiedModel], float],
    published_model: Build,
    say_error: Callable[[str, float, float], None],
) -> None:
    step = TrainingStep(case, published_model)
    if not step.draws:
        pytest.skip("no row asks for an image")
    bound, images = quantized(step.model), step.image_batch()
    expected = step.recorded["query_hidden_states"]
    with torch.no_grad():
        states = condition(step.model, images.input_ids, images.attention_mask)
    error = float((states - expected).norm() / expected.norm())
    say_error("query states", error, bound)
    assert 0 < error < bound


@each_training_step
def test_queries_inside_rows_padded_on_the_right(case: Any, published_model: Build) -> None:
    """Rows have the form of the released collator."""
    step = TrainingStep(case, published_model)
    recorded, model = step.recorded, step.model
    mask = recorded["attention_mask"]
    with torch.no_grad():
        seen = model.prompt_images(step.pixels)
        embeds = model.backbone.embed(recorded["input_ids"], seen).clone()
        for row, start in enumerate(step.starts):
            if start >= 0:
                embeds[row, start : start + step.num_queries] = model.get_parameter(
                    "generator.query_tokens.weight"
                )
        hidden = model.backbone(embeds, mask)
    if not step.draws:
        return
    states = [
        hidden[row, start : start + step.num_queries]
        for row, start in enumerate(step.starts)
        if start >= 0
    ]
    near(torch.stack(states), recorded["query_hidden_states"], STATE_TOLERANCE)


@each_training_step
def test_losses_and_gradients(
    case: Any, published_model: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = TrainingStep(case, published_model)
    recorded, model = step.recorded, step.model
    total = torch.zeros(())
    if step.draws:
        loss, seen = step.image_loss(monkeypatch)
        near(1000 * seen["sigma"], recorded["timesteps"], 1e-4)
        near(seen["noisy"], tokens_of(recorded["noisy_latents"]), OUTPUT_TOLERANCE)
        near(seen["output"], tokens_of(recorded["dit_output"]), OUTPUT_TOLERANCE)
        near(loss, recorded["image_loss"], LOSS_TOLERANCE)
        total = total + loss
    if "text_loss" in recorded:
        text = step.text_loss()
        near(text, recorded["text_loss"], LOSS_TOLERANCE)
        total = total + text if step.text_counts else total
    near(total, recorded["total_loss"], LOSS_TOLERANCE)
    total.backward()
    gradients = to_published(
        {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    )
    names = [name for name in recorded if name.startswith("grad.")]
    assert names
    for name in names:
        expected = recorded[name]
        tolerance = GRADIENT_TOLERANCE * float(expected.abs().max())
        near(gradients[name.removeprefix("grad.")], expected, tolerance)


@each_run
def test_features_equal_recorded_features(case: Any, published_model: Build) -> None:
    """A longer prompt in the same batch pads the recorded one on the left."""
    recorded = case.tensors()
    manifest = case.neighbor("manifest.json").settings()
    facts, special = manifest["cases"][case.path.stem], manifest["token_ids"]
    weights = case.neighbor("weights.safetensors").tensors()
    expected = recorded["output_features"]
    model = published_model(
        manifest, weights, recorded["query_hidden_states"].shape[1], math.isqrt(expected.shape[1])
    )
    row = [*recorded["prompt_input_ids"][0].tolist(), special["img_start"]]
    ids, mask = left_pad([row, [*row[:3], *row]], special["pad"])
    with torch.no_grad():
        states = condition(model, ids, mask)
        steps = facts["num_inference_steps"]
        assert isinstance(model.generator, QueryDiT)
        features = draw(
            QueryPlan(model.generator, states),
            tokens_of(recorded["initial_noise"]).repeat(2, 1, 1),
            facts["guidance_scale"],
            evolve(model.config.sampling, {"num_inference_steps": steps}),
        )
    near(states[:1], recorded["query_hidden_states"], STATE_TOLERANCE)
    near(features[:1], expected, FEATURE_TOLERANCE)


@pytest.mark.parity_cases("manifests/qwen3_siglip2_*.json")
def test_published_names_shapes_and_count(
    case: Any,
    dit_config: Callable[[dict[str, Any]], NextDiTConfig],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Published names map one to one to ours, and all shapes are equal."""
    manifest = case.settings()
    config, recorded = manifest["config"], manifest["weights"]
    tower = next(v for k, v in config.items() if k.startswith("vision_tower(") and v)
    backbone = backbone_config(config, tower)
    modules = {
        "backbone": backbone,
        "generator.dit": dit_config(config["dit"]),
        "image_encoder": EvaClipEncoderConfig.published(),
    }
    with torch.device("meta"):
        ours = {
            f"{part}.{name}": value
            for part, sizes in modules.items()
            for name, value in sizes.build().state_dict().items()
        }
        ours["generator.query_tokens.weight"] = torch.empty(config["n_query"], backbone.hidden_size)
    is_training = any(name.startswith("model.gen_vision_tower.") for name in recorded)
    parts = TRAINING_PARTS if is_training else INFERENCE_PARTS
    kept = {k: v for k, v in ours.items() if k.startswith(tuple(f"{part}." for part in parts))}
    state = to_published(kept)
    assert len(state) == len(kept) == manifest["n_tensors"]
    assert {name: list(value.shape) for name, value in state.items()} == recorded
    assert {NAMES.ours(name) for name in recorded} == kept.keys()
    count = sum(value.numel() for value in state.values())
    assert count == manifest["n_params"]
    with capsys.disabled():
        print(f"\n{case.path.stem}: {count:,} parameters")  # noqa: T201
