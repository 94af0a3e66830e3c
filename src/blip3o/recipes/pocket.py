"""Recipes of the pocket model: all stages of the paper, from scratch, on a laptop CPU.

    blip3o train pocket.all --out runs/pocket          all stages in order
    blip3o train pocket.generation --out runs/g        one stage

Each stage reads the scenes data set, which is written on first use, and starts from the model
folders of earlier stages.
"""

import dataclasses
from pathlib import Path

from blip3o.core.config import evolve
from blip3o.data.mixture import DataConfig, MixtureEntry
from blip3o.data.scenes.things import COLORS, THINGS
from blip3o.data.sources.webdataset import WebDatasetConfig
from blip3o.eval.tuning.scenes import ScenesRewardConfig
from blip3o.flow.sigmas import UniformSigmas
from blip3o.objectives.diffusion_nft import DiffusionNftConfig
from blip3o.objectives.flow_matching import FlowMatchingConfig
from blip3o.objectives.image_text import ImageTextConfig
from blip3o.objectives.next_token import NextTokenConfig
from blip3o.objectives.pixel_decoding import PixelDecodingConfig
from blip3o.recipes.pocket_parts import (
    DECODER_SIGMA_SHIFT,
    FEATURES,
    RUNS,
    SCENES,
    SIGMA_SHIFT,
    WIDTH,
    adamw,
    after,
    entry,
    model,
    muon,
    query_generator,
    training,
)
from blip3o.recipes.reward import reward_of
from blip3o.train.config import InitConfig, RunConfig

PROMPTS = (
    "a red cat",
    "exactly three purple hearts, please",
    "I'd love an image where a blue car is to the left of a green tree",
    "a yellow star and a pink fish",
    "an orange guitar above a black key",
    "two green apples plus one robot",
    "Could you draw a large purple robot on a cream background?",
    "a red bell, a blue cup, a yellow moon and a green dog",
)
QUESTIONS = (
    "What is in the image?",
    "How many objects are there?",
    "Tell me about this.",
    "What is the background?",
) * 2
_NAMES = entry("scenes", "image_to_text", conversation="names")
_LANGUAGE = (
    entry("scenes", "image_to_text", weight=0.55, max_turns=3),
    dataclasses.replace(_NAMES, weight=0.15),
    entry("scenes", "text", weight=0.15, max_turns=3),
    entry("scenes", "text", weight=0.15, conversation="restated"),
)
"""Questions about images, questions about texts, and prompts to say again in plain words."""
_ANSWERS = NextTokenConfig(length_power=1.0, early_weight=1.0)


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
        train=training(
            "image_encoder", steps=1000, batch=96, optimizer=adamw(2e-3), sample_every=0
        ),
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
        train=training(
            "image_decoder", steps=7000, batch=32, optimizer=adamw(1e-3), sample_every=300
        ),
    )


def names(runs: Path = RUNS) -> RunConfig:
    """Begins stage 1: trains the backbone to find a thing in an image by its name.

    blip3o train pocket.names --out runs/pocket/names

    A few minutes with one kind of question. Among all kinds, the names are still guessed after an
    hour (docs/log.md).
    """
    train = training(
        "backbone", steps=400, batch=128, optimizer=muon(5e-3), micro_batch=64, sample_every=0
    )
    return RunConfig(
        model=model(),
        init=(after(runs, "encoder"),),
        data=DataConfig(mixture=(_NAMES,), feature_cache=FEATURES),
        objectives=(_ANSWERS,),
        train=train,
    )


def understanding(runs: Path = RUNS) -> RunConfig:
    """Stage 1: trains the backbone on questions, texts and small talk; encoder frozen.

    blip3o train pocket.understanding --out runs/pocket/understanding
    """
    return RunConfig(
        model=model(),
        init=(after(runs, "names"),),
        data=DataConfig(mixture=_LANGUAGE, feature_cache=FEATURES, max_text_tokens=320),
        objectives=(_ANSWERS,),
        train=training("backbone", steps=1600, batch=96, optimizer=muon(5e-3), micro_batch=48),
        sample_prompts=QUESTIONS,
    )


def generation(runs: Path = RUNS) -> RunConfig:
    """Stage 2: trains the image layers on captions of scenes and pairs; backbone frozen.

    blip3o train pocket.generation --out runs/pocket/generation

    Half of the drawn images show two objects, because prompts with two objects are learned last
    (docs/log.md).
    """
    return RunConfig(
        model=model(),
        init=(after(runs, "understanding"), after(runs, "decoder", "image_decoder")),
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
        train=training("generator", steps=5000, batch=32, optimizer=muon(3e-3)),
        sample_prompts=PROMPTS,
    )


