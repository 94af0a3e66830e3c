"""What is done to a model before it is trained, and the names of what is optimized."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from torch import nn

from blip3o.core.device import resolve_dtype
from blip3o.core.errors import UsageError
from blip3o.core.log import say
from blip3o.core.types import Batch
from blip3o.models.backbones import packed
from blip3o.objectives import Objective
from blip3o.train.config import RunConfig


def training_dtype(config: RunConfig, device: torch.device) -> torch.dtype:
    """Returns the type of a run's matrix products.

    Args:
        config: the whole run.
        device: where it computes.

    Raises:
        UsageError: for fp16.
    """
    dtype = resolve_dtype(config.train.precision, device)
    if dtype != torch.float16:
        return dtype
    if config.train.precision == "auto":
        return torch.float32
    raise UsageError("training in fp16 needs scaled losses, which we lack; use bf16 or fp32")


def set_mode(module: nn.Module, *, is_training: bool) -> None:
    """Training mode for what holds something to train; without weights (dropout), as its parent.

    Args:
        module: set with everything in it.
        is_training: the mode of its parent.
    """
    parameters = list(module.parameters())
    if parameters:
        is_training = any(parameter.requires_grad for parameter in parameters)
    module.training = is_training
    for child in module.children():
        set_mode(child, is_training=is_training)


def compile_blocks(model: nn.Module) -> None:
    """Compiles what a model names in `compile_targets()`, in place.

    Args:
        model: any module.
    """
    if not hasattr(model, "compile_targets"):
        say("warning: train.compile does nothing: the model names no compile_targets()")
        return
    for module in cast("Any", model).compile_targets():
        module.compile()


def leave_out_padding(model: nn.Module) -> None:
    """Makes a model's backbone read the real tokens of padded rows only.

    Args:
        model: any module.
    """
    backbone = getattr(model, "backbone", None)
    if not hasattr(backbone, "padding_free"):
        say("warning: train.padding_free does nothing: the model has no backbone that knows it")
        return
    packed.enable(cast("packed.Backbone", backbone))


def halve_frozen(model: nn.Module, dtype: torch.dtype) -> None:
    """Keeps frozen weights of linear layers and convolutions in a half type where nothing is lost.

    Autocast would round them at every use; released weights are of that type to begin with.

    Args:
        model: changed in place.
        dtype: the type of matrix products.
    """
    products = (nn.Linear, nn.modules.conv._ConvNd)
    modules = list(model.modules())
    # An embedding that an output layer shares is looked up, too: its type is that of the states.
    others = {p for m in modules if not isinstance(m, products) for p in m.parameters(False)}
    for module in modules:
        for weight in module.parameters(recurse=False) if isinstance(module, products) else ():
            half = weight.detach().to(dtype)
            if not (weight.requires_grad or weight in others) and torch.equal(
                half.to(weight), weight
            ):
                weight.data = half


def name_objectives(objectives: Sequence[Objective]) -> dict[str, Objective]:
    """Returns the objectives by the name they are logged under; equal ones are numbered.

    Args:
        objectives: in the order of the config.
    """
    seen: Counter[str] = Counter()
    named: dict[str, Objective] = {}
    for objective in objectives:
        name = type(objective).__name__
        seen[name] += 1
        named[name if seen[name] == 1 else f"{name}-{seen[name]}"] = objective
    return named


def check_groups(groups: list[Batch] | None, objectives: Iterable[Objective], step: int) -> None:
    """Refuses the data of a step that nothing can be learned from.

    Args:
        groups: batches of the step; None if the data ended.
        objectives: those of the run.
        step: steps done.

    Raises:
        UsageError: naming the setting to change.
    """
    if groups is None:
        raise UsageError(f"the data ended at step {step}; lower train.steps")
    learned = {task for objective in objectives for task in objective.tasks}
    for batch in groups:
        if batch.task not in learned:
            raise UsageError(
                f"no objective learns from the task {batch.task!r} of data.mixture; "
                f"objectives.*.tasks name {', '.join(sorted(learned))}"
            )
