"""A run that trains the image half of LMFusion leaves no trace in the text half."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from blip3o.core.choices import PrecisionName
from blip3o.data.mixture import DataConfig, MixtureEntry
from blip3o.data.sources.folder import FolderConfig
from blip3o.flow.sigmas import UniformSigmas
from blip3o.generate.pipeline import Blip3oPipeline
from blip3o.models.generators.lmfusion import LMFusionConfig
from blip3o.models.unified import UnifiedModel
from blip3o.objectives.flow_matching import FlowMatchingConfig
from blip3o.runs import assemble
from blip3o.runs.start import train
from blip3o.train.config import InitConfig, OptimizerConfig, RunConfig, TrainConfig
from blip3o.weights.folder import load_model

STEPS = 4


def run_from(
    start: Path, pipe: Blip3oPipeline, folder: Path, precision: PrecisionName
) -> RunConfig:
    rng = np.random.default_rng(0)
    folder.mkdir()
    for number in range(4):
        image = rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)
        Image.fromarray(image).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a red cat {number}\n")
    model = dataclasses.replace(pipe.model.config, generator=LMFusionConfig())
    kept = ("backbone", "image_encoder", "normalizer", "image_decoder")
    source = FolderConfig(path=str(folder), name="images")
    return RunConfig(
        model=model,
        init=(InitConfig(folder=str(start), parts=kept),),
        data=DataConfig(mixture=(MixtureEntry(source=source, task="text_to_image"),)),
        objectives=(FlowMatchingConfig(sigmas=UniformSigmas()),),
        train=TrainConfig(
            steps=STEPS,
            global_batch_size=4,
            micro_batch_size=4,
            trainable=("generator",),
            optimizer=OptimizerConfig(lr=0.02, weight_decay=0.5),
            ema_decay=0.5,
            log_every=1,
            checkpoint_every=2,
            sample_every=0,
            precision=precision,
            device="cpu",
        ),
    )


@torch.no_grad()
def logits_of(model: UnifiedModel) -> Tensor:
    ids = torch.randint(10, 300, (2, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids).bool()
    return model.backbone.logits(model.text_states(ids, mask))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_weights_and_answers_stay_the_same_bit_for_bit(
    tiny_pipe: Blip3oPipeline,
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    precision: PrecisionName,
) -> None:
    monkeypatch.setattr(assemble, "draw_curves", lambda run_dir: None)
    config = run_from(tiny_folder, tiny_pipe, tmp_path / "images", precision)
    train(config, tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert all(json.loads(line)["grad_norm"] > 0 for line in lines)
    before, after = load_model(tiny_folder).model, load_model(tmp_path / "run").model
    start, end = before.backbone.state_dict(), after.backbone.state_dict()
    assert start.keys() == end.keys()
    for name, value in end.items():
        assert torch.equal(value, start[name]), name
    assert torch.equal(logits_of(after), logits_of(before))
    # The checkpoint, its averages included, holds the image half only.
    files = (tmp_path / "run" / "checkpoints" / f"step-{STEPS:08}").glob("*.safetensors")
    saved = {name: value for file in files for name, value in load_file(file).items()}
    trained = {name.removeprefix("ema/") for name in saved if name.startswith("ema/")}
    assert {name.partition(".")[0] for name in trained} == {"generator"}
    assert any(".decoder.layers." in name for name in trained)
