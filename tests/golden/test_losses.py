"""Losses and gradient norms of twenty steps of every kind of training, as they were recorded.

A change that is meant to leave the numbers alone must leave them alone to the last bit. See
`conftest.py` for how to record.
"""

import dataclasses
import json
import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from blip3o.core.config import evolve
from blip3o.data.mixture import DataConfig, MixtureEntry
from blip3o.data.sources.jsonl import JsonlConfig
from blip3o.flow.sigmas import LogitNormalSigmas, UniformSigmas
from blip3o.models.decoders.vae import VaeDecoderConfig
from blip3o.models.encoders.normalizer import FeatureNormalizerConfig
from blip3o.models.encoders.vae import VaeEncoderConfig
from blip3o.models.generators.lmfusion import LMFusionConfig
from blip3o.models.generators.regression import RegressionConfig
from blip3o.models.generators.transfusion import TransfusionConfig
from blip3o.models.unified import SamplingConfig, UnifiedModelConfig
from blip3o.objectives.autoencoding import AutoencodingConfig
from blip3o.objectives.feature_regression import FeatureRegressionConfig
from blip3o.objectives.flow_matching import FlowMatchingConfig
from blip3o.objectives.image_text import ImageTextConfig
from blip3o.objectives.next_token import NextTokenConfig
from blip3o.objectives.pixel_decoding import PixelDecodingConfig
from blip3o.runs import assemble
from blip3o.runs.start import train
from blip3o.text.chat import ChatConfig
from blip3o.text.tokenizer import train_tokenizer
from blip3o.train.config import InitConfig, LoraConfig, OptimizerConfig, RunConfig, TrainConfig
from blip3o.weights.folder import save_model

STEPS = 20
FLOW = FlowMatchingConfig(sigmas=UniformSigmas(shift=2.0), condition_dropout=0.2, draws=2)
TOKENS = NextTokenConfig(weight=0.25, length_power=0.5)
DRAWS = ("text_to_image", "edit", "reconstruct")
SAYS = ("image_to_text", "text")


def write_records(folder: Path) -> Path:
    """Writes nine records that every task can use, and returns their file."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(9):
        names = {role: f"{number}-{role}.png" for role in ("image", "source", "target")}
        for name in names.values():
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / name)
        talk = [
            {"from": "human", "value": "<image>\nWhat is it?"},
            {"from": "gpt", "value": f"a {'very ' * (number % 3)}red cat"},
        ]
        place = {"x": 0.25 + 0.05 * number, "y": 0.5, "size": 0.4}
        rows.append(
            {
                **names,
                "caption": f"a {'very ' * (number % 3)}red cat {number}",
                "instruction": f"make it {'very ' * (number % 2)}blue",
                "conversations": talk,
                "text_conversations": [{**talk[0], "value": "What is red?"}, talk[1]],
                "objects": [{"thing": "cat", "color": ("red", "blue")[number % 2], **place}],
            }
        )
    file = folder / "records.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A run over every task that draws or says something, from a tiny model folder."""
    folder = tmp_path_factory.mktemp("golden")
    source = JsonlConfig(path=str(write_records(folder)), name="toy")
    texts = ["draw: a very red cat", "What is it? make it blue", "user\n", "assistant\n"] * 3
    tokenizer = train_tokenizer(texts, 300)
    tiny = UnifiedModelConfig.tiny()
    model = dataclasses.replace(
        tiny,
        backbone=dataclasses.replace(tiny.backbone, image_token_id=tokenizer.image_pad_id),
        chat=ChatConfig(system=None, generate="draw: {caption}", edit="edit: {instruction}"),
    )
    torch.manual_seed(0)
    built = model.build()
    with torch.no_grad():  # fresh gates and last layers are zero and would hide most of a network
        for parameter in built.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    save_model(built, tokenizer, folder / "model", torch.float32)
    return RunConfig(
        model=model,
        init=(InitConfig(folder=str(folder / "model")),),
        data=DataConfig(
            mixture=tuple(MixtureEntry(source=source, task=task) for task in (*DRAWS, *SAYS)),
        ),
        objectives=(FLOW, TOKENS),
        train=TrainConfig(
            steps=STEPS,
            global_batch_size=6,
            micro_batch_size=4,
            trainable=("backbone", "generator"),
            optimizer=OptimizerConfig(lr=1e-3, warmup_steps=5),
            log_every=1,
            checkpoint_every=STEPS,
            sample_every=0,
            precision="fp32",
            device="cpu",
        ),
    )


def about(config: RunConfig, tasks: tuple[str, ...], *trainable: str, **changes: Any) -> RunConfig:
    """Returns the run with other tasks and another trained part."""
    mixture = tuple(entry for entry in config.data.mixture if entry.task in tasks)
    if "contrastive" in tasks:
        mixture = (dataclasses.replace(config.data.mixture[0], task="contrastive"),)
    data = dataclasses.replace(config.data, mixture=mixture)
    train = dataclasses.replace(config.train, trainable=trainable)
    return dataclasses.replace(config, data=data, train=train, **changes)


