"""The decoder's objective: weights, noise on the features and gradients."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from blip3o.core.errors import UsageError
from blip3o.core.rng import sample_uniform
from blip3o.core.types import Batch
from blip3o.flow.sigmas import UniformSigmas
from blip3o.models.decoders.pocket import PocketDecoderConfig
from blip3o.models.unified import UnifiedModel, UnifiedModelConfig
from blip3o.objectives.pixel_decoding import PixelDecoding, PixelDecodingConfig

MakeBatch = Callable[..., Batch]


def build(model: UnifiedModel, **settings: Any) -> PixelDecoding:
    return PixelDecodingConfig(sigmas=UniformSigmas(), **settings).build(model.config)


def test_the_clean_image_gives_zero(
    model: UnifiedModel, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = make_batch([1, 2], "reconstruct")
    monkeypatch.setattr(model.image_decoder, "predict_clean", lambda *_: batch.target_pixels)
    loss = build(model)(model, batch, 0)
    assert float(loss.loss_sum) == 0.0
    assert loss.count == 2 * 3 * 16 * 16


def test_errors_weigh_more_at_little_noise_and_no_more_than_allowed(
    model: UnifiedModel, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = make_batch(list(range(12)), "reconstruct")
    clean = batch.target_pixels
    assert clean is not None
    monkeypatch.setattr(model.image_decoder, "predict_clean", lambda *_: clean + 0.1)
    loss = build(model, min_sigma=0.4)(model, batch, 0)
    sigma = 1 - sample_uniform(0, "pixel_sigma", batch.epochs, batch.indices)
    weights = 1 / sigma.clamp_min(0.4).square()
    assert float(sigma.min()) < 0.4
    assert float(loss.loss_sum) == pytest.approx(float(0.01 * 768 * weights.sum()), rel=1e-4)
    assert float(loss.metrics["pixel_mse"][0]) / loss.count == pytest.approx(0.01, rel=1e-4)


def test_noise_on_the_features_is_between_none_and_the_given_most(
    model: UnifiedModel, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = make_batch(list(range(60)), "reconstruct")
    assert batch.target_features is not None
    seen: list[Tensor] = []

    def watch(noisy: Tensor, sigma: Tensor, features: Tensor) -> Tensor:
        seen.append(features)
        return noisy

    monkeypatch.setattr(model.image_decoder, "predict_clean", watch)
    clean = model.normalizer(batch.target_features)
    build(model)(model, batch, 0)
    assert torch.equal(seen[0], clean)
    build(model, feature_noise=0.5)(model, batch, 0)
    spread = (seen[1] - clean).flatten(1).std(1)
    assert float(spread.min()) < 0.1
    assert 0.35 < float(spread.max()) < 0.7
    assert float(spread.mean()) == pytest.approx(0.25, abs=0.08)


def test_gradient_reaches_the_image_decoder_only(
    model: UnifiedModel, make_batch: MakeBatch
) -> None:
    build(model)(model, make_batch([1, 2], "reconstruct"), 0).loss_sum.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == name.startswith("image_decoder."), name


def test_a_batch_without_pixels_is_refused(model: UnifiedModel, make_batch: MakeBatch) -> None:
    batch = dataclasses.replace(make_batch([1], "reconstruct"), target_pixels=None)
    with pytest.raises(ValueError, match="'reconstruct' batch needs target pixels"):
        build(model)(model, batch, 0)


class VelocityDecoderConfig(PocketDecoderConfig):
    predicts_clean = False


def with_decoder(model: UnifiedModel, config: Any) -> UnifiedModelConfig:
    return dataclasses.replace(model.config, image_decoder=config)


def test_a_decoder_that_does_not_predict_clean_images_is_refused(model: UnifiedModel) -> None:
    fields = dataclasses.asdict(model.config.image_decoder) | {"kind": "velocity"}
    config = with_decoder(model, VelocityDecoderConfig(**fields))
    with pytest.raises(UsageError, match="not 'velocity'"):
        PixelDecodingConfig(sigmas=UniformSigmas()).build(config)


def test_a_new_decoder_that_predicts_clean_images_is_trained(model: UnifiedModel) -> None:
    config = with_decoder(model, dataclasses.replace(model.config.image_decoder, kind="new"))
    assert PixelDecodingConfig(sigmas=UniformSigmas()).build(config).image_px == 16
