"""Prepares a model for training: dtypes, modes, compiled blocks, passes without padding."""

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

import torch
from torch import nn

from blip3o.core.device import resolve_dtype
from blip3o.core.errors import UsageError
from blip3o.core.log import say
from blip3o.models.unified import UnifiedModel
from blip3o.nn.blocks import checkpoint_blocks
from blip3o.objectives import PreparesModel
from blip3o.train.compiling import compile_blocks
from blip3o.train.config import RunConfig, TrainConfig


@runtime_checkable
class Compilable(Protocol):
    """A model that names the modules to compile."""

    def compile_targets(self) -> list[nn.Module]:
        """Returns the modules to compile one by one."""
        ...


def training_dtype(config: RunConfig, device: torch.device) -> torch.dtype:
    """Returns the dtype of a run's matrix products.

    Args:
        config: the whole run.
        device: device of the run.

    Raises:
        UsageError: for fp16.
    """
    dtype = resolve_dtype(config.train.precision, device)
    if dtype != torch.float16:
        return dtype
    if config.train.precision == "auto":
        return torch.float32
    raise UsageError("train.precision=fp16 needs loss scaling, which is missing; use bf16 or fp32")


def prepare_model(model: nn.Module, objectives: Iterable[object]) -> None:
    """Lets objectives set data of a model's frozen parts.

    Args:
        model: on the device of the run; changed in place.
        objectives: those without such data are skipped.
    """
    for objective in objectives:
        if isinstance(objective, PreparesModel):
            assert isinstance(model, UnifiedModel)
            objective.prepare(model)


def set_mode(module: nn.Module, *, is_training: bool) -> None:
    """Puts modules with trained weights into training mode and all others into evaluation mode.

    A module without weights (dropout) has the mode of its parent.

    Args:
        module: changed with everything in it.
        is_training: mode of its parent.
    """
    parameters = list(module.parameters())
    if parameters:
        is_training = any(parameter.requires_grad for parameter in parameters)
    module.training = is_training
    for child in module.children():
        set_mode(child, is_training=is_training)


def apply_switches(model: nn.Module, train: TrainConfig) -> None:
    """Applies the switches of a run that change memory and speed only; warns if one has no effect.

    Args:
        model: changed in place.
        train: its `activation_checkpointing`, `padding_free` and `compile`.
    """
    if train.activation_checkpointing is True:
        checkpoint_blocks(model)
    if train.padding_free:
        if isinstance(model, UnifiedModel):
            model.backbone.padding_free = True
        else:
            say("warning: train.padding_free does nothing: the model has no backbone")
    if train.compile is True:
        blocks = blocks_of(model)
        if not blocks:
            say("warning: train.compile does nothing: the model names no compile_targets()")
        compile_blocks(blocks)


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """Returns the modules to compile one by one; none if the model names none."""
    whole: object = model  # to a type checker, an nn.Module has every attribute
    return whole.compile_targets() if isinstance(whole, Compilable) else []


def halve_frozen(model: nn.Module, dtype: torch.dtype) -> bool:
    """Stores frozen weights of linear layers and convolutions in a half dtype if that is lossless.

    Autocast would round them at every use. Released weights have that dtype to begin with.

    Args:
        model: changed in place, one weight after the other.
        dtype: dtype of matrix products; nothing changes if it is float32.

    Returns:
        Whether any weight was halved; passes of the model then need autocast.
    """
    if dtype == torch.float32:
        return False
    products = (nn.Linear, nn.modules.conv._ConvNd)
    modules = list(model.modules())
    # An embedding that shares its weight with an output layer must keep the dtype of the states.
    others = {p for m in modules if not isinstance(m, products) for p in m.parameters(False)}
    is_halved = False
    for module in modules:
        for weight in module.parameters(recurse=False) if isinstance(module, products) else ():
            half = weight.detach().to(dtype)
            if not (weight.requires_grad or weight in others) and torch.equal(
                half.to(weight), weight
            ):
                weight.data = half
                is_halved = True
    return is_halved
