"""Shared by the recipes of the pocket model: its parts, folders and training settings."""

from pathlib import Path

from blip3o.data.mixture import MixtureEntry
from blip3o.data.scenes.world import World
from blip3o.data.sources.webdataset import WebDatasetConfig
from blip3o.models.backbones.pocket import PocketBackboneConfig
from blip3o.models.decoders.pocket import PocketDecoderConfig
from blip3o.models.encoders.normalizer import FeatureNormalizerConfig
from blip3o.models.encoders.pocket import PocketEncoderConfig
from blip3o.models.generators.lmfusion import LMFusionConfig
from blip3o.models.generators.query_dit import QueryDiTConfig
from blip3o.models.unified import SamplingConfig, UnifiedModelConfig
from blip3o.text.chat import ChatConfig
from blip3o.train.config import InitConfig, OptimizerConfig, TrainConfig

SCENES = "runs/scenes"
"""Folder of the scenes data set; a recipe writes it if it is missing."""
SMALL_WORLD_SCENES = "runs/scenes-small-world"
"""Folder of the scenes of the small world, which the comparison of methods uses."""
SMALL_WORLD = World(
    things=("cactus", "car", "cat", "chair", "crown", "fish", "penguin", "turtle"), max_objects=2
)
"""Eight things that share many held-out compositions: 12 pairs, 6 colors and 4 pairs of equals."""
FEATURES = "runs/features"
"""Folder of the cached image features."""
RUNS = Path("runs/pocket")
"""Folder in which a single stage looks for earlier stages."""

IMAGE_PX = 96
VOCAB_SIZE, IMAGE_PAD_ID = 2048, 6
GRID, CHANNELS, COMPONENTS = 4, 192, 64
WIDTH = 256
SIGMA_SHIFT = 4.0
DECODER_SIGMA_SHIFT = 6.0


def model() -> UnifiedModelConfig:
    """Returns the pocket model: LMFusion, so its image layers read each layer of the backbone."""
    return UnifiedModelConfig(
        backbone=PocketBackboneConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=WIDTH,
            intermediate_size=704,
            num_layers=5,
            num_heads=8,
            num_kv_heads=8,
            head_dim=32,
            rotary_dim=32,
            image_token_id=IMAGE_PAD_ID,
            image_channels=CHANNELS,
            # Variances span four orders of magnitude, and the small ones tell objects apart.
            image_normalizer=FeatureNormalizerConfig(
                num_components=CHANNELS, power=1.0, floor=0.03
            ),
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
        generator=LMFusionConfig(fresh_layers="fan_in"),
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
        # Short, because every token of boilerplate costs a small model.
        chat=ChatConfig(system=None, generate="draw: {caption}", edit="edit: {instruction}"),
        sampling=SamplingConfig(
            guidance_scale=3.0, num_inference_steps=24, sigma_shift=SIGMA_SHIFT
        ),
    )


def query_generator(width: int) -> QueryDiTConfig:
    """Returns the generator of BLIP3-o at pocket size: queries and a DiT of a width.

    Its gates start open: the published zeros belong to 150,000 steps.
    """
    return QueryDiTConfig(
        num_query_tokens=GRID**2,
        query_init_std=0.02,
        hidden_size=width,
        num_layers=4,
        num_heads=width // 32,
        multiple_of=32,
        fresh_gates="open",
    )


def entry(
    shards: str,
    task: str,
    *,
    weight: float = 1.0,
    max_turns: int | None = None,
    conversation: str | None = None,
) -> MixtureEntry:
    """Returns a task on a kind of samples of the scenes data set, such as "pairs"."""
    source = WebDatasetConfig(path=f"{SCENES}/{shards}-*.tar", name=shards)
    return MixtureEntry(
        source=source, task=task, weight=weight, max_turns=max_turns, conversation=conversation
    )


def after(runs: Path, stage: str, *parts: str) -> InitConfig:
    """Returns start weights from an earlier stage: all of them, or only some parts."""
    return InitConfig(folder=str(runs / stage), parts=parts)


def training(
    *trainable: str,
    steps: int,
    batch: int,
    optimizer: OptimizerConfig,
    micro_batch: int | None = None,
    sample_every: int = 500,
) -> TrainConfig:
    """Returns the training settings of a stage."""
    return TrainConfig(
        steps=steps,
        global_batch_size=batch,
        micro_batch_size=micro_batch or batch,
        trainable=trainable,
        optimizer=optimizer,
        checkpoint_every=250,
        sample_every=sample_every,
    )


def adamw(lr: float) -> OptimizerConfig:
    """Returns AdamW, for convolutions and for comparisons of methods."""
    return OptimizerConfig(lr=lr, min_lr=lr / 50)


def muon(lr: float) -> OptimizerConfig:
    """Returns Muon, with which transformers learn several times faster here (docs/log.md)."""
    return OptimizerConfig(lr=lr, min_lr=lr / 50, matrices="muon", decay_share=0.4, warmup_steps=50)
