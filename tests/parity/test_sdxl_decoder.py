"""The SDXL-shaped decoder against recorded outputs of the released system (`sdxl_decoder`)."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from blip3o.core.config import from_dict
from blip3o.imaging.pixels import to_image
from blip3o.models.autoencoders import KlAutoencoderConfig, latents_to_features
from blip3o.models.decoders.latent_diffusion import start_scheduler
from blip3o.models.decoders.sdxl import SdxlDecoder, SdxlDecoderConfig
from blip3o.models.decoders.vae import VaeDecoderConfig
from blip3o.weights import published_decoder
from blip3o.weights.shards import read

LATENTS_TOLERANCE = 5e-4
UNET_TOLERANCE = 5e-5
IMAGE_TOLERANCE = 5e-5  # for pixels in [0, 1]

each_run = pytest.mark.parity_cases("sdxl_decoder/run_*.safetensors")
each_part = pytest.mark.parity_cases("sdxl_decoder/single_forward*.safetensors")


def run_settings(case: Any) -> dict[str, Any]:
    settings = case.neighbor("decoder.json").settings()
    return settings["runs"][case.path.stem.removeprefix("run_")]


def vae_config_from(recorded: dict[str, Any]) -> KlAutoencoderConfig:
    return KlAutoencoderConfig(
        latent_channels=recorded["latent_channels"],
        block_out_channels=tuple(recorded["block_out_channels"]),
        layers_per_block=recorded["layers_per_block"],
        norm_num_groups=recorded["norm_num_groups"],
        scaling_factor=recorded["scaling_factor"],
        shift_factor=recorded.get("shift_factor") or 0.0,
    )


def config_from(recorded: dict[str, Any], num_tokens: int) -> SdxlDecoderConfig:
    unet = recorded["unet_config"]
    config = SdxlDecoderConfig(
        feature_channels=unet["cross_attention_dim"],
        grid=round(num_tokens**0.5),
        sample_size=unet["sample_size"],
        block_out_channels=tuple(unet["block_out_channels"]),
        layers_per_block=unet["layers_per_block"],
        transformer_layers_per_block=tuple(unet["transformer_layers_per_block"]),
        num_heads=tuple(unet["attention_head_dim"]),
        time_id_size=unet["addition_time_embed_dim"],
        norm_num_groups=unet["norm_num_groups"],
        autoencoder=vae_config_from(recorded["vae_config"]),
    )
    with torch.device("meta"):
        built = config.build().unet.config
    for name, value in unet.items():
        assert built[name] == (tuple(value) if isinstance(built[name], tuple) else value), name
    return config


def load(case: Any, num_tokens: int) -> SdxlDecoder:
    decoder = config_from(case.neighbor("decoder.json").settings(), num_tokens).build()
    weights = {"empty_features": torch.zeros_like(decoder.empty_features)}
    for part in ("unet", "vae"):
        recorded = case.neighbor(f"{part}_weights.safetensors").tensors()
        weights |= {f"{part}.{name}": value for name, value in recorded.items()}
    decoder.load_state_dict(weights, strict=True)
    return decoder.eval()


def load_run(case: Any) -> SdxlDecoder:
    """Returns the decoder with the settings of a recorded run and its empty condition."""
    recorded, run = case.tensors(), run_settings(case)
    decoder = load(case, recorded["cond_features"].shape[1])
    scheduler = {name: value for name, value in run["scheduler"].items() if name != "class"}
    decoder.config = dataclasses.replace(
        decoder.config,
        guidance_scale=run["guidance_scale"],
        original_size=tuple(run["original_size"]),
        crop=tuple(run["crop_info"]),
        scheduler={"_class_name": run["scheduler"]["class"], **scheduler},
        sampler="published",
    )
    again = decoder.config.build()
    again.load_state_dict(decoder.state_dict(), strict=True)
    if "uncond_features" in recorded:  # a run without guidance may have none
        again.empty_features.copy_(recorded["uncond_features"][0])
    return again.eval()


def assert_near(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


@each_part
def test_unet_and_vae_equal_recorded_outputs(case: Any) -> None:
    recorded = case.tensors()
    decoder = load(case, recorded["unet.encoder_hidden_states"].shape[1])
    with torch.no_grad():
        predicted = decoder.unet(
            recorded["unet.sample"],
            recorded["unet.timestep"],
            encoder_hidden_states=recorded["unet.encoder_hidden_states"],
            added_cond_kwargs={
                "text_embeds": recorded["unet.text_embeds"],
                "time_ids": recorded["unet.time_ids"],
            },
        ).sample
        pixels = decoder.vae.decode(recorded["vae.decode_input"], return_dict=False)[0]
    assert_near(predicted, recorded["unet.output"], UNET_TOLERANCE)
    assert_near(pixels, recorded["vae.decode_output"], IMAGE_TOLERANCE)


@each_part
def test_training_sees_the_recorded_latents(case: Any) -> None:
    """The mean of the posterior, scaled as the decoder's diffusion has it."""
    recorded = case.tensors()
    decoder = load(case, recorded["unet.encoder_hidden_states"].shape[1])
    with torch.no_grad():
        latents = decoder.encode_latents(recorded["vae.image"])
    scale = case.neighbor("decoder.json").settings()["vae_config"]["scaling_factor"]
    assert_near(latents, scale * recorded["vae.posterior_mean"], LATENTS_TOLERANCE * scale)


