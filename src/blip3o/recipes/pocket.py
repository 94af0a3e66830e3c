"""Recipes of the pocket model: every stage of the paper, from scratch, on a laptop CPU.

    blip3o train pocket.all --out runs/pocket          all stages in order
    blip3o train pocket.generation --out runs/g        one stage

Each stage reads the scenes data set (written on first use) through the ordinary sources and starts
from the model folders of the stages before it.
"""

import dataclasses
from pathlib import Path
from typing import Any

from blip3o.core.config import evolve
from blip3o.data.mixture import DataConfig, MixtureEntry
from blip3o.data.scenes.things import COLORS, THINGS
from blip3o.data.sources.webdataset import WebDatasetConfig
from blip3o.flow.sigmas import UniformSigmas
from blip3o.models.backbones.qwen3 import Qwen3BackboneConfig
from blip3o.models.decoders.pocket import PocketDecoderConfig
from blip3o.models.dit.nextdit import NextDiTConfig
from blip3o.models.encoders.normalizer import FeatureNormalizerConfig
from blip3o.models.encoders.pocket import PocketEncoderConfig
from blip3o.models.unified import SamplingConfig, UnifiedModelConfig
from blip3o.objectives.flow_matching import FlowMatchingConfig
from blip3o.objectives.image_text import ImageTextConfig
from blip3o.objectives.next_token import NextTokenConfig
from blip3o.objectives.pixel_decoding import PixelDecodingConfig
from blip3o.text.chat import ChatConfig
from blip3o.train.config import InitConfig, OptimizerConfig, RunConfig, TrainConfig

SCENES = "runs/scenes"
"""Where the recipes look for the scenes data set, and write it if it is not there."""
FEATURES = "runs/features"
"""Where frozen image features are kept."""
RUNS = Path("runs/pocket")
"""Where a single stage looks for the stages before it."""

IMAGE_PX = 96
VOCAB_SIZE, IMAGE_PAD_ID = 768, 6
GRID, CHANNELS, COMPONENTS = 4, 192, 64
WIDTH = 192
SIGMA_SHIFT = 4.0
DECODER_SIGMA_SHIFT = 6.0


def model() -> UnifiedModelConfig:
    """Returns the pocket model: 15.6 M parameters in the shape of the 8B model."""
    return UnifiedModelConfig(
        backbone=Qwen3BackboneConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=WIDTH,
            intermediate_size=512,
            num_layers=4,
            num_heads=6,
            num_kv_heads=6,
            head_dim=32,
            image_token_id=IMAGE_PAD_ID,
            image_channels=CHANNELS,
            # The features' variances span four orders of magnitude; a thing's name is in the small.
            image_normalizer=FeatureNormalizerConfig(
                num_components=CHANNELS, power=1.0, floor=0.03
            ),
            rope_theta=10_000.0,
        ),
        image_encoder=PocketEncoderConfig(
            image_px=IMAGE_PX,
            stem_channels=(32, 64, 128),
            stem_strides=(2, 2, 3, 1),
            hidden_size=CHANNELS,
            num_layers=2,
            num_heads=6,
            pool=2,
        ),
        normalizer=FeatureNormalizerConfig(num_components=COMPONENTS, power=0.5),
        num_query_tokens=16,
        query_init_std=0.02,
        dit=NextDiTConfig(
            in_channels=COMPONENTS,
            condition_size=WIDTH,
            hidden_size=256,
            num_layers=6,
            num_heads=8,
            num_kv_heads=8,
            grid=GRID,
            multiple_of=32,
            reference_channels=COMPONENTS,
        ),
        image_decoder=PocketDecoderConfig(
            image_px=IMAGE_PX,
            feature_channels=COMPONENTS,
            grid=GRID,
            widths=(256, 160, 64),
            num_blocks=(2, 2, 2),
            middle_scale=3,
            fine_scale=2,
            sigma_shift=DECODER_SIGMA_SHIFT,
        ),
        # A short chat format: on a small model every token of boilerplate costs.
        chat=ChatConfig(system=None, generate="draw: {caption}", edit="edit: {instruction}"),
        sampling=SamplingConfig(
            guidance_scale=3.0, num_inference_steps=24, sigma_shift=SIGMA_SHIFT, num_decoder_steps=3
        ),
    )


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
QUESTIONS = (
    "What is in the image?",
    "How many objects are there?",
    "Describe the image in detail.",
    "What is the background?",
) * 2