def drawn_by(config: RunConfig, generator: Any, objective: Any) -> RunConfig:
    """Returns a run that trains a fresh generator of another kind with the backbone."""
    model = dataclasses.replace(
        config.model, generator=generator, sampling=SamplingConfig(guidance_scale=1.0)
    )
    kept = ("backbone", "image_encoder", "normalizer", "image_decoder")
    init = (dataclasses.replace(config.init[0], parts=kept),)
    tasks = ("text_to_image",)
    changed = dataclasses.replace(config, model=model, init=init)
    return about(changed, tasks, "backbone", "generator", objectives=(objective,))


def with_vae(config: RunConfig) -> RunConfig:
    """Returns a run that trains both halves of a fresh VAE; the backbone sees with own eyes."""
    changes = {
        "backbone.image_channels": None,
        "backbone.vision_tower": config.model.image_encoder,
        "image_encoder": VaeEncoderConfig.tiny(),
        "normalizer": FeatureNormalizerConfig(num_components=4, power=0.0),
        "image_decoder": VaeDecoderConfig.tiny(),
        "generator.patch_size": 2,
    }
    eyes = {"backbone.vision_tower": "image_encoder"}
    init = (dataclasses.replace(config.init[0], parts=("backbone",), sources=eyes),)
    changed = dataclasses.replace(config, model=evolve(config.model, changes), init=init)
    objectives = (AutoencodingConfig(kl_weight=0.01),)
    return about(changed, ("reconstruct",), "image_encoder", "image_decoder", objectives=objectives)


KINDS: dict[str, Callable[[RunConfig], RunConfig]] = {
    "flow_matching": lambda c: about(c, DRAWS, "generator", objectives=(FLOW,)),
    "next_token": lambda c: about(c, SAYS, "backbone", objectives=(TOKENS,)),
    "joint": lambda c: c,
    "image_text": lambda c: about(
        c,
        ("contrastive",),
        "image_encoder",
        objectives=(
            ImageTextConfig(
                things=("cat", "dog"),
                colors=("red", "blue"),
                text_size=16,
                text_heads=2,
                pixel_px=4,
            ),
        ),
    ),
    "pixel_decoding": lambda c: about(
        c,
        ("reconstruct",),
        "image_decoder",
        objectives=(PixelDecodingConfig(sigmas=LogitNormalSigmas(), feature_noise=0.1),),
    ),
    "autoencoding": with_vae,
    "lora": lambda c: evolve(c, {"train.adapter": LoraConfig(rank=2, alpha=4.0)}),
    "two_processes": lambda c: c,
    "regression": lambda c: drawn_by(c, RegressionConfig(), FeatureRegressionConfig()),
    "transfusion": lambda c: drawn_by(c, TransfusionConfig(), FLOW),
    "lmfusion": lambda c: drawn_by(c, LMFusionConfig(positions="shared"), FLOW),
}


def losses(config: RunConfig, run_dir: Path, num_processes: int) -> list[list[float]]:
    """Trains, and returns the loss and the gradient norm of each step."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

    def work(rank: int) -> None:
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(num_processes),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
            GLOO_SOCKET_IFNAME="lo",
        )
        train(config, run_dir)

    if num_processes == 1:
        train(config, run_dir)
    else:
        fork = multiprocessing.get_context("fork")
        processes = [fork.Process(target=work, args=(rank,)) for rank in range(num_processes)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(120)
        assert [process.exitcode for process in processes] == [0] * num_processes
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [[row["loss"], row["grad_norm"]] for row in rows]


@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_the_recorded_ones(
    kind: str, golden: Any, base: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assemble, "draw_curves", lambda run_dir: None)  # slower than the training
    seen = losses(KINDS[kind](base), tmp_path / "run", 2 if kind == "two_processes" else 1)
    file = golden.folder / "losses" / f"{kind}.json"
    if golden.is_recording:
        lines = ",\n  ".join(json.dumps(row) for row in seen)
        file.write_text(f'{{"machine": {json.dumps(golden.machine)}, "rows": [\n  {lines}\n]}}\n')
        return
    recorded = json.loads(file.read_text())
    assert len(seen) == STEPS
    if recorded["machine"] == golden.machine:
        assert seen == recorded["rows"]
    torch.testing.assert_close(
        torch.tensor(seen), torch.tensor(recorded["rows"]), rtol=1e-5, atol=1e-5
    )


def test_the_kinds_differ(golden: Any) -> None:
    rows = [
        json.loads((golden.folder / "losses" / f"{kind}.json").read_text())["rows"]
        for kind in KINDS
    ]
    assert len({json.dumps(one) for one in rows}) >= len(KINDS) - 1