@each_run
def test_training_sees_the_recorded_prediction(case: Any) -> None:
    """A batch with a timestep for each row, as `latent_decoding` has it, in one call."""
    recorded, run, decoder = case.tensors(), run_settings(case), load_run(case)
    noise = recorded["initial_noise_before_scaling"]
    scheduler: Any = start_scheduler(decoder.scheduler, run["num_inference_steps"], noise.device)
    timestep = scheduler.timesteps[0]
    noisy = scheduler.scale_model_input(noise * scheduler.init_noise_sigma, timestep)
    rows = [recorded["cond_features"], recorded["uncond_features"]]
    with torch.no_grad():
        both = decoder.predict(
            noisy.repeat(2, 1, 1, 1), timestep.long().expand(2 * len(noise)), torch.cat(rows)
        )
    conditional, empty = both.chunk(2)
    guided = empty + run["guidance_scale"] * (conditional - empty)
    assert_near(guided, recorded["guided_noise_prediction_step_01"], UNET_TOLERANCE)


@each_part
def test_vae_decoder_equals_recorded_pixels(case: Any) -> None:
    recorded = case.tensors()
    settings = case.neighbor("decoder.json").settings()["vae_config"]
    side = recorded["vae.decode_output"].shape[-1]
    config = VaeDecoderConfig(image_px=side, autoencoder=vae_config_from(settings))
    decoder = config.build().eval()
    weights = case.neighbor("vae_weights.safetensors").tensors()
    half = {f"vae.{n}": v for n, v in weights.items() if not n.startswith(("encoder.", "quant_"))}
    decoder.load_state_dict(half, strict=True)
    features = latents_to_features(recorded["vae.decode_input"], config.autoencoder)
    with torch.no_grad():
        pixels = decoder.decode(features, torch.empty(len(features), *config.noise_shape), 1)
    assert_near(pixels, recorded["vae.decode_output"].clamp(-1, 1), IMAGE_TOLERANCE)


@each_run
def test_scheduler_uses_the_recorded_noise_levels(case: Any) -> None:
    run, recorded = run_settings(case), case.tensors()
    decoder = load_run(case)
    steps = run["num_inference_steps"]
    scheduler: Any = start_scheduler(decoder.scheduler, steps, torch.device("cpu"))
    assert scheduler.timesteps.tolist() == run["timesteps"]
    assert float(scheduler.init_noise_sigma) == pytest.approx(run["init_noise_sigma"], rel=1e-6)
    torch.testing.assert_close(scheduler.sigmas, recorded["sigmas"], rtol=1e-6, atol=0)


@each_run
def test_unet_inputs_equal_recorded_inputs(case: Any) -> None:
    """The condition comes first in the batch; the mean of its tokens replaces the pooled text."""
    recorded, run = case.tensors(), run_settings(case)
    decoder = load_run(case)
    calls: list[tuple[dict[str, Any], Tensor]] = []
    decoder.unet.register_forward_hook(
        lambda _, __, options, output: calls.append((options, output[0])), with_kwargs=True
    )
    noise = recorded["initial_noise_before_scaling"]
    with torch.no_grad():
        decoder.sample_latents(recorded["cond_features"], noise, run["num_inference_steps"])
    assert len(calls) == run["num_inference_steps"]
    added, both = calls[0][0]["added_cond_kwargs"], calls[0][1]
    assert len(both) == run["unet_batch"]
    assert added["time_ids"].flatten().tolist() == recorded["time_ids_passed"].tolist()
    assert_near(added["text_embeds"], recorded["text_embeds_passed"], 1e-6)
    guided = both
    if len(both) > len(noise):
        conditional, empty = both.chunk(2)
        guided = empty + run["guidance_scale"] * (conditional - empty)
    assert_near(guided, recorded["guided_noise_prediction_step_01"], UNET_TOLERANCE)


