"""A tiny study of real parts: two arms, two seeds, four steps."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from blip3o.core.rng import numpy_rng
from blip3o.data.mixture import DataConfig, MixtureEntry
from blip3o.data.scenes.captions import detailed_caption
from blip3o.data.scenes.questions import questions
from blip3o.data.scenes.render import render
from blip3o.data.scenes.scene import sample_scene
from blip3o.data.sources.jsonl import JsonlConfig
from blip3o.eval.scenes import ScenesBenchmark
from blip3o.flow.sigmas import UniformSigmas
from blip3o.models.generators.regression import RegressionConfig
from blip3o.models.unified import SamplingConfig, UnifiedModelConfig
from blip3o.objectives.feature_regression import FeatureRegressionConfig
from blip3o.objectives.flow_matching import FlowMatchingConfig
from blip3o.objectives.next_token import NextTokenConfig
from blip3o.runs import assemble
from blip3o.study import claims
from blip3o.study.claims import Claim
from blip3o.study.grid import Arm, Study, StudySettings
from blip3o.study.measures import MethodEvaluation
from blip3o.text.chat import ChatConfig
from blip3o.text.tokenizer import train_tokenizer
from blip3o.train.config import InitConfig, OptimizerConfig, RunConfig, TrainConfig
from blip3o.weights.folder import save_model

_PX = 32


@pytest.fixture(scope="session", autouse=True)
def _no_curves() -> Iterator[None]:
    """Drawing the curves of a run takes longer than the run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assemble, "draw_curves", lambda run_dir: None)
        yield


@pytest.fixture(scope="session")
def flow_config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A run that draws and answers, from a tiny model."""
    folder = tmp_path_factory.mktemp("study-data")
    rows, texts = [], ["user\n", "assistant\n", "draw: "]
    for number in range(8):
        scene = sample_scene(0, number)
        render(scene, _PX).save(folder / f"{number}.png")
        asked = questions(scene, numpy_rng(0, "test", number))[0]
        turns = [
            {"from": "human", "value": f"<image>\n{asked.question}"},
            {"from": "gpt", "value": asked.answer},
        ]
        caption = detailed_caption(scene)
        rows.append({"image": f"{number}.png", "caption": caption, "conversations": turns})
        texts += [caption, asked.question, asked.answer]
    file = folder / "scenes.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = train_tokenizer(texts, 300)
    tiny = UnifiedModelConfig.tiny()
    model = dataclasses.replace(
        tiny,
        backbone=dataclasses.replace(
            tiny.backbone, image_token_id=tokenizer.image_pad_id, max_positions=256
        ),
        chat=ChatConfig(system=None, generate="draw: {caption}"),
        sampling=SamplingConfig(num_inference_steps=2, num_decoder_steps=1, max_new_tokens=4),
    )
    torch.manual_seed(0)
    save_model(model.build(), tokenizer, folder / "model", torch.float32)
    source = JsonlConfig(path=str(file), name="scenes")
    return RunConfig(
        model=model,
        init=(InitConfig(folder=str(folder / "model"), parts=_STARTS),),
        data=DataConfig(
            mixture=(
                MixtureEntry(source=source, task="text_to_image"),
                MixtureEntry(source=source, task="image_to_text"),
            ),
            num_workers=0,
        ),
        objectives=(FlowMatchingConfig(sigmas=UniformSigmas()), NextTokenConfig()),
        train=TrainConfig(
            steps=4,
            global_batch_size=4,
            micro_batch_size=4,
            trainable=("backbone", "generator"),
            optimizer=OptimizerConfig(lr=1e-3, warmup_steps=1),
            log_every=1,
            checkpoint_every=1,
            ema_decay=0.5,
            precision="fp32",
            device="cpu",
        ),
    )


_STARTS = ("backbone", "image_encoder", "normalizer", "image_decoder")


@pytest.fixture(scope="session")
def tiny_study(flow_config: RunConfig) -> Study:
    """Flow matching against regression; only the first trains the backbone."""

    def flow(shared: Path) -> RunConfig:
        assert shared.name == "shared"
        return flow_config

    def regression() -> RunConfig:
        sampling = dataclasses.replace(flow_config.model.sampling, guidance_scale=1.0)
        model = dataclasses.replace(
            flow_config.model, generator=RegressionConfig.tiny(), sampling=sampling
        )
        return dataclasses.replace(
            flow_config,
            model=model,
            data=dataclasses.replace(flow_config.data, mixture=flow_config.data.mixture[:1]),
            objectives=(FeatureRegressionConfig(),),
        )

    return Study(
        name="tiny",
        title="A tiny study",
        arms=(
            Arm(name="flow", title="Flow matching", config=flow),
            Arm(
                name="mse",
                title="Regression",
                config=regression,
                overrides={"train.trainable": ["generator"]},
            ),
        ),
        settings=StudySettings(
            seeds=(0, 1),
            evaluation=MethodEvaluation(
                num_points=2,
                benchmark=ScenesBenchmark(
                    prompts_per_category=2,
                    images_per_prompt=1,
                    num_questions=6,
                    num_captions=0,
                    num_edits=0,
                    num_reconstructions=0,
                    wording_prompts_per_category=0,
                    num_wording_questions=0,
                    num_wording_edits=0,
                    batch_size=4,
                ),
                curve_prompts=1,
                curve_questions=3,
                num_diverse_prompts=3,
                num_repeats=2,
                num_frechet_images=4,
                num_psnr_images=2,
                num_texts=2,
                sample_prompts=("a red cat", "a blue car"),
            ),
        ),
        claims=(
            Claim(
                name="T1",
                text="Regression draws the same features again and again.",
                held_if=(
                    claims.Test(score="feature_diversity", arm="mse", is_="within", over="range"),
                ),
            ),
        ),
    )
