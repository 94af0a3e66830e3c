"""Recipes that fine-tune a model on a folder of your own images, from text to image.

    my/images/dog.jpg   my/images/dog.txt: "my dog on the sofa"

An image without a text file gets the caption data.mixture.0.source.caption. With
train.adapter={rank: 16}, low-rank adapters are trained instead of the weights (`LoraConfig`): this
needs less memory and smaller checkpoints. Samples show the first captions. One feature cache can
hold several data sets.
"""

import dataclasses

from blip3o.data.mixture import DataConfig, MixtureEntry
from blip3o.data.sources.folder import FolderConfig
from blip3o.models.backbones.qwen2_5_vl import Qwen2_5VLBackboneConfig
from blip3o.models.unified import UnifiedModelConfig
from blip3o.recipes import qwen2_5_vl
from blip3o.recipes.stages import image_loss, train_config
from blip3o.train.config import InitConfig, RunConfig, TrainConfig
from blip3o.weights.folder import open_model

_IMAGES = "images"
_FEATURES = "runs/own_features"
_BAD_SAMPLE_LIMIT = 0.5
"""A folder of 27 photos with three broken ones is still worth training on."""


def pocket() -> RunConfig:
    """Fine-tunes the generator of the bundled model on your own images, on any laptop.

    blip3o train own_data --out runs/mine data.mixture.0.source.path=my/images

    Hardware: two CPU cores. Hours: less than 0.5 for 300 steps.
    Source: ours; about half the learning rate of the bundled model's last stage.
    """
    model = open_model("pocket").config
    return _run("pocket", model, train_config("generator", steps=300, batch=32, lr=5e-4))


def blip3o_4b() -> RunConfig:
    """Fine-tunes query tokens and DiT of the released 4B model on your own images.

    blip3o train blip3o_4b.own_data --out runs/mine data.mixture.0.source.path=my/images

    Hardware: one GPU of 80 GB. Hours: about 1 for 1000 steps, estimated.
    Source: ours; a tenth of the learning rate of the released tuning script.
    """
    return _released(qwen2_5_vl.RELEASED_4B, Qwen2_5VLBackboneConfig.published_4b())


def blip3o_8b() -> RunConfig:
    """Fine-tunes query tokens and DiT of the released 8B model on your own images.

    blip3o train blip3o_8b.own_data --out runs/mine data.mixture.0.source.path=my/images

    Hardware: one GPU of 80 GB. Hours: about 1.5 for 1000 steps, estimated.
    Source: ours; a tenth of the learning rate of the released tuning script.
    """
    return _released(qwen2_5_vl.RELEASED_8B, Qwen2_5VLBackboneConfig.published_8b())


def _released(start: str, backbone: Qwen2_5VLBackboneConfig) -> RunConfig:
    train = train_config("generator", steps=1000, batch=32, lr=1e-5)
    return _run(start, qwen2_5_vl.model(backbone), train)


def _run(start: str, model: UnifiedModelConfig, train: TrainConfig) -> RunConfig:
    source = FolderConfig(path=_IMAGES, name="own")
    return RunConfig(
        model=model,
        init=(InitConfig(folder=start),),
        data=DataConfig(
            mixture=(MixtureEntry(source=source, task="text_to_image"),),
            feature_cache=_FEATURES,
            bad_sample_limit=_BAD_SAMPLE_LIMIT,
        ),
        objectives=(image_loss(),),
        train=dataclasses.replace(train, checkpoint_every=100, sample_every=100),
    )
