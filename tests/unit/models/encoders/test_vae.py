"""The features of the VAE encoder are diffusers' normalized latents and convert back to them."""

import dataclasses
import sys
from typing import Any

import pytest
import torch

from blip3o.core.config import from_dict, to_dict
from blip3o.core.errors import UsageError
from blip3o.models.autoencoders import (
    AutoencoderConfig,
    DcAutoencoderConfig,
    KlAutoencoderConfig,
    features_to_latents,
)
from blip3o.models.encoders.vae import VaeEncoderConfig

KL = KlAutoencoderConfig.tiny(shift_factor=0.1)
DC = dataclasses.replace(DcAutoencoderConfig.tiny(), shift_factor=0.2)
each_autoencoder = pytest.mark.parametrize(
    "autoencoder", [KL, dataclasses.replace(KL, use_quant_conv=False), DC], ids=["kl", "flux", "dc"]
)


@each_autoencoder
def test_features_are_the_latents_that_diffusers_decodes(autoencoder: AutoencoderConfig) -> None:
    torch.manual_seed(0)
    whole: Any = autoencoder.build().eval()
    encoder = VaeEncoderConfig(image_px=16, autoencoder=autoencoder).build().eval()
    missing, extra = encoder.load_state_dict(whole.state_dict(), strict=False)
    assert not missing
    assert all(name.startswith(("decoder.", "post_quant_conv.")) for name in extra)
    pixels = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        features = encoder(pixels)
        code = whole.encode(pixels)
        latents = code.latent if autoencoder is DC else code.latent_dist.mode()
        restored = features_to_latents(features, autoencoder, encoder.config.grid)
    torch.testing.assert_close(restored, latents, rtol=0, atol=1e-6)
    second = (latents[:, :, 0, 1] - autoencoder.shift_factor) * autoencoder.scaling_factor
    torch.testing.assert_close(features[:, 1], second, rtol=0, atol=1e-6)


def test_autoencoders_of_both_kinds_round_trip_through_plain_data() -> None:
    for autoencoder in (
        KlAutoencoderConfig.sdxl(),
        KlAutoencoderConfig.flux(),
        DcAutoencoderConfig.sana(),
    ):
        config = VaeEncoderConfig(image_px=512, autoencoder=autoencoder)
        assert from_dict(VaeEncoderConfig, to_dict(config)) == config


def test_published_grids() -> None:
    for autoencoder, grid, channels in (
        (KlAutoencoderConfig.sdxl(), 64, 4),
        (KlAutoencoderConfig.flux(), 64, 16),
        (DcAutoencoderConfig.sana(), 16, 32),
    ):
        config = VaeEncoderConfig(image_px=512, autoencoder=autoencoder)
        assert (config.grid, config.num_channels) == (grid, channels)


def test_a_size_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"downsampling \(32\)"):
        VaeEncoderConfig(image_px=80, autoencoder=DcAutoencoderConfig.sana())


def test_without_diffusers_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UsageError, match=r"blip3o\[sdxl\]"):
        VaeEncoderConfig.tiny().build()
