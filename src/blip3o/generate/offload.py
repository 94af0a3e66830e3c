"""Weights that stay in CPU memory until they are used: model offload and sequential offload.

The weights of a component are used through a few methods, its seams. Offloading wraps these methods
on the object. (Hooks on `forward` alone, as accelerate sets them, miss a vocabulary head that is
the embedding table, and the keys and values that a DiT computes before it runs.)
"""

import functools
from collections.abc import Callable, Iterable

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
    """Returns the names of the methods that need the weights of a component or a block.

    They are the module's `seams`; only "forward" for a module of a library.
    """
    return getattr(module, "seams", ("forward",))


def residents_of(component: nn.Module) -> list[nn.Module]:
    """Returns the small children (`resident`) that stay on the device during offloading.

    A child that a config leaves out is None and does not count.
    """
    children = [getattr(component, name) for name in getattr(component, "resident", ())]
    return [child for child in children if child is not None]


def groups_of(component: nn.Module, *, by_block: bool) -> list[list[nn.Module]]:
    """Returns the groups of modules whose weights are fetched and dropped together.

    The first group is needed whenever the component is in use. With `by_block`, every repeated
    block is a group of its own after it.
    """
    blocks = [list(block.modules()) for block in repeated_blocks(component)] if by_block else []
    stay = [child.modules() for child in residents_of(component)]
    inside = {module for modules in (*blocks, *stay) for module in modules}
    return [[module for module in component.modules() if module not in inside], *blocks]


class Offloading:
    """Keeps weights in CPU memory and copies them to a device only when they are used.

    The weights of a component are fetched at its first use and stay until another component is
    used. With `by_block`, the weights of a repeated block are fetched before it runs and dropped
    after it, which needs less memory and more time. Weights do not change, so nothing is copied
    back; dropped weights are on the meta device. Buffers are small and stay on the device.

    Args:
        model: the model; its weights move to the CPU.
        device: device that computes.
        by_block: sequential offload instead of model offload.
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
        """Removes the wrappers; all weights are on the CPU afterwards."""
        for undo in self._undo:
            undo()

    def _keep(self, modules: Iterable[nn.Module], device: torch.device) -> "_Weights":
        weights = _Weights(modules, device)
        self._undo.append(weights.restore)
        return weights

    def _use(
        self, weights: "_Weights", plain: Callable[..., object], *args: object, **kwargs: object
    ) -> object:
        if weights not in self._present:
            # If a component uses another one, both stay until the outer one returns.
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
    """The parameters of some modules, kept on the CPU and copied to a device on demand."""

    def __init__(self, modules: Iterable[nn.Module], device: torch.device) -> None:
        self._device = device
        self._kept = [
            (module, name, _on(parameter, _CPU, parameter.dtype))
            for module in modules
            for name, parameter in module.named_parameters(recurse=False)
        ]
        self.forget()

    def fetch(self) -> None:
        """Copies the weights to the device, all of them or none."""
        try:
            self._put(self._device)
        except BaseException:  # out of memory, or Ctrl-C during a long copy
            self.forget()
            raise

    def forget(self) -> None:
        """Frees the memory of the device."""
        self._put(_META)

    def restore(self) -> None:
        """Puts the weights on the CPU back into the modules."""
        self._put(_CPU)

    def around(self, plain: Callable[..., object], *args: object, **kwargs: object) -> object:
        """Runs a method with the weights on the device."""
        self.fetch()
        try:
            return plain(*args, **kwargs)
        finally:
            self.forget()

    def _put(self, device: torch.device) -> None:
        for module, name, kept in self._kept:
            # A component may have changed its dtype meanwhile, as a VAE does that leaves fp16.
            setattr(module, name, _on(kept, device, getattr(module, name).dtype))


def around(
    module: nn.Module, seams: Iterable[str], run: Callable[..., object]
) -> list[Callable[[], None]]:
    """Replaces methods of a module by `run(method, *args, **kwargs)`.

    Returns:
        Functions that undo the replacements.
    """

    def wrap(seam: str) -> Callable[[], None]:
        plain = getattr(module, seam)
        setattr(module, seam, functools.wraps(plain)(functools.partial(run, plain)))
        return functools.partial(delattr, module, seam)

    return [wrap(seam) for seam in seams if hasattr(module, seam)]


def _on(parameter: nn.Parameter, device: torch.device, dtype: torch.dtype) -> nn.Parameter:
    """Returns a parameter on a device and with a dtype; the same object if nothing changes."""
    if parameter.device == device and parameter.dtype == dtype:
        return parameter
    return nn.Parameter(parameter.detach().to(device, dtype), parameter.requires_grad)
