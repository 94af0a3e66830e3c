"""Recipes of the diffusion decoders: images from the features of a frozen image encoder.

A decoder run needs no language model. The backbone and the generator of these models are stand-ins
of the smallest size, without trained weights: such a model reconstructs images and does nothing
else. Other runs take its parts: init={folder: RUN, parts: [image_encoder, image_decoder]}.
"""

import dataclasses

from blip3o.data.mixture import DataConfig
from blip3o.flow.sigmas import DiscreteUniformSigmas
from blip3o.models.backbones.qwen3 import Qwen3BackboneConfig
from blip3o.models.decoders.sana import SanaDecoderConfig
from blip3o.models.decoders.sdxl import SdxlDecoderConfig
from blip3o.models.encoders.eva_clip import EvaClipEncoderConfig
from blip3o.models.encoders.siglip2 import Siglip2EncoderConfig
from blip3o.models.generators.query_dit import QueryDiTConfig
from blip3o.models.protocols import ImageDecoderConfig, ImageEncoderConfig
from blip3o.models.unified import UnifiedModelConfig
from blip3o.objectives.latent_decoding import LatentDecodingConfig
from blip3o.recipes.qwen2_5_vl import RELEASED_4B
from blip3o.recipes.stages import pretraining_mixture, train_config
from blip3o.train.config import InitConfig, RunConfig, TrainConfig

RELEASED_SANA = "BLIP3o/SigLIP2_SANA"

_IMAGE_PAD_ID = 6  # of tokenizers that a run trains itself
_GRID, _POOL = 8, 4  # 64 of 1024 tokens


def sana() -> RunConfig:
    """Published decoder training: SANA and its connector on 64 SigLIP2 tokens, at 512 px.

    blip3o train decoder.sana --out runs/decoder/sana

    Starts from the released SigLIP2_SANA. The published run started from SANA 1.6B for text, whose
    folder has another layout.
    Hardware: 8 GPUs of 80 GB. Hours: about 120, estimated at 40 % MFU; not run yet.
    Source: the released training script (1e-4, weight decay 0.05, clipping at 0.5, 5000 steps of
    warm-up, cosine, batch 512, a tenth of the source images black, uniform noise levels, plain mean
    squared error); 300 M images, say the authors. Two differences: their images are cropped to a
    square and ours are stretched, as in all other recipes; theirs came from one folder of their
    own, ours are the published open data.
    """
    encoder = Siglip2EncoderConfig.so400m(image_px=512, patch_px=16)
    networks = ("image_decoder.connector", "image_decoder.transformer")
    # The stored empty condition is left out: it may be that of 1024 tokens.
    parts = ("image_encoder", *networks, "image_decoder.vae")
    return _run(
        dataclasses.replace(encoder, skip_last=1, pool=_POOL),
        SanaDecoderConfig.published(_GRID),
        InitConfig(folder=RELEASED_SANA, parts=parts),
        _train(networks, steps=586_000, batch=512, lr=1e-4, warmup_steps=5000),
    )


def sdxl() -> RunConfig:
    """Trains the SDXL-shaped decoder on 64 EVA-CLIP tokens, at 1024 px.

    blip3o train decoder.sdxl --out runs/decoder/sdxl

    Starts from the decoder of the released 4B model.
    Hardware: 8 GPUs of 80 GB. Hours: about 17, estimated at 40 % MFU; not run yet.
    Source: ours. It is unknown how the released decoder was trained; the noise (epsilon) and its
    1000 levels are those of its scheduler, and the rest follows the SANA decoder at a tenth of the
    learning rate.
    """
    train = _train(("image_decoder.unet",), steps=20_000, batch=256, lr=1e-5, warmup_steps=500)
    return _run(
        EvaClipEncoderConfig.published(),
        SdxlDecoderConfig.published(),
        InitConfig(folder=RELEASED_4B, parts=("image_encoder", "image_decoder")),
        # The activations of 16 images of 1024 px would fill a GPU.
        dataclasses.replace(train, micro_batch_size=4),
    )


def _train(
    networks: tuple[str, ...], *, steps: int, batch: int, lr: float, warmup_steps: int
) -> TrainConfig:
    """Returns the published settings of the SANA decoder, for any network."""
    train = train_config(*networks, steps=steps, batch=batch, lr=lr)
    optimizer = dataclasses.replace(train.optimizer, weight_decay=0.05, warmup_steps=warmup_steps)
    return dataclasses.replace(train, optimizer=optimizer, grad_clip=0.5)


def _run(
    encoder: ImageEncoderConfig, decoder: ImageDecoderConfig, init: InitConfig, train: TrainConfig
) -> RunConfig:
    """Returns a run that trains a decoder on images alone."""
    mixture = pretraining_mixture()
    return RunConfig(
        model=_model(encoder, decoder),
        init=(init,),
        data=DataConfig(
            mixture=tuple(dataclasses.replace(entry, task="reconstruct") for entry in mixture),
            num_workers=4,
        ),
        objectives=(LatentDecodingConfig(sigmas=DiscreteUniformSigmas(), condition_dropout=0.1),),
        train=train,
    )


def _model(encoder: ImageEncoderConfig, decoder: ImageDecoderConfig) -> UnifiedModelConfig:
    """Returns a model of both parts and the smallest backbone and generator."""
    backbone = dataclasses.replace(
        Qwen3BackboneConfig.tiny(),
        image_token_id=_IMAGE_PAD_ID,
        image_channels=encoder.num_channels,
    )
    generator = dataclasses.replace(QueryDiTConfig.tiny(), num_query_tokens=encoder.num_tokens)
    return UnifiedModelConfig(
        backbone=backbone,
        image_encoder=encoder,
        generator=generator,
        image_decoder=decoder,
    )
