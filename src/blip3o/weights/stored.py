"""A model as it lies in files: its config, its tensors by our names, its tokenizer; nothing read.

Every layout of a model folder is opened as this, and every layout is written from it.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from blip3o.core.config import override
from blip3o.core.errors import UsageError
from blip3o.models.quantize import quantize_backbone
from blip3o.models.unified import UnifiedModel, UnifiedModelConfig
from blip3o.nn.quantized import Quantization, quantize_weight
from blip3o.text.tokenizer import Tokenizer
from blip3o.weights.shards import StoredTensor
from blip3o.weights.strict import require_fit

_SPARE_WEIGHTS = 10_000
"""How many weights may be missing from a folder before its config is refused instead of them."""


@dataclasses.dataclass(frozen=True)
class StoredModel:
    """A model in files, found complete.

    Args:
        config: its parts.
        tensors: all of the model's state dict, by our names; some may be made, not stored.
        tokenizer: the tokenizer it was trained with.
        folder: where it lies.
    """

    config: UnifiedModelConfig
    tensors: Mapping[str, Tensor | StoredTensor]
    tokenizer: Tokenizer
    folder: Path

    def configured(self, overrides: Sequence[str]) -> "StoredModel":
        """Returns the same weights under a changed config, such as with another scheduler.

        Args:
            overrides: texts such as "sampling.num_decoder_steps=20".

        Raises:
            UsageError: for an unknown setting, or one that the weights do not fit.
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
        """Returns the model with its weights, read one after the other.

        Memory is what the weights need as `dtype`, or quantized, and one tensor more.

        Args:
            device: where the weights go.
            dtype: type of the weights in memory; what the model computes and does not store (rotary
                frequencies: in bf16 far positions would turn by up to a radian) keeps its own.
            quantize: form of the backbone's matrices, see `quantize_backbone`; None leaves them.
            placement: devices of components that go elsewhere, by name.
        """
        with torch.random.fork_rng(devices=[]):  # loading a model moves nobody's random numbers
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


def sketch(config: Any, where: Path, num_weights: float = math.inf) -> Any:  # noqa: ANN401
    """Returns a module without memory for its weights, to compare names and shapes with.

    Args:
        config: of a model or a part of one; its `build()` is called.
        where: the file that describes it, for the message.
        num_weights: how many weights the files hold. A model with far more is refused before it is
            built. Infinite if no file limits the model.

    Raises:
        UsageError: if it describes no model, or one that is far too large for its weights.
    """
    with _described_in(where):
        _require_sane_numbers(config, num_weights)
        with torch.device("meta"), _limited(num_weights):
            return config.build()


@contextmanager
def _described_in(where: Path) -> Iterator[None]:
    """Names the file of a config that describes no model."""
    try:
        yield
    except Exception as error:  # of any type: libraries check sizes in their own ways
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise UsageError(f"{where} describes no model: {said[0]}") from error


def _require_sane_numbers(config: Any, num_weights: float) -> None:  # noqa: ANN401
    """Refuses NaN and infinity, and layers and lists that would fill the memory before a weight is
    made.
    """  # noqa: D205
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            _require_sane_numbers(value, num_weights)
            continue
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{field.name} is {value}, which is no number")
        counts = value if isinstance(value, tuple) else (value,)
        largest = max((n for n in counts if isinstance(n, int)), default=0)
        is_count = "layers" in field.name and largest > num_weights + _SPARE_WEIGHTS
        if is_count or len(counts) > num_weights + _SPARE_WEIGHTS:
            raise ValueError(
                f"{field.name} is {str(value)[:40]}, but there are {num_weights:,} weights"
            )


@contextmanager
def _limited(num_weights: float) -> Iterator[None]:
    """Stops whoever builds a module of far more parameters than there are weights."""
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

    Raises:
        UsageError: if it has another placeholder of images, or more tokens than the model; names
            the tokenizer's source and the place of the model's settings.
    """
    backbone = config.backbone
    if tokenizer.image_pad_id != backbone.image_token_id:
        raise UsageError(
            f"{source} is of another model: its image placeholder is token "
            f"{tokenizer.image_pad_id}, {model} says {backbone.image_token_id}"
        )
    if tokenizer.vocab_size > backbone.vocab_size:
        raise UsageError(
            f"{source} is of another model: it has {tokenizer.vocab_size} tokens, "
            f"{model} says {backbone.vocab_size}"
        )


def build_without_weights(config: Any) -> Any:  # noqa: ANN401  (configs are of many types)
    """Returns a module with its parameters on the meta device and its computed buffers filled.

    Args:
        config: of the module; its `build()` is called.
    """

    def to_meta(module: nn.Module, name: str, parameter: nn.Parameter) -> nn.Parameter:
        del module, name
        return nn.Parameter(parameter.to("meta"), parameter.requires_grad)

    register: Any = register_module_parameter_registration_hook  # its stub forgets the result
    hook = register(to_meta)
    try:
        return config.build()
    finally:
        hook.remove()


def _placed(
    name: str, tensor: Tensor | StoredTensor, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Returns a tensor of its own in memory; never the file's, which may change."""
    value = tensor.read() if isinstance(tensor, StoredTensor) else tensor
    kind = dtype if value.is_floating_point() else value.dtype
    placed = value.to(device=device, dtype=kind, copy=True)
    is_wider = value.is_floating_point() and _largest(value.dtype) > 2 * _largest(kind)
    if is_wider and not bool(placed.isfinite().all()):
        said = str(kind).removeprefix("torch.")
        raise UsageError(
            f"{name} holds numbers that are too large for {said}: load the model as bfloat16"
        )
    return placed


def _largest(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).max
