"""Flow matching: target, dropout of conditions, draws, edits and gradients."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from blip3o.core.rng import sample_normal, sample_uniform
from blip3o.core.types import Batch
from blip3o.flow.sigmas import UniformSigmas
from blip3o.models.generators import GENERATORS
from blip3o.models.generators.query_dit import QueryDiT, QueryPlan
from blip3o.models.prompts import PromptImages, Prompts
from blip3o.models.unified import SamplingConfig, UnifiedModel
from blip3o.objectives.flow_matching import FlowMatching, FlowMatchingConfig

MakeBatch = Callable[..., Batch]


def condition(
    model: UnifiedModel, ids: Tensor, mask: Tensor, images: PromptImages | None = None
) -> Tensor:
    """Returns the states at the query tokens."""
    plan = model.plan(Prompts(input_ids=ids, attention_mask=mask, images=images))
    assert isinstance(plan, QueryPlan)
    return plan.states


def build(model: UnifiedModel, **settings: Any) -> FlowMatching:
    return FlowMatchingConfig(sigmas=UniformSigmas(), **settings).build(model.config)


class Watched:
    """Records the inputs of the generator's velocity, and may replace its result."""

    def __init__(self, model: UnifiedModel, monkeypatch: pytest.MonkeyPatch) -> None:
        self.conditions: list[Tensor] = []
        self.references: list[Tensor | None] = []
        self.answer: Callable[[Tensor, Tensor], Tensor] | None = None
        assert isinstance(model.generator, QueryDiT)
        plain = model.generator.velocity

        def velocity(
            noisy: Tensor, sigma: Tensor, states: Tensor, context: Any, reference: Tensor | None
        ) -> Tensor:
            self.conditions.append(states.detach())
            self.references.append(reference)
            if self.answer is not None:
                return self.answer(noisy, sigma)
            return plain(noisy, sigma, states, context, reference)

        monkeypatch.setattr(model.generator, "velocity", velocity)


