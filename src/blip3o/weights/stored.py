"""A model in files: config, tensors by our names, tokenizer. Tensors are read on demand.

Every layout of a model folder is opened as a `StoredModel` and written from one.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from blip3o.core.config import override
from blip3o.core.errors import UsageError
from blip3o.models.quantize import quantize_backbone
from blip3o.models.unified import UnifiedModel, UnifiedModelConfig
from blip3o.nn.quantized import Quantization, quantize_weight
from blip3o.text.tokenizer import Tokenizer
from blip3o.weights.shards import Weight, read
from blip3o.weights.strict import require_fit

_SPARE_WEIGHTS = 10_000
"""Weights that may be missing before the error is about the config instead of the weights."""

ModuleT_co = TypeVar("ModuleT_co", bound=nn.Module, covariant=True)


class Buildable(Protocol[ModuleT_co]):
    """The config of a module."""

    def build(self) -> ModuleT_co:
        """Returns the module with fresh weights."""
        ...


@dataclasses.dataclass(frozen=True)
class StoredModel:
    """A complete model in files.

    Args:
        config: config of the model.
        tensors: the whole state dict by our names; some tensors may be computed, not stored.
        tokenizer: the tokenizer that the model was trained with.
        folder: the folder of the files.
    """

    config: UnifiedModelConfig
    tensors: Mapping[str, Weight]
    tokenizer: Tokenizer
    folder: Path

    def configured(self, overrides: Sequence[str]) -> "StoredModel":
        """Returns the same weights with a changed config, for example another scheduler.

        Args:
            overrides: assignments such as "sampling.num_decoder_steps=20".

        Raises:
            UsageError: for an unknown setting, or a setting that does not fit the weights.
        """
        if not overrides:
            return self
        config = override(self.config, overrides)
        expected = sketch(config, self.folder / "config.json", len(self.tensors)).state_dict()
        require_fit(expected, self.tensors, f"{self.folder} ({', '.join(overrides)})")
        return dataclasses.replace(self, config=config)

    def build(
        self,
        device: torch.device,
        dtype: torch.dtype,
        *,
        quantize: Quantization | None = None,
        placement: Mapping[str, torch.device] | None = None,
    ) -> UnifiedModel:
        """Returns the model with its weights, which are read one after another.

        Memory use is that of the weights as `dtype`, or quantized, plus one tensor.

        Args:
            device: device of the weights.
            dtype: dtype of the weights in memory. Computed buffers keep their own dtype: in bf16
                rotary frequencies would be wrong by up to a radian at far positions.
            quantize: form of the backbone's matrices, see `quantize_backbone`; None leaves them.
            placement: devices of components by name; all others use `device`.
        """
        with torch.random.fork_rng(devices=[]):  # loading does not change the random state
            model = build_without_weights(self.config)
        plain = list(model.state_dict())
        quantized = set(quantize_backbone(model, quantize)) if quantize else set()

        def place(name: str) -> torch.device:
            return (placement or {}).get(name.partition(".")[0], device)

        state: dict[str, Tensor] = {}
        for name in plain:
            tensor = _placed(name, self.tensors[name], place(name), dtype)
            layer, _, leaf = name.rpartition(".")
            if quantize and layer in quantized and leaf == "weight":
                numbers, scale = quantize_weight(tensor, quantize)
                state |= {f"{layer}.numbers": numbers, f"{layer}.scale": scale}
            else:
                state[name] = tensor
        model.load_state_dict(state, strict=True, assign=True)
        for name, buffer in list(model.named_buffers()):
            if name not in state:
                owner, _, leaf = name.rpartition(".")
                setattr(model.get_submodule(owner), leaf, buffer.to(place(name)))
        return model.eval()


def sketch(config: Buildable[ModuleT_co], where: Path, num_weights: float = math.inf) -> ModuleT_co:
    """Returns a module on the meta device, to compare names and shapes of weights.

    Args:
        config: config of a model or of a part.
        where: file of the config, for the message.
        num_weights: number of weights in the files. A model with far more weights is refused before
            it is built. Infinite if no file limits the model.

    Raises:
        UsageError: if the config is invalid, or its model is far too large for its weights.
    """
    try:
        _require_sane_numbers(config, num_weights)
        with _Unfilled(), torch.device("meta"), _limited(num_weights):
            return config.build()
    except Exception as error:  # libraries raise errors of any type about sizes
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise UsageError(f"{where} does not describe a model: {said[0]}") from error


_RANDOM_FILLS = (nn.init.kaiming_uniform_, nn.init.normal_, nn.init.uniform_)


class _Unfilled(TorchFunctionMode):
    """Skips the filling of tensors with random numbers, for weights that are replaced anyway.

    On the meta device torch would import its compiler for normal numbers, which takes longer than
    all the rest.
    """

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        del types
        named = kwargs or {}
        if func in _RANDOM_FILLS:
            return named["tensor"] if "tensor" in named else args[0]
        return func(*args, **named)


def _require_sane_numbers(config: object, num_weights: float) -> None:
    """Refuses NaN, infinity, and counts that would fill the memory before the first weight."""
    assert dataclasses.is_dataclass(config)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            _require_sane_numbers(value, num_weights)
            continue
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{field.name} is {value}; it must be finite")
        counts = value if isinstance(value, tuple) else (value,)
        largest = max((n for n in counts if isinstance(n, int)), default=0)
        is_count = "layers" in field.name and largest > num_weights + _SPARE_WEIGHTS
        if is_count or len(counts) > num_weights + _SPARE_WEIGHTS:
            raise ValueError(
                f"{field.name} is {str(value)[:40]}, but there are {num_weights:,} weights"
            )


@contextmanager
def _limited(num_weights: float) -> Iterator[None]:
    """Stops the building of a module with far more parameters than there are weights."""
    limit = 2 * num_weights + _SPARE_WEIGHTS
    made = 0

    def count(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        nonlocal made
        del module, name, parameter
        made += 1
        if made > limit:
            raise ValueError(f"it has more than {limit:,} weights, but there are {num_weights:,}")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def check_tokenizer(
    tokenizer: Tokenizer, config: UnifiedModelConfig, source: str, model: str = "config.json"
) -> None:
    """Checks that a tokenizer belongs to a model.

    Args:
        tokenizer: the tokenizer.
        config: config of the model.
        source: source of the tokenizer, for the message.
        model: source of the config, for the message.

    Raises:
        UsageError: if it has another image placeholder, or more tokens than the model.
    """
    backbone = config.backbone
    if tokenizer.image_pad_id != backbone.image_token_id:
        raise UsageError(
            f"{source} belongs to another model: its image placeholder is token "
            f"{tokenizer.image_pad_id}, {model} says {backbone.image_token_id}"
        )
    if tokenizer.vocab_size > backbone.vocab_size:
        raise UsageError(
            f"{source} belongs to another model: it has {tokenizer.vocab_size} tokens, "
            f"{model} says {backbone.vocab_size}"
        )


def build_without_weights(config: Buildable[ModuleT_co]) -> ModuleT_co:
    """Returns a module with its parameters on the meta device and its computed buffers filled."""

    def to_meta(module: nn.Module, name: str, parameter: nn.Parameter) -> nn.Parameter:
        del module, name
        return nn.Parameter(parameter.to("meta"), parameter.requires_grad)

    register: Any = register_module_parameter_registration_hook  # its stub omits the result
    hook = register(to_meta)
    try:
        with _Unfilled():
            return config.build()
    finally:
        hook.remove()


def _placed(name: str, tensor: Weight, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Returns a copy of a tensor in memory; the mapped file may change later."""
    value = read(tensor)
    kind = dtype if value.is_floating_point() else value.dtype
    placed = value.to(device=device, dtype=kind, copy=True)
    is_floating = value.is_floating_point()
    is_narrower = is_floating and torch.finfo(kind).max < torch.finfo(value.dtype).max / 2
    if is_narrower and not bool(placed.isfinite().all()):
        said = str(kind).removeprefix("torch.")
        raise UsageError(
            f"{name} holds numbers that are too large for {said}: load the model as bfloat16"
        )
    return placed
