"""Recipes of the Qwen3-SigLIP2 variant: a text model learns to see with SigLIP2, and to draw.

This variant also trains the backbone. Run `understanding` and then `generation`, which freezes the
backbone again, or `joint` for both together. Its weights were not published, so the stages start
from a model folder with Qwen3-1.7B, SigLIP2 and EVA-CLIP (`START`).
"""

import dataclasses
from pathlib import Path

from blip3o.data.mixture import DataConfig, MixtureEntry
from blip3o.models.backbones.qwen3 import Qwen3BackboneConfig
from blip3o.models.decoders.sdxl import SdxlDecoderConfig
from blip3o.models.encoders.eva_clip import EvaClipEncoderConfig
from blip3o.models.generators.query_dit import QueryDiTConfig
from blip3o.models.unified import UnifiedModelConfig
from blip3o.recipes.stages import (
    PROMPTS,
    QUESTIONS,
    image_loss,
    pretraining_mixture,
    text_loss,
    train_config,
)
from blip3o.train.config import InitConfig, RunConfig

START = "models/qwen3-1.7b-siglip2"
RUNS = Path("runs/qwen3_siglip2")
"""Folder in which a stage looks for the stage before it."""

_IMAGE_PAD_ID = 151_655  # `<|image_pad|>` of Qwen's tokenizers, 2.5 and 3
_MAX_TOKENS = 2048
_STEPS = 280_000  # one epoch of 36 M images; the released script trains for ten


def model() -> UnifiedModelConfig:
    """Returns the variant with Qwen3-1.7B, the backbone of its released script."""
    published = Qwen3BackboneConfig.published("1.7b")
    # Our chat format marks images with a token that Qwen already has. Any token would do, because
    # image features replace its embedding.
    backbone = dataclasses.replace(published, image_token_id=_IMAGE_PAD_ID)
    return UnifiedModelConfig(
        backbone=backbone,
        image_encoder=EvaClipEncoderConfig.published(),
        generator=QueryDiTConfig.published(),
        image_decoder=SdxlDecoderConfig.published(),
    )


def understanding() -> RunConfig:
    """Sequential, first half: trains backbone and projector to caption images.

    blip3o train qwen3_siglip2.understanding --out runs/qwen3_siglip2/understanding

    Hardware: 8 GPUs of 80 GB. Hours: about 170, estimated at 40 % MFU; not run yet.
    Source: the released script of the variant (1e-4 to 1e-5, batch 128, 2048 tokens).
    """
    return dataclasses.replace(
        joint(),
        data=_data(_described()),
        objectives=(text_loss(),),
        train=train_config(
            "backbone.decoder", "backbone.projector", steps=_STEPS, batch=128, min_lr=1e-5
        ),
        sample_prompts=QUESTIONS,
    )


def generation() -> RunConfig:
    """Sequential, second half: trains query tokens and DiT on captioned images; the rest is frozen.

    blip3o train qwen3_siglip2.generation --out runs/qwen3_siglip2/generation

    Hardware: 8 GPUs of 80 GB. Hours: about 45, estimated at 40 % MFU; not run yet.
    Source: the released script of the variant with a frozen backbone. The projector stays frozen as
    well, because prompts of this task contain no images to train it on.
    """
    return dataclasses.replace(
        joint(),
        init=(InitConfig(folder=str(RUNS / "understanding")),),
        data=_data(pretraining_mixture()),
        objectives=(image_loss(),),
        train=train_config("generator", steps=_STEPS, batch=128, min_lr=1e-5),
    )


def joint() -> RunConfig:
    """Trains both tasks together: half of the samples draw a captioned image, half caption one.

    blip3o train qwen3_siglip2.joint --out runs/qwen3_siglip2/joint

    Hardware: 8 GPUs of 80 GB. Hours: about 110, estimated at 40 % MFU; not run yet.
    Source: the released script of the variant (backbone trained, losses one to one, every image
    used for both tasks).
    """
    return RunConfig(
        model=model(),
        init=(InitConfig(folder=START, parts=("backbone", "image_encoder", "image_decoder")),),
        data=_data((*pretraining_mixture(), *_described())),
        objectives=(image_loss(), text_loss()),
        train=train_config(
            "backbone.decoder",
            "backbone.projector",
            "generator",
            steps=_STEPS,
            batch=128,
            min_lr=1e-5,
        ),
        sample_prompts=PROMPTS,
    )


def _described() -> tuple[MixtureEntry, ...]:
    """Returns the same data for the reverse task: image to caption."""
    mixture = pretraining_mixture()
    return tuple(dataclasses.replace(entry, task="image_to_text") for entry in mixture)


def _data(mixture: tuple[MixtureEntry, ...]) -> DataConfig:
    return DataConfig(mixture=mixture, max_text_tokens=_MAX_TOKENS, num_workers=4)
