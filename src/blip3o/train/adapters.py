"""Low-rank adapters on linear layers (LoRA, arXiv 2106.09685), by the library peft.

They exist while a model trains. Whatever leaves the training loop (samples, the model folder) sees
plain layers with the adapters' products added to their weights, and needs no peft.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from blip3o.core.errors import UsageError, unknown_name
from blip3o.nn.linear import VectorLinear
from blip3o.train.config import TrainConfig
from blip3o.train.optimizer import check_parts, is_under

_NAME = "default"  # peft's name of a model's only adapter, part of the weights' names


def add_adapters(model: nn.Module, train: TrainConfig) -> Sequence[str]:
    """Adds the adapters that a run asks for, in place; fresh ones change no output.

    Args:
        model: layers that get an adapter are wrapped.
        train: its `adapter` and `trainable`; its seed decides the fresh weights.

    Returns:
        Prefixes of the parameters to train: the adapters' own, or `train.trainable` without any.

    Raises:
        UsageError: if peft is missing, a part or target fits no linear layer (with the nearest
            names), or there is nothing to adapt.
    """
    config = train.adapter
    if config is None:
        return train.trainable
    layers = _targets(model, train.trainable, config.targets)
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise UsageError("train.adapter needs peft; install it: pip install 'blip3o[lora]'") from (
            error
        )
    settings = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  (annotated int, divided as a float)
        lora_dropout=config.dropout,
        target_modules="|".join(re.escape(name) for name in layers),
    )
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(train.seed)
        inject_adapter_in_model(settings, model, _NAME)
    return [f"{name}.{half}" for name in layers for half in ("lora_A", "lora_B")]


@contextmanager
def merged_adapters(model: nn.Module) -> Iterator[None]:
    """Makes adapted layers plain ones for a while, with their adapters in their weights.

    The adapted layers themselves are left alone, so training goes on bit for bit. Without adapters
    it does nothing.

    Args:
        model: its adapted layers are exchanged in place.
    """
    adapted = {name: one for name, one in model.named_modules() if hasattr(one, "get_delta_weight")}
    for name, layer in adapted.items():
        model.set_submodule(name, _merge(layer))
    try:
        yield
    finally:
        for name, layer in adapted.items():
            model.set_submodule(name, layer)


@torch.no_grad()
def _merge(layer: Any) -> nn.Linear:  # noqa: ANN401  (peft's type)
    base = layer.get_base_layer()
    plain = type(base)(base.in_features, base.out_features, device="meta").train(layer.training)
    plain.weight = nn.Parameter(base.weight + layer.get_delta_weight(_NAME), requires_grad=False)
    plain.bias = base.bias
    return plain


def _targets(model: nn.Module, parts: Sequence[str], targets: Sequence[str]) -> list[str]:
    """Returns names of the linear layers in some parts of a model that fit one of the targets."""
    check_parts(model, parts)
    names = [
        name
        for name, module in model.named_modules()
        # Not other subclasses: multi-head attention reads the weight of its own past any adapter.
        if type(module) in (nn.Linear, VectorLinear) and any(is_under(name, p) for p in parts)
    ]
    if not names:
        raise UsageError(
            f"train.adapter finds no linear layer in train.trainable ({', '.join(parts)}): "
            "name a part that has some, e.g. dit"
        )
    for target in targets:
        if not any(_fits(name, target) for name in names):
            known = {re.sub(r"\.\d+(?=\.|$)", ".*", name) for name in names}
            known |= {name.rpartition(".")[2] for name in known} - {"*"}
            raise unknown_name("linear layer in train.adapter.targets", target, known)
    return [name for name in names if not targets or any(_fits(name, one) for one in targets)]


def _fits(name: str, target: str) -> bool:
    return fnmatchcase(name, target) or fnmatchcase(name, f"*.{target}")
