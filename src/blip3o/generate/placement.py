"""Where a model's components are: on one device, spread over several, or there only when in use."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from blip3o.core.choices import Quantization, check_quantization
from blip3o.core.device import resolve_device, resolve_dtype
from blip3o.core.errors import UsageError, unknown_name
from blip3o.generate.offload import (
    COMPONENTS,
    Offload,
    Offloading,
    around,
    check_offload,
    seams_of,
)
from blip3o.models.unified import UnifiedModel
from blip3o.text.tokenizer import Tokenizer
from blip3o.weights.folder import load_model
from blip3o.weights.hub import to_local


def resolve_placement(
    placement: Mapping[str, str] | None, device: str = "auto"
) -> dict[str, torch.device]:
    """Returns the device of every component.

    Args:
        placement: device names of components; the others go to `device`.
        device: "auto" or a torch device.

    Raises:
        UsageError: for an unknown component, or a device that is not there.
    """
    given = dict(placement or {})
    for name in given:
        if name not in COMPONENTS:
            raise unknown_name("component", name, COMPONENTS)
    return {name: resolve_device(given.get(name, device)) for name in COMPONENTS}


@dataclasses.dataclass(frozen=True)
class Placing:
    """Where a model goes, and in which form.

    Args:
        devices: the device of every component.
        dtype: type of the weights.
        quantize: form of the backbone's matrices; None leaves them.
        offload: which weights are on the device.
    """

    devices: Mapping[str, torch.device]
    dtype: torch.dtype
    quantize: Quantization | None
    offload: Offload

    @classmethod
    def make(
        cls,
        device: str,
        dtype: str | torch.dtype,
        quantize: str | None,
        placement: Mapping[str, str] | None,
        offload: str,
    ) -> Self:
        """Returns the placing that a user asks for; arguments as for `from_pretrained`.

        Raises:
            UsageError: for anything unknown, a device that is not there, or offload together with
                placement.
        """
        devices = resolve_placement(placement, device)
        how = check_offload(offload)
        if placement and how != "none":
            raise UsageError("a model is either offloaded or placed on several devices, not both")
        kind = None if quantize is None else check_quantization(quantize)
        return cls(devices, resolve_dtype(dtype, devices["backbone"]), kind, how)

    @property
    def loading(self) -> dict[str, Any]:
        """Arguments of `load_model`; what is offloaded is loaded where it is kept."""
        devices = (
            self.devices
            if self.offload == "none"
            else dict.fromkeys(self.devices, torch.device("cpu"))
        )
        return {
            "device": devices["backbone"],
            "dtype": self.dtype,
            "quantize": self.quantize,
            "placement": devices,
        }


def connect(model: UnifiedModel, devices: Mapping[str, torch.device]) -> list[Callable[[], None]]:
    """Makes a model whose components are on several devices usable as if it were on one.

    Tensors that go into a component are brought to its device, and what comes out to the
    backbone's. What a component keeps for itself (caches) is left where it is.

    Args:
        model: its weights are in place.
        devices: the device of every component.

    Returns:
        What undoes it, to be called one by one.
    """
    home = devices["backbone"]
    undo: list[Callable[[], None]] = []
    for name in COMPONENTS:
        if devices[name] != home:
            component = getattr(model, name)
            undo += around(component, seams_of(component), _bringing(devices[name], home))
    return undo


def move(model: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Moves weights in place, to the types that loading would give them.

    Args:
        model: what it computes and does not store keeps its type, and so do whole numbers.
        device: where to.
        dtype: of the stored numbers.
    """
    stored = model.state_dict().keys()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        is_cast = name in stored and tensor.is_floating_point()
        tensor.data = tensor.data.to(device, dtype if is_cast else tensor.dtype)


