"""The trained parameters: their selection, optimizer, learning rate and averages."""

import math
from collections.abc import Collection, Iterable

import torch
from torch import Tensor, nn

from blip3o.core.errors import UsageError, unknown_name
from blip3o.nn.blocks import repeated_blocks
from blip3o.train.config import OptimizerConfig
from blip3o.train.learner import local, whole
from blip3o.train.muon import MuonAdamW

NamedParameters = dict[str, nn.Parameter]
_OBJECTIVES = "objectives"


def select_trainable(
    model: nn.Module, objectives: nn.ModuleList, prefixes: Iterable[str]
) -> NamedParameters:
    """Freezes a model except for some parts; returns every parameter to train, by name.

    Args:
        model: changed in place: `requires_grad` is set on the parts to train only.
        objectives: all their parameters are trained; their names begin with "objectives.".
        prefixes: dotted prefixes of parameter names.

    Raises:
        UsageError: if there is nothing to train, or a prefix matches no parameter (the message
            names similar modules).
    """
    prefixes = tuple(prefixes)
    check_parts(model, prefixes)
    chosen: NamedParameters = {}
    for name, parameter in model.named_parameters():
        is_chosen = any(is_under(name, prefix) for prefix in prefixes)
        parameter.requires_grad_(is_chosen)
        if is_chosen:
            chosen[name] = parameter
    for name, parameter in objectives.named_parameters(_OBJECTIVES):
        parameter.requires_grad_()
        chosen[name] = parameter
    if not chosen:
        raise UsageError("train.trainable is empty: name the parts to train, e.g. generator")
    return chosen


def select_buffers(model: nn.Module, objectives: nn.ModuleList) -> dict[str, Tensor]:
    """Returns the persistent buffers that training may change, by name (running statistics).

    Args:
        model: only buffers of modules that own trained parameters are returned.
        objectives: all their buffers are returned; their names begin with "objectives.".
    """
    found: dict[str, Tensor] = {}
    for root, start in ((model, ""), (objectives, _OBJECTIVES)):
        for path, module in root.named_modules(prefix=start):
            own = list(module.parameters(recurse=False))
            if root is model and not any(parameter.requires_grad for parameter in own):
                continue
            for name, buffer in module.named_buffers(recurse=False):
                if name not in module._non_persistent_buffers_set:
                    found[f"{path}.{name}" if path else name] = buffer
    return found


def check_parts(model: nn.Module, prefixes: Iterable[str]) -> None:
    """Raises UsageError for a prefix without parameters; the message names similar modules."""
    names = [name for name, _ in model.named_parameters()]
    for prefix in prefixes:
        if not any(is_under(name, prefix) for name in names):
            known = [name for name, _ in model.named_modules() if name]
            raise unknown_name("part to train", prefix, known)


def is_under(name: str, prefix: str) -> bool:
    """Returns whether a dotted name equals a prefix or lies under it."""
    return name == prefix or name.startswith(prefix + ".")


def build_optimizer(
    parameters: NamedParameters,
    config: OptimizerConfig,
    matrices: Collection[nn.Parameter] = (),
    dtype: torch.dtype = torch.float32,
) -> torch.optim.AdamW:
    """Returns AdamW with a group for each learning rate and weight decay, or Muon with AdamW.

    Args:
        parameters: the parameters to train, by name.
        config: learning rates and the optimizer's settings.
        matrices: the parameters that Muon may update, see `matrices_of`.
        dtype: type of Muon's matrix products.

    Raises:
        UsageError: if a prefix of `lr_multipliers` matches no trained parameter.
    """
    for prefix in config.lr_multipliers:
        if not any(is_under(name, prefix) for name in parameters):
            parts = {name.rpartition(".")[0] for name in parameters}
            raise unknown_name("trained part in lr_multipliers", prefix, parts)
    is_muon = config.matrices == "muon"
    chosen = set(matrices) if is_muon else set[nn.Parameter]()
    groups: dict[tuple[bool, float, float], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        fitting = [prefix for prefix in config.lr_multipliers if is_under(name, prefix)]
        factor = config.lr_multipliers[max(fitting, key=len)] if fitting else 1.0
        decay = config.weight_decay if parameter.ndim >= 2 else 0.0
        groups.setdefault((parameter in chosen, factor, decay), []).append(parameter)
    options = [
        {"params": members, "weight_decay": decay, "lr_factor": factor, "is_matrix": is_matrix}
        for (is_matrix, factor, decay), members in sorted(groups.items(), key=lambda one: one[0])
    ]
    settings = {"lr": config.lr, "betas": config.betas, "eps": config.eps, "fused": True}
    if is_muon:
        return MuonAdamW(options, config.momentum, dtype, **settings)
    return torch.optim.AdamW(options, **settings)


def matrices_of(network: nn.Module) -> list[nn.Parameter]:
    """Returns the weights with two axes of a network's repeated blocks.

    Embeddings, heads and the layers at the ends of a network are not among them: their rows have
    meanings of their own, so Muon does not fit them.
    """
    return [
        weight
        for block in repeated_blocks(network)
        for weight in block.parameters()
        if weight.ndim == 2
    ]


def learning_rate(step: int, num_steps: int, config: OptimizerConfig) -> float:
    """Returns the learning rate of a step: warm-up, constant, then half a cosine to `min_lr`.

    Args:
        step: number of the step, from 0.
        num_steps: number of steps of the whole run.
        config: learning rates and warm-up.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    total = max(1, num_steps - config.warmup_steps)
    falling = total * config.decay_share
    share = (step - config.warmup_steps - (total - falling)) / falling
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, share))))
    return config.min_lr + (config.lr - config.min_lr) * cosine


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the learning rate of every group to a rate times the group's factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_factor"]


def clip_gradients(parameters: Collection[nn.Parameter], limit: float) -> Tensor:
    """Scales all gradients by one factor if their norm exceeds a limit; returns the norm before.

    Args:
        parameters: changed in place; those without a gradient are skipped.
        limit: largest norm of all gradients together.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = whole(nn.utils.get_total_norm(gradients, foreach=True))
    nn.utils.clip_grads_with_norm_(parameters, limit, norm, foreach=True)
    return norm


class Ema:
    """Exponential moving averages of parameters; each process averages its own shards.

    Args:
        parameters: the parameters to average, by name.
        decay: share of the old average kept at each step; smaller in the first steps. With 0 the
            averages are the parameters themselves and need no memory.
    """

    def __init__(self, parameters: NamedParameters, decay: float) -> None:
        self._parameters = parameters
        self._decay = decay
        self.averages = {
            name: p.detach().clone() if decay else p.detach() for name, p in parameters.items()
        }

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Adds the weights after a step to the averages.

        Args:
            step: number of the step, from 0; the first averages must forget the fresh weights.
        """
        if not self._decay:
            return
        decay = min(self._decay, (step + 1) / (step + 10))
        weights = [local(parameter.detach()) for parameter in self._parameters.values()]
        averages = [local(average) for average in self.averages.values()]
        torch._foreach_lerp_(averages, weights, 1 - decay)
