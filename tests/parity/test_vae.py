"""VAE encoders against recorded latents (families `sdxl_decoder` and `siglip2_sana`)."""

from typing import Any

import pytest
import torch

from blip3o.models.autoencoders import (
    AutoencoderConfig,
    DcAutoencoderConfig,
    KlAutoencoderConfig,
    features_to_latents,
)
from blip3o.models.encoders.vae import VaeEncoder, VaeEncoderConfig

TOLERANCE = 5e-5


def load(autoencoder: AutoencoderConfig, image_px: int, weights: dict[str, Any]) -> VaeEncoder:
    """Returns the encoder with the encoder half of the recorded autoencoder weights."""
    encoder = VaeEncoderConfig(image_px=image_px, autoencoder=autoencoder).build()
    other_half = ("decoder.", "post_quant_conv.")
    half = {name: value for name, value in weights.items() if not name.startswith(other_half)}
    encoder.load_state_dict(half, strict=True)
    return encoder.eval()


def dc_from(recorded: dict[str, Any]) -> DcAutoencoderConfig:
    return DcAutoencoderConfig(
        latent_channels=recorded["latent_channels"],
        attention_head_dim=recorded["attention_head_dim"],
        block_types=tuple(recorded["encoder_block_types"]),
        block_out_channels=tuple(recorded["encoder_block_out_channels"]),
        encoder_layers_per_block=tuple(recorded["encoder_layers_per_block"]),
        decoder_layers_per_block=tuple(recorded["decoder_layers_per_block"]),
        qkv_multiscales=tuple(map(tuple, recorded["encoder_qkv_multiscales"])),
        downsample_block_type=recorded["downsample_block_type"],
        upsample_block_type=recorded["upsample_block_type"],
        scaling_factor=recorded["scaling_factor"],
    )


@pytest.mark.parity_cases("sdxl_decoder/vae_weights.safetensors")
def test_kl_features_equal_the_recorded_posterior_mean(case: Any) -> None:
    recorded = case.neighbor("single_forward.safetensors").tensors()
    settings = case.neighbor("decoder.json").settings()["vae_config"]
    config = KlAutoencoderConfig(
        latent_channels=settings["latent_channels"],
        block_out_channels=tuple(settings["block_out_channels"]),
        layers_per_block=settings["layers_per_block"],
        norm_num_groups=settings["norm_num_groups"],
        scaling_factor=settings["scaling_factor"],
        shift_factor=settings.get("shift_factor") or 0.0,
    )
    encoder = load(config, recorded["vae.image"].shape[-1], case.tensors())
    with torch.no_grad():
        features = encoder(recorded["vae.image"])
    latents = features_to_latents(features, config, encoder.config.grid)
    torch.testing.assert_close(latents, recorded["vae.posterior_mean"], rtol=0, atol=TOLERANCE)


@pytest.mark.parity_cases("siglip2_sana/parts*.safetensors")
def test_dc_features_equal_recorded_latents(case: Any) -> None:
    recorded = case.tensors()
    settings = case.neighbor("sana.json").settings()["autoencoder_dc_config"]
    config = dc_from(settings)
    weights = case.neighbor("weights.safetensors").tensors()
    half = {name[4:]: value for name, value in weights.items() if name.startswith("vae.")}
    encoder = load(config, recorded["ae.encode_input"].shape[-1], half)
    with torch.no_grad():
        features = encoder(recorded["ae.encode_input"])
    latents = features_to_latents(features, config, encoder.config.grid)
    torch.testing.assert_close(latents, recorded["ae.encode_output"], rtol=0, atol=TOLERANCE)


@pytest.mark.parity_cases("manifests/siglip2_sana*.json")
def test_published_dc_names_and_shapes(case: Any) -> None:
    manifest = case.settings()
    assert dc_from(manifest["config"]["autoencoder_dc"]) == DcAutoencoderConfig.sana()
    with torch.device("meta"):
        autoencoder = DcAutoencoderConfig.sana().build()
        config = VaeEncoderConfig(image_px=512, autoencoder=DcAutoencoderConfig.sana())
        half = config.build().state_dict()
    shapes = {f"vae.{name}": list(v.shape) for name, v in autoencoder.state_dict().items()}
    published = manifest["weights"]
    assert shapes == {n: shape for n, shape in published.items() if n.startswith("vae.")}
    encoder_names = {n.removeprefix("vae.") for n in published if n.startswith("vae.encoder.")}
    assert half.keys() == encoder_names
