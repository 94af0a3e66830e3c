"""Data, losses and optimizer settings that the recipes of released models and variants share.

The numbers come from the released training scripts and their documentation. The recipe of a stage
that was never published says so.
"""

from blip3o.data.mixture import MixtureEntry
from blip3o.data.sources.jsonl import JsonlConfig
from blip3o.data.sources.webdataset import WebDatasetConfig
from blip3o.flow.sigmas import DiscreteUniformSigmas
from blip3o.objectives.flow_matching import FlowMatchingConfig
from blip3o.objectives.next_token import NextTokenConfig
from blip3o.train.config import OptimizerConfig, TrainConfig

DATA = "data"
"""Folder of downloads: the published data sets and weights, one subfolder each."""
FEATURES = "runs/features"
"""Folder of the cached image features."""
PROMPTS = (
    "a photo of a corgi wearing sunglasses on a beach",
    "three red apples on a wooden table",
    'a shop sign that says "open"',
    "an oil painting of a lighthouse in a storm",
)
QUESTIONS = ("Describe the image in detail.", "What is in the foreground?") * 2

_WARMUP_SHARE = 0.003


def pretraining_mixture() -> tuple[MixtureEntry, ...]:
    """Returns the published open data, every image equally often (weights: millions of images)."""
    sizes = {"BLIP3o-Pretrain-Long-Caption": 27.2, "BLIP3o-Pretrain-Short-Caption": 4.77}
    sizes["BLIP3o-Pretrain-JourneyDB"] = 4.28
    return tuple(
        MixtureEntry(source=_tars(name), task="text_to_image", weight=millions)
        for name, millions in sizes.items()
    )


def tuning_mixture() -> tuple[MixtureEntry, ...]:
    """Returns BLIP3o-60k. It contains GenEval-like prompts; mention that with any GenEval score."""
    return (MixtureEntry(source=_tars("BLIP3o-60k"), task="text_to_image"),)


def conversations(weight: float = 1.0) -> MixtureEntry:
    """Returns conversations about images, in LLaVA-style JSON.

    Args:
        weight: share of the samples, relative to other entries.
    """
    source = JsonlConfig(path=f"{DATA}/conversations/conversations.jsonl", name="conversations")
    return MixtureEntry(source=source, task="image_to_text", weight=weight)


def image_loss() -> FlowMatchingConfig:
    """Returns the released image loss: 1000 equally likely noise levels, condition dropout 0.1."""
    return FlowMatchingConfig(sigmas=DiscreteUniformSigmas(), condition_dropout=0.1)


def text_loss() -> NextTokenConfig:
    """Returns the text loss; as released, text and image losses have equal weights."""
    return NextTokenConfig()


def train_config(
    *trainable: str,
    steps: int,
    batch: int,
    lr: float = 1e-4,
    min_lr: float = 0.0,
    lr_multipliers: dict[str, float] | None = None,
) -> TrainConfig:
    """Returns the released settings: AdamW without weight decay, cosine, gradients clipped at 1.

    Args:
        trainable: prefixes of the trained parameters.
        steps: optimizer steps.
        batch: samples a step; each device processes 16 at a time.
        lr: learning rate after the warm-up of 0.3 % of the steps.
        min_lr: learning rate at the end.
        lr_multipliers: see `OptimizerConfig`.
    """
    return TrainConfig(
        steps=steps,
        global_batch_size=batch,
        micro_batch_size=16,
        trainable=trainable,
        optimizer=OptimizerConfig(
            lr=lr,
            min_lr=min_lr,
            warmup_steps=round(_WARMUP_SHARE * steps),
            weight_decay=0.0,
            betas=(0.9, 0.999),
            lr_multipliers=lr_multipliers or {},
        ),
        checkpoint_every=1000,
        sample_every=5000,
        grad_clip=1.0,
        ema_decay=0.0,  # the released weights are not averaged
    )


def _tars(name: str) -> WebDatasetConfig:
    return WebDatasetConfig(path=f"{DATA}/{name}/*.tar", name=name.lower())
