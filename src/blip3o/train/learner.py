"""A model with its objectives, sharded over the processes of a run where there are several.

Between steps every trained weight, its gradient, its average and its moments lie in shards, one on
each process (FSDP2, one group for each transformer block and one for the rest). For a step the
weights are gathered once, all micro-batches are run without a word to the others, and the gradients
are reduced once. So processes may run different micro-batches in number, task and path, as the
mixture has it, and accumulation costs no traffic; frozen weights are whole on every process.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from blip3o.core.device import Precision
from blip3o.core.distributed import is_main, world_size
from blip3o.core.types import Batch, LossOutput
from blip3o.nn.checkpointing import repeated_blocks
from blip3o.train.prepare import halve_frozen

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_state_dict_pre_hooks")
"""Where FSDP comes in: it would gather weights from processes that are busy elsewhere."""


class Learner(nn.Module):
    """One module with one forward pass, as FSDP wants it: the loss of a batch.

    Args:
        model: what is trained.
        objectives: modules that return the loss of a batch; they may own weights.
    """

    def __init__(self, model: nn.Module, objectives: Sequence[nn.Module]) -> None:
        super().__init__()
        self.model = model
        self.objectives = nn.ModuleList(objectives)
        self._groups: list[FSDPModule] = []
        self._touched: set[str] = set()
        self._is_watched = False

    def forward(
        self, number: int, batch: Batch | None, seed: int
    ) -> tuple[Tensor, LossOutput | None]:
        """Returns the loss sum of a batch, and all that the objective says of it.

        Args:
            number: which objective.
            batch: rows of one of its tasks; None touches every trained weight and changes none.
            seed: the run's seed.
        """
        if batch is None:
            zeros = [p.sum() * 0 for p in self.parameters() if p.requires_grad]
            return torch.stack([zero.float() for zero in zeros]).sum(), None
        output = self.objectives[number](self.model, batch, seed)
        return output.loss_sum, output  # FSDP looks for tensors in tuples, not in our types

    def shard(self, precision: Precision) -> None:
        """Spreads the trained weights over all processes; they keep their names.

        Args:
            precision: where and in what type the run computes: the gathered weights are of that
                type, shards and reduced gradients stay float32.
        """
        half = None if precision.dtype == torch.float32 else precision.dtype
        if half is not None:
            halve_frozen(self.model, half)
        options: dict[str, Any] = {
            "mesh": init_device_mesh(precision.device.type, (world_size(),)),
            "reshard_after_forward": False,
            # Inputs are left to autocast, which knows which of them must stay float32.
            "mp_policy": MixedPrecisionPolicy(half, torch.float32, cast_forward_inputs=False),
            "ignored_params": {p for p in self.parameters() if not p.requires_grad},
        }
        for network in (self.model, *self.objectives):
            for block in repeated_blocks(network):
                if any(parameter.requires_grad for parameter in block.parameters()):
                    fully_shard(block, **options)
        fully_shard(self, **options)
        self._groups = [module for module in self.modules() if isinstance(module, FSDPModule)]

    def gather(self) -> None:
        """Makes the weights whole for the micro-batches of a step; once, in the same order."""
        if not self._groups:
            return
        self._synchronize(False)
        for group in self._groups:
            group.unshard()
        if not self._is_watched:
            self._watch()
        self._touched.clear()

    def reduce(self) -> None:
        """Adds up the gradients of all processes and leaves each its shard of weights and sum.

        FSDP reduces what a backward pass went through. Which is not the same everywhere, so it is
        done in a pass of its own that goes through everything. FSDP takes the mean: losses are to
        be multiplied by the number of processes.
        """
        if not self._groups:
            return
        touched = set(self._touched)
        # The first of two passes gives every weight a waiting gradient: they must be of one type.
        for is_last in (False, True):
            self._synchronize(is_last)
            self(0, None, 0)[0].backward()
        self._touched = touched

    def untouched(self) -> set[str]:
        """Returns the weights that no micro-batch of this process and step went through."""
        if not self._groups:
            return set()
        return {n for n, p in self.named_parameters() if p.requires_grad} - self._touched

    def drop_gradients(self, names: set[str]) -> None:
        """Takes the zeros away from weights nothing went through: AdamW would decay them.

        Args:
            names: as `untouched` has them, where all processes agree.
        """
        for name, parameter in self.named_parameters():
            if name in names:
                parameter.grad = None

    @contextmanager
    def holding(self, values: dict[str, Tensor]) -> Iterator[None]:
        """Puts other weights into the main process's model for a while; all processes must ask.

        There the model is a plain one meanwhile: it computes and saves without the others.

        Args:
            values: by name in the model (objectives' under "objectives."); shards are made whole.
        """
        own = {name.removeprefix("model."): p for name, p in self.named_parameters()}
        others: dict[nn.Parameter, nn.Parameter] = {}
        for name, value in values.items():
            tensor = whole(value)
            if is_main():
                others[own[name]] = nn.Parameter(tensor, own[name].requires_grad)
        hooks = [{kind: group.__dict__[kind] for kind in _HOOKS} for group in self._groups]
        try:
            self._replace(others)
            for group in self._groups if is_main() else ():
                group.__dict__.update({kind: OrderedDict() for kind in _HOOKS})
            yield
        finally:
            self._replace({other: parameter for parameter, other in others.items()})
            for group, kept in zip(self._groups, hooks, strict=True):
                group.__dict__.update(kept)

    def _replace(self, others: dict[nn.Parameter, nn.Parameter]) -> None:
        for module in self.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None and parameter in others:
                    module._parameters[name] = others[parameter]

    def _synchronize(self, is_last: bool) -> None:
        root = cast("FSDPModule", self)
        root.set_requires_gradient_sync(is_last)
        root.set_reshard_after_backward(is_last)

    def _watch(self) -> None:
        """Notes from now on which weights get a gradient; gathered ones are the same objects."""
        self._is_watched = True
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(
                    lambda _, name=name: self._touched.add(name)
                )


def whole(tensor: Tensor) -> Tensor:
    """Returns a tensor that may be sharded as one that is not; all processes must ask.

    Args:
        tensor: any tensor.
    """
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """Returns this process's shard of a tensor, or all of it if it is whole.

    Args:
        tensor: any tensor.
    """
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
