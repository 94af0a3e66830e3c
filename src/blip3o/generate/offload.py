"""Weights that wait in the memory of the CPU: model offload and sequential offload.

A component is used through few methods, the seams of `UnifiedModel`; these are wrapped, on the
object itself. (Hooks on `forward` alone, as accelerate sets them, miss the vocabulary head that is
the embedding table, and the keys and values that a DiT makes before it runs.)
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from blip3o.core.choices import OFFLOADS as OFFLOADS
from blip3o.core.choices import Offload as Offload
from blip3o.core.choices import check_offload as check_offload
from blip3o.models.unified import UnifiedModel
from blip3o.nn.blocks import repeated_blocks

COMPONENTS = ("backbone", "image_encoder", "generator", "image_decoder")
"""The parts that can be placed. The feature normalizer is small and stays with the backbone."""

_CPU, _META = torch.device("cpu"), torch.device("meta")


def seams_of(module: nn.Module) -> tuple[str, ...]:
    """Returns the methods through which a component or a block is used and that need its weights.

    Args:
        module: it names them in `seams`; a module of a library has its `forward`.
    """
    return getattr(module, "seams", ("forward",))


def residents_of(component: nn.Module) -> list[nn.Module]:
    """Returns the small children of a component that stay on the device while it is offloaded.

    Args:
        component: it names them in `resident`.
    """
    return [component.get_submodule(name) for name in getattr(component, "resident", ())]


def groups_of(component: nn.Module, *, by_block: bool) -> list[list[nn.Module]]:
    """Returns the modules of a component that come and go together when it is offloaded.

    Args:
        component: any module.
        by_block: every repeated block is a group.

    Returns:
        What is there whenever the component is in use, then the blocks.
    """
    blocks = [list(block.modules()) for block in repeated_blocks(component)] if by_block else []
    stay = [child.modules() for child in residents_of(component)]
    inside = {module for modules in (*blocks, *stay) for module in modules}
    return [[module for module in component.modules() if module not in inside], *blocks]


class Offloading:
    """Weights in the memory of the CPU that come to a device only when they are used.

    A component's weights come at its first use and stay until another component is used. With
    `by_block` each repeated block's come before it runs and go after it: slower, and smaller.
    Weights never change, so going is forgetting: nothing is copied back. Weights that are away are
    on the meta device. Buffers (tables, small) are always on the device.

    Args:
        model: its weights go to the CPU.
        device: where it computes.
        by_block: sequential offload.
    """

    def __init__(self, model: UnifiedModel, device: torch.device, *, by_block: bool) -> None:
        self._undo: list[Callable[[], None]] = []
        self._present: list[_Weights] = []
        self._running: list[_Weights] = []
        for module in model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.to(device))
        for name in COMPONENTS:
            component = getattr(model, name)
            rest, *blocks = groups_of(component, by_block=by_block)
            for child in residents_of(component):
                child.to(device)
            for block in blocks:
                weights = self._keep(block, device)
                self._undo += around(block[0], seams_of(block[0]), weights.around)
            run = functools.partial(self._use, self._keep(rest, device))
            self._undo += around(component, seams_of(component), run)

    def remove(self) -> None:
        """Takes the wrapping off; all weights are then on the CPU."""
        for undo in self._undo:
            undo()

    def _keep(self, modules: Iterable[nn.Module], device: torch.device) -> "_Weights":
        weights = _Weights(modules, device)
        self._undo.append(weights.restore)
        return weights

    def _use(
        self,
        weights: "_Weights",
        plain: Callable[..., Any],
        *args: Any,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        if weights not in self._present:
            # A component may use another one: both stay until the outer one returns.
            for other in [one for one in self._present if one not in self._running]:
                other.forget()
                self._present.remove(other)
            weights.fetch()
            self._present.append(weights)
        self._running.append(weights)
        try:
            return plain(*args, **kwargs)
        finally:
            self._running.pop()


class _Weights:
    """The parameters of some modules: kept on the CPU, copied to a device on demand."""

    def __init__(self, modules: Iterable[nn.Module], device: torch.device) -> None:
        self._device = device
        self._kept = [
            (module, name, _on(parameter, _CPU, parameter.dtype))
            for module in modules
            for name, parameter in module.named_parameters(recurse=False)
        ]
        self.forget()

    def fetch(self) -> None:
        """Brings the weights to the device, all of them or none."""
        try:
            self._put(self._device)
        except BaseException:  # out of memory, or Ctrl-C during a long copy
            self.forget()
            raise

    def forget(self) -> None:
        """Lets the device's memory go."""
        self._put(_META)

    def restore(self) -> None:
        """Puts the kept weights back for good."""
        self._put(_CPU)

    def around(self, plain: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Runs a method with the weights on the device."""
        self.fetch()
        try:
            return plain(*args, **kwargs)
        finally:
            self.forget()

    def _put(self, device: torch.device) -> None:
        for module, name, kept in self._kept:
            # A component may have changed its type on the way: a VAE that leaves fp16 does.
            setattr(module, name, _on(kept, device, getattr(module, name).dtype))


def around(
    module: nn.Module, seams: Iterable[str], run: Callable[..., Any]
) -> list[Callable[[], None]]:
    """Lets `run(method, *args, **kwargs)` stand for an object's methods; returns what undoes it."""

    def wrap(seam: str) -> Callable[[], None]:
        plain = getattr(module, seam)
        setattr(module, seam, functools.wraps(plain)(functools.partial(run, plain)))
        return functools.partial(delattr, module, seam)

    return [wrap(seam) for seam in seams if hasattr(module, seam)]


def _on(parameter: nn.Parameter, device: torch.device, dtype: torch.dtype) -> nn.Parameter:
    """Returns a parameter on a device and of a type: itself if it is."""
    if parameter.device == device and parameter.dtype == dtype:
        return parameter
    return nn.Parameter(parameter.detach().to(device, dtype), parameter.requires_grad)
