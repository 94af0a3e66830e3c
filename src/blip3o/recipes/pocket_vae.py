"""Recipes of "VAE + flow matching" at the size of the pocket model.

    blip3o train pocket.vae --out runs/pocket/vae              an autoencoder of pixels
    blip3o train pocket.vae_flow --out runs/pocket/vae_flow    a generator of its latents

The backbone is the bundled one. It sees images with the bundled image encoder, as eyes of its own,
so its answers about images are those of the bundled model.
"""

import dataclasses
from pathlib import Path

from blip3o.core.config import evolve
from blip3o.data.mixture import DataConfig
from blip3o.models.autoencoders import DcAutoencoderConfig
from blip3o.models.decoders.vae import VaeDecoderConfig
from blip3o.models.encoders.normalizer import FeatureNormalizerConfig
from blip3o.models.encoders.vae import VaeEncoderConfig
from blip3o.models.unified import UnifiedModelConfig
from blip3o.objectives.autoencoding import AutoencodingConfig
from blip3o.recipes.pocket_methods import DIT_WIDTH, clip_flow, entry, joint
from blip3o.recipes.pocket_parts import (
    FEATURES,
    IMAGE_PX,
    RUNS,
    adamw,
    after,
    query_generator,
    training,
)
from blip3o.train.config import InitConfig, RunConfig
from blip3o.weights.folder import open_model

LATENT_CHANNELS, PATCH_SIZE = 4, 6
_EYES = InitConfig(
    folder="pocket",
    parts=("backbone",),
    sources={"backbone.vision_tower": "image_encoder"},
)
"""The bundled backbone; its tower starts as the bundled image encoder."""


def vae_model() -> UnifiedModelConfig:
    """Returns the pocket model with the halves of an autoencoder as image encoder and decoder.

    It is a DC autoencoder: in the same time it learns more than a KL autoencoder of twice the size
    (docs/training.md). The latents are 24 x 24 x 4, a twelfth of the image's numbers as in FLUX.1.
    Patches of 6 x 6 give the DiT 16 tokens, as many as it has with the features of the image
    encoder, so both models compute the same.
    """
    base = open_model("pocket").config
    widths = (16, 64, 128)
    sizes = DcAutoencoderConfig(
        latent_channels=LATENT_CHANNELS,
        block_types=("ResBlock",) * len(widths),
        block_out_channels=widths,
        encoder_layers_per_block=(1,) * len(widths),
        decoder_layers_per_block=(1,) * len(widths),
        qkv_multiscales=((),) * len(widths),
        scaling_factor=1.0,  # the normalizer has the measured one
    )
    return dataclasses.replace(
        base,
        backbone=evolve(
            base.backbone, {"image_channels": None, "vision_tower": base.image_encoder}
        ),
        image_encoder=VaeEncoderConfig(image_px=IMAGE_PX, autoencoder=sizes),
        # One factor for all channels, so that their mean variance is 1.
        normalizer=FeatureNormalizerConfig(num_components=LATENT_CHANNELS, power=0.0),
        generator=dataclasses.replace(query_generator(DIT_WIDTH), patch_size=PATCH_SIZE),
        image_decoder=VaeDecoderConfig(image_px=IMAGE_PX, autoencoder=sizes),
    )


def vae() -> RunConfig:
    """Trains an autoencoder of a million parameters on pixels of the small world, without words.

    blip3o train pocket.vae --out runs/pocket/vae
    """
    train = training("image_encoder", "image_decoder", steps=4000, batch=4, optimizer=adamw(2e-3))
    mixture = (entry("scenes", "reconstruct", 0.5), entry("pairs", "reconstruct", 0.5))
    return RunConfig(
        model=vae_model(),
        init=(_EYES,),
        data=DataConfig(mixture=mixture),
        objectives=(AutoencodingConfig(),),
        train=evolve(train, {"optimizer.weight_decay": 0.0}),
    )


def flow(runs: Path = RUNS) -> RunConfig:
    """Trains query tokens and DiT to draw latents of `pocket.vae`; backbone frozen.

    blip3o train pocket.vae_flow --out runs/pocket/vae_flow

    Generator, data, steps and rates are those of `pocket.clip_flow`: only the image space differs.
    """
    base = clip_flow()
    return dataclasses.replace(
        base,
        model=vae_model(),
        init=(_EYES, after(runs, "vae", "image_encoder", "normalizer", "image_decoder")),
        data=dataclasses.replace(base.data, feature_cache=f"{FEATURES}-vae"),
    )


def flow_joint(runs: Path = RUNS) -> RunConfig:
    """VAE + flow matching with the backbone trained at the same time, on questions and images.

    blip3o train pocket.vae_flow_joint --out runs/pocket/vae_flow_joint
    """
    return joint(flow(runs))
