"""Placement of a model's components: one device, several devices, or offloaded until used."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from blip3o.core.choices import check_quantization
from blip3o.core.device import resolve_device, resolve_dtype
from blip3o.core.errors import UsageError, unknown_name
from blip3o.generate.offload import COMPONENTS, Offloading, around, check_offload, seams_of
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
        UsageError: for an unknown component or a device that does not exist.
    """
    given = dict(placement or {})
    for name in given:
        if name not in COMPONENTS:
            raise unknown_name("component", name, COMPONENTS)
    return {name: resolve_device(given.get(name, device)) for name in COMPONENTS}


def connect(model: UnifiedModel, devices: Mapping[str, torch.device]) -> list[Callable[[], None]]:
    """Makes a model with components on several devices usable like a model on one device.

    The tensors that a component takes are moved to its device, and the tensors that it returns to
    the backbone's device. Other values, such as caches, stay where they are.

    Args:
        model: a model whose weights are in place.
        devices: the device of every component.

    Returns:
        Functions that undo it.
    """
    home = devices["backbone"]
    undo: list[Callable[[], None]] = []
    for name in COMPONENTS:
        if devices[name] != home:
            component = getattr(model, name)
            undo += around(component, seams_of(component), _bringing(devices[name], home))
    return undo


def move(model: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Moves parameters and buffers in place, to the types that loading would give them.

    Args:
        model: the module.
        device: the new device.
        dtype: the new type of stored floating-point numbers. Whole numbers, and buffers that are
            computed and not stored, keep their types.
    """
    stored = model.state_dict().keys()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        is_cast = name in stored and tensor.is_floating_point()
        tensor.data = tensor.data.to(device, dtype if is_cast else tensor.dtype)


class PlacedPipeline:
    """The methods of a pipeline that load and place its model, named as in diffusers.

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
            dtype: "auto" (a fast type of the device), "fp32", "bf16", "fp16", or torch's names.
            revision: branch, tag or commit, for a hub id.
            overrides: settings of the model's config to change, as "path.to.field=value".
            quantize: "int8" or "int4" for the backbone's matrices; None leaves them.
            placement: device names of components (`COMPONENTS`) that go elsewhere.
            offload: "none", or "model" or "sequential", see the methods `enable_*_cpu_offload`.

        Raises:
            UsageError: if a model, device or mode does not exist, offloading and placement are
                combined, the model is damaged, or an override does not fit it.
        """
        devices = resolve_placement(placement, device)
        mode = check_offload(offload)
        if placement and mode != "none":
            raise UsageError("a model is either offloaded or placed on several devices, not both")
        kind = None if quantize is None else check_quantization(quantize)
        precision = resolve_dtype(dtype, devices["backbone"])
        stored = devices if mode == "none" else dict.fromkeys(devices, torch.device("cpu"))
        loaded = load_model(
            to_local(name, revision),
            device=stored["backbone"],
            dtype=precision,
            overrides=overrides,
            quantize=kind,
            placement=stored,
        )
        pipe = cls(loaded.model, loaded.tokenizer)
        if mode == "none":
            pipe._undo_placement = _all(connect(pipe.model, devices))
        else:
            pipe._offload(devices["backbone"], by_block=mode == "sequential")
        return pipe

    @property
    def device(self) -> torch.device:
        """The device that computes; with several devices, the backbone's."""
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
            device: "auto" or a torch device; None for the pipeline's own.
            dtype: a precision as in `from_pretrained`; None for the model's own.

        Raises:
            UsageError: for an unknown precision or a device that does not exist.
        """
        target = self.device if device is None else resolve_device(str(device))
        kind = self.dtype if dtype is None else resolve_dtype(dtype, target)
        self._leave()
        move(self.model, target, kind)
        return self

    def place(self, placement: Mapping[str, str]) -> Self:
        """Moves components to other devices and returns the pipeline; ends offloading.

        Args:
            placement: device names by component; other components stay on the pipeline's device.

        Raises:
            UsageError: for an unknown component or a device that does not exist.
        """
        devices = resolve_placement(placement, str(self.device))
        self.to(devices["backbone"])
        for name, device in devices.items():
            move(getattr(self.model, name), device, self.dtype)
        self._undo_placement = _all(connect(self.model, devices))
        return self

    def enable_model_cpu_offload(self, device: str | torch.device = "auto") -> None:
        """Keeps weights on the CPU; the device holds only the component in use.

        Images are the same bit for bit; logits of text differ by rounding.

        Raises a UsageError if the device ("auto" or a torch device) does not exist.
        """
        self._offload(device, by_block=False)

    def enable_sequential_cpu_offload(self, device: str | torch.device = "auto") -> None:
        """Keeps weights on the CPU; the device holds only the block in use. Slow.

        Images are the same bit for bit; logits of text differ by rounding.

        Raises a UsageError if the device ("auto" or a torch device) does not exist.
        """
        self._offload(device, by_block=True)

    def _offload(self, device: str | torch.device, *, by_block: bool) -> None:
        target = resolve_device(str(device))
        self._leave()
        self._undo_placement = Offloading(self.model, target, by_block=by_block).remove

    def _leave(self) -> None:
        """Ends offloading and placement. Offloaded weights are on the CPU afterwards."""
        if self._undo_placement is not None:
            self._undo_placement()
        self._undo_placement = None


def _all(steps: Iterable[Callable[[], None]]) -> Callable[[], None]:
    def run() -> None:
        for step in steps:
            step()

    return run


def _bringing(device: torch.device, home: torch.device) -> Callable[..., object]:
    def run(plain: Callable[..., object], *args: object, **kwargs: object) -> object:
        inputs = [_moved(value, device) for value in args]
        result = plain(*inputs, **{name: _moved(value, device) for name, value in kwargs.items()})
        return _moved(result, home)

    return run


def _moved(value: object, device: torch.device) -> object:
    return value.to(device) if isinstance(value, Tensor) else value
