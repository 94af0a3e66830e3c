"""Merges a PEFT adapter into the weights that it changes, when they are read.

    W + strength * up @ down                    LoRA: `lora_B.NAME.weight` and `lora_A.NAME.weight`

`adapter_config.json` gives the strength. Other kinds of adapters are refused; PEFT can merge them.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from blip3o.core.errors import UsageError
from blip3o.weights.shards import StoredTensor, Weight, read
from blip3o.weights.small_files import read_json, require_mapping
from blip3o.weights.strict import fold

CONFIG = "adapter_config.json"

_LORA = re.compile(
    r"(?P<layer>.+)\.lora_(?P<kind>embedding_)?(?P<side>[AB])(?:\.(?!weight$)(?P<name>[^.]+))?"
    r"(?:\.weight)?"
)
_OTHERS = (
    "lora_",
    "hada_",
    "lokr_",
    "ia3_",
    "vera_lambda",
    "oft_",
    "boft_",
    "trainable_tokens_",
    "prompt_encoder",
)
"""Prefixes of name parts that occur in adapters only."""

_UNLIKE = ("use_dora", "lora_bias", "alora_invocation_tokens", "use_qalora", "target_parameters")
"""Settings of adapters that are not a plain LoRA product."""


@dataclasses.dataclass(frozen=True)
class Lora:
    """The adapter of one weight.

    Args:
        down: `lora_A`, [rank, ...].
        up: `lora_B`, [..., rank, 1, ...].
        strength: factor of their product.
        is_turned: whether the product is added to the transposed weight.
    """

    down: Weight
    up: Weight
    strength: float
    is_turned: bool

    def fits(self, weight: Weight) -> bool:
        """Returns whether the shape of a weight is that of the product."""
        rows, columns = int(self.up.shape[0]), math.prod(self.down.shape[1:])
        rank = math.prod(self.up.shape[1:])
        return rank == self.down.shape[0] and rows * columns == math.prod(weight.shape)

    @torch.no_grad()
    def merged(self, weight: Tensor) -> Tensor:
        """Returns weight + strength * up @ down, computed in fp32, in the dtype of the weight.

        Args:
            weight: weight of a linear layer, a convolution or an embedding.
        """
        product = read(self.up).float().flatten(1) @ read(self.down).float().flatten(1)
        change = product.T if self.is_turned else product
        return (weight.float() + self.strength * change.reshape(weight.shape)).to(weight.dtype)


@dataclasses.dataclass(frozen=True)
class MergedTensor(StoredTensor):
    """A stored weight whose adapter is merged when it is read."""

    lora: Lora

    def read(self) -> Tensor:
        """Returns the merged weight in the dtype of the stored one."""
        return self.lora.merged(super().read())


def is_adapter(name: str) -> bool:
    """Returns whether the weight with a plain name belongs to an adapter."""
    return any(part.startswith(_OTHERS) for part in name.split("."))


def merge_adapters(
    tensors: Mapping[str, Weight],
    adapter: Sequence[str],
    folder: Path | None,
    where: str,
) -> dict[str, Weight]:
    """Returns the weights of a model with its adapter merged; stored weights are merged when read.

    Args:
        tensors: weights of the model and of its adapter, by plain names.
        adapter: names of the adapter's weights.
        folder: contains `adapter_config.json`; None if there is no folder.
        where: source of the weights, for the message.

    Raises:
        UsageError: if that file is missing, if there are several adapters, or if the adapter is not
            a plain LoRA.
    """
    advice = "merge it with PEFT (merge_and_unload) and save the result"
    said = f"weights in {where} hold an adapter that is not merged ({fold(adapter, 160)})"
    if folder is None or not (folder / CONFIG).exists():
        raise UsageError(f"{said}: put its {CONFIG} into the folder, or {advice}")
    settings = read_json(folder / CONFIG)
    found = {name: _LORA.fullmatch(name) for name in adapter}
    strange = [name for name, match in found.items() if match is None]
    if strange or not isinstance(settings, Mapping) or settings.get("peft_type") != "LORA":
        raise UsageError(f"{said}, which is not a plain LoRA: {advice}")
    unlike = [name for name in _UNLIKE if settings.get(name)]
    if unlike:
        raise UsageError(f"{said} with {', '.join(unlike)} ({folder / CONFIG}): {advice}")
    sides: dict[str, dict[str, tuple[re.Match[str], Weight]]] = {}
    names: set[str] = set()
    for name, match in found.items():
        assert match is not None  # refused above
        names.add(str(match["name"]))
        sides.setdefault(match["layer"], {})[match["side"]] = (match, tensors[name])
    if len(names) > 1:
        raise UsageError(f"{said}, and there are several ({fold(sorted(names), 80)}): {advice}")
    result = {name: tensor for name, tensor in tensors.items() if name not in found}
    for layer, pair in sides.items():
        weight = f"{layer}.weight"
        if len(pair) < 2 or weight not in result:
            raise UsageError(f"{said}; {layer} lacks its weight or a half of the adapter")
        (match, down), (_, up) = pair["A"], pair["B"]
        is_turned = bool(match["kind"]) or bool(settings.get("fan_in_fan_out"))
        lora = Lora(down, up, _strength(settings, layer, int(down.shape[0]), folder), is_turned)
        result[weight] = _merged(weight, result[weight], lora, said)
    return result


def _merged(name: str, weight: Weight, lora: Lora, said: str) -> Weight:
    if not lora.fits(weight):
        raise UsageError(
            f"{said}; {name} {list(weight.shape)} cannot take {list(lora.up.shape)} x "
            f"{list(lora.down.shape)}"
        )
    if isinstance(weight, StoredTensor):
        stored = (weight.file, weight.path, weight.key, weight.shape, weight.dtype)
        return MergedTensor(*stored, lora)
    return lora.merged(weight)


def _strength(settings: Mapping[str, object], layer: str, rank: int, folder: Path) -> float:
    """Returns the factor of a layer's adapter: alpha / rank, or alpha / sqrt(rank)."""
    try:
        alphas = require_mapping(settings.get("alpha_pattern") or {}, "alpha_pattern")
        own = (
            alpha for pattern, alpha in alphas.items() if re.match(rf"(.*\.)?({pattern})$", layer)
        )
        alpha = next(own, settings["lora_alpha"])
        if not isinstance(alpha, int | float):
            raise TypeError(f"lora_alpha {alpha!r}")
        strength = alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
        if not math.isfinite(strength):
            raise ValueError(f"lora_alpha {alpha}")
    except (KeyError, TypeError, ValueError, ArithmeticError, UsageError, re.error) as error:
        raise UsageError(
            f"{folder / CONFIG} gives no valid strength of the adapter: {error}"
        ) from error
    return strength
