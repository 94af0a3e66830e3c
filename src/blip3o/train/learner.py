"""A model and its objectives, sharded over the processes of a run where there are several.

Between steps each process holds one shard of every trained weight, of its gradient, average and
moments (FSDP2, one group for each repeated block and one for the rest). A step gathers the weights
once, runs all its micro-batches without communication, and reduces the gradients once. Processes
may therefore differ in the number, tasks and code paths of their micro-batches, and accumulation
costs no traffic. Frozen weights are whole on every process.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from blip3o.core.device import Precision
from blip3o.core.distributed import is_main, world_size
from blip3o.core.errors import UsageError
from blip3o.core.types import Batch, LossOutput
from blip3o.nn.blocks import repeated_blocks
from blip3o.objectives import Objective

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_state_dict_pre_hooks")
"""Hooks of FSDP: they would gather weights from processes that do something else."""

_Change = tuple[dict[str, Any], str, object]
"""A table, a key in it and its new value."""


class Learner(nn.Module):
    """Wraps a model and its objectives into one module whose forward pass is the loss of a batch.

    FSDP needs a single root module.

    Args:
        model: the model to train.
        objectives: modules that return the loss of a batch; they may own weights.
    """

    def __init__(self, model: nn.Module, objectives: Sequence[nn.Module]) -> None:
        super().__init__()
        self.model = model
        self.objectives = nn.ModuleList(objectives)
        self._groups: list[FSDPModule] = []
        self._reached: set[str] = set()
        self._is_watched = False

    def forward(
        self,
        number: int,
        batch: Batch | None,
        seed: int,
        act: Callable[[Batch], Batch] | None = None,
    ) -> tuple[tuple[Tensor, ...], LossOutput | Batch | None]:
        """Returns the sums of a batch's loss and text loss, and the objective's whole output.

        Args:
            number: index of the objective.
            batch: rows of one of the objective's tasks; None returns a zero that depends on every
                trained weight.
            seed: the run's seed.
            act: called instead of the loss, with the batch; its result takes the output's place.
                FSDP wants to be entered by this method before any other module is.
        """
        if batch is None:
            zeros = [p.sum() * 0 for p in self.parameters() if p.requires_grad]
            return (torch.stack([zero.float() for zero in zeros]).sum(),), None
        if act is not None:
            return (), act(batch)
        output = self.objectives[number](self.model, batch, seed)
        # FSDP finds tensors in tuples, not in our dataclasses.
        sums = [one for one in (output.loss_sum, output.text_sum) if one is not None]
        return tuple(sums), output

    def shard(self, precision: Precision) -> None:
        """Spreads the trained weights over all processes; their names stay the same.

        Args:
            precision: device and dtype of the run. Gathered weights have that dtype; shards and
                reduced gradients stay float32.
        """
        half = None if precision.dtype == torch.float32 else precision.dtype
        mesh = init_device_mesh(precision.device.type, (world_size(),))
        # Autocast casts the inputs: it knows which of them must stay float32.
        policy = MixedPrecisionPolicy(half, torch.float32, cast_forward_inputs=False)
        frozen = {p for p in self.parameters() if not p.requires_grad}
        blocks = [
            block
            for network in (self.model, *self.objectives)
            for block in repeated_blocks(network)
            if any(parameter.requires_grad for parameter in block.parameters())
        ]
        for module in (*blocks, self):
            fully_shard(
                module,
                mesh=mesh,
                mp_policy=policy,
                reshard_after_forward=False,
                ignored_params=frozen,
            )
        self._groups = [module for module in self.modules() if isinstance(module, FSDPModule)]

    def gather(self) -> None:
        """Gathers the whole weights for the micro-batches of a step; all processes must call it."""
        if not self._groups:
            return
        self._reduce_after_backward(False)
        for group in self._groups:
            group.unshard()
        if not self._is_watched:
            self._watch()
        self._reached.clear()

    def reduce(self) -> None:
        """Averages the gradients over all processes; each keeps its shard of weights and gradients.

        FSDP reduces the gradients of those weights that a backward pass reaches, and the processes
        must agree on them. Their micro-batches may not, so a zero loss over all weights follows.
        """
        if not self._groups:
            return
        reached = set(self._reached)  # before the zero loss reaches every weight
        # The first pass gives every weight an unreduced gradient, all of one dtype; the second
        # pass reduces them.
        for is_reducing in (False, True):
            self._reduce_after_backward(is_reducing)
            (zero_loss,), _ = self(0, None, 0)
            zero_loss.backward()
        self._reached = reached

    def untouched(self) -> set[str]:
        """Returns the names of the weights that no micro-batch of this process and step reached."""
        if not self._groups:
            return set()
        return {n for n, p in self.named_parameters() if p.requires_grad} - self._reached

    def drop_gradients(self, names: set[str]) -> None:
        """Removes the zero gradients of weights that no process reached: AdamW would decay them.

        Args:
            names: the names that `untouched` returns on every process.
        """
        for name, parameter in self.named_parameters():
            if name in names:
                parameter.grad = None

    @contextmanager
    def using(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """Puts other weights into the main process's model until the context ends.

        All processes must enter. Inside, the main process has a plain model, which computes and
        saves without the others; on the other processes nothing changes.

        Args:
            weights: by name in the model (those of objectives under "objectives."); shards are
                gathered.
        """
        own = {name.removeprefix("model."): p for name, p in self.named_parameters()}
        substitutes: dict[nn.Parameter, nn.Parameter] = {}
        for name, weight in weights.items():
            gathered = whole(weight)  # all processes take part
            if is_main():
                substitutes[own[name]] = nn.Parameter(gathered, own[name].requires_grad)
        changes: list[_Change] = [
            (module._parameters, name, substitutes[parameter])
            for module in self.modules()
            for name, parameter in module._parameters.items()
            if parameter is not None and parameter in substitutes
        ]
        for group in self._groups if is_main() else ():
            changes += [(vars(group), kind, OrderedDict()) for kind in _HOOKS]
        with _changed(changes):
            yield

    @contextmanager
    def holding(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """Holds other weights, gathered, in the model of every process until the context ends.

        All processes must enter, between steps.

        Args:
            weights: by name in the model; those that are left out stay.
        """
        own = {name.removeprefix("model."): p for name, p in self.named_parameters()}
        pairs = [(local(own[name].detach()), local(weight)) for name, weight in weights.items()]
        kept = [mine.clone() for mine, _ in pairs]
        _copy([mine for mine, _ in pairs], [other for _, other in pairs])
        try:
            self.gather()
            yield
        finally:
            for group in self._groups:
                group.reshard()
            _copy([mine for mine, _ in pairs], kept)

    def _reduce_after_backward(self, is_reducing: bool) -> None:
        """Sets whether backward passes reduce gradients and free the gathered weights."""
        assert isinstance(self, FSDPModule)  # `fully_shard` changed its class
        self.set_requires_gradient_sync(is_reducing)
        self.set_reshard_after_backward(is_reducing)

    def _watch(self) -> None:
        """Records from now on which weights get a gradient; each step gathers the same objects."""
        self._is_watched = True
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(
                    lambda _, name=name: self._reached.add(name)
                )


@torch.no_grad()
def _copy(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)


@contextmanager
def _changed(changes: Sequence[_Change]) -> Iterator[None]:
    """Sets values in tables, and restores the old values at the end."""
    old = [(table, key, table[key]) for table, key, _ in changes]
    try:
        for table, key, value in changes:
            table[key] = value
        yield
    finally:
        for table, key, value in old:
            table[key] = value


def name_objectives(objectives: Iterable[object]) -> dict[str, Objective]:
    """Returns the objectives by the names they are logged under; equal names are numbered."""
    seen: Counter[str] = Counter()
    named: dict[str, Objective] = {}
    for objective in objectives:
        name = type(objective).__name__
        assert isinstance(objective, Objective), f"{name} is not an objective"
        seen[name] += 1
        named[name if seen[name] == 1 else f"{name}-{seen[name]}"] = objective
    return named


def check_batches(batches: list[Batch] | None, objectives: Iterable[Objective], step: int) -> None:
    """Refuses a step whose data end early or contain a task without an objective.

    Args:
        batches: batches of the step; None if the data ended.
        objectives: objectives of the run.
        step: number of steps done.

    Raises:
        UsageError: naming the setting to change.
    """
    if batches is None:
        raise UsageError(f"the data ended at step {step}; lower train.steps")
    learned = {task for objective in objectives for task in objective.tasks}
    for batch in batches:
        if batch.task not in learned:
            raise UsageError(
                f"no objective learns from the task {batch.task!r} of data.mixture; "
                f"objectives.*.tasks name {', '.join(sorted(learned))}"
            )


def whole(tensor: Tensor) -> Tensor:
    """Returns the whole of a tensor that may be sharded; all processes must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """Returns this process's shard of a tensor, or the tensor itself if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