def query_dit(runs: Path = RUNS) -> RunConfig:
    """Stage 2 with the generator of BLIP3-o: query tokens and a DiT, instead of image layers.

    blip3o train pocket.query_dit --out runs/pocket/query_dit

    docs/results.md compares it with `pocket.generation`.
    """
    base = generation(runs)
    parts = ("backbone", "image_encoder", "normalizer")
    return dataclasses.replace(
        base,
        model=dataclasses.replace(base.model, generator=query_generator(WIDTH)),
        init=(after(runs, "understanding", *parts), after(runs, "decoder", "image_decoder")),
    )


def tune(runs: Path = RUNS) -> RunConfig:
    """Trains edits by instruction together with the data of stages 1 and 2, all layers.

    blip3o train pocket.tune --out runs/pocket/tune
    """
    base, questions = generation(runs), understanding(runs)
    train = training("backbone", "generator", steps=3000, batch=48, optimizer=muon(2e-3))
    return dataclasses.replace(
        base,
        init=(after(runs, "generation"), after(runs, "decoder", "image_decoder")),
        data=dataclasses.replace(
            base.data,
            mixture=_joint(0.24, 0.11, 0.35, language=0.3),
        ),
        objectives=(*base.objectives, *questions.objectives),
        train=evolve(train, {"optimizer.lr_multipliers": {"backbone": 0.5}}),
    )


def refine(runs: Path = RUNS) -> RunConfig:
    """Continues `tune` with half of the rows about language, and one rate for all layers.

    blip3o train pocket.refine --out runs/pocket/refine

    Answers and edits improve, and images lose a little; `finish` takes the mean of both models.
    """
    base = tune(runs)
    return dataclasses.replace(
        base,
        init=(after(runs, "tune"),),
        data=dataclasses.replace(base.data, mixture=_joint(0.2, 0.08, 0.22, language=0.5)),
        train=training("backbone", "generator", steps=1000, batch=48, optimizer=muon(2e-3)),
    )


def reward(runs: Path = RUNS) -> RunConfig:
    """Tunes the image layers by rewards of the scene detector (DiffusionNFT).

    blip3o train pocket.reward --out runs/pocket/reward

    Half of the rows are those of `refine`, so that edits and ordinary prompts are not forgotten.
    """
    train = training("generator", steps=120, batch=16, optimizer=adamw(2e-4), sample_every=0)
    return reward_of(
        refine(runs),
        DiffusionNftConfig(
            reward=ScenesRewardConfig(), num_images=8, num_inference_steps=8, draws=2
        ),
        (entry("scenes", "rollout", weight=0.6), entry("pairs", "rollout", weight=0.4)),
        # In bf16 the noise of the distance to the start is as large as the distance.
        evolve(
            train,
            {
                "micro_batch_size": 8,
                "precision": "fp32",
                "optimizer.warmup_steps": 5,
                "optimizer.min_lr": 4e-6,
            },
        ),
        folder=str(runs / "refine"),
        share=0.5,
    )


def finish(runs: Path = RUNS) -> RunConfig:
    """Trains the mean of `tune` and `reward`, with many captions of several things.

    blip3o train pocket.finish --out runs/pocket/finish

    The mean is better than both in nearly everything (docs/log.md, "mean of two models"). Half the
    rate of `tune` falls from the first step on: a hot restart would spend the run on damage. The
    mixture holds a share for every skill that is measured, because the others are forgotten.
    Questions about groups teach to tell apart several things of one color.
    """
    base = tune(runs)
    optimizer = muon(base.train.optimizer.lr / 2)
    train = training("backbone", "generator", steps=4000, batch=48, optimizer=optimizer)
    return dataclasses.replace(
        base,
        init=(after(runs, "tune"), dataclasses.replace(after(runs, "reward"), share=0.5)),
        data=dataclasses.replace(
            base.data,
            mixture=(
                *_joint(0.12, 0.04, 0.14, language=0.24),
                entry("groups", "text_to_image", weight=0.31),
                entry("groups", "image_to_text", weight=0.15, max_turns=3),
            ),
        ),
        train=evolve(train, {"optimizer.decay_share": 1.0, "optimizer.warmup_steps": 10}),
    )


def _joint(
    scenes: float, pairs: float, edits: float, *, language: float
) -> tuple[MixtureEntry, ...]:
    """Returns the mixture of joint training, from the share of each kind."""
    return (
        entry("scenes", "text_to_image", weight=scenes),
        entry("pairs", "text_to_image", weight=pairs),
        entry("edits", "edit", weight=edits),
        *(dataclasses.replace(one, weight=language * one.weight) for one in _LANGUAGE),
    )


def all_stages(runs: Path) -> dict[str, RunConfig]:
    """Trains all stages in order; the finished model is in OUT/model.

    blip3o train pocket.all --out runs/pocket

    The bundled model's card says how many hours this takes on two cores.
    """
    return {
        "encoder": encoder(),
        "decoder": decoder(runs),
        "names": names(runs),
        "understanding": understanding(runs),
        "generation": generation(runs),
        "tune": tune(runs),
        "refine": refine(runs),
        "reward": reward(runs),
        "finish": finish(runs),
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
