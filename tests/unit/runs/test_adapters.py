"""A real run with low-rank adapters on images of a folder, from recipe to plain model folder."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from blip3o.core.config import override
from blip3o.models.unified import UnifiedModelConfig
from blip3o.runs import assemble
from blip3o.runs.start import load_recipe, train
from blip3o.text.chat import ChatConfig
from blip3o.text.tokenizer import train_tokenizer
from blip3o.train.config import InitConfig, RunConfig
from blip3o.weights.folder import load_model, save_model


def small_run(folder: Path) -> RunConfig:
    """The recipe `own_data` with LoRA on a tiny model and four images."""
    rng = np.random.default_rng(0)
    for number in range(4):
        image = rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)
        Image.fromarray(image).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a red cat {number}\n")
    tokenizer = train_tokenizer(["draw: a red cat", "user\n", "assistant\n"] * 3, 300)
    tiny = UnifiedModelConfig.tiny()
    model = dataclasses.replace(
        tiny,
        backbone=dataclasses.replace(tiny.backbone, image_token_id=tokenizer.image_pad_id),
        chat=ChatConfig(system=None, generate="draw: {caption}"),
    )
    torch.manual_seed(0)
    save_model(model.build(), tokenizer, folder / "start", torch.float32)
    recipe = load_recipe("own_data", folder)
    assert isinstance(recipe, RunConfig)
    config = dataclasses.replace(
        recipe,
        model=model,
        init=(InitConfig(folder=str(folder / "start")),),
        data=dataclasses.replace(recipe.data, num_workers=0, feature_cache=None),
        sample_prompts=("a red cat",),
    )
    small = [f"data.mixture.0.source.path={folder}", "train.device=cpu", "train.precision=fp32"]
    small += ["train.steps=4", "train.sample_every=2", "train.global_batch_size=4"]
    return override(config, [*small, "train.adapter={rank: 2}", "train.optimizer.lr=0.01"])


def test_the_finished_folder_is_a_plain_model_with_merged_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("peft")
    monkeypatch.setattr(assemble, "draw_curves", lambda run_dir: None)
    config = small_run(tmp_path)
    train(config, tmp_path / "run")
    files = (tmp_path / "run" / "checkpoints" / "step-00000004").glob("*.safetensors")
    saved = {name: tensor for file in files for name, tensor in load_file(file).items()}
    kept = {n.removeprefix("ema/"): t for n, t in saved.items() if n.startswith("ema/")}
    assert kept
    assert all(".lora_" in name and name.startswith("generator.dit.") for name in kept)
    assert (tmp_path / "run" / "samples" / "step-00000004.png").is_file()
    monkeypatch.setitem(sys.modules, "peft", None)  # loading must not need it
    before = load_model(tmp_path / "start").model.state_dict()
    after = load_model(tmp_path / "run").model.state_dict()
    assert config.train.adapter is not None
    scale = config.train.adapter.alpha / config.train.adapter.rank
    changed = set()
    for name, tensor in after.items():
        layer = name.removesuffix(".weight")
        up, down = (kept.get(f"{layer}.lora_{half}.default.weight") for half in "BA")
        if up is None or down is None or not up.any():  # no adapter, or one without gradients
            assert torch.equal(tensor, before[name]), name
        else:
            torch.testing.assert_close(tensor, before[name] + scale * up @ down, rtol=0, atol=1e-6)
            changed.add(name)
    assert {f"generator.dit.layers.0.attn1.to_{one}.weight" for one in "qkv"} <= changed
