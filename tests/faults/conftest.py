"""A tiny run with all real parts: jsonl images, loader, unified model, objectives."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from blip3o.core.config import evolve
from blip3o.core.types import ImageRequest
from blip3o.data.mixture import DataConfig, MixtureEntry
from blip3o.data.sources.jsonl import JsonlConfig
from blip3o.flow.sigmas import UniformSigmas
from blip3o.models.decoders import DECODERS
from blip3o.models.generators import GENERATORS
from blip3o.models.generators.query_dit import QueryDiTConfig
from blip3o.models.unified import UnifiedModelConfig
from blip3o.objectives.diffusion_nft import DiffusionNftConfig
from blip3o.objectives.feature_regression import FeatureRegressionConfig
from blip3o.objectives.flow_grpo import FlowGrpoConfig
from blip3o.objectives.flow_matching import FlowMatchingConfig
from blip3o.objectives.latent_decoding import LatentDecodingConfig
from blip3o.objectives.next_token import NextTokenConfig
from blip3o.runs import assemble
from blip3o.text.chat import ChatConfig
from blip3o.text.tokenizer import train_tokenizer
from blip3o.train.config import InitConfig, OptimizerConfig, RunConfig, TrainConfig
from blip3o.weights.folder import save_model

STEPS = 10


@pytest.fixture(scope="session", autouse=True)
def _no_curves() -> Iterator[None]:
    """Drawing the curves takes longer than all these runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assemble, "draw_curves", lambda run_dir: None)
        yield


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """Returns the config of a run on image and text tasks that starts from a tiny model folder."""
    folder = tmp_path_factory.mktemp("data")
    source = JsonlConfig(path=str(_write_images(folder)), name="toy")
    tokenizer = train_tokenizer(["draw: a red cat", "What is this? a dog", "user\n"] * 3, 300)
    tiny = UnifiedModelConfig.tiny()
    model = dataclasses.replace(
        tiny,
        backbone=dataclasses.replace(tiny.backbone, image_token_id=tokenizer.image_pad_id),
        chat=ChatConfig(system=None, generate="draw: {caption}"),
    )
    torch.manual_seed(0)
    save_model(model.build(), tokenizer, folder / "model", torch.float32)
    return RunConfig(
        model=model,
        init=(InitConfig(folder=str(folder / "model")),),
        data=DataConfig(
            mixture=(
                MixtureEntry(source=source, task="text_to_image"),
                MixtureEntry(source=source, task="image_to_text", weight=0.5),
            ),
        ),
        objectives=(
            FlowMatchingConfig(sigmas=UniformSigmas(), text_weight=0.1),
            NextTokenConfig(weight=0.25),
        ),
        train=TrainConfig(
            steps=STEPS,
            global_batch_size=6,
            micro_batch_size=4,
            trainable=("backbone", "generator"),
            optimizer=OptimizerConfig(lr=1e-3, warmup_steps=2),
            log_every=4,
            checkpoint_every=3,
            sample_every=0,
            precision="fp32",
            device="cpu",
        ),
    )


@pytest.fixture(params=[n for n in DECODERS.names() if DECODERS.get(n).tiny().predicts_latents])
def decoder_config(config: RunConfig, request: pytest.FixtureRequest) -> RunConfig:
    """Returns the config of a run that trains a fresh diffusion decoder, of each kind.

    Its images have another size than those of the encoder, so batches hold both.
    """
    decoder = dataclasses.replace(DECODERS.get(request.param).tiny(), sample_size=16)
    assert decoder.image_px != config.model.image_encoder.image_px
    (entry, *_), (init,) = config.data.mixture, config.init
    reconstruct = dataclasses.replace(entry, task="reconstruct")
    parts = ("backbone", "image_encoder", "normalizer", "generator")
    with torch.device("meta"):
        networks = [name for name, _ in decoder.build().named_children() if name != "vae"]
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, image_decoder=decoder),
        init=(dataclasses.replace(init, parts=parts),),
        data=dataclasses.replace(config.data, mixture=(reconstruct,)),
        objectives=(LatentDecodingConfig(sigmas=UniformSigmas(), condition_dropout=0.3),),
        train=dataclasses.replace(
            config.train, trainable=tuple(f"image_decoder.{name}" for name in networks)
        ),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Warmth:
    """A reward for tests: the share of 16 tiles that are more red than blue.

    Rounding in another order, as on two processes, hardly ever changes it.
    """

    kind: str = "warmth"

    def build(self) -> "Warmth":
        return self

    def score(self, images: Sequence[Image.Image], requests: Sequence[ImageRequest]) -> list[float]:
        assert [request.fields["caption"] for request in requests]
        tiles = [np.asarray(image).reshape(4, 4, 4, 4, 3).mean((1, 3)) for image in images]
        return [float((tile[..., 0] > tile[..., 2]).mean()) for tile in tiles]


@pytest.fixture
def reward_config(config: RunConfig) -> RunConfig:
    """Returns the config of a run with both objectives of reward tuning and ordinary rows."""
    (captions, questions), (flow, text) = config.data.mixture, config.objectives
    settings: dict[str, Any] = {"reward": Warmth(), "num_images": 4, "num_inference_steps": 4}
    return dataclasses.replace(
        config,
        data=DataConfig(
            mixture=(dataclasses.replace(captions, task="rollout", weight=2.0), captions, questions)
        ),
        objectives=(
            DiffusionNftConfig(**settings),
            FlowGrpoConfig(**settings, weight=0.5),
            flow,
            text,
        ),
        train=dataclasses.replace(config.train, ema_decay=0.5),
    )


METHODS = (*GENERATORS.names(), "layers", "muon")


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def killed_size(method: str) -> int:
    """Returns how many processes the run of a method has that is killed: one and two in turn."""
    return 1 + METHODS.index(method) % 2


@pytest.fixture
def method_config(config: RunConfig, method: str) -> RunConfig:
    """Returns the config of a joint run that trains a fresh generator, of each method.

    "layers" is the query DiT that reads every layer of the backbone instead of queries, "muon" a
    generator whose matrices are updated by Muon.
    """
    if method == "layers":
        tiny = QueryDiTConfig.tiny()
        generator = dataclasses.replace(tiny, reads="layers", num_query_tokens=0)
    elif method == "muon":
        generator = QueryDiTConfig.tiny()
        config = evolve(config, {"train.optimizer.matrices": "muon"})
    else:
        generator = GENERATORS.get(method).tiny()
    parts = ("backbone", "image_encoder", "normalizer", "image_decoder")
    flow, text = config.objectives
    guidance = config.model.sampling.guidance_scale if generator.is_guided else 1.0
    changes = {"generator": generator, "sampling.guidance_scale": guidance}
    return dataclasses.replace(
        config,
        model=evolve(config.model, changes),
        init=(dataclasses.replace(config.init[0], parts=parts),),
        objectives=(flow if generator.is_guided else FeatureRegressionConfig(), text),
    )


def _write_images(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    rows = []
    for number in range(9):
        name = f"{number}.png"
        pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
        caption = (
            f"a {'very ' * (number % 3)}red cat {number}"  # captions have three different lengths
        )
        rows.append({"image": name, "caption": caption})
    file = folder / "toy.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file