def encoder() -> RunConfig:
    """Image encoder: sigmoid contrastive on captions, and what stands where.

    blip3o train pocket.encoder --out runs/pocket/encoder
    """
    objective = ImageTextConfig(
        things=THINGS, colors=COLORS, contrastive_weight=0.3, region_weight=1.0, pixel_weight=2.0
    )
    return RunConfig(
        model=model(),
        data=DataConfig(
            mixture=(_entry("scenes", "contrastive"),), image_px=IMAGE_PX, num_workers=0
        ),
        objectives=(objective,),
        train=_train("image_encoder", steps=800, batch=96, lr=2e-3, sample_every=0),
    )


def decoder(runs: Path = RUNS) -> RunConfig:
    """Image decoder: pixels from frozen features, by flow matching.

    blip3o train pocket.decoder --out runs/pocket/decoder
    """
    return RunConfig(
        model=model(),
        init=(_after(runs, "encoder"),),
        data=DataConfig(
            mixture=(_entry("scenes", "reconstruct"),), image_px=IMAGE_PX, feature_cache=FEATURES
        ),
        objectives=(
            PixelDecodingConfig(
                sigmas=UniformSigmas(shift=DECODER_SIGMA_SHIFT), feature_noise=0.15, min_sigma=1.0
            ),
        ),
        train=_train("image_decoder", steps=5600, batch=32, lr=1e-3, sample_every=300),
    )


def naming(runs: Path = RUNS) -> RunConfig:
    """Before stage 1: to find things by their names, in pictures and in words.

    blip3o train pocket.naming --out runs/pocket/naming

    Facts right after names, alone, are learned in minutes, and questions and edits that name a
    thing, and prompts of two things, build on it. Mixed with captions it was not learned in 40,000
    conversations (docs/log.md). These drills of many kinds at once are not learned from scratch,
    either: one kind alone is, in 160 steps (docs/log.md, session 8).
    """
    entries = (
        _entry("scenes", "image_to_text", conversation="drills", max_turns=3),
        _entry("scenes", "text", conversation="text_drills", max_turns=3),
    )
    return RunConfig(
        model=model(),
        init=(_after(runs, "encoder"),),
        data=DataConfig(mixture=entries, image_px=IMAGE_PX, feature_cache=FEATURES),
        objectives=(NextTokenConfig(length_power=0.5),),
        train=_train("backbone", steps=1000, batch=48, lr=2e-3, sample_every=0, micro_batch=24),
    )


def counting(runs: Path = RUNS) -> RunConfig:
    """After naming: to tell one from none.

    blip3o train pocket.counting --out runs/pocket/counting

    "How many cats are there?" is answered by a guess until this look-up is practised alone; then it
    is learned within 150 steps (docs/log.md).
    """
    base = naming(runs)
    entry = _entry("scenes", "image_to_text", conversation="count_drills")
    return dataclasses.replace(
        base,
        init=(_after(runs, "naming"),),
        data=dataclasses.replace(base.data, mixture=(entry,)),
        train=_train("backbone", steps=200, batch=48, lr=1.2e-3, sample_every=0, micro_batch=24),
    )


def understanding(runs: Path = RUNS) -> RunConfig:
    """Stage 1: captions, questions and text; backbone and projector, encoder frozen.

    blip3o train pocket.understanding --out runs/pocket/understanding
    """
    return RunConfig(
        model=model(),
        init=(_after(runs, "counting"),),
        data=DataConfig(
            mixture=(
                _entry("scenes", "image_to_text", weight=0.7, max_turns=4),
                _entry("scenes", "text", weight=0.3, max_turns=4),
            ),
            image_px=IMAGE_PX,
            feature_cache=FEATURES,
        ),
        objectives=(NextTokenConfig(length_power=0.8, hidden_share=0.2),),
        train=_train("backbone", steps=3000, batch=64, lr=1.5e-3, sample_every=500, micro_batch=16),
        sample_prompts=QUESTIONS,
    )


