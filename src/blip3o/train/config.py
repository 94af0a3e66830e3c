"""The whole of a run as plain data."""

import dataclasses
from typing import Any

from blip3o.core.config import component
from blip3o.core.device import PrecisionName
from blip3o.data.mixture import DataConfig
from blip3o.models.unified import UnifiedModelConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with a linear warm-up and a cosine decay.

    Args:
        lr: learning rate after the warm-up.
        min_lr: learning rate at the last step.
        warmup_steps: steps of the warm-up.
        weight_decay: on weights with two or more axes only.
        betas: AdamW's decay rates.
        eps: AdamW's epsilon.
        lr_multipliers: factor of the learning rate by prefix of parameter names; the longest
            prefix that fits counts.
    """

    lr: float
    min_lr: float = 0.0
    warmup_steps: int = 100
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8
    lr_multipliers: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a run is trained.

    Args:
        steps: optimizer steps.
        global_batch_size: samples a step.
        micro_batch_size: most samples a forward pass; changes memory and speed only. Contrastive
            losses compare inside a micro-batch.
        seed: decides initial weights, data order and all noise.
        trainable: prefixes of the parameters that are trained; all others are frozen.
        optimizer: AdamW and its schedule.
        log_every: steps between lines of metrics.
        checkpoint_every: steps between checkpoints.
        sample_every: steps between sample pictures or texts; 0 for none.
        keep_last: checkpoints kept.
        grad_clip: largest norm of all gradients together.
        ema_decay: decay of the averaged weights that are saved in the end.
        precision: type of matrix products; weights stay float32.
        device: "auto" or a torch device.
        compile: compile the model's repeated blocks.
        max_nonfinite_steps: steps with a loss or gradient that is no number, after which the run
            stops; each of them updates nothing.
    """

    steps: int
    global_batch_size: int
    micro_batch_size: int
    seed: int = 0
    trainable: tuple[str, ...]
    optimizer: OptimizerConfig
    log_every: int = 20
    checkpoint_every: int = 500
    sample_every: int = 500
    keep_last: int = 2
    grad_clip: float = 1.0
    ema_decay: float = 0.999
    precision: PrecisionName = "auto"
    device: str = "auto"
    compile: bool = False
    max_nonfinite_steps: int = 20

    def __post_init__(self) -> None:
        for name in ("steps", "global_batch_size", "micro_batch_size", "log_every", "keep_last"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.checkpoint_every < 1:
            raise ValueError(f"checkpoint_every must be at least 1, got {self.checkpoint_every}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class InitConfig:
    """Weights a run starts from.

    Args:
        folder: a model folder, or a run folder that holds one.
        parts: top-level parts taken from it ("image_decoder"); empty for all.
    """

    folder: str
    parts: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A complete training run.

    Args:
        model: the model's parts.
        init: weights to start from, in order; none for fresh weights and a new tokenizer.
        data: what is learned from.
        objectives: what is optimized, configs out of `OBJECTIVES`.
        train: how.
        sample_prompts: prompts, or questions about pictures, for samples during training.
    """

    model: UnifiedModelConfig
    init: tuple[InitConfig, ...] = ()
    data: DataConfig
    objectives: tuple[Any, ...] = component("blip3o.objectives:OBJECTIVES")
    train: TrainConfig
    sample_prompts: tuple[str, ...] = ()
