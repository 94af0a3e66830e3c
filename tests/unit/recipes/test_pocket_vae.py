"""VAE + flow matching at pocket size: its own eyes, its VAE and the measured scale."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from blip3o.core.config import evolve
from blip3o.data.sources.jsonl import JsonlConfig
from blip3o.generate.pipeline import Blip3oPipeline
from blip3o.models.autoencoders import DcAutoencoderConfig
from blip3o.models.encoders.pocket import PocketEncoderConfig
from blip3o.models.unified import UnifiedModelConfig
from blip3o.objectives.autoencoding import Autoencoding
from blip3o.recipes import pocket_methods, pocket_vae
from blip3o.runs import assemble
from blip3o.runs.initial import build_model
from blip3o.runs.samples import SampleWriter
from blip3o.runs.start import train
from blip3o.text.chat import ChatConfig
from blip3o.train.config import RunConfig
from blip3o.weights.folder import load_model

IMAGE_PAD_ID = 6  # of tokenizers that a run trains itself
STEPS = 4
QUESTIONS = ("What is in the image?", "How many objects are there?", "What is the background?")


def scene(seed: int, side: int) -> Image.Image:
    """Two rectangles on a plain background."""
    rng = np.random.default_rng(seed)
    pixels = np.empty((side, side, 3), dtype=np.uint8)
    pixels[:] = rng.integers(150, 256, 3)
    for _ in range(2):
        x, y = rng.integers(0, side // 2, 2)
        pixels[y : y + side // 3, x : x + side // 3] = rng.integers(0, 200, 3)
    return Image.fromarray(pixels)


def test_with_eyes_of_its_own_the_bundled_backbone_answers_as_before() -> None:
    bundled = load_model("pocket", dtype=torch.float32)
    tokenizer, model = build_model(pocket_vae.vae())
    assert tokenizer is not None
    model.eval()
    images = [scene(seed, 96) for seed in range(3)]
    pixels = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        for seen in (model.prompt_images(pixels), model.prompt_images(pixels[:1])):
            assert seen is not None
            known = bundled.model.prompt_images(pixels[: model.backbone.count_tokens(seen) // 16])
            assert known is not None
            tokens = model.backbone.image_tokens(seen)
            assert torch.equal(tokens, bundled.model.backbone.image_tokens(known))
    mine, theirs = (
        Blip3oPipeline(*one) for one in ((model, tokenizer), (bundled.model, bundled.tokenizer))
    )
    answers = mine.answer_batch(images, QUESTIONS)
    assert answers == theirs.answer_batch(images, QUESTIONS)
    assert all(answers)
    assert len(set(answers)) > 1


def test_the_dit_has_as_many_tokens_and_layers_as_with_image_features() -> None:
    base, changed = pocket_methods.clip_flow().model, pocket_vae.vae_model()
    dits: list[Any] = []
    for config in (base, changed):
        with torch.device("meta"):
            model = config.build()
        dit: Any = model.get_submodule("generator.dit")
        tokens = config.image_encoder.num_tokens // dit.config.patch_size**2
        dits.append((tokens, [p.shape for p in dit.layers.parameters()]))
    assert dits[0] == dits[1]
    assert dits[0][0] == 16
    assert 12 * math.prod(changed.feature_shape) == 3 * changed.image_encoder.image_px**2


def tiny_model(config: UnifiedModelConfig) -> UnifiedModelConfig:
    """The same parts at their smallest sizes: a VAE, eyes of its own, patches of 2 x 2."""
    tiny = UnifiedModelConfig.tiny()
    sizes = dataclasses.replace(DcAutoencoderConfig.tiny(), scaling_factor=0.05)
    halves = {
        f"{half}.{name}": value
        for half in ("image_encoder", "image_decoder")
        for name, value in (("image_px", 16), ("autoencoder", sizes))
    }
    eyes = {"image_channels": None, "vision_tower": PocketEncoderConfig.tiny()}
    backbone = evolve(tiny.backbone, {**eyes, "image_token_id": IMAGE_PAD_ID})
    generator = evolve(tiny.generator, {"patch_size": 2})
    return evolve(
        dataclasses.replace(config, chat=ChatConfig(system=None, generate="draw: {caption}")),
        {**halves, "backbone": backbone, "generator": generator},
    )


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """The recipe on a few images, with parts of tiny size."""
    monkeypatch.setattr(assemble, "draw_curves", lambda run_dir: None)
    rows = []
    for number in range(6):
        scene(number, 16).save(tmp_path / f"{number}.png")
        rows.append({"image": f"{number}.png", "caption": f"a red cat {number}"})
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = pocket_vae.vae()
    entry, _ = recipe.data.mixture
    entry = dataclasses.replace(entry, source=JsonlConfig(path=str(file), name="home"))
    small = {"steps": STEPS, "global_batch_size": 4, "micro_batch_size": 2, "log_every": 1}
    small |= {"checkpoint_every": 2, "sample_every": 3}
    train_config = evolve(recipe.train, {**small, "precision": "fp32", "device": "cpu"})
    return dataclasses.replace(
        recipe,
        model=tiny_model(recipe.model),
        init=(),
        data=dataclasses.replace(recipe.data, mixture=(entry,)),
        train=train_config,
    )


def test_a_run_measures_the_scale_of_its_latents(config: RunConfig, tmp_path: Path) -> None:
    train(config, tmp_path / "run")
    assert list((tmp_path / "run" / "samples").glob("*.png"))  # reconstructions
    loaded = load_model(tmp_path / "run", dtype=torch.float32)
    model = loaded.model.eval()
    pipe = Blip3oPipeline(model, loaded.tokenizer)
    images = [scene(number, 16) for number in range(6)]
    with torch.no_grad():
        raw = pipe.encode(images)
        features = model.normalizer(raw)
        assert float(raw.square().mean().sqrt()) < 0.3  # the scale to be measured is another
        assert 0.5 < float(features.square().mean().sqrt()) < 2
        assert float(features.mean().abs()) < 0.2
        factor = torch.linalg.matrix_norm(model.normalizer.get_buffer("forward_map"), ord=2)
        scale = features.flatten(0, 1).std(0).norm() / raw.flatten(0, 1).std(0).norm()
        torch.testing.assert_close(scale, factor, rtol=1e-3, atol=0)  # one factor for all channels
        # Encoding and decoding undo scale and shift.
        torch.testing.assert_close(model.decoder_features(features), raw, rtol=0, atol=1e-5)
        noise = torch.empty(6, 0)
        plain = model.image_decoder.decode(raw, noise, 1)
    given = pipe.reconstruct(images, output_type="pt").images
    torch.testing.assert_close(given, (plain + 1) / 2, rtol=0, atol=1e-5)


def test_the_eyes_keep_their_own_normalizer(config: RunConfig, tmp_path: Path) -> None:
    changes = {"model.backbone.image_normalizer.num_components": 16}
    train(evolve(config, changes), tmp_path / "run")
    stored = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert torch.equal(stored["backbone.image_normalizer.forward_map"], torch.eye(16))
    assert not torch.equal(stored["normalizer.forward_map"], torch.eye(4))


def test_a_stopped_run_resumes_bit_for_bit(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # "auto" would call the objective once more, to count its activations.
    config = evolve(config, {"train.ema_decay": 0.5, "train.activation_checkpointing": False})
    train(config, tmp_path / "whole")

    def stop(*_: object) -> None:
        raise RuntimeError("stop")

    with monkeypatch.context() as patch:
        patch.setattr(SampleWriter, "on_sample", stop)
        with pytest.raises(RuntimeError, match="stop"):
            train(config, tmp_path / "halves")
    assert not (tmp_path / "halves" / "model").exists()
    seeds: list[int] = []
    plain = Autoencoding.forward

    def watch(self: Autoencoding, *arguments: Any) -> Any:
        seeds.append(1)
        return plain(self, *arguments)

    monkeypatch.setattr(Autoencoding, "forward", watch)
    train(config, tmp_path / "halves")
    assert len(seeds) == 2 * (STEPS - 2)  # two micro-batches of each step after the checkpoint
    for part in ("", "image_encoder", "image_decoder"):
        name = Path("model", part, "model.safetensors")
        whole, halves = (load_file(tmp_path / run / name) for run in ("whole", "halves"))
        assert whole.keys() == halves.keys()
        assert all(torch.equal(whole[key], halves[key]) for key in whole), name
