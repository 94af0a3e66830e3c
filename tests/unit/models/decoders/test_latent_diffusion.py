"""The diffusion decoders: guidance, schedulers, image sizes, memory use and refused settings."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from blip3o.core.errors import UsageError
from blip3o.generate.pipeline import Blip3oPipeline
from blip3o.models.decoders import DECODERS
from blip3o.models.decoders.latent_diffusion import (
    build_scheduler,
    set_low_memory,
    start_scheduler,
)
from blip3o.models.decoders.sana import SanaDecoderConfig
from blip3o.models.decoders.sdxl import SdxlDecoderConfig
from blip3o.models.decoders.vae import VaeDecoderConfig
from blip3o.models.encoders.normalizer import FeatureNormalizerConfig
from blip3o.models.encoders.vae import VaeEncoderConfig
from blip3o.models.unified import UnifiedModelConfig
from blip3o.text.tokenizer import Tokenizer
from blip3o.weights.folder import load_model, save_model

DIFFUSION = ("sdxl", "sana")
WITH_VAE = (*DIFFUSION, "vae")

each_diffusion = pytest.mark.parametrize("kind", DIFFUSION)
each_with_vae = pytest.mark.parametrize("kind", WITH_VAE)


def build(kind: str, **changes: Any) -> Any:
    """Returns a decoder with random weights, because fresh gates may be zero."""
    torch.manual_seed(0)
    decoder = dataclasses.replace(DECODERS.get(kind).tiny(), **changes).build().eval()
    for parameter in decoder.parameters():
        nn.init.normal_(parameter, std=0.3)
    return decoder


def inputs(decoder: Any, rows: int = 2) -> tuple[Tensor, Tensor]:
    config, g = decoder.config, torch.Generator().manual_seed(1)
    features = torch.randn(rows, config.grid**2, config.feature_channels, generator=g)
    return features, torch.randn(rows, *config.noise_shape, generator=g)


def assert_near(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


@each_diffusion
def test_guidance_leads_away_from_the_empty_features(kind: str) -> None:
    """With one step the latents are linear in the prediction, so also in the guidance scale."""
    decoder = build(kind)
    features, noise = inputs(decoder)
    decoder.empty_features.normal_()
    empty = decoder.empty_features.expand_as(features)
    with torch.no_grad():
        plain, null, guided = (
            decoder.sample_latents(condition, noise, 1, guidance_scale=scale)
            for condition, scale in ((features, 1.0), (empty, 1.0), (features, 3.0))
        )
    assert not torch.allclose(plain, null)
    scale = float(guided.abs().max())
    torch.testing.assert_close(guided, null + 3.0 * (plain - null), rtol=0, atol=1e-5 * scale)


@each_diffusion
def test_guidance_of_one_uses_no_empty_features(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, rows = build(kind), []
    predict = decoder.predict

    def watch(noisy: Tensor, *arguments: Any) -> Tensor:
        rows.append(len(noisy))
        return predict(noisy, *arguments)

    monkeypatch.setattr(decoder, "predict", watch)
    decoder.decode(*inputs(decoder), 2, guidance_scale=1.0)
    decoder.decode(*inputs(decoder), 2)
    assert rows == [2, 2, 4, 4]


@each_diffusion
def test_guidance_acts_between_two_levels(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere a step has half of the rows; without any level, it is as without guidance."""
    rows: list[int] = []

    def run(scale: float = 3.0, **changes: Any) -> Tensor:
        decoder = build(kind, **changes)
        predict = decoder.predict
        monkeypatch.setattr(
            decoder, "predict", lambda noisy, *one: rows.append(len(noisy)) or predict(noisy, *one)
        )
        with torch.no_grad():
            return decoder.sample_latents(*inputs(decoder), 8, guidance_scale=scale)

    plain, guided = run(scale=1.0), run()
    rows.clear()
    upper = run(guidance_interval=(0.5, 1.0))
    assert rows == sorted(rows, reverse=True)
    assert set(rows) == {2, 4}
    assert not torch.equal(upper, guided)
    assert not torch.equal(upper, plain)
    assert torch.equal(run(guidance_interval=(1.0, 1.0)), plain)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_layers_of_the_condition_run_once_with_the_same_result(
    scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = build("sana")
    features, noise = inputs(decoder)
    fixed = {inner for layer in decoder.condition_layers for inner in layer.modules()}
    runs: list[nn.Module] = []
    plain = nn.Linear.forward

    def count(layer: nn.Linear, given: Tensor) -> Tensor:
        runs.extend({layer} & fixed)
        return plain(layer, given)

    monkeypatch.setattr(nn.Linear, "forward", count)
    with torch.no_grad():
        kept = decoder.sample_latents(features, noise, 4, guidance_scale=scale)
        once = len(runs)
        decoder.set_low_memory()
        again = decoder.sample_latents(features, noise, 4, guidance_scale=scale)
    assert once == len(set(runs)) > 4
    assert len(runs) - once == 4 * once
    assert torch.equal(kept, again)


@each_diffusion
def test_empty_features_can_be_given_with_a_call(kind: str) -> None:
    decoder = build(kind)
    features, noise = inputs(decoder)
    empty = torch.randn(decoder.empty_features.shape)
    with torch.no_grad():
        given = decoder.decode(features, noise, 2, empty_features=empty)
        by_row = decoder.decode(features, noise, 2, empty_features=empty.expand_as(features))
        without = decoder.decode(features, noise, 2)
        decoder.empty_features.copy_(empty)
        stored = decoder.decode(features, noise, 2)
    assert torch.equal(given, by_row)
    assert torch.equal(given, stored)
    assert not torch.equal(given, without)


@each_diffusion
def test_another_scheduler_can_take_over(kind: str) -> None:
    """With many steps, all solvers of an equation reach nearly the same latents."""
    from diffusers import (
        DPMSolverMultistepScheduler,
        EulerDiscreteScheduler,
        FlowMatchEulerDiscreteScheduler,
    )

    decoder = build(kind, sampler="published")
    features, noise = inputs(decoder)
    with torch.no_grad():
        first = decoder.sample_latents(features, noise, 60)
        settings = decoder.scheduler.config
        if kind == "sdxl":
            assert isinstance(decoder.scheduler, EulerDiscreteScheduler)
            decoder.scheduler = DPMSolverMultistepScheduler.from_config(settings)
        else:
            assert isinstance(decoder.scheduler, DPMSolverMultistepScheduler)
            decoder.scheduler = FlowMatchEulerDiscreteScheduler(shift=settings["flow_shift"])
        other = decoder.sample_latents(features, noise, 60)
    assert not torch.equal(first, other)
    assert float((first - other).norm() / first.norm()) < 0.2


def test_a_scheduler_that_draws_noise_draws_it_from_the_seed_of_each_image() -> None:
    from diffusers import EulerAncestralDiscreteScheduler

    decoder = build("sdxl", sampler="published")
    decoder.scheduler = EulerAncestralDiscreteScheduler.from_config(decoder.scheduler.config)
    features, noise = inputs(decoder, rows=3)
    before = torch.get_rng_state()
    with torch.no_grad():
        together = decoder.sample_latents(features, noise, 4)
        alone = decoder.sample_latents(features[1:2], noise[1:2], 4)
        reseeded = decoder.sample_latents(features[1:2], noise[2:], 4)
    assert_near(together[1:2], alone)
    assert not torch.allclose(reseeded, alone, atol=1e-2)
    assert torch.equal(torch.get_rng_state(), before)


def test_every_image_of_a_large_batch_has_a_seed_of_its_own_in_half_precision() -> None:
    """If the network predicts zeros, only the step noise differs between images."""
    from diffusers import EulerAncestralDiscreteScheduler

    decoder = build("sdxl", sampler="published")
    decoder.scheduler = EulerAncestralDiscreteScheduler.from_config(decoder.scheduler.config)
    decoder.predict = lambda noisy, timestep, features: torch.zeros_like(noisy)
    features, noise = inputs(decoder, rows=256)
    noise = noise.bfloat16()
    latents = decoder.sample_latents(features, noise, 2, guidance_scale=1.0)
    ancestral: Any = decoder.scheduler
    scheduler: Any = start_scheduler(ancestral, 2, noise.device)
    start = scheduler.init_noise_sigma
    drawn = (latents - start * noise.float())[:, 0, 0].double().round(decimals=3)
    assert len(drawn.unique(dim=0)) == len(noise)


@each_diffusion
@pytest.mark.parametrize("steps", [600, 1000])
def test_hundreds_of_steps_are_counted_and_finite(kind: str, steps: int) -> None:
    """With many steps, the first ones round to the same timestep."""
    decoder = build(kind)
    decoder.predict = lambda noisy, timestep, features: torch.zeros_like(noisy)
    features, noise = inputs(decoder, rows=1)
    done: list[int] = []
    latents = decoder.sample_latents(
        features, noise, steps, guidance_scale=1.0, callback=lambda step, _: done.append(step)
    )
    assert done == list(range(1, steps + 1))
    assert bool(latents.isfinite().all())


@each_diffusion
def test_a_word_selects_the_published_sampler(kind: str) -> None:
    """The fast sampler has another solver and fewer steps, on the same noise levels."""
    fast = DECODERS.get(kind).tiny()
    published = dataclasses.replace(fast, sampler="published")
    assert published.solving_scheduler == published.scheduler == fast.scheduler
    assert fast.num_steps < published.num_steps
    changed = {
        name for name, value in fast.solving_scheduler.items() if value != fast.scheduler.get(name)
    }
    assert changed
    assert not changed & {"prediction_type", "num_train_timesteps", "beta_start", "beta_end"}
    assert published.build().scheduler.config == build_scheduler(fast.scheduler).config


@each_diffusion
def test_the_fast_sampler_leaves_other_solvers_alone(kind: str) -> None:
    config = DECODERS.get(kind).tiny()
    fast = config.solving_scheduler
    harmless = {**config.scheduler, "use_karras_sigmas": False, "trained_betas": None}
    same = dataclasses.replace(config, scheduler=harmless)
    assert same.solving_scheduler == {**harmless, **fast}
    assert same.num_steps == config.num_steps
    own = {**config.scheduler, "_class_name": "DDIMScheduler"}
    other = dataclasses.replace(config, scheduler=own)
    assert other.solving_scheduler == own
    assert other.num_steps == config.samplers["published"].num_steps


@each_diffusion
def test_the_samplers_agree_after_many_steps(kind: str) -> None:
    decoders = [build(kind, sampler=sampler) for sampler in ("published", "fast")]
    features, noise = inputs(decoders[0])
    with torch.no_grad():
        one, other = (decoder.sample_latents(features, noise, 200) for decoder in decoders)
    assert float((one - other).norm() / one.norm()) < 0.1


@each_diffusion
def test_a_number_of_steps_has_as_many_levels(kind: str) -> None:
    """From 61 steps on, rounding in diffusers gives some numbers one level more."""
    scheduler = build_scheduler(DECODERS.get(kind).tiny().solving_scheduler)
    cpu = torch.device("cpu")
    levels = [start_scheduler(scheduler, steps, cpu).timesteps for steps in range(1, 61)]
    assert [len(one) for one in levels] == list(range(1, 61))
    assert all(int(one.min()) >= 0 for one in levels)


def test_published_schedules() -> None:
    """SDXL visits fifty levels of its table; SANA's levels are shifted by 3 towards noise."""
    cpu = torch.device("cpu")
    sdxl: Any = start_scheduler(build_scheduler(SdxlDecoderConfig.published().scheduler), 50, cpu)
    assert sdxl.timesteps.tolist() == list(range(981, 0, -20))
    assert float(sdxl.sigmas[0]) == pytest.approx(13.1204, abs=1e-4)
    assert float(sdxl.init_noise_sigma) == pytest.approx(13.1585, abs=1e-4)
    sana: Any = start_scheduler(build_scheduler(SanaDecoderConfig.published().scheduler), 4, cpu)
    uniform = torch.linspace(0.999, 0.0, 5)
    torch.testing.assert_close(sana.sigmas, 3 * uniform / (1 + 2 * uniform), rtol=0, atol=1e-6)


@each_diffusion
def test_a_run_leaves_no_trace_in_the_scheduler(kind: str) -> None:
    decoder = build(kind)
    features, noise = inputs(decoder)
    with torch.no_grad():
        first = decoder.decode(features, noise, 3)
        inner: list[Tensor] = []

        def decode_between(step: int, _: Tensor) -> None:
            if step == 1:
                inner.append(decoder.decode(features, noise, 3))

        decoder.sample_latents(features, noise, 2, callback=decode_between)
    assert torch.equal(inner[0], first)


@each_diffusion
def test_the_callback_may_change_the_latents(kind: str) -> None:
    decoder = build(kind)
    features, noise = inputs(decoder)
    with torch.no_grad():
        latents = decoder.sample_latents(
            features, noise, 2, callback=lambda step, now: 0 * now if step == 2 else None
        )
    assert not bool(latents.any())


@each_diffusion
def test_the_noise_sets_the_size_of_the_image(kind: str) -> None:
    decoder = build(kind)
    features, noise = inputs(decoder)
    wide = torch.cat([noise, noise], dim=-1)
    with torch.no_grad():
        pixels = decoder.decode(features, wide, 2)
    side = decoder.config.image_px
    assert pixels.shape == (2, 3, side, 2 * side)


@each_diffusion
def test_less_than_one_step_is_refused(kind: str) -> None:
    decoder = build(kind)
    with pytest.raises(ValueError, match="num_inference_steps must be at least 1, got 0"):
        decoder.decode(*inputs(decoder), 0)


@each_with_vae
def test_slices_give_the_same_images_and_tiles_nearly(kind: str) -> None:
    decoder = build(kind)
    features, noise = inputs(decoder)
    with torch.no_grad():
        whole = decoder.decode(features, noise, 2)
        decoder.set_low_memory(sliced=True, tiled=False)
        assert_near(decoder.decode(features, noise, 2), whole)
        set_low_memory(decoder.vae, tile_px=decoder.config.image_px // 2)
        tiled = decoder.decode(features, noise, 2)
        decoder.set_low_memory()  # tiles larger than the image change nothing
        assert_near(decoder.decode(features, noise, 2), whole)
        decoder.set_low_memory(sliced=False, tiled=False)
        assert torch.equal(decoder.decode(features, noise, 2), whole)
    assert tiled.shape == whole.shape
    assert not torch.allclose(tiled, whole)
    assert float((tiled - whole).abs().mean()) < float(whole.std())


@pytest.mark.parametrize("kind", ["sdxl", "vae"])
def test_a_kl_vae_decodes_in_fp32_where_the_weights_are_fp16(kind: str) -> None:
    decoder = build(kind)
    features, noise = inputs(decoder)
    with torch.no_grad():
        exact = decoder.decode(features, noise, 1)
        half = decoder.half().decode(features.half(), noise.half(), 1)
    assert half.dtype == torch.float32
    assert float((half - exact).abs().mean()) < 0.05


def test_vae_decoder_is_the_counterpart_of_the_vae_encoder() -> None:
    config = VaeDecoderConfig.tiny()
    encoder = VaeEncoderConfig(image_px=config.image_px, autoencoder=config.autoencoder).build()
    decoder = config.build().eval()
    assert (encoder.config.grid, encoder.config.num_channels) == (
        config.grid,
        config.feature_channels,
    )
    names = {*encoder.state_dict(), *(n.removeprefix("vae.") for n in decoder.state_dict())}
    assert names == config.autoencoder.build().state_dict().keys()
    pixels = torch.rand(2, 3, config.image_px, config.image_px) * 2 - 1
    whole: Any = config.autoencoder.build()
    whole.encoder, whole.quant_conv = encoder.encoder, encoder.quant_conv
    whole.decoder, whole.post_quant_conv = decoder.vae.decoder, decoder.vae.post_quant_conv
    with torch.no_grad():
        expected = whole(pixels).sample.clamp(-1, 1)
        assert_near(decoder.decode(encoder(pixels), torch.empty(2, 0), 1), expected)


def test_published_vae_decoder_is_the_one_of_flux() -> None:
    config = VaeDecoderConfig.published()
    assert (config.grid, config.feature_channels, config.noise_shape) == (64, 16, (0,))
    with torch.device("meta"):
        decoder = config.build()
    assert not any("quant" in name for name in decoder.state_dict())


@each_with_vae
def test_without_diffusers_one_line_says_what_to_install(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UsageError, match=r"needs diffusers; install it: pip install 'blip3o\[sdxl"):
        DECODERS.get(kind).tiny().build()


@pytest.mark.parametrize("name", ["EulerScheduler", "UNet2DModel", "__doc__", None])
def test_an_unknown_scheduler_is_refused(name: str | None) -> None:
    settings = {"_class_name": name, "num_train_timesteps": 1000}
    with pytest.raises(UsageError, match=f"diffusers has no scheduler '{name}'"):
        build("sana", scheduler=settings)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("sdxl", {"num_heads": (2,)}, "num_heads must have a number for each"),
        ("sdxl", {"transformer_layers_per_block": ()}, "transformer_layers_per_block must have"),
        ("sana", {"num_cross_heads": 3}, r"must be num_heads \* head_dim \(16\)"),
        ("vae", {"image_px": 15}, "image_px 15 must be a multiple of the autoencoder's"),
    ],
)
def test_sizes_that_cannot_fit_are_refused(
    kind: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(DECODERS.get(kind).tiny(), **changes)


def whole_model(kind: str, config: UnifiedModelConfig) -> UnifiedModelConfig:
    decoder = DECODERS.get(kind).tiny()
    if kind != "vae":
        return dataclasses.replace(config, image_decoder=decoder)
    encoder, channels = VaeEncoderConfig.tiny(), decoder.feature_channels
    return dataclasses.replace(
        config,
        backbone=dataclasses.replace(config.backbone, image_channels=channels),
        image_encoder=encoder,
        normalizer=FeatureNormalizerConfig(),
        image_decoder=decoder,
    )


@each_with_vae
def test_a_pipeline_draws_with_it_and_a_folder_keeps_it(
    kind: str, tiny_config: UnifiedModelConfig, tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    config = whole_model(kind, tiny_config)
    model = config.build()
    for parameter in model.image_decoder.parameters():
        nn.init.normal_(parameter, std=0.2)
    if kind in DIFFUSION:
        model.image_decoder.get_buffer("empty_features").normal_()
    save_model(model, tiny_tokenizer, tmp_path, torch.float32)
    images = [
        Blip3oPipeline(one, tiny_tokenizer)(
            "a red cat",
            num_images_per_prompt=2,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="pt",
        ).images
        for one, seeds in (
            (model, (1, 2)),
            (load_model(tmp_path).model, (1, 2)),
            (model, (2, 1)),
        )
    ]
    side = config.image_decoder.image_px
    assert images[0].shape == (2, 3, side, side)
    assert torch.equal(images[0], images[1])
    assert_near(images[0], images[2].flip(0))
    assert not torch.allclose(images[0][0], images[0][1])