@each_run
def test_latents_equal_recorded_latents(case: Any) -> None:
    recorded, run = case.tensors(), run_settings(case)
    states: dict[str, Tensor] = {}

    def keep(step: int, latents: Tensor) -> None:
        states[f"latents_after_step_{step:02d}"] = latents

    noise = recorded["initial_noise_before_scaling"]
    with torch.no_grad():
        final = load_run(case).sample_latents(
            recorded["cond_features"], noise, run["num_inference_steps"], callback=keep
        )
    compared = [name for name in recorded if name.startswith("latents_after_step_")]
    assert compared
    for name in compared:
        assert_near(states[name], recorded[name], LATENTS_TOLERANCE)
    assert_near(final, recorded["final_latents"], LATENTS_TOLERANCE)


@each_run
def test_images_equal_recorded_images(case: Any) -> None:
    recorded, run = case.tensors(), run_settings(case)
    noise = recorded["initial_noise_before_scaling"]
    with torch.no_grad():
        pixels = load_run(case).decode(recorded["cond_features"], noise, run["num_inference_steps"])
    expected = recorded["decoded_image_0_to_1_nhwc"]
    assert_near(((pixels + 1) / 2).permute(0, 2, 3, 1), expected, IMAGE_TOLERANCE)
    levels = np.asarray(to_image(pixels[0])).astype(int)
    assert np.abs(levels - recorded["image_uint8_hwc"].numpy().astype(int)).max() <= 1


@each_run
def test_a_published_folder_gives_the_recorded_images(case: Any, tmp_path: Path) -> None:
    """The production loader reads diffusers files and the decoder generates pixels."""
    recorded, run, settings = case.tensors(), run_settings(case), case.neighbor("decoder.json")
    scheduler = {"_class_name": run["scheduler"]["class"], **run["scheduler"]}
    configs = {
        "unet/config.json": settings.settings()["unet_config"],
        "vae/config.json": settings.settings()["vae_config"],
        "scheduler/scheduler_config.json": {k: v for k, v in scheduler.items() if k != "class"},
    }
    for name, content in configs.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(json.dumps(content))
    for part in ("unet", "vae"):
        weights = case.path.with_name(f"{part}_weights.safetensors")
        shutil.copyfile(weights, tmp_path / part / "diffusion_pytorch_model.safetensors")
    grid = round(recorded["cond_features"].shape[1] ** 0.5)
    config = dataclasses.replace(
        from_dict(SdxlDecoderConfig, {**published_decoder.read_config(tmp_path), "grid": grid}),
        guidance_scale=run["guidance_scale"],
        original_size=tuple(run["original_size"]),
        crop=tuple(run["crop_info"]),
        sampler="published",
    )
    decoder = config.build().eval()
    found = published_decoder.open_weights(tmp_path, config)
    decoder.load_state_dict({name: read(tensor) for name, tensor in found.items()}, strict=True)
    with torch.no_grad():
        pixels = decoder.decode(
            recorded["cond_features"],
            recorded["initial_noise_before_scaling"],
            run["num_inference_steps"],
            empty_features=recorded.get("uncond_features"),
        )
    expected = recorded["decoded_image_0_to_1_nhwc"]
    assert_near(((pixels + 1) / 2).permute(0, 2, 3, 1), expected, IMAGE_TOLERANCE)


def test_published_sizes() -> None:
    """The released files have 2,525,520,644 and 83,653,863 parameters."""
    config = SdxlDecoderConfig.published()
    assert (config.image_px, config.noise_shape) == (1024, (4, 128, 128))
    with torch.device("meta"):
        decoder = config.build()
    unet = decoder.unet.state_dict()
    assert len(unet) == 1680
    assert sum(value.numel() for value in unet.values()) == 2_525_520_644
    assert unet["add_embedding.linear_1.weight"].shape == (1280, 3328)
    vae = decoder.vae.state_dict()
    assert len(vae) == 248
    assert sum(value.numel() for value in vae.values()) == 83_653_863