def test_the_true_velocity_gives_zero(
    model: UnifiedModel, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = make_batch([3, 9])
    assert batch.target_features is not None
    clean = model.normalizer(batch.target_features)
    watched = Watched(model, monkeypatch)
    # noisy = clean + sigma velocity
    watched.answer = lambda noisy, sigma: (noisy - clean) / sigma[:, None, None]
    loss = build(model)(model, batch, 0)
    assert float(loss.loss_sum) / loss.count < 1e-8
    watched.answer = lambda noisy, sigma: torch.zeros_like(noisy)
    assert float(build(model)(model, batch, 0).loss_sum) / loss.count > 0.5


def test_the_loss_is_the_squared_error_to_noise_minus_clean(
    model: UnifiedModel, make_batch: MakeBatch
) -> None:
    batch = make_batch([4, 8, 15])
    assert batch.target_features is not None
    clean = model.normalizer(batch.target_features)
    noise = sample_normal((4, 8), 2, "noise/0", batch.epochs, batch.indices)
    sigma = 1 - sample_uniform(2, "sigma/0", batch.epochs, batch.indices).float()
    noisy = clean * (1 - sigma)[:, None, None] + noise * sigma[:, None, None]
    with torch.no_grad():
        states = condition(model, batch.input_ids, batch.attention_mask)
        assert isinstance(model.generator, QueryDiT)
        error = model.generator.dit.velocity(noisy, sigma, states) - (noise - clean)
        loss = build(model, condition_dropout=0.0)(model, batch, 2)
    torch.testing.assert_close(loss.loss_sum, error.square().sum(), rtol=1e-5, atol=0)
    assert loss.count == clean.numel()


def test_conditions_are_dropped_whole_for_a_tenth_of_the_samples(
    model: UnifiedModel, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(model, monkeypatch)
    watched.answer = lambda noisy, sigma: noisy
    objective = build(model)
    with torch.no_grad():
        for start in (0, 200):
            batch = make_batch([7] * 200)
            batch = dataclasses.replace(batch, indices=torch.arange(start, start + 200))
            objective(model, batch, 0)
    condition = torch.cat(watched.conditions)
    is_empty = (condition == 0).flatten(1).all(1)
    is_whole = (condition != 0).flatten(1).all(1)
    assert bool((is_empty | is_whole).all())
    assert 0.06 < float(is_empty.float().mean()) < 0.14
    assert bool(is_empty[:200].any())
    assert not torch.equal(is_empty[:200], is_empty[200:])


@pytest.mark.parametrize(("dropout", "share"), [(0.0, 0.0), (1.0, 1.0)])
def test_dropout_of_none_and_of_all(
    model: UnifiedModel,
    make_batch: MakeBatch,
    monkeypatch: pytest.MonkeyPatch,
    dropout: float,
    share: float,
) -> None:
    watched = Watched(model, monkeypatch)
    build(model, condition_dropout=dropout)(model, make_batch(list(range(20))), 0)
    is_empty = (watched.conditions[0] == 0).flatten(1).all(1)
    assert float(is_empty.float().mean()) == share


def test_two_draws_are_the_mean_of_two_losses(
    model: UnifiedModel, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = make_batch([1, 2, 3])
    one, both = build(model), build(model, draws=2)
    with torch.no_grad():
        first = one(model, batch, 0)
        draw = one._draw
        monkeypatch.setattr(one, "_draw", lambda b, s, d, c: draw(b, s, d + 1, c))
        second = one(model, batch, 0)
        total = both(model, batch, 0)
    assert float(first.loss_sum) != float(second.loss_sum)
    torch.testing.assert_close(total.loss_sum, first.loss_sum + second.loss_sum)
    assert total.count == first.count + second.count


def test_edits_see_the_image_they_start_from(
    model: UnifiedModel, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(model, monkeypatch)
    batch = make_batch([1, 2, 3], "edit")
    batch = dataclasses.replace(batch, reference_rows=torch.tensor([2, 0, 1]))
    assert batch.prompt_features is not None
    build(model)(model, batch, 0)
    (reference,) = watched.references
    assert reference is not None
    assert torch.equal(reference, model.normalizer(batch.prompt_features[[2, 0, 1]]))


def test_a_dit_without_reference_edits_through_the_backbone_alone(
    model: UnifiedModel, make_batch: MakeBatch
) -> None:
    """The published layout has no reference embedder."""
    generator = dataclasses.replace(model.config.generator, takes_reference=False)
    config = dataclasses.replace(model.config, generator=generator)
    plain = config.build()
    loss = build(plain)(plain, make_batch([1, 2], "edit"), 0)
    assert bool(loss.loss_sum.isfinite())


def test_gradient_reaches_queries_and_dit_and_not_the_frozen_backbone(
    model: UnifiedModel, make_batch: MakeBatch
) -> None:
    for part in (model.backbone, model.image_encoder, model.image_decoder):
        part.requires_grad_(False)
    build(model, condition_dropout=0.0)(model, make_batch([1, 2], "edit"), 0).loss_sum.backward()
    for name, parameter in model.named_parameters():
        if name.startswith("generator."):
            assert parameter.grad is not None, name
            assert float(parameter.grad.abs().sum()) > 0, name
        else:
            assert parameter.grad is None, name


def test_pixels_are_encoded_where_features_are_not_cached(
    model: UnifiedModel, make_batch: MakeBatch
) -> None:
    batch = make_batch([1, 2])
    assert batch.target_pixels is not None
    objective = build(model)
    with torch.no_grad():
        features = model.encode_images(batch.target_pixels)
        cached = objective(model, dataclasses.replace(batch, target_features=features), 0)
        plain = objective(model, dataclasses.replace(batch, target_features=None), 0)
    assert torch.equal(cached.loss_sum, plain.loss_sum)


def test_a_batch_without_a_target_is_refused(model: UnifiedModel, make_batch: MakeBatch) -> None:
    batch = dataclasses.replace(make_batch([1]), target_features=None, target_pixels=None)
    with pytest.raises(ValueError, match="'text_to_image' batch needs target pixels or features"):
        build(model)(model, batch, 0)


def freeze(model: UnifiedModel) -> None:
    """Makes only the weights trainable that the generation stage trains."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("generator."))


@pytest.mark.parametrize("task", ["text_to_image", "edit"])
@pytest.mark.parametrize("plain", [{"prompt_gradient": True}, {"text_weight": 0.0}])
def test_optimizations_change_no_loss_and_no_gradient(
    model: UnifiedModel, make_batch: MakeBatch, task: str, plain: dict[str, float]
) -> None:
    """Each optimization alone, compared with the computation of the released training."""
    freeze(model)
    batch = make_batch([1, 2, 6], task)

    def run(objective: FlowMatching) -> tuple[Tensor, dict[str, Tensor]]:
        model.zero_grad()
        loss = objective(model, batch, 3).loss_sum
        loss.backward()
        return loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    expected, gradients = run(build(model, **plain))
    loss, found = run(build(model))
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    assert found.keys() == gradients.keys()
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, gradient in gradients.items():
        # Some gradients are zero except for rounding: a bias of all keys changes no attention.
        tolerance = 1e-5 * max(float(gradient.abs().max()), 1e-3 * largest)
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=tolerance, msg=name)


def test_gradient_stays_out_of_the_prompt_unless_asked_for(
    model: UnifiedModel, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    freeze(model)
    lengths: list[int] = []
    plain = model.backbone.forward

    def forward(embeds: Tensor, *arguments: Any) -> Tensor:
        lengths.append(embeds.shape[1] if torch.is_grad_enabled() else 0)
        return plain(embeds, *arguments)

    monkeypatch.setattr(model.backbone, "forward", forward)
    batch = make_batch([1])
    build(model)(model, batch, 0)
    build(model, prompt_gradient=True)(model, batch, 0)
    queries = model.config.num_reserved_positions
    assert lengths == [0, queries, batch.input_ids.shape[1] + queries]


def test_logits_are_computed_and_logged_only_where_they_are_asked_for(
    model: UnifiedModel, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = make_batch([1, 2])  # rows of 8 tokens, padded by 1 and by 2
    with torch.no_grad():
        hidden = model.text_states(batch.input_ids, batch.attention_mask)
        known = batch.attention_mask[:, :-1]
        logits = model.backbone.logits(hidden[:, :-1][known])
        expected = torch.nn.functional.cross_entropy(logits, batch.input_ids[:, 1:][known])
        logged = build(model, text_weight=0.0)
        loss, count = logged(model, batch, 0).metrics["text_loss"]
    assert count == 6 + 5
    torch.testing.assert_close(loss / count, expected, rtol=1e-5, atol=0)
    assert logged(model, batch, 0).text_sum is None
    assert logged.text_count(batch) == 0
    monkeypatch.setattr(type(model.backbone), "logits", None)
    assert build(model)(model, batch, 0).metrics == {}


@pytest.mark.parametrize("generator_kind", GENERATORS.names())
def test_the_text_loss_trains_the_words_and_the_image_mark(
    model: UnifiedModel, make_batch: MakeBatch, generator_kind: str
) -> None:
    generator, sampling = GENERATORS.get(generator_kind).tiny(), SamplingConfig(guidance_scale=1)
    config = dataclasses.replace(model.config, generator=generator, sampling=sampling)
    other = config.build().eval()
    batch = make_batch([1, 2])
    other.zero_grad()
    hidden = other.text_states(batch.input_ids, batch.attention_mask)
    known = batch.attention_mask[:, :-1]
    logits = other.backbone.logits(hidden[:, :-1][known])
    torch.nn.functional.cross_entropy(
        logits, batch.input_ids[:, 1:][known], reduction="sum"
    ).backward()
    expected = {n: p.grad for n, p in other.backbone.named_parameters() if p.grad is not None}
    other.zero_grad()
    objective = build(other, text_weight=0.5, condition_dropout=1.0)
    loss = objective(other, batch, 0)
    assert loss.text_sum is not None
    assert objective.text_count(batch) == 6 + 5
    loss.text_sum.backward()
    for name, parameter in other.backbone.named_parameters():
        if name in expected:
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-5)
