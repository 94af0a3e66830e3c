"""Low-rank adapters on linear layers (LoRA, arXiv 2106.09685), by the library peft.

Adapters exist only while a model trains. For samples and in the model folder, the layers are plain:
the adapters' products are added to their weights, and peft is not needed.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Protocol, TypeGuard, runtime_checkable

import torch
from torch import Tensor, nn

from blip3o.core.errors import UsageError, unknown_name
from blip3o.nn.linear import VectorLinear
from blip3o.train.config import TrainConfig
from blip3o.train.optimizer import check_parts, is_under

_NAME = "default"  # peft's name for a single adapter; part of the weights' names


@runtime_checkable
class _AdaptedLayer(Protocol):
    """A linear layer that peft wrapped."""

    training: bool

    def get_base_layer(self) -> nn.Linear: ...

    def get_delta_weight(self, adapter: str) -> Tensor: ...


def add_adapters(model: nn.Module, train: TrainConfig) -> Sequence[str]:
    """Adds a run's adapters to a model in place; fresh adapters do not change outputs.

    Args:
        model: its layers that get an adapter are wrapped.
        train: its `adapter` and `trainable`; its seed determines the fresh weights.

    Returns:
        Prefixes of the parameters to train: those of the adapters, or `train.trainable` if the run
        has no adapters.

    Raises:
        UsageError: if peft is missing, there is nothing to adapt, or a part or target matches no
            linear layer (the message names similar layers).
    """
    config = train.adapter
    if config is None:
        return train.trainable
    layers = _targets(model, train.trainable, config.targets)
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        message = "train.adapter needs peft; install it: pip install 'blip3o[lora]'"
        raise UsageError(message) from error
    settings = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  (annotated int, used as a float)
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
    """Replaces adapted layers by plain ones with merged weights until the context ends.

    The adapted layers themselves do not change, so training continues bit for bit. A model without
    adapters is left as it is.

    Args:
        model: its adapted layers are replaced in place.
    """
    layers = [(name, module) for name, module in model.named_modules() if _is_adapted(module)]
    for name, layer in layers:
        model.set_submodule(name, _merge(layer))
    try:
        yield
    finally:
        for name, layer in layers:
            assert isinstance(layer, nn.Module)
            model.set_submodule(name, layer)


def _is_adapted(module: object) -> TypeGuard[_AdaptedLayer]:
    return isinstance(module, _AdaptedLayer)


@torch.no_grad()
def _merge(layer: _AdaptedLayer) -> nn.Linear:
    base = layer.get_base_layer()
    plain = type(base)(base.in_features, base.out_features, device="meta").train(layer.training)
    plain.weight = nn.Parameter(base.weight + layer.get_delta_weight(_NAME), requires_grad=False)
    plain.bias = base.bias
    return plain


def _targets(model: nn.Module, parts: Sequence[str], targets: Sequence[str]) -> list[str]:
    """Returns the names of the linear layers in some parts of a model that match a target."""
    check_parts(model, parts)
    names = [
        name
        for name, module in model.named_modules()
        # No other subclasses: multi-head attention reads its weight directly, without the adapter.
        if type(module) in (nn.Linear, VectorLinear) and any(is_under(name, p) for p in parts)
    ]
    if not names:
        raise UsageError(
            f"train.adapter finds no linear layer in train.trainable ({', '.join(parts)}): "
            "name a part with linear layers, e.g. generator"
        )
    for target in targets:
        if not any(_fits(name, target) for name in names):
            known = {re.sub(r"\.\d+(?=\.|$)", ".*", name) for name in names}
            known |= {name.rpartition(".")[2] for name in known} - {"*"}
            raise unknown_name("linear layer in train.adapter.targets", target, known)
    return [name for name in names if not targets or any(_fits(name, one) for one in targets)]


def _fits(name: str, target: str) -> bool:
    return fnmatchcase(name, target) or fnmatchcase(name, f"*.{target}")
