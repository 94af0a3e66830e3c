"""Recipes of every generation method at pocket size, on the same data with the same settings.

    blip3o train pocket.lmfusion --out runs/lmfusion

All start from the backbone, the image encoder and the image decoder of the bundled model and train
a fresh generator, on scenes of a small world. Each takes minutes on two cores. In the sequential
recipes the backbone is frozen, and in the joint ones it learns questions at the same time.
"""

import dataclasses

from blip3o.core.config import evolve
from blip3o.data.mixture import DataConfig, MixtureEntry
from blip3o.data.sources.webdataset import WebDatasetConfig
from blip3o.flow.sigmas import UniformSigmas
from blip3o.models.generators.lmfusion import LMFusionConfig
from blip3o.models.generators.plan import GeneratorConfig
from blip3o.models.generators.regression import RegressionConfig
from blip3o.models.generators.transfusion import TransfusionConfig
from blip3o.objectives.feature_regression import FeatureRegressionConfig
from blip3o.objectives.flow_matching import FlowMatchingConfig
from blip3o.objectives.next_token import NextTokenConfig
from blip3o.recipes.pocket_parts import (
    FEATURES,
    SIGMA_SHIFT,
    SMALL_WORLD_SCENES,
    adamw,
    query_generator,
    training,
)
from blip3o.train.config import InitConfig, RunConfig
from blip3o.weights.folder import open_model

START = "pocket"
"""The model whose backbone and image space all methods share."""
PROMPTS = (
    "a red cat",
    "two blue fish",
    "a green car to the left of a yellow crown",
    "a purple turtle and a pink chair",
    "a black penguin above an orange cactus",
    "a crown on a striped background",
)
STEPS, BATCH, LR = 1600, 16, 1.5e-3
DIT_WIDTH, DIT_PARAMETERS = 192, 3_100_000
QUESTION_SHARE = 0.25
"""Share of questions among the samples of a joint run."""
JOINT_BACKBONE_LR = 0.3
"""Factor of the learning rate of a backbone that is trained together with its generator."""


def clip_mse() -> RunConfig:
    """CLIP + MSE: query tokens, and one linear map from their states to the image features.

    blip3o train pocket.clip_mse --out runs/clip_mse
    """
    return sequential(RegressionConfig(query_init_std=0.02))


def clip_mse_deep() -> RunConfig:
    """CLIP + MSE whose head has as many parameters as the DiT, in bidirectional layers.

    blip3o train pocket.clip_mse_deep --out runs/clip_mse_deep
    """
    width = open_model(START).config.backbone.hidden_size
    layers = round(DIT_PARAMETERS / (12 * width**2))  # a layer has 12 squares of its width
    return sequential(
        RegressionConfig(query_init_std=0.02, num_layers=layers, num_heads=width // 32)
    )


def clip_flow() -> RunConfig:
    """CLIP + flow matching, the method of BLIP3-o: query tokens and a DiT on image features.

    blip3o train pocket.clip_flow --out runs/clip_flow
    """
    return sequential(query_generator(DIT_WIDTH))


def transfusion() -> RunConfig:
    """Transfusion in the space of image features: the backbone's own layers draw, and learn to.

    blip3o train pocket.transfusion --out runs/transfusion
    """
    config = sequential(TransfusionConfig())
    return evolve(config, {"train.trainable": ("backbone", "generator")})


def lmfusion() -> RunConfig:
    """LMFusion in the space of image features: image layers beside the frozen text layers.

    blip3o train pocket.lmfusion --out runs/lmfusion
    """
    return sequential(LMFusionConfig())


def lmfusion_copied() -> RunConfig:
    """LMFusion whose image layers start as copies of the text layers, as in its paper.

    blip3o train pocket.lmfusion_copied --out runs/lmfusion_copied
    """
    run = lmfusion()
    layers = "generator.decoder"
    copies = InitConfig(folder=START, parts=(layers,), sources={layers: "backbone.decoder"})
    return dataclasses.replace(run, init=(*run.init, copies))


def clip_mse_joint() -> RunConfig:
    """CLIP + MSE with the backbone trained at the same time, on questions and images.

    blip3o train pocket.clip_mse_joint --out runs/clip_mse_joint
    """
    return joint(clip_mse())


def clip_flow_joint() -> RunConfig:
    """CLIP + flow matching with the backbone trained at the same time, on questions and images.

    blip3o train pocket.clip_flow_joint --out runs/clip_flow_joint
    """
    return joint(clip_flow())


def transfusion_joint() -> RunConfig:
    """Transfusion on questions and images at the same time, as its paper trains it.

    blip3o train pocket.transfusion_joint --out runs/transfusion_joint
    """
    return joint(transfusion())


def lmfusion_joint() -> RunConfig:
    """LMFusion with both halves trained, on questions and images: BAGEL's mixture of transformers.

    blip3o train pocket.lmfusion_joint --out runs/lmfusion_joint
    """
    return joint(lmfusion())


def sequential(generator: GeneratorConfig) -> RunConfig:
    """Returns a run that trains a fresh generator on captions of the small world.

    Args:
        generator: the method.
    """
    base = open_model(START).config
    guidance = base.sampling.guidance_scale if generator.is_guided else 1.0
    objective = (
        FlowMatchingConfig(sigmas=UniformSigmas(shift=SIGMA_SHIFT), draws=2)
        if generator.is_guided
        else FeatureRegressionConfig()
    )
    return RunConfig(
        model=dataclasses.replace(
            base,
            generator=generator,
            sampling=dataclasses.replace(base.sampling, guidance_scale=guidance),
        ),
        init=(
            InitConfig(
                folder=START, parts=("backbone", "image_encoder", "normalizer", "image_decoder")
            ),
        ),
        data=DataConfig(
            mixture=(entry("scenes", "text_to_image", 0.5), entry("pairs", "text_to_image", 0.5)),
            feature_cache=FEATURES,
        ),
        objectives=(objective,),
        train=training("generator", steps=STEPS, batch=BATCH, optimizer=adamw(LR)),
        sample_prompts=PROMPTS,
    )


def joint(run: RunConfig, question_share: float = QUESTION_SHARE) -> RunConfig:
    """Returns a run that trains the backbone too, and questions about images beside the captions.

    Args:
        run: a run on captions.
        question_share: share of the questions among all samples, in (0, 1).
    """
    captions = [
        dataclasses.replace(one, weight=one.weight * (1 - question_share))
        for one in run.data.mixture
    ]
    questions = entry("scenes", "image_to_text", question_share, max_turns=4)
    train = evolve(
        run.train,
        {
            "trainable": ("backbone", "generator"),
            "optimizer.lr_multipliers": {"backbone": JOINT_BACKBONE_LR},
        },
    )
    return dataclasses.replace(
        run,
        data=dataclasses.replace(run.data, mixture=(*captions, questions)),
        objectives=(*run.objectives, NextTokenConfig(length_power=0.8)),
        train=train,
    )


def entry(shards: str, task: str, weight: float, max_turns: int | None = None) -> MixtureEntry:
    """Returns a task on "scenes" or "pairs" of the small world; see `MixtureEntry`."""
    source = WebDatasetConfig(path=f"{SMALL_WORLD_SCENES}/{shards}-*.tar", name=f"small-{shards}")
    return MixtureEntry(source=source, task=task, weight=weight, max_turns=max_turns)
