"""The stages of the released models, for either of their sizes; see `blip3o_4b`, `blip3o_8b`."""

import dataclasses
from pathlib import Path

from blip3o.data.mixture import DataConfig
from blip3o.imaging.fit import ImageFitConfig
from blip3o.models.backbones.qwen2_5_vl import Qwen2_5VLBackboneConfig
from blip3o.models.decoders.sdxl import SdxlDecoderConfig
from blip3o.models.dit.nextdit import NextDiTConfig
from blip3o.models.encoders.eva_clip import EvaClipEncoderConfig
from blip3o.models.unified import SamplingConfig, UnifiedModelConfig
from blip3o.recipes.stages import (
    FEATURES,
    IMAGE_PX,
    PROMPTS,
    QUESTIONS,
    conversations,
    image_loss,
    pretraining_mixture,
    text_loss,
    train_config,
    tuning_mixture,
)
from blip3o.train.config import InitConfig, RunConfig

_GENERATION_TOKENS = 512 - 65  # the released limit, less `[IMG]` and 64 query tokens
_IMAGE_TOKENS = 2048 + 1024  # the largest image and the words about it


def model(backbone: Qwen2_5VLBackboneConfig) -> UnifiedModelConfig:
    """Returns the released model around a backbone.

    Args:
        backbone: a Qwen2.5-VL.
    """
    return UnifiedModelConfig(
        backbone=backbone,
        image_encoder=EvaClipEncoderConfig.published(),
        num_query_tokens=64,
        dit=NextDiTConfig.published(backbone.hidden_size),
        image_decoder=SdxlDecoderConfig.published(),
        sampling=SamplingConfig(truncate_timestep=True),
        question_images=ImageFitConfig(mode="aspect"),
    )


def generation(backbone: Qwen2_5VLBackboneConfig, released: str) -> RunConfig:
    """Returns the generation stage: fresh queries and DiT, everything else frozen.

    Args:
        backbone: a Qwen2.5-VL.
        released: where backbone, image encoder and image decoder are taken from.
    """
    return RunConfig(
        model=model(backbone),
        # The released backbone is Qwen2.5-VL as it was, with rows for three more tokens.
        init=(InitConfig(folder=released, parts=("backbone", "image_encoder", "image_decoder")),),
        data=DataConfig(
            mixture=pretraining_mixture(),
            image_px=IMAGE_PX,
            max_text_tokens=_GENERATION_TOKENS,
            num_workers=4,
        ),
        objectives=(image_loss(),),
        train=train_config("query_tokens", "dit", steps=150_000, batch=512, min_lr=1e-5),
        sample_prompts=PROMPTS,
    )


def tune(backbone: Qwen2_5VLBackboneConfig, before: Path) -> RunConfig:
    """Returns the tuning stage on BLIP3o-60k.

    Args:
        backbone: a Qwen2.5-VL.
        before: the run of the generation stage.
    """
    base = generation(backbone, str(before))
    data = dataclasses.replace(base.data, mixture=tuning_mixture(), feature_cache=FEATURES)
    return dataclasses.replace(
        base,
        init=(InitConfig(folder=str(before)),),
        data=data,
        train=train_config("query_tokens", "dit", steps=10_000, batch=128),
    )


def understanding(backbone: Qwen2_5VLBackboneConfig, released: str) -> RunConfig:
    """Returns a tuning of the language side on conversations about images.

    Args:
        backbone: a Qwen2.5-VL.
        released: the model that is tuned.
    """
    base = generation(backbone, released)
    return dataclasses.replace(
        base,
        init=(InitConfig(folder=released),),
        data=dataclasses.replace(
            base.data, mixture=(conversations(),), max_text_tokens=_IMAGE_TOKENS
        ),
        objectives=(text_loss(),),
        train=train_config("backbone.decoder", steps=5000, batch=128, lr=1e-5),
        sample_prompts=QUESTIONS,
    )


def joint(backbone: Qwen2_5VLBackboneConfig, released: str) -> RunConfig:
    """Returns training on captions and conversations at once; the mix decides how much of each.

    Args:
        backbone: a Qwen2.5-VL.
        released: the model that is trained on.
    """
    base = understanding(backbone, released)
    captions = pretraining_mixture()
    share = sum(entry.weight for entry in captions) / 3  # a quarter of all samples
    return dataclasses.replace(
        base,
        data=dataclasses.replace(base.data, mixture=(*captions, conversations(share))),
        objectives=(image_loss(), text_loss()),
        train=train_config(
            "backbone.decoder",
            "query_tokens",
            "dit",
            steps=50_000,
            batch=512,
            min_lr=1e-5,
            lr_multipliers={"backbone": 0.1},
        ),
        sample_prompts=PROMPTS,
    )
