"""Recipes of the pocket model: all stages of the paper, from scratch, on a laptop CPU.

    blip3o train pocket.all --out runs/pocket          all stages in order
    blip3o train pocket.generation --out runs/g        one stage

Each stage reads the scenes data set, which is written on first use, and starts from the model
folders of earlier stages.
"""

import dataclasses
from pathlib import Path

from blip3o.core.config import evolve
from blip3o.data.mixture import DataConfig
from blip3o.data.scenes.things import COLORS, THINGS
from blip3o.data.sources.webdataset import WebDatasetConfig
from blip3o.flow.sigmas import UniformSigmas
from blip3o.objectives.flow_matching import FlowMatchingConfig
from blip3o.objectives.image_text import ImageTextConfig
from blip3o.objectives.pixel_decoding import PixelDecodingConfig
from blip3o.recipes import pocket_language as language
from blip3o.recipes.pocket_parts import (
    DECODER_SIGMA_SHIFT,
    FEATURES,
    RUNS,
    SCENES,
    SIGMA_SHIFT,
    after,
    entry,
    model,
    training,
)
from blip3o.train.config import InitConfig, RunConfig

PROMPTS = (
    "a red cat",
    "a photo of three purple hearts",
    "a blue car to the left of a green tree",
    "a yellow star and a pink fish",
    "an orange guitar above a black key",
    "two green apples",
    "a large purple robot on a cream background",
    "a red bell, a blue cup, a yellow moon and a green dog",
)


def encoder() -> RunConfig:
    """Trains the image encoder on captioned scenes, to match captions and to locate objects.

    blip3o train pocket.encoder --out runs/pocket/encoder
    """
    objective = ImageTextConfig(
        things=THINGS, colors=COLORS, contrastive_weight=0.3, region_weight=1.0, pixel_weight=2.0
    )
    return RunConfig(
        model=model(),
        data=DataConfig(mixture=(entry("scenes", "contrastive"),), num_workers=0),
        objectives=(objective,),
        train=training("image_encoder", steps=800, batch=96, lr=2e-3, sample_every=0),
    )


def decoder(runs: Path = RUNS) -> RunConfig:
    """Trains the image decoder by flow matching: scenes from their frozen image features.

    blip3o train pocket.decoder --out runs/pocket/decoder
    """
    return RunConfig(
        model=model(),
        init=(after(runs, "encoder"),),
        data=DataConfig(mixture=(entry("scenes", "reconstruct"),), feature_cache=FEATURES),
        objectives=(
            PixelDecodingConfig(
                sigmas=UniformSigmas(shift=DECODER_SIGMA_SHIFT), feature_noise=0.15, min_sigma=1.0
            ),
        ),
        train=training("image_decoder", steps=5600, batch=32, lr=1e-3, sample_every=300),
    )


def generation(runs: Path = RUNS) -> RunConfig:
    """Stage 2: trains query tokens and DiT on captions of scenes and pairs; backbone frozen.

    blip3o train pocket.generation --out runs/pocket/generation

    Half of the drawn images show two objects, because prompts with two objects are learned last
    (docs/log.md).
    """
    return RunConfig(
        model=model(),
        init=(
            after(runs, "understanding"),
            after(runs, "decoder", "image_decoder"),
        ),
        data=DataConfig(
            mixture=(
                entry("scenes", "text_to_image", weight=0.7),
                entry("pairs", "text_to_image", weight=0.3),
            ),
            feature_cache=FEATURES,
        ),
        objectives=(
            FlowMatchingConfig(
                sigmas=UniformSigmas(shift=SIGMA_SHIFT), condition_dropout=0.1, draws=2
            ),
        ),
        train=training("generator", steps=3000, batch=32, lr=2e-3),
        sample_prompts=PROMPTS,
    )


def tune(runs: Path = RUNS) -> RunConfig:
    """Trains edits by instruction together with the data of stages 1 and 2.

    blip3o train pocket.tune --out runs/pocket/tune

    The backbone is trained as well. With it frozen, color words did not reach the DiT: 0.48 of the
    edits were judged right, and 0.88 after it (docs/log.md, 2026-11-23, joint training).
    """
    base, questions = generation(runs), language.understanding(runs)
    train = training("backbone", "generator", steps=12500, batch=32, lr=1.2e-3)
    return dataclasses.replace(
        base,
        init=(after(runs, "generation"), after(runs, "decoder", "image_decoder")),
        data=dataclasses.replace(
            base.data,
            mixture=(
                entry("scenes", "text_to_image", weight=0.17),
                entry("pairs", "text_to_image", weight=0.24),
                entry("edits", "edit", weight=0.26),
                entry("scenes", "image_to_text", weight=0.23, max_turns=4),
                entry("scenes", "text", weight=0.1, max_turns=4),
            ),
        ),
        objectives=(*base.objectives, *questions.objectives),
        train=evolve(train, {"optimizer.lr_multipliers": {"backbone": 0.6}}),
    )


def all_stages(runs: Path) -> dict[str, RunConfig]:
    """Trains all stages in order; the finished model is in OUT/model.

    blip3o train pocket.all --out runs/pocket

    The bundled model's card says how many hours this takes on two cores.
    """
    return {
        "encoder": encoder(),
        "decoder": decoder(runs),
        "look_ups": language.look_ups(runs),
        "words": language.words(runs),
        "lists": language.lists(runs),
        "naming": language.naming(runs),
        "counting": language.counting(runs),
        "names": language.names(runs),
        "understanding": language.understanding(runs),
        "generation": generation(runs),
        "tune": tune(runs),
    }


def smoke() -> RunConfig:
    """Trains the decoder of the bundled model again, from scratch: two minutes on two cores.

    blip3o train pocket.smoke --out runs/smoke
    """
    config = evolve(decoder(), {"train.steps": 120, "train.sample_every": 40})
    small = dataclasses.replace(
        entry("scenes", "reconstruct"),
        source=WebDatasetConfig(path=f"{SCENES}-small/scenes-*.tar", name="small"),
    )
    return dataclasses.replace(
        config,
        init=(InitConfig(folder="pocket", parts=("image_encoder", "normalizer")),),
        data=dataclasses.replace(config.data, mixture=(small,), feature_cache=f"{FEATURES}-small"),
        train=dataclasses.replace(config.train, log_every=5, checkpoint_every=60),
    )
