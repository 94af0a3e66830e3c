"""SigLIP2 and the SANA decoder against recorded outputs of the released system (`siglip2_sana`)."""

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from blip3o.core.config import to_dict
from blip3o.models.autoencoders import DcAutoencoderConfig, latents_to_features
from blip3o.models.decoders.latent_diffusion import start_scheduler
from blip3o.models.decoders.sana import (
    SanaDecoder,
    SanaDecoderConfig,
)
from blip3o.models.decoders.vae import VaeDecoderConfig
from blip3o.models.encoders.siglip2 import Siglip2Encoder, Siglip2EncoderConfig
from blip3o.weights.siglip2_sana import NAMES, load_siglip2_sana

TOLERANCE = 5e-5
TOWER = "encoder.model.vision_model."

each_parts = pytest.mark.parity_cases("siglip2_sana/parts*.safetensors")
each_run = pytest.mark.parity_cases("siglip2_sana/run_*.safetensors")
each_manifest = pytest.mark.parity_cases("manifests/siglip2_sana*.json")


def recorded_settings(case: Any) -> dict[str, Any]:
    return case.neighbor("sana.json").settings()


def run_settings(case: Any) -> dict[str, Any]:
    return recorded_settings(case)["runs"][case.path.stem.removeprefix("run_")]


def encoder_config_from(recorded: dict[str, Any], skip_last: int) -> Siglip2EncoderConfig:
    assert recorded["hidden_act"] == "gelu_pytorch_tanh"
    assert recorded["layer_norm_eps"] == 1e-6
    return Siglip2EncoderConfig(
        image_px=recorded["image_size"],
        patch_px=recorded["patch_size"],
        hidden_size=recorded["hidden_size"],
        intermediate_size=recorded["intermediate_size"],
        num_layers=recorded["num_hidden_layers"],
        num_heads=recorded["num_attention_heads"],
        skip_last=skip_last,
    )


def autoencoder_config_from(recorded: dict[str, Any]) -> DcAutoencoderConfig:
    for name in ("block_types", "block_out_channels", "qkv_multiscales"):
        assert recorded[f"encoder_{name}"] == recorded[f"decoder_{name}"]
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


def decoder_config_from(
    sana: dict[str, Any], siglip: dict[str, Any], autoencoder: dict[str, Any], sample_size: int
) -> SanaDecoderConfig:
    config = SanaDecoderConfig(
        feature_channels=siglip["hidden_size"],
        grid=siglip["image_size"] // siglip["patch_size"],
        sample_size=sample_size,
        num_layers=sana["num_layers"],
        num_heads=sana["num_attention_heads"],
        head_dim=sana["attention_head_dim"],
        num_cross_heads=sana["num_cross_attention_heads"],
        cross_head_dim=sana["cross_attention_head_dim"],
        caption_channels=sana["caption_channels"],
        mlp_ratio=sana["mlp_ratio"],
        autoencoder=autoencoder_config_from(autoencoder),
    )
    with torch.device("meta"):
        built = config.build().transformer.config
    assert {name: built[name] for name in sana} == sana
    return config


def load_encoder(case: Any, skip_last: int = 1) -> Siglip2Encoder:
    encoder = encoder_config_from(recorded_settings(case)["siglip_config"], skip_last).build()
    weights = case.neighbor("weights.safetensors").tensors()
    tower = {
        name.replace(TOWER, "tower."): value
        for name, value in weights.items()
        if name.startswith(TOWER) and not name.startswith(f"{TOWER}head.")
    }
    encoder.load_state_dict(tower, strict=True)
    return encoder.eval()


def load_decoder(case: Any, **changes: Any) -> SanaDecoder:
    """Returns the decoder with recorded weights; its empty condition encodes a black image."""
    settings = recorded_settings(case)
    config = decoder_config_from(
        settings["sana_config"],
        settings["siglip_config"],
        settings["autoencoder_dc_config"],
        settings["input_size"],
    )
    decoder = dataclasses.replace(config, **changes).build()
    recorded = case.neighbor("weights.safetensors").tensors()
    weights = {
        own.removeprefix("image_decoder."): value
        for name, value in recorded.items()
        if (own := NAMES.ours(name) or "").startswith("image_decoder.")
    }
    encoder = load_encoder(case)
    side = encoder.config.image_px
    with torch.no_grad():
        weights["empty_features"] = encoder(torch.full((1, 3, side, side), -1.0))[0]
    decoder.load_state_dict(weights, strict=True)
    return decoder.eval()


