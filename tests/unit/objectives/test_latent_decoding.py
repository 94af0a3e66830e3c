"""The objective of latent diffusion decoders: its loss by formula, dropout, sizes and gradients."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from blip3o.core.errors import UsageError
from blip3o.core.rng import sample_normal, sample_uniform
from blip3o.core.types import Batch
from blip3o.flow.sigmas import DiscreteUniformSigmas
from blip3o.models.decoders import DECODERS
from blip3o.models.protocols import LatentPredictor
from blip3o.models.unified import UnifiedModel
from blip3o.objectives.latent_decoding import LatentDecoding, LatentDecodingConfig

MakeBatch = Callable[..., Batch]
KINDS = [name for name in DECODERS.names() if DECODERS.get(name).tiny().predicts_latents]


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest, make_model: Callable[[str], UnifiedModel]) -> Any:
    """The tiny model with each decoder that predicts latents."""
    return make_model(request.param)


def build(model: UnifiedModel, **settings: Any) -> LatentDecoding:
    objective = LatentDecodingConfig(sigmas=DiscreteUniformSigmas(), **settings).build(model.config)
    objective.prepare(model)
    return objective


def decoder_of(model: UnifiedModel) -> LatentPredictor:
    assert isinstance(model.image_decoder, LatentPredictor)
    return model.image_decoder


def diffusers_latents(decoder: Any, pixels: Tensor) -> Tensor:
    """The latents by diffusers' own methods, normalized as its pipelines do it."""
    encoded = decoder.vae.encode(pixels, return_dict=False)[0]
    latents = encoded if isinstance(encoded, Tensor) else encoded.mode()
    config = decoder.vae.config
    return (latents - (config.get("shift_factor") or 0.0)) * config.scaling_factor


def diffusers_target(decoder: Any, clean: Tensor, noise: Tensor, index: Tensor) -> Any:
    """Noisy latents, timesteps and targets by diffusers' training schedulers.

    `index` counts trained steps from the noisiest.
    """
    from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

    if decoder.config.scheduler["prediction_type"] == "flow_prediction":
        flow: Any = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000)
        timesteps = flow.timesteps[index]
        return flow.scale_noise(clean, timesteps, noise), timesteps, noise - clean
    ddpm: Any = DDPMScheduler.from_config(decoder.scheduler.config)
    timesteps = 999 - index
    return ddpm.add_noise(clean, noise, timesteps), timesteps, noise


def test_the_loss_equals_that_of_diffusers_schedulers(
    model: UnifiedModel, make_batch: MakeBatch
) -> None:
    batch, decoder = make_batch(list(range(8)), "reconstruct"), decoder_of(model)
    pixels, keys = batch.target_pixels, (batch.epochs, batch.indices)
    assert pixels is not None
    loss = build(model, condition_dropout=0.3)(model, batch, 5)
    loss_sum = loss.loss_sum.detach()
    clean = diffusers_latents(decoder, pixels)
    noise = sample_normal(clean.shape[1:], 5, "latent_noise", *keys)
    index = (1000 * sample_uniform(5, "latent_sigma", *keys)).long()
    noisy, timesteps, target = diffusers_target(decoder, clean, noise, index)
    assert batch.target_features is not None
    features = model.normalizer(batch.target_features)
    dropped = sample_uniform(5, "condition_dropout", *keys) < 0.3
    assert 0 < int(dropped.sum()) < 8
    black = model.normalizer(model.encode_images(torch.full((1, 3, 16, 16), -1.0)))
    features[dropped] = black.expand_as(features)[dropped]
    predicted = decoder.predict(noisy, timesteps, features)
    expected = torch.nn.functional.mse_loss(predicted, target)
    assert float(loss_sum) / loss.count == pytest.approx(float(expected.detach()), rel=1e-4)
    assert loss.count == target.numel()