def generation(runs: Path = RUNS) -> RunConfig:
    """Stage 2: query tokens and DiT by flow matching on frozen features; backbone frozen.

    blip3o train pocket.generation --out runs/pocket/generation

    Half of what is drawn is two things: prompts of them are learned last (docs/log.md).
    """
    return RunConfig(
        model=model(),
        init=(
            _after(runs, "understanding"),
            _after(runs, "decoder", "image_decoder"),
        ),
        data=DataConfig(
            mixture=(
                _entry("scenes", "text_to_image", weight=0.7),
                _entry("pairs", "text_to_image", weight=0.3),
            ),
            image_px=IMAGE_PX,
            feature_cache=FEATURES,
        ),
        objectives=(
            FlowMatchingConfig(
                sigmas=UniformSigmas(shift=SIGMA_SHIFT), condition_dropout=0.1, draws=2
            ),
        ),
        train=_train("query_tokens", "dit", steps=3000, batch=64, lr=2e-3, sample_every=250),
        sample_prompts=PROMPTS,
    )


def tune(runs: Path = RUNS) -> RunConfig:
    """Instruction tuning: edits by instruction together with text to image.

    blip3o train pocket.tune --out runs/pocket/tune
    """
    base = generation(runs)
    return dataclasses.replace(
        base,
        init=(_after(runs, "generation"), _after(runs, "decoder", "image_decoder")),
        data=dataclasses.replace(
            base.data,
            mixture=(
                _entry("scenes", "text_to_image", weight=0.45),
                _entry("pairs", "text_to_image", weight=0.25),
                _entry("edits", "edit", weight=0.3),
            ),
        ),
        train=_train("query_tokens", "dit", steps=3000, batch=64, lr=1.6e-3, sample_every=250),
    )


def all_stages(runs: Path) -> dict[str, RunConfig]:
    """All stages in order; the finished model is in OUT/model.

    blip3o train pocket.all --out runs/pocket

    Hours on two cores without AMX, fp32, one or two threads a stage: the bundled model's card.
    """
    return {
        "encoder": encoder(),
        "decoder": decoder(runs),
        "naming": naming(runs),
        "counting": counting(runs),
        "understanding": understanding(runs),
        "generation": generation(runs),
        "tune": tune(runs),
    }


def smoke() -> RunConfig:
    """Two minutes on two cores: the decoder of the bundled model learns again from scratch.

    blip3o train pocket.smoke --out runs/smoke
    """
    config = evolve(decoder(), {"train.steps": 120, "train.sample_every": 40})
    entry = dataclasses.replace(
        _entry("scenes", "reconstruct"),
        source=WebDatasetConfig(path=f"{SCENES}-small/scenes-*.tar", name="small"),
    )
    return dataclasses.replace(
        config,
        init=(InitConfig(folder="pocket", parts=("image_encoder", "normalizer")),),
        data=dataclasses.replace(config.data, mixture=(entry,), feature_cache=f"{FEATURES}-small"),
        train=dataclasses.replace(config.train, log_every=5, checkpoint_every=60),
    )


def _entry(shards: str, task: str, **settings: Any) -> MixtureEntry:  # noqa: ANN401  (fields)
    """Returns a task on scenes, edits or pairs of the scenes data set."""
    source = WebDatasetConfig(path=f"{SCENES}/{shards}-*.tar", name=shards)
    return MixtureEntry(source=source, task=task, **settings)


def _after(runs: Path, stage: str, *parts: str) -> InitConfig:
    return InitConfig(folder=str(runs / stage), parts=parts)


def _train(
    *trainable: str,
    steps: int,
    batch: int,
    lr: float,
    micro_batch: int | None = None,
    sample_every: int = 500,
) -> TrainConfig:
    return TrainConfig(
        steps=steps,
        global_batch_size=batch,
        micro_batch_size=micro_batch or batch,
        trainable=trainable,
        optimizer=OptimizerConfig(lr=lr, min_lr=lr / 50),
        checkpoint_every=250,
        sample_every=sample_every,
    )
