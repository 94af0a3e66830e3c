"""From chains of edits on the disk to a model that continues them."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from blip3o.data.mixture import DataConfig, MixtureEntry
from blip3o.data.scenes.export import export_scenes
from blip3o.data.sources.webdataset import WebDatasetConfig
from blip3o.flow.sigmas import UniformSigmas
from blip3o.generate.pipeline import Blip3oPipeline
from blip3o.models.generators import GENERATORS
from blip3o.models.unified import SamplingConfig, UnifiedModelConfig
from blip3o.objectives.flow_matching import FlowMatchingConfig
from blip3o.runs.start import train
from blip3o.text.chat import ChatConfig
from blip3o.text.tokenizer import train_tokenizer
from blip3o.train.config import InitConfig, OptimizerConfig, RunConfig, TrainConfig
from blip3o.weights.folder import save_model


@pytest.mark.parametrize("kind", ["transfusion", "query_dit"])
def test_chains_of_edits_are_learned_and_continued(tmp_path: Path, kind: str) -> None:
    export_scenes(tmp_path / "scenes", 0, num_chains=8, px=16, num_processes=1)
    tokenizer = train_tokenizer(["make it blue", "add a red cat", "user\n"] * 3, 300)
    tiny = UnifiedModelConfig.tiny()
    model = dataclasses.replace(
        tiny,
        backbone=dataclasses.replace(
            tiny.backbone, image_token_id=tokenizer.image_pad_id, max_positions=512
        ),
        generator=GENERATORS.get(kind).tiny(),
        chat=ChatConfig(system=None),
        sampling=SamplingConfig(guidance_scale=1.0, num_inference_steps=2, num_decoder_steps=2),
    )
    torch.manual_seed(0)
    save_model(model.build(), tokenizer, tmp_path / "start", torch.float32)
    source = WebDatasetConfig(path=f"{tmp_path}/scenes/chains-*.tar", name="chains")
    config = RunConfig(
        model=model,
        init=(InitConfig(folder=str(tmp_path / "start")),),
        data=DataConfig(
            mixture=(MixtureEntry(source=source, task="interleaved"),), max_text_tokens=400
        ),
        objectives=(FlowMatchingConfig(sigmas=UniformSigmas(), weight=5.0, text_weight=1.0),),
        train=TrainConfig(
            steps=4,
            global_batch_size=4,
            micro_batch_size=3,
            trainable=("backbone", "generator"),
            optimizer=OptimizerConfig(lr=1e-3),
            log_every=1,
            checkpoint_every=4,
            sample_every=0,
            precision="fp32",
            device="cpu",
        ),
    )
    train(config, tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    for line in map(json.loads, lines):
        both = 5 * line["FlowMatching/loss"] + line["FlowMatching/text_loss"]
        assert line["loss"] == pytest.approx(both, rel=1e-4)
    pipe = Blip3oPipeline.from_pretrained(tmp_path / "run" / "model", device="cpu", dtype="fp32")
    images = pipe.edit_in_turn(Image.new("RGB", (16, 16), "red"), ["make it blue", "x"], seed=0)
    assert [image.size for image in images] == [(16, 16)] * 2