def test_features_are_those_of_the_frozen_encoder(
    model: UnifiedModel, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, seen = make_batch([1, 2], "reconstruct"), []
    assert batch.target_pixels is not None
    raw = model.encode_images(batch.target_pixels)

    def watch(noisy: Tensor, timestep: Tensor, features: Tensor) -> Tensor:
        seen.append(features)
        return noisy

    monkeypatch.setattr(model.image_decoder, "predict", watch)
    objective = build(model, condition_dropout=0.0)
    objective(model, dataclasses.replace(batch, target_features=None), 0)
    objective(model, dataclasses.replace(batch, target_features=raw), 0)
    assert torch.equal(seen[0], model.normalizer(raw))
    assert torch.equal(seen[1], seen[0])


def test_sampling_leads_away_from_the_condition_that_dropout_trains(
    model: UnifiedModel, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []

    def watch(noisy: Tensor, timestep: Tensor, features: Tensor) -> Tensor:
        seen.append(features)
        return noisy

    monkeypatch.setattr(model.image_decoder, "predict", watch)
    batch = make_batch([1, 2], "reconstruct")
    build(model, condition_dropout=1.0)(model, batch, 0)
    empty = decoder_of(model).empty_features
    assert float(empty.abs().sum()) > 0
    assert torch.equal(seen[0], empty.expand_as(seen[0]))
    name = "image_decoder.empty_features"  # saved with the model
    assert torch.equal(model.state_dict()[name], empty)


def test_a_perfect_network_has_no_loss(
    model: UnifiedModel, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder, targets = decoder_of(model), []
    plain = decoder.add_noise

    def keep(*arguments: Tensor) -> Any:
        targets.append(plain(*arguments))
        return targets[-1]

    monkeypatch.setattr(decoder, "add_noise", keep)
    monkeypatch.setattr(decoder, "predict", lambda *_: targets[-1].target)
    assert float(build(model)(model, make_batch([1, 2], "reconstruct"), 0).loss_sum) == 0.0


def test_gradient_reaches_the_network_and_not_the_vae(
    model: UnifiedModel, make_batch: MakeBatch
) -> None:
    model.requires_grad_()  # as if a recipe named all parts
    build(model)(model, make_batch([1, 2], "reconstruct"), 0).loss_sum.backward()
    for name, parameter in model.named_parameters():
        is_trained = name.startswith("image_decoder.") and ".vae." not in name
        assert (parameter.grad is not None) == is_trained, name


def test_the_decoder_may_have_another_image_size(
    model: UnifiedModel, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = make_batch([1, 2], "reconstruct")
    decoder = decoder_of(model)
    seen: list[Tensor] = []
    plain = decoder.encode_latents
    monkeypatch.setattr(
        decoder, "encode_latents", lambda pixels: seen.append(pixels) or plain(pixels)
    )
    larger = torch.randn(2, 3, 16, 16)
    batch = dataclasses.replace(batch, decoder_pixels=larger, target_features=None)
    build(model)(model, batch, 0)
    assert seen[0] is larger


def test_a_batch_without_pixels_is_refused(model: UnifiedModel, make_batch: MakeBatch) -> None:
    batch = dataclasses.replace(make_batch([1], "reconstruct"), target_pixels=None)
    with pytest.raises(ValueError, match="'reconstruct' batch needs target pixels"):
        build(model)(model, batch, 0)


def test_a_decoder_of_another_kind_is_refused(make_model: Callable[[str], UnifiedModel]) -> None:
    with pytest.raises(UsageError, match="not 'pocket'"):
        build(make_model("pocket"))


def test_an_sdxl_decoder_that_predicts_no_noise_is_refused(
    make_model: Callable[[str], UnifiedModel], make_batch: MakeBatch
) -> None:
    model: Any = make_model("sdxl")
    settings = {**model.image_decoder.config.scheduler, "prediction_type": "v_prediction"}
    model.image_decoder.config = dataclasses.replace(model.image_decoder.config, scheduler=settings)
    with pytest.raises(UsageError, match="prediction_type 'v_prediction'"):
        build(model)(model, make_batch([1], "reconstruct"), 0)
