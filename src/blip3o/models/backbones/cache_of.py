"""Keys and values of prompts outside a cache; plans keep them in this form."""

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from blip3o.models.backbones.cache import KeyValueCache
    from blip3o.models.backbones.packed import BackboneCache

KeyValues = tuple[tuple[Tensor, Tensor], ...]
"""Keys and values of each layer, [B, num_kv_heads, T, head dim]."""


def key_values_of(cache: "BackboneCache") -> KeyValues:
    """Returns the keys and values that a pass left in a cache."""
    from blip3o.models.backbones.cache import KeyValueCache

    assert isinstance(cache, KeyValueCache), "prompts are read with padding"
    return tuple((both[0], both[1]) for both in cache.key_values())


def cache_of(key_values: KeyValues) -> "KeyValueCache":
    """Returns a new cache that holds keys and values; they are copied, so it may grow."""
    from blip3o.models.backbones.cache import KeyValueCache

    cache = KeyValueCache()
    for layer, (keys, values) in enumerate(key_values):
        cache.update(keys, values, layer)
    return cache