def load_run(case: Any) -> SanaDecoder:
    run = run_settings(case)
    shift = re.search(r"shift=([\d.]+)", run["scheduler"])
    scheduler = {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "num_train_timesteps": 1000,
        "shift": float(shift[1]) if shift else 1.0,
    }
    if run["scheduler"].startswith("dpm_scheduler"):
        recorded = dict(recorded_settings(case)["dpm_scheduler"])
        scheduler = {"_class_name": recorded.pop("class"), **recorded}
    return load_decoder(
        case, scheduler=scheduler, sampler="published", guidance_scale=run["guidance_scale"]
    )


def halves(recorded: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Returns the empty conditions (none without guidance) and the conditions of the images."""
    both, num_images = recorded["z_latents_null_first"], len(recorded["initial_latents"])
    return both[:-num_images], both[-num_images:]


def assert_near(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE)


@each_parts
def test_encoder_equals_recorded_states(case: Any) -> None:
    recorded = case.tensors()
    names = sorted(name for name in recorded if name.startswith("pixels_"))
    pixels = torch.stack([recorded[name] for name in names])
    with torch.no_grad():
        features = load_encoder(case)(pixels)
        last = load_encoder(case, skip_last=0)(pixels)
    assert_near(features, recorded["siglip_hidden_state_minus_2_used_by_decoder"])
    assert_near(features, recorded["encoder_output"])
    assert_near(last, recorded["siglip_last_hidden_state"])


@each_parts
def test_connector_transformer_and_autoencoder_equal_recorded_outputs(case: Any) -> None:
    recorded, decoder = case.tensors(), load_decoder(case)
    vae: Any = decoder.vae
    with torch.no_grad():
        captions = decoder.connector(recorded["encoder_output"])
        velocity = decoder.transformer(
            recorded["sana.x"],
            encoder_hidden_states=recorded["connector_output"],
            timestep=recorded["sana.timestep"],
        ).sample
        latents = vae.encode(recorded["ae.encode_input"]).latent
        pixels = decoder.vae.decode(recorded["ae.decode_input"], return_dict=False)[0]
    assert_near(captions, recorded["connector_output"])
    assert_near(velocity, recorded["sana.output"])
    assert_near(latents, recorded["ae.encode_output"])
    assert_near(pixels, recorded["ae.decode_output"])


@each_parts
def test_training_sees_recorded_latents_and_velocities(case: Any) -> None:
    """The methods that `latent_decoding` calls: the scaled latents, and one call of the network."""
    recorded, decoder = case.tensors(), load_decoder(case)
    with torch.no_grad():
        latents = decoder.encode_latents(recorded["ae.encode_input"])
        velocity = decoder.predict(
            recorded["sana.x"], recorded["sana.timestep"], recorded["encoder_output"]
        )
    scale = recorded_settings(case)["autoencoder_dc_config"]["scaling_factor"]
    assert_near(latents, scale * recorded["ae.encode_output"])
    assert_near(velocity, recorded["sana.output"])


@each_parts
def test_vae_decoder_equals_recorded_pixels(case: Any) -> None:
    recorded = case.tensors()
    settings = recorded_settings(case)["autoencoder_dc_config"]
    side = recorded["ae.decode_output"].shape[-1]
    config = VaeDecoderConfig(image_px=side, autoencoder=autoencoder_config_from(settings))
    decoder = config.build().eval()
    weights = case.neighbor("weights.safetensors").tensors()
    half = {name: value for name, value in weights.items() if name.startswith("vae.decoder.")}
    decoder.load_state_dict(half, strict=True)
    features = latents_to_features(recorded["ae.decode_input"], config.autoencoder)
    with torch.no_grad():
        pixels = decoder.decode(features, torch.empty(len(features), *config.noise_shape), 1)
    assert_near(pixels, recorded["ae.decode_output"].clamp(-1, 1))


@each_run
def test_scheduler_uses_the_recorded_noise_levels(case: Any) -> None:
    run, recorded = run_settings(case), case.tensors()
    steps = run["num_inference_steps"]
    scheduler: Any = start_scheduler(load_run(case).scheduler, steps, torch.device("cpu"))
    assert scheduler.timesteps.tolist() == run["timesteps_given_to_model"]
    torch.testing.assert_close(scheduler.sigmas, recorded["sigmas"], rtol=0, atol=1e-6)


@each_run
def test_features_and_empty_condition_equal_recorded_states(case: Any) -> None:
    """The batch is [black, black, ..., image, image, ...]."""
    recorded = case.tensors()
    parts = case.neighbor("parts.safetensors").tensors()
    pixels = torch.stack([parts[f"pixels_{i}"] for i in run_settings(case)["image_indices"]])
    with torch.no_grad():
        features = load_encoder(case)(pixels)
    empty, conditional = halves(recorded)
    assert_near(features, conditional)
    if len(empty):
        assert_near(load_decoder(case).empty_features.expand_as(features), empty)


@each_run
def test_a_published_folder_gives_the_recorded_images(case: Any, tmp_path: Path) -> None:
    """The production loader reads files with published names and the decoder generates pixels."""
    recorded, run, settings = case.tensors(), run_settings(case), recorded_settings(case)
    encoder = encoder_config_from(settings["siglip_config"], skip_last=1)
    own = {
        "image_encoder": to_dict(dataclasses.replace(encoder, keep_head=True)),
        "image_decoder": to_dict(load_run(case).config),
    }
    data = {"diffusion_model": "sana", "input_size": settings["input_size"], "blip3o": own}
    (tmp_path / "config.json").write_text(json.dumps(data))
    shutil.copyfile(case.path.with_name("weights.safetensors"), tmp_path / "model.safetensors")
    parts = load_siglip2_sana(tmp_path)
    given = case.neighbor("parts.safetensors").tensors()
    pixels = torch.stack([given[f"pixels_{i}"] for i in run["image_indices"]])
    with torch.no_grad():
        features = parts.image_encoder(pixels)
        images = parts.image_decoder.decode(
            features, recorded["initial_latents"], run["num_inference_steps"]
        )
    assert_near(features, halves(recorded)[1])
    assert_near((images + 1) / 2, recorded["decoded_0_to_1_nchw"])


@each_run
def test_runs_equal_recorded_latents_and_images(case: Any) -> None:
    recorded, run, decoder = case.tensors(), run_settings(case), load_run(case)
    features = halves(recorded)[1]
    states: dict[str, Tensor] = {}
    timesteps: list[float] = []
    decoder.transformer.register_forward_pre_hook(
        lambda _, __, options: timesteps.append(float(options["timestep"][0])), with_kwargs=True
    )

    def keep(step: int, latents: Tensor) -> None:
        states[f"latents_after_step_{step:02d}"] = latents

    noise, steps = recorded["initial_latents"], run["num_inference_steps"]
    with torch.no_grad():
        final = decoder.sample_latents(features, noise, steps, callback=keep)
        pixels = decoder.decode(features, noise, steps)
    assert timesteps == 2 * run["timesteps_given_to_model"]
    compared = [name for name in recorded if name.startswith("latents_after_step_")]
    assert compared
    for name in compared:
        assert_near(states[name], recorded[name])
    assert_near(final, recorded["final_latents"])
    assert_near((pixels + 1) / 2, recorded["decoded_0_to_1_nchw"])


@each_manifest
def test_published_names_shapes_and_count(case: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """All published names and shapes agree, including SigLIP2's unused pooling head."""
    manifest = case.settings()
    recorded = manifest["config"]
    config = decoder_config_from(
        recorded["sana"], recorded["siglip"], recorded["autoencoder_dc"], recorded["input_size"]
    )
    assert config == SanaDecoderConfig.published()
    with torch.device("meta"):
        decoder = config.build().state_dict()
        encoder = encoder_config_from(recorded["siglip"], skip_last=1)
        tower = dataclasses.replace(encoder, keep_head=True).build().state_dict()
    decoder.pop("empty_features")  # not published; these are the features of a black image
    ours = {f"image_decoder.{name}": value for name, value in decoder.items()}
    ours |= {f"image_encoder.{name}": value for name, value in tower.items()}
    published = manifest["weights"]
    own = {NAMES.published(name): list(value.shape) for name, value in ours.items()}
    assert own == published
    assert {NAMES.ours(name) for name in published} == ours.keys()
    count = sum(value.numel() for value in ours.values())
    assert count == manifest["n_params"]
    with capsys.disabled():
        print(f"\n{case.path.stem}: {count:,} parameters")  # noqa: T201
    assert len(published) == manifest["n_tensors"]
