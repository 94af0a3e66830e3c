"""Recipes of the released 4B and 8B models.

The generation and tuning stages have the published numbers; understanding and joint training are
ours. Start weights come from the released model on the hub. Data sets are read from
data/NAME/*.tar.
"""

import dataclasses
from pathlib import Path

from blip3o.core.config import evolve
from blip3o.data.mixture import DataConfig
from blip3o.flow.sigmas import LogitNormalSigmas
from blip3o.imaging.fit import ImageFitConfig
from blip3o.models.autoencoders import AutoencoderConfig, KlAutoencoderConfig
from blip3o.models.backbones.qwen2_5_vl import Qwen2_5VLBackboneConfig
from blip3o.models.decoders.sdxl import SdxlDecoderConfig
from blip3o.models.decoders.vae import VaeDecoderConfig
from blip3o.models.encoders.eva_clip import EvaClipEncoderConfig
from blip3o.models.encoders.vae import VaeEncoderConfig
from blip3o.models.generators.query_dit import QueryDiTConfig
from blip3o.models.unified import SamplingConfig, UnifiedModelConfig
from blip3o.recipes.stages import (
    DATA,
    FEATURES,
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

RELEASED_4B = "BLIP3o/BLIP3o-Model-4B"
RELEASED_8B = "BLIP3o/BLIP3o-Model-8B"

FLUX_VAE = f"{DATA}/FLUX.1/vae"
"""Folder of FLUX.1's VAE: hf download black-forest-labs/FLUX.1-schnell --include "vae/*"
--local-dir data/FLUX.1"""

_RUNS_4B = Path("runs/blip3o_4b")
"""Folder in which a stage looks for the stage before it."""
_RUNS_8B = Path("runs/blip3o_8b")
_GENERATION_TOKENS = 512 - 65  # the released limit minus `[IMG]` and 64 query tokens
_IMAGE_TOKENS = 2048 + 1024  # the largest image and the text about it
_LATENT_SHIFT = 3.0  # latents have many numbers that say the same, so noise must be stronger


def model(backbone: Qwen2_5VLBackboneConfig) -> UnifiedModelConfig:
    """Returns the released model with a backbone of either size.

    Args:
        backbone: a Qwen2.5-VL.
    """
    return UnifiedModelConfig(
        backbone=backbone,
        image_encoder=EvaClipEncoderConfig.published(),
        generator=QueryDiTConfig.published(),
        image_decoder=SdxlDecoderConfig.published(),
        sampling=SamplingConfig(truncate_timestep=True),
        question_images=ImageFitConfig(mode="aspect"),
    )


def vae_model(
    backbone: Qwen2_5VLBackboneConfig,
    autoencoder: AutoencoderConfig,
    *,
    image_px: int,
    patch_size: int,
) -> UnifiedModelConfig:
    """Returns the model whose generator draws latents of a published VAE instead of features.

    Args:
        backbone: a Qwen2.5-VL; it sees images with its own tower.
        autoencoder: the VAE; both halves are parts of the model.
        image_px: side of the images.
        patch_size: latent pixels along the side of a token of the DiT.
    """
    return dataclasses.replace(
        model(backbone),
        image_encoder=VaeEncoderConfig(image_px=image_px, autoencoder=autoencoder),
        generator=evolve(QueryDiTConfig.published(), {"patch_size": patch_size}),
        image_decoder=VaeDecoderConfig(image_px=image_px, autoencoder=autoencoder),
        sampling=SamplingConfig(sigma_shift=_LATENT_SHIFT),
    )


def generation_4b() -> RunConfig:
    """Published stage 2: query tokens and DiT from scratch on 36 M captions, backbone frozen.

    blip3o train blip3o_4b.generation --out runs/blip3o_4b/generation

    Hardware: 32 GPUs of 80 GB or more (16 images on each). Hours: the authors took about 240 on
    32 H200; we have not run it. Features are computed during training. A cache of them
    (data.feature_cache=DIR) saves most of a step and takes 229 kB per image, 8.3 TB in total.
    Source: the released pre-training script (1e-4 to 1e-5, batch 512) and its documentation
    (150 k steps or more).
    """
    return generation(Qwen2_5VLBackboneConfig.published_4b(), RELEASED_4B)


def vae_flow_4b() -> RunConfig:
    """VAE + flow matching: query tokens and DiT learn to draw latents of FLUX.1's VAE at 256 px.

    blip3o train blip3o_4b.vae_flow --out runs/blip3o_4b/vae_flow

    The VAE is read from data/FLUX.1/vae, as diffusers writes it. Patches of 4 x 4 latent pixels
    give the DiT 64 tokens, as many as it has of image features, so both variants compute the same.
    Hardware: 32 GPUs of 80 GB. Hours: about those of `blip3o_4b.generation`; we have not run it.
    Source: the paper's comparison for the method (its code was never released), Show-o2 for noise
    levels (logit-normal, shift 3); steps, batch and rates are those of the generation stage.
    """
    return _vae_flow(Qwen2_5VLBackboneConfig.published_4b(), RELEASED_4B)


def tune_4b() -> RunConfig:
    """Published instruction tuning: query tokens and DiT on BLIP3o-60k, features cached.

    blip3o train blip3o_4b.tune --out runs/blip3o_4b/tune

    Starts from the generation stage. To tune the released model instead, add
    init.0.folder=BLIP3o/BLIP3o-Model-4B.
    Hardware: 8 GPUs of 80 GB. Hours: less than 24 on 8 H100, say the authors; we have not run it.
    Source: the released tuning script (1e-4 to 0, batch 128) and its documentation (10 k steps or
    more).
    """
    return _tune(Qwen2_5VLBackboneConfig.published_4b(), _RUNS_4B / "generation")


def understanding_4b() -> RunConfig:
    """Trains the backbone on conversations about images; the released models keep it frozen.

    blip3o train blip3o_4b.understanding --out runs/blip3o_4b/understanding

    Hardware: 8 GPUs of 80 GB. Hours: about 3, estimated from 2 k tokens a sample at 40 % MFU.
    Source: ours; the released models keep Qwen2.5-VL as it is.
    """
    return _understanding(Qwen2_5VLBackboneConfig.published_4b(), RELEASED_4B)


def joint_4b() -> RunConfig:
    """Trains on captions and conversations, three to one; the backbone at a tenth of the rate.

    blip3o train blip3o_4b.joint --out runs/blip3o_4b/joint

    Hardware: 32 GPUs of 80 GB. Hours: about 11, estimated at 40 % MFU, image encoder included.
    Source: the loss weights (one to one) are those of the Qwen3-SigLIP2 variant; the rest is ours.
    """
    return joint(Qwen2_5VLBackboneConfig.published_4b(), RELEASED_4B)


def generation_8b() -> RunConfig:
    """Published stage 2: query tokens and DiT from scratch on 36 M captions, backbone frozen.

    blip3o train blip3o_8b.generation --out runs/blip3o_8b/generation

    Hardware: 32 GPUs of 80 GB or more (16 images on each). Hours: the authors took about 340 on
    32 H200; we have not run it. Source: as for the 4B model.
    """
    return generation(Qwen2_5VLBackboneConfig.published_8b(), RELEASED_8B)


def vae_flow_8b() -> RunConfig:
    """VAE + flow matching: query tokens and DiT learn to draw latents of FLUX.1's VAE at 256 px.

    blip3o train blip3o_8b.vae_flow --out runs/blip3o_8b/vae_flow

    Hardware: 32 GPUs of 80 GB. Hours: about those of `blip3o_8b.generation`; we have not run it.
    Source: as for the 4B model.
    """
    return _vae_flow(Qwen2_5VLBackboneConfig.published_8b(), RELEASED_8B)


def tune_8b() -> RunConfig:
    """Published instruction tuning: query tokens and DiT on BLIP3o-60k, features cached.

    blip3o train blip3o_8b.tune --out runs/blip3o_8b/tune

    Starts from the generation stage. To tune the released model instead, add
    init.0.folder=BLIP3o/BLIP3o-Model-8B.
    Hardware: 8 GPUs of 80 GB. Hours: less than 24 on 8 H100, say the authors; we have not run it.
    Source: as for the 4B model.
    """
    return _tune(Qwen2_5VLBackboneConfig.published_8b(), _RUNS_8B / "generation")


def understanding_8b() -> RunConfig:
    """Trains the backbone on conversations about images; the released models keep it frozen.

    blip3o train blip3o_8b.understanding --out runs/blip3o_8b/understanding

    Hardware: 8 GPUs of 80 GB. Hours: about 7, estimated from 2 k tokens a sample at 40 % MFU.
    Source: ours; the released models keep Qwen2.5-VL as it is.
    """
    return _understanding(Qwen2_5VLBackboneConfig.published_8b(), RELEASED_8B)


def joint_8b() -> RunConfig:
    """Trains on captions and conversations, three to one; the backbone at a tenth of the rate.

    blip3o train blip3o_8b.joint --out runs/blip3o_8b/joint

    Hardware: 32 GPUs of 80 GB. Hours: about 20, estimated at 40 % MFU, image encoder included.
    Source: as for the 4B model.
    """
    return joint(Qwen2_5VLBackboneConfig.published_8b(), RELEASED_8B)


def generation(backbone: Qwen2_5VLBackboneConfig, released: str) -> RunConfig:
    """Returns the generation stage: query tokens and DiT from scratch, everything else frozen.

    Args:
        backbone: a Qwen2.5-VL.
        released: the released model with this backbone.
    """
    return RunConfig(
        model=model(backbone),
        # The released backbone is Qwen2.5-VL as it was, with rows for three more tokens.
        init=(InitConfig(folder=released, parts=("backbone", "image_encoder", "image_decoder")),),
        data=DataConfig(
            mixture=pretraining_mixture(),
            max_text_tokens=_GENERATION_TOKENS,
            num_workers=4,
        ),
        objectives=(image_loss(),),
        train=train_config("generator", steps=150_000, batch=512, min_lr=1e-5),
        sample_prompts=PROMPTS,
    )


def _vae_flow(backbone: Qwen2_5VLBackboneConfig, released: str) -> RunConfig:
    """Returns the generation stage in the latents of FLUX.1's VAE."""
    base = generation(backbone, released)
    return dataclasses.replace(
        base,
        model=vae_model(backbone, KlAutoencoderConfig.flux(), image_px=256, patch_size=4),
        init=(
            InitConfig(folder=released, parts=("backbone",)),
            InitConfig(folder=FLUX_VAE, parts=("image_encoder", "image_decoder")),
        ),
        objectives=(
            dataclasses.replace(image_loss(), sigmas=LogitNormalSigmas(shift=_LATENT_SHIFT)),
        ),
    )


def _tune(backbone: Qwen2_5VLBackboneConfig, before: Path) -> RunConfig:
    """Returns the tuning stage on BLIP3o-60k, which starts from a run of the generation stage."""
    base = generation(backbone, str(before))
    data = dataclasses.replace(base.data, mixture=tuning_mixture(), feature_cache=FEATURES)
    return dataclasses.replace(
        base,
        init=(InitConfig(folder=str(before)),),
        data=data,
        train=train_config("generator", steps=10_000, batch=128),
    )


def _understanding(backbone: Qwen2_5VLBackboneConfig, released: str) -> RunConfig:
    """Returns a stage that trains the backbone of the released model on conversations."""
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
    """Returns a stage that trains the released model on captions and conversations together.

    Args:
        backbone: a Qwen2.5-VL.
        released: the released model with this backbone.
    """
    base = _understanding(backbone, released)
    captions = pretraining_mixture()
    share = sum(entry.weight for entry in captions) / 3  # a quarter of all samples
    return dataclasses.replace(
        base,
        data=dataclasses.replace(base.data, mixture=(*captions, conversations(share))),
        objectives=(image_loss(), text_loss()),
        train=train_config(
            "backbone.decoder",
            "generator",
            steps=50_000,
            batch=512,
            min_lr=1e-5,
            lr_multipliers={"backbone": 0.1},
        ),
        sample_prompts=PROMPTS,
    )
