"""Features generated from a prompt, against recorded runs (family `generate_image`)."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from blip3o.core.config import evolve
from blip3o.generate.draw import draw
from blip3o.generate.text import left_pad
from blip3o.models.backbones.vision import VisionInputs
from blip3o.models.generators.query_dit import QueryDiT, QueryPlan
from blip3o.models.prompts import PromptImages, Prompts
from blip3o.models.unified import UnifiedModel

STATE_TOLERANCE = 1e-4
FEATURE_TOLERANCE = 2e-4
LEAST_GROWTH = 2.0  # allowed growth of a relative error from condition to features

each_run = pytest.mark.parity_cases("generate_image/*.safetensors", without="weights")


def condition(
    model: UnifiedModel, ids: Tensor, mask: Tensor, images: PromptImages | None = None
) -> Tensor:
    """Returns the states at the query tokens."""
    plan = model.plan(Prompts(input_ids=ids, attention_mask=mask, images=images))
    assert isinstance(plan, QueryPlan)
    return plan.states


class Run:
    """A recorded run and its model."""

    def __init__(self, case: Any, build: Callable[..., UnifiedModel]) -> None:
        self.recorded = recorded = case.tensors()
        manifest = case.neighbor("manifest.json").settings()
        name = case.path.stem
        groups = [manifest, *(v for v in manifest.values() if isinstance(v, dict) and "cases" in v)]
        self.settings = next(group for group in groups if name in group["cases"])
        self.facts = self.settings["cases"][name]
        own = [
            path
            for path in sorted(case.path.parent.glob("*_weights.safetensors"))
            if name.startswith(path.stem.removesuffix("weights"))
        ]
        file = own[0].name if own else "weights.safetensors"
        weights = whole_embedding(case.neighbor(file).tensors(), self.settings["llm_config"])
        grid = math.isqrt(recorded["output_features"].shape[1])
        self.model = build(self.settings, weights, self.facts["n_query"], grid)
        start = torch.tensor([[self.settings["token_ids"]["img_start"]]])
        self.ids = torch.cat([recorded["prompt_input_ids"], start], dim=1)
        self.images = None
        if "pixel_values" in recorded:
            self.images = VisionInputs(
                patches=recorded["pixel_values"], grid_thw=recorded["image_grid_thw"]
            )

    def sample(self, states: Tensor, noise: Tensor) -> Tensor:
        steps = self.facts["num_inference_steps"]
        assert isinstance(self.model.generator, QueryDiT)
        return draw(
            QueryPlan(self.model.generator, states),
            noise.flatten(2).transpose(1, 2),
            self.facts["guidance_scale"],
            evolve(self.model.config.sampling, {"num_inference_steps": steps}),
        )


def whole_embedding(weights: dict[str, Tensor], llm_config: dict[str, Any]) -> dict[str, Tensor]:
    """Returns weights with a full embedding table, of which only the used rows are recorded."""
    name = "model.embed_tokens.weight"
    if f"{name}.rows" in weights:
        rows, row_ids = weights.pop(f"{name}.rows"), weights.pop(f"{name}.row_ids")
        weights[name] = torch.zeros(llm_config["vocab_size"], rows.shape[1])
        weights[name][row_ids] = rows
    return weights


@each_run
def test_condition_equals_recorded_states(
    case: Any, published_model: Callable[..., UnifiedModel]
) -> None:
    run = Run(case, published_model)
    recorded, model = run.recorded, run.model
    assert torch.equal(run.ids, recorded["input_ids_with_img_start"])
    positions: list[Tensor] = []
    model.backbone.decoder.register_forward_pre_hook(
        lambda _, args, kwargs: positions.append(kwargs["position_ids"]), with_kwargs=True
    )
    mask = torch.ones_like(run.ids, dtype=torch.bool)
    with torch.no_grad():
        prompt = model.backbone.embed(run.ids, run.images)
        states = condition(model, run.ids, mask, run.images)
    assert isinstance(model.generator, QueryDiT)
    assert model.generator.query_tokens is not None
    embeds = torch.cat([prompt, model.generator.query_tokens(1)], dim=1)
    torch.testing.assert_close(embeds, recorded["inputs_embeds"], rtol=0, atol=STATE_TOLERANCE)
    assert torch.equal(positions[0], recorded["position_ids"])
    torch.testing.assert_close(
        states, recorded["query_hidden_states"], rtol=0, atol=STATE_TOLERANCE
    )


@each_run
def test_features_equal_recorded_features(
    case: Any, published_model: Callable[..., UnifiedModel]
) -> None:
    """A longer prompt in the same batch pads the recorded one on the left."""
    run = Run(case, published_model)
    recorded, model = run.recorded, run.model
    row = run.ids[0].tolist()
    ids, mask = left_pad([row, [*row[:3], *row]], run.settings["token_ids"]["pad"])
    images = run.images
    if images is not None:
        images = VisionInputs(
            patches=images.patches.repeat(2, 1), grid_thw=images.grid_thw.repeat(2, 1)
        )
    timesteps: list[int] = []
    model.get_submodule(
        "generator.dit.time_caption_embed.timestep_embedder"
    ).register_forward_pre_hook(lambda _, inputs: timesteps.extend(inputs[0].int().tolist()))
    with torch.no_grad():
        states = condition(model, ids, mask, images)
        features = run.sample(states, recorded["initial_noise"].repeat(2, 1, 1, 1))
    assert timesteps == run.facts["dit_timesteps"]
    torch.testing.assert_close(
        features[:1], recorded["output_features"], rtol=0, atol=FEATURE_TOLERANCE
    )


@each_run
def test_features_of_a_quantized_backbone(
    case: Any,
    quantized: Callable[[UnifiedModel], float],
    published_model: Callable[..., UnifiedModel],
    say_error: Callable[[str, float, float], None],
) -> None:
    """Only guidance amplifies the error of the condition, by the guidance scale.

    Without guidance, the features may have `LEAST_GROWTH` times the error of the condition.
    """
    run = Run(case, published_model)
    bound = quantized(run.model)
    mask = torch.ones_like(run.ids, dtype=torch.bool)
    with torch.no_grad():
        states = condition(run.model, run.ids, mask, run.images)
        features = run.sample(states, run.recorded["initial_noise"])
    error = relative_error(states, run.recorded["query_hidden_states"])
    say_error("query states", error, bound)
    assert 0 < error < bound
    feature_error = relative_error(features, run.recorded["output_features"])
    bound = max(run.facts["guidance_scale"], LEAST_GROWTH) * error
    say_error("features", feature_error, bound)
    assert feature_error < bound


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())