class PlacedPipeline:
    """What a pipeline can be told about devices, in the words of diffusers' pipelines.

    Args:
        model: the model.
        tokenizer: its tokenizer.
    """

    _undo_placement: Callable[[], None] | None = None

    def __init__(self, model: UnifiedModel, tokenizer: Tokenizer) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path = "pocket",
        *,
        device: str = "auto",
        dtype: str | torch.dtype = "auto",
        revision: str | None = None,
        overrides: Sequence[str] = (),
        quantize: str | None = None,
        placement: Mapping[str, str] | None = None,
        offload: str = "none",
    ) -> Self:
        """Returns a pipeline over a bundled model or a model folder; downloads hub ids only.

        Args:
            name: "pocket", a folder (ours or a released one) or a hub id such as "org/name".
            device: "auto" or a torch device.
            dtype: "auto" (what the device is fast at), "fp32", "bf16", "fp16", or torch's names.
            revision: branch, tag or commit, for a hub id.
            overrides: settings of the model's config to change, as "path.to.field=value".
            quantize: "int8" or "int4" for the backbone's matrices; None leaves them.
            placement: device names of components (`COMPONENTS`) that go elsewhere.
            offload: "none", or "model" or "sequential" as the methods `enable_*_cpu_offload` do.

        Raises:
            UsageError: if there is no such model, device or mode, the model is damaged, or an
                override does not fit it.
        """
        placing = Placing.make(device, dtype, quantize, placement, offload)
        loaded = load_model(to_local(name, revision), overrides=overrides, **placing.loading)
        pipe = cls(loaded.model, loaded.tokenizer)
        if placing.offload == "none":
            pipe._undo_placement = _all(connect(pipe.model, placing.devices))
        else:
            pipe._offload(placing.devices["backbone"], by_block=placing.offload == "sequential")
        return pipe

    @property
    def device(self) -> torch.device:
        """Where the pipeline computes; of several devices the backbone's."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the model's weights."""
        return self.model.dtype

    def to(
        self,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
    ) -> Self:
        """Moves the whole model and returns the pipeline; ends offloading and placement.

        Args:
            device: "auto" or a torch device; the pipeline's own if None.
            dtype: a precision as in `from_pretrained`; the model's own if None.

        Raises:
            UsageError: for an unknown precision, or a device that is not there.
        """
        target = self.device if device is None else resolve_device(str(device))
        kind = self.dtype if dtype is None else resolve_dtype(dtype, target)
        self._leave()
        move(self.model, target, kind)
        return self

    def place(self, placement: Mapping[str, str]) -> Self:
        """Moves components to devices of their own and returns the pipeline; ends offloading.

        Args:
            placement: device names by component; the others stay on the pipeline's device.

        Raises:
            UsageError: for an unknown component, or a device that is not there.
        """
        devices = resolve_placement(placement, str(self.device))
        self.to(devices["backbone"])
        for name, device in devices.items():
            move(getattr(self.model, name), device, self.dtype)
        self._undo_placement = _all(connect(self.model, devices))
        return self

    def enable_model_cpu_offload(self, device: str | torch.device = "auto") -> None:
        """Keeps weights on the CPU and on a device only the component in use; the same results.

        Args:
            device: where to compute.

        Raises:
            UsageError: if the device is not there.
        """
        self._offload(device, by_block=False)

    def enable_sequential_cpu_offload(self, device: str | torch.device = "auto") -> None:
        """Keeps weights on the CPU and on a device only the block in use; slow; the same results.

        Args:
            device: where to compute.

        Raises:
            UsageError: if the device is not there.
        """
        self._offload(device, by_block=True)

    def _offload(self, device: str | torch.device, *, by_block: bool) -> None:
        target = resolve_device(str(device))
        self._leave()
        self._undo_placement = Offloading(self.model, target, by_block=by_block).remove

    def _leave(self) -> None:
        """Ends offloading and placement; weights stay where that leaves them."""
        if self._undo_placement is not None:
            self._undo_placement()
        self._undo_placement = None


def _all(steps: Iterable[Callable[[], None]]) -> Callable[[], None]:
    def run() -> None:
        for step in steps:
            step()

    return run


def _bringing(device: torch.device, home: torch.device) -> Callable[..., Any]:
    def run(plain: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        inputs = [_moved(value, device) for value in args]
        result = plain(*inputs, **{name: _moved(value, device) for name, value in kwargs.items()})
        return _moved(result, home)

    return run


def _moved(value: Any, device: torch.device) -> Any:  # noqa: ANN401
    return value.to(device) if isinstance(value, Tensor) else value
