"""The VAE's objective: its loss, its noise and its gradients."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from blip3o.core.config import evolve
from blip3o.core.errors import UsageError
from blip3o.core.rng import sample_normal
from blip3o.core.types import Batch
from blip3o.models.autoencoders import DcAutoencoderConfig, KlAutoencoderConfig
from blip3o.models.encoders.vae import VaeEncoder
from blip3o.models.unified import UnifiedModel, UnifiedModelConfig
from blip3o.objectives.autoencoding import Autoencoding, AutoencodingConfig

MakeBatch = Callable[..., Batch]
DC = DcAutoencoderConfig.tiny()


def build(model: UnifiedModel, **settings: Any) -> Autoencoding:
    return AutoencodingConfig(**settings).build(model.config)


def with_autoencoder(model: UnifiedModel, autoencoder: Any) -> UnifiedModel:
    torch.manual_seed(0)
    halves = ("image_encoder.autoencoder", "image_decoder.autoencoder")
    return evolve(model.config, {f"{half}": autoencoder for half in halves}).build()


def test_the_loss_is_the_absolute_error_and_a_little_divergence(
    vae_model: UnifiedModel, make_batch: MakeBatch
) -> None:
    """Compared with diffusers' own posterior and with torch's own divergence of Gaussians."""
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    batch, model = make_batch([3, 9], "reconstruct"), vae_model
    assert batch.target_pixels is not None
    assert isinstance(model.image_encoder, VaeEncoder)
    with torch.no_grad():
        moments = model.image_encoder.encoder(batch.target_pixels)
        assert model.image_encoder.quant_conv is not None
        posterior = DiagonalGaussianDistribution(model.image_encoder.quant_conv(moments))
        noise = sample_normal((4, 8, 8), 5, "posterior", batch.epochs, batch.indices)
        latents = posterior.mean + posterior.std * noise
        whole: Any = model.image_decoder
        error = whole.vae.decode(latents).sample - batch.target_pixels
        loss = build(model, kl_weight=0.5)(model, batch, 5)
    own = torch.distributions.Normal(posterior.mean, posterior.std)
    standard = torch.distributions.Normal(torch.zeros(()), torch.ones(()))
    divergence = torch.distributions.kl_divergence(own, standard).sum()
    torch.testing.assert_close(loss.loss_sum, error.abs().sum() + 0.5 * divergence)
    assert loss.count == 2 * 3 * 16 * 16
    assert float(loss.metrics["pixel_mse"][0]) == pytest.approx(float(error.square().sum()))
    assert loss.metrics["kl"] == (pytest.approx(float(divergence)), 2 * 4 * 8 * 8)


def test_values_outside_the_range_of_pixels_are_errors(
    vae_model: UnifiedModel, make_batch: MakeBatch
) -> None:
    batch = make_batch([1], "reconstruct")
    whole: Any = vae_model.image_decoder
    with torch.no_grad():
        whole.vae.decoder.conv_out.bias += 50.0
    loss = build(vae_model)(vae_model, batch, 0)
    assert float(loss.loss_sum.detach()) / loss.count > 40
    loss.loss_sum.backward()
    assert float(whole.vae.decoder.conv_out.bias.grad.abs().sum()) > 0


def test_a_dc_autoencoder_has_neither_noise_nor_divergence(
    vae_model: UnifiedModel, make_batch: MakeBatch
) -> None:
    model = with_autoencoder(vae_model, DC)
    batch = make_batch([1, 2], "reconstruct")
    first, second = (build(model, kl_weight=w)(model, batch, s) for w, s in ((0.0, 0), (9.0, 1)))
    assert float(first.loss_sum) == float(second.loss_sum)
    assert "kl" not in first.metrics


@pytest.mark.parametrize("autoencoder", [KlAutoencoderConfig.tiny(shift_factor=0.1), DC])
def test_gradient_reaches_both_halves_and_nothing_else(
    autoencoder: Any, vae_model: UnifiedModel, make_batch: MakeBatch
) -> None:
    model = with_autoencoder(vae_model, autoencoder)
    build(model)(model, make_batch([1, 2], "reconstruct"), 0).loss_sum.backward()
    for name, parameter in model.named_parameters():
        is_half = name.startswith(("image_encoder.", "image_decoder."))
        assert (parameter.grad is not None) == is_half, name
        # Softmax is invariant to a bias that all keys share.
        if is_half and not name.endswith("to_k.bias"):
            assert float(parameter.grad.abs().sum()) > 0, name  # pyrefly: ignore


def test_both_halves_learn(vae_model: UnifiedModel, make_batch: MakeBatch) -> None:
    batch, losses = make_batch([1, 2], "reconstruct"), list[float]()
    halves = [*vae_model.image_encoder.parameters(), *vae_model.image_decoder.parameters()]
    optimizer = torch.optim.AdamW(halves, lr=1e-2)
    for step in range(40):
        optimizer.zero_grad()
        loss = build(vae_model)(vae_model, batch, step)
        loss.loss_sum.backward()
        optimizer.step()
        losses.append(float(loss.loss_sum.detach()) / loss.count)
    assert losses[-1] < 0.8 * losses[0]


def test_parts_that_are_not_one_vae_are_refused(
    model: UnifiedModel, vae_model: UnifiedModel
) -> None:
    with pytest.raises(UsageError, match=r"not 'siglip2' with 'pocket'") as caught:
        build(model)
    assert "\n" not in str(caught.value)
    changed = {"image_decoder.autoencoder.norm_num_groups": 4}
    config: UnifiedModelConfig = evolve(vae_model.config, changed)
    with pytest.raises(UsageError, match="needs one autoencoder"):
        AutoencodingConfig().build(config)


def test_a_batch_without_pixels_is_refused(vae_model: UnifiedModel, make_batch: MakeBatch) -> None:
    batch = dataclasses.replace(make_batch([1], "reconstruct"), target_pixels=None)
    with pytest.raises(ValueError, match="'reconstruct' batch needs target pixels"):
        build(vae_model)(vae_model, batch, 0)
