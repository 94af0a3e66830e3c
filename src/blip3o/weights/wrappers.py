"""Removes the names of wrappers from the names of weights.

Trainers wrap models, and the state of a wrapped model has additional names:

    module.                                     DataParallel, DDP, DeepSpeed, averaged weights
    _fsdp_wrapped_module., _fpw_module.         FSDP
    _checkpoint_wrapped_module.                 activation checkpointing
    _orig_mod.                                  torch.compile
    _forward_module.                            Lightning Fabric
    base_model.model.                           PEFT, around the model
    .base_layer., .modules_to_save.NAME.        PEFT, around a layer
    .lora_A.NAME., .lora_B.NAME.                PEFT, an adapter of a layer: see `adapters`

They may occur anywhere, in any number and order. None of our networks uses these names.
"""

from collections.abc import Collection, Mapping
from pathlib import Path

from blip3o.core.errors import UsageError
from blip3o.weights.adapters import is_adapter, merge_adapters
from blip3o.weights.shards import Weight
from blip3o.weights.strict import fold

_WRAPPERS = frozenset(
    {
        "module",
        "_fsdp_wrapped_module",
        "_fpw_module",
        "_checkpoint_wrapped_module",
        "_orig_mod",
        "_forward_module",
        "base_layer",
    }
)
_PEFT = ["base_model", "model"]
_TRAINED, _FROZEN = "modules_to_save", "original_module"
_BASE = ".base_layer."
_FLAT = ("_flat_param", "flat_param")

_COUNTER = "n_averaged"  # in torch's averaged weights
_COMPUTED = (
    ".rotary_emb.inv_freq",
    ".rotary_emb.original_inv_freq",
    ".rotary_pos_emb.inv_freq",
    ".embeddings.position_ids",
)
"""Ends of the names of computed buffers that old versions of transformers stored."""


def unwrapped(
    tensors: Mapping[str, Weight], folder: Path | None, where: str = ""
) -> dict[str, Weight]:
    """Returns weights by their plain names, with adapters merged.

    Args:
        tensors: weights by their saved names.
        folder: contains `adapter_config.json` if there are adapters to merge.
        where: source of the weights, for messages; "" means the folder.

    Raises:
        UsageError: if two weights have the same plain name, weights are flattened, or an adapter
            cannot be merged.
    """
    where = where or str(folder)
    flat = [name for name in tensors if name.rpartition(".")[2] in _FLAT]
    if flat:
        raise UsageError(
            f"weights in {where} are flattened by FSDP ({fold(flat, 160)}): save them with "
            "StateDictType.FULL_STATE_DICT"
        )
    kept = {name: tensor for name, tensor in tensors.items() if not _is_spare(name, tensors)}
    wrapped = {front for name in kept if (front := name.partition(_BASE)[0]) != name}
    adapter: list[str] = []
    plain: dict[str, Weight] = {}
    twice: list[str] = []
    for name, tensor in kept.items():
        own = plain_name(name)
        twice += [own] if own in plain else []
        plain[own] = tensor
        if is_adapter(own) or _is_sibling(name, wrapped):
            adapter.append(own)
    if twice:
        raise UsageError(
            f"weights in {where} come twice, with and without a wrapper's prefix: {fold(twice)}"
        )
    return merge_adapters(plain, adapter, folder, where) if adapter else plain


def plain_name(name: str) -> str:
    """Returns the name of a weight without the parts that wrappers added.

    Args:
        name: the saved name.
    """
    parts = [part for part in name.split(".") if part not in _WRAPPERS and part != _FROZEN]
    while _TRAINED in parts:
        place = parts.index(_TRAINED)
        has_name = place + 2 < len(parts)  # of the adapter
        del parts[place : place + 1 + has_name]
    while (place := _first(parts, _PEFT)) is not None:
        del parts[place : place + len(_PEFT)]
    return ".".join(parts)


def _is_sibling(name: str, wrapped: Collection[str]) -> bool:
    """Returns whether a weight is a sibling of a layer that PEFT wrapped, as adapters are."""
    if _BASE in name or _TRAINED in name:
        return False
    parts = name.split(".")
    return any(".".join(parts[:count]) in wrapped for count in range(1, len(parts) - 1))


def _first(parts: list[str], run: list[str]) -> int | None:
    places = range(len(parts) - len(run) + 1)
    return next((place for place in places if parts[place : place + len(run)] == run), None)


def _is_spare(name: str, names: Mapping[str, object]) -> bool:
    """Returns whether a weight is redundant: it can be computed, or a trained one replaces it."""
    if name.rpartition(".")[2] == _COUNTER or name.endswith(_COMPUTED):
        return True
    front, frozen, rest = name.partition(f".{_FROZEN}.")
    if not frozen:
        return False
    trained = f"{front}.{_TRAINED}."
    return any(other.startswith(trained) and other.endswith(f".{rest}") for other in names)
