"""Folders of VAEs as diffusers writes them: a run starts from both halves."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from blip3o.core.config import evolve
from blip3o.core.errors import UsageError
from blip3o.data.mixture import DataConfig, MixtureEntry
from blip3o.data.sources.jsonl import JsonlConfig
from blip3o.models.autoencoders import AutoencoderConfig, DcAutoencoderConfig, KlAutoencoderConfig
from blip3o.models.decoders.vae import VaeDecoderConfig
from blip3o.models.encoders.vae import VaeEncoderConfig
from blip3o.models.unified import UnifiedModelConfig
from blip3o.recipes import qwen2_5_vl
from blip3o.runs.initial import build_model, check_start
from blip3o.train.config import InitConfig, OptimizerConfig, RunConfig, TrainConfig
from blip3o.weights.autoencoder import is_autoencoder

KL = KlAutoencoderConfig.tiny(shift_factor=0.1)
DC = DcAutoencoderConfig.tiny()
each_autoencoder = pytest.mark.parametrize(
    "autoencoder", [KL, dataclasses.replace(KL, use_quant_conv=False), DC], ids=["kl", "flux", "dc"]
)


def run_from(folder: Path, autoencoder: AutoencoderConfig) -> RunConfig:
    tiny = UnifiedModelConfig.tiny()
    changes = {
        "backbone.image_channels": None,
        "backbone.vision_tower": tiny.image_encoder,
        "image_encoder": VaeEncoderConfig(image_px=16, autoencoder=autoencoder),
        "image_decoder": VaeDecoderConfig(image_px=16, autoencoder=autoencoder),
        "normalizer.num_components": None,
    }
    entry = MixtureEntry(source=JsonlConfig(path="toy.jsonl", name="toy"), task="text_to_image")
    return RunConfig(
        model=evolve(tiny, changes),
        init=(InitConfig(folder=str(folder), parts=("image_encoder", "image_decoder")),),
        data=DataConfig(mixture=(entry,)),
        objectives=(),
        train=TrainConfig(
            steps=1,
            global_batch_size=1,
            micro_batch_size=1,
            trainable=("generator",),
            optimizer=OptimizerConfig(lr=1e-3),
        ),
    )


def saved(folder: Path, autoencoder: AutoencoderConfig) -> Any:
    """Returns diffusers' autoencoder with random weights, after it has written its folder."""
    torch.manual_seed(3)
    whole: Any = autoencoder.build().eval()
    whole.save_pretrained(folder)
    return whole


@each_autoencoder
def test_a_run_starts_from_both_halves(autoencoder: AutoencoderConfig, tmp_path: Path) -> None:
    whole = saved(tmp_path / "vae", autoencoder)
    assert is_autoencoder(tmp_path / "vae")
    config = run_from(tmp_path / "vae", autoencoder)
    check_start(config)
    tokenizer, model = build_model(config)
    assert tokenizer is None
    model.eval()
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        code = whole.encode(pixels)
        latents = code.latent if autoencoder is DC else code.latent_dist.mode()
        expected = whole.decode(latents).sample.clamp(-1, 1)
        features = model.decoder_features(model.normalizer(model.encode_images(pixels)))
        given = model.image_decoder.decode(features, torch.empty(2, 0), 1)
    torch.testing.assert_close(given, expected, rtol=0, atol=1e-5)


def test_other_factors_of_the_latents_are_refused(tmp_path: Path) -> None:
    """Two published VAEs differ in nothing else, so shapes do not reveal the wrong one."""
    saved(tmp_path, KL)
    for name, value in (("scaling_factor", 0.25), ("shift_factor", 0.0)):
        config = run_from(tmp_path, evolve(KL, {name: value}))
        with pytest.raises(UsageError, match=rf"{name} .*, but .*\.{name} is {value}$"):
            check_start(config)


def test_factors_that_diffusers_leaves_out_have_its_defaults(tmp_path: Path) -> None:
    saved(tmp_path, DC)
    data = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**data, "shift_factor": None}))
    check_start(run_from(tmp_path, DC))


def test_another_autoencoder_does_not_fit(tmp_path: Path) -> None:
    saved(tmp_path, KL)
    wider = dataclasses.replace(KL, block_out_channels=(8, 16))
    with pytest.raises(UsageError, match="do not fit: image_encoder"):
        check_start(run_from(tmp_path, wider))
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()
    with pytest.raises(UsageError, match="diffusion_pytorch_model"):
        check_start(run_from(tmp_path, KL))


def test_a_missing_vae_is_not_taken_for_a_stage_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = qwen2_5_vl.vae_flow_4b()
    config = dataclasses.replace(config, init=config.init[1:])
    with pytest.raises(UsageError, match=r"^init\.0\.folder: .*data/FLUX\.1/vae") as caught:
        check_start(config)
    assert "pocket" not in str(caught.value).partition("FLUX")[0]
    assert "recipe" not in str(caught.value)
