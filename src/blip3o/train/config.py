"""Configs of a training run."""

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from blip3o.core.bounds import Count, Limit, NotNegative, Positive, Seed, Whole
from blip3o.core.choices import PrecisionName
from blip3o.core.config import LocalPath, component, from_dict, to_dict
from blip3o.core.errors import UsageError
from blip3o.data.mixture import DataConfig
from blip3o.models.unified import UnifiedModelConfig

# Settings that may change when a run resumes: duration, frequency and place, never the numbers.
_MAY_CHANGE = (
    "train.steps",
    "train.log_every",
    "train.checkpoint_every",
    "train.sample_every",
    "train.keep_last",
    "train.keep_every",
    "train.device",
    "train.activation_checkpointing",
    "train.padding_free",
    "train.profile",
    "data.num_workers",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW, or Muon with AdamW, with a linear warm-up and a decay at the end.

    Args:
        lr: learning rate after the warm-up.
        min_lr: learning rate at the last step.
        warmup_steps: steps of the warm-up.
        weight_decay: applies to weights with two or more axes only.
        betas: AdamW's decay rates.
        eps: AdamW's epsilon.
        lr_multipliers: factor of the learning rate by prefix of parameter names; the longest
            matching prefix counts.
        matrices: "muon" updates the matrices of repeated blocks by Muon and the rest by AdamW.
        momentum: of Muon.
        decay_share: last share of the steps, in which the learning rate falls along half a cosine;
            before, it is constant. 1 is the usual cosine.
    """

    lr: Positive
    min_lr: NotNegative = 0.0
    warmup_steps: Whole = 100
    weight_decay: NotNegative = 0.05
    betas: tuple[NotNegative, NotNegative] = (0.9, 0.98)
    eps: NotNegative = 1e-8
    lr_multipliers: dict[str, NotNegative] = dataclasses.field(default_factory=dict)
    matrices: Literal["adamw", "muon"] = "adamw"
    momentum: NotNegative = 0.95
    decay_share: Positive = 1.0

    def __post_init__(self) -> None:
        _require_below_one("momentum", self.momentum)
        if self.decay_share > 1:
            raise ValueError(f"decay_share must be at most 1, got {self.decay_share}")
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr must be at most lr={self.lr}, got {self.min_lr}")
        for beta in self.betas:
            _require_below_one("betas", beta)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters (LoRA, arXiv 2106.09685) on linear layers, trained instead of the layers.

    Args:
        rank: width of the two matrices whose product is added to a layer's weight.
        alpha: the product is scaled by alpha / rank.
        dropout: share of an adapter's inputs that is dropped during training.
        targets: linear layers of the trainable parts, by whole names or their ends, with
            wildcards ("to_q", "generator.dit.layers.0.*"); empty for all.
    """

    rank: Count = 16
    alpha: Positive = 16.0
    dropout: NotNegative = 0.0
    targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _require_below_one("dropout", self.dropout)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of the training loop.

    Args:
        steps: number of optimizer steps.
        global_batch_size: samples per step, over all processes.
        micro_batch_size: largest number of samples in a forward pass; affects memory and speed
            only, except for contrastive losses, which compare within a micro-batch.
        seed: determines initial weights, data order and all noise.
        trainable: prefixes of the parameters to train; all others are frozen.
        adapter: train only low-rank adapters on the linear layers of the trainable parts; None
            trains the parts themselves.
        optimizer: AdamW and its schedule.
        log_every: steps between lines of metrics.
        checkpoint_every: steps between checkpoints.
        sample_every: steps between sample images or texts; 0 for none.
        keep_last: number of checkpoints kept.
        keep_every: checkpoints at multiples of this step are kept as well; 0 for none.
        grad_clip: largest norm of all gradients together.
        ema_decay: decay of the averaged weights, which the final model gets.
        precision: dtype of matrix products; weights stay float32.
        device: "auto" or a torch device.
        compile: compile the model's repeated blocks. "auto" does so where it makes a long run of
            one process faster; see `train.compiling`.
        activation_checkpointing: blocks keep only their inputs and run again in the backward pass:
            the same gradients with far less memory and a third more time. "auto" does so if the
            activations of the first step would fill half of the free memory.
        padding_free: the backbone skips the padding of batches: the same gradients with less work
            where rows differ in length (adapter.dropout then drops other values).
        profile: record a few of the first steps into RUN/profile; see `train.profiling`.
        max_nonfinite_steps: largest number of steps with a non-finite loss or gradient before the
            run stops; such a step updates nothing.
    """

    steps: Count
    global_batch_size: Count
    micro_batch_size: Count
    seed: Seed = 0
    trainable: tuple[str, ...]
    adapter: LoraConfig | None = None
    optimizer: OptimizerConfig
    log_every: Count = 20
    checkpoint_every: Count = 500
    sample_every: Whole = 500
    keep_last: Count = 2
    keep_every: Whole = 0
    grad_clip: Limit = 1.0
    ema_decay: NotNegative = 0.999
    precision: PrecisionName = "auto"
    device: str = "auto"
    compile: bool | Literal["auto"] = "auto"
    activation_checkpointing: bool | Literal["auto"] = "auto"
    padding_free: bool = False
    profile: bool = False
    max_nonfinite_steps: Whole = 20

    def __post_init__(self) -> None:
        _require_below_one("ema_decay", self.ema_decay)


@dataclasses.dataclass(frozen=True, kw_only=True)
class InitConfig:
    """Weights that a run starts from.

    Args:
        folder: a model folder, or a run folder that contains one.
        parts: parts to load, as prefixes of weight names ("image_decoder"); empty for all.
        sources: where the stored model keeps weights of another name: prefix of this run's names
            -> prefix of the stored names; the longest matching prefix counts. For example, image
            layers that start as copies of the text layers take
            `{generator.decoder: backbone.decoder}`.
        share: share of these weights, in (0, 1]; the rest is that of the entries before. 0.5 starts
            from the mean of two models of the same origin.
    """

    folder: LocalPath
    parts: tuple[str, ...] = ()
    sources: dict[str, str] = dataclasses.field(default_factory=dict)
    share: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share must be above 0 and at most 1, got {self.share:g}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A complete training run.

    Args:
        model: the model's parts.
        init: weights to start from, loaded in order; empty for fresh weights and a new tokenizer.
        data: the training data.
        objectives: the losses, configs from `OBJECTIVES`.
        train: settings of the training loop.
        sample_prompts: prompts, or questions about images, for samples during training.
    """

    model: UnifiedModelConfig
    init: tuple[InitConfig, ...] = ()
    data: DataConfig
    objectives: tuple[Any, ...] = component("blip3o.objectives:OBJECTIVES")
    train: TrainConfig
    sample_prompts: tuple[str, ...] = ()


def resume_differences(stored: Mapping[str, object], config: RunConfig) -> list[str]:
    """Returns the dotted names of changed settings that keep a run from being resumed.

    Args:
        stored: the config in a checkpoint, as plain data.
        config: the config to resume with.
    """
    data = stored.get("data")
    if isinstance(data, dict):  # older versions stored a size that is now derived
        data = {name: value for name, value in data.items() if name != "image_px"}
        stored = {**stored, "data": data}
    with contextlib.suppress(UsageError):  # a config that no longer fits is compared unchanged
        stored = to_dict(from_dict(RunConfig, stored))  # adds defaults of newer settings
    return [name for name in _differences(stored, to_dict(config), "") if name not in _MAY_CHANGE]


def _differences(left: object, right: object, path: str) -> list[str]:
    if isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        left, right = dict(enumerate(left)), dict(enumerate(right))
    if not (isinstance(left, dict) and isinstance(right, dict)):
        return [] if left == right else [path]
    keys = [*left, *(key for key in right if key not in left)]
    return [
        name
        for key in keys
        for name in _differences(
            left.get(key), right.get(key), f"{path}.{key}" if path else str(key)
        )
    ]


def _require_below_one(name: str, value: float) -> None:
    if value >= 1:
        raise ValueError(f"{name} must be from 0 to below 1, got {value}")
