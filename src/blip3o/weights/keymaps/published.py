"""Families of published weights: our weights under their names, and theirs in our modules."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from blip3o.models.unified import UnifiedModel
from blip3o.weights.keymaps.spellings import BLIP3O
from blip3o.weights.shards import Weight, read, require_finite
from blip3o.weights.strict import TensorT, require_fit
from blip3o.weights.wrappers import unwrapped

_LATENTS, _QUERIES = "model.latent_queries", "generator.query_tokens.weight"
HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"

DECODER_NAMES = (
    ("model.embed_tokens.", "backbone.decoder.embed_tokens."),
    ("model.layers.", "backbone.decoder.layers."),
    ("model.norm.", "backbone.decoder.norm."),
    ("lm_head.", "backbone.lm_head."),
)
IMAGE_NAMES = (
    (_LATENTS, _QUERIES),
    ("model.dit.model.", "generator.dit."),
    ("model.gen_vision_tower.vision_tower.model.", "image_encoder.tower."),
)
"""Prefixes that every family has: of the language model, and of generator and image encoder."""


@dataclasses.dataclass(frozen=True)
class PrefixMap:
    """Maps published names to ours and back, by an exchange of prefixes.

    Args:
        pairs: prefixes as (published, ours).

    Raises:
        ValueError: if a prefix begins with another one of its side: names would be ambiguous.
    """

    pairs: tuple[tuple[str, str], ...]

    def __post_init__(self) -> None:
        for side in zip(*self.pairs, strict=True):
            for prefix in side:
                if sum(other.startswith(prefix) for other in side) > 1:
                    raise ValueError(f"{prefix!r} begins another prefix: the map has no inverse")

    def ours(self, published: str) -> str | None:
        """Returns our name for a published one; None for an unknown prefix."""
        return _exchange(published, self.pairs)

    def published(self, ours: str) -> str | None:
        """Returns the published name for one of ours; None for an unknown prefix."""
        return _exchange(ours, tuple((own, other) for other, own in self.pairs))

    def to_published(self, state: Mapping[str, TensorT]) -> dict[str, TensorT]:
        """Returns weights under their published names, without those that have none."""
        named = ((self.published(name), tensor) for name, tensor in state.items())
        return {name: tensor for name, tensor in named if name is not None}

    def to_ours(self, state: Mapping[str, TensorT]) -> dict[str, TensorT]:
        """Returns weights under our names, without those that have none."""
        named = ((self.ours(name), tensor) for name, tensor in state.items())
        return {name: tensor for name, tensor in named if name is not None}


def _exchange(name: str, pairs: tuple[tuple[str, str], ...]) -> str | None:
    for prefix, other in pairs:
        if name.startswith(prefix):
            return other + name.removeprefix(prefix)
    return None


@dataclasses.dataclass(frozen=True)
class PublishedFamily:
    """Names of the weights in the checkpoints of a family.

    Args:
        names: published names and ours.
        inference_parts: prefixes of our names whose weights are in every checkpoint of the family.
        strays: prefixes of published names that early revisions wrote and no code ever used.
    """

    names: PrefixMap
    inference_parts: tuple[str, ...]
    strays: tuple[str, ...] = ()

    def to_published(self, state: Mapping[str, TensorT]) -> dict[str, TensorT]:
        """Returns weights under their published names and in their published shapes.

        Args:
            state: weights under our names; weights that no checkpoint of the family contains are
                omitted.
        """
        named = self.names.to_published(state)
        if _LATENTS in named:
            named[_LATENTS] = named[_LATENTS].reshape((1, *named[_LATENTS].shape))
        return named

    def to_ours(self, state: Mapping[str, TensorT]) -> dict[str, TensorT]:
        """Returns weights under our names and in our shapes; the inverse of `to_published`."""
        named = self.names.to_ours(state)
        if _QUERIES in named:
            named[_QUERIES] = named[_QUERIES].reshape(tuple(named[_QUERIES].shape[1:]))
        return named

    def load_published(
        self,
        model: UnifiedModel,
        state: Mapping[str, Tensor],
        where: str,
        parts: Sequence[str] | None = None,
    ) -> None:
        """Fills parts of a model with published weights.

        Args:
            model: a model with the sizes of the checkpoint.
            state: the whole checkpoint; weights of other parts of the family are skipped. With
                tied embeddings, a vocabulary head must be equal to the embedding table.
            where: the source of the weights, for the message.
            parts: prefixes of our names to fill, such as "backbone" or "backbone.decoder"; None for
                the inference parts.

        Raises:
            UsageError: if a weight of these parts is missing, unknown or of another shape; it lists
                all of them by their published names.
        """
        parts = self.inference_parts if parts is None else parts
        own = {name: v for name, v in model.state_dict().items() if _is_in(name, parts)}
        given, complaints = self.select(
            plain(state, None, where), parts, is_tied=model.backbone.lm_head is None
        )
        expected = self.to_published(own)
        require_fit(expected, given, where, complaints)
        with torch.no_grad():
            for name, tensor in expected.items():
                value = read(given[name])
                require_finite(value, name, where)
                tensor.copy_(value)

    def select(
        self,
        state: Mapping[str, Weight],
        parts: Sequence[str],
        *,
        is_tied: bool,
    ) -> tuple[dict[str, Weight], list[str]]:
        """Returns the weights of some parts and all unknown weights, and complaints about them.

        Args:
            state: the whole checkpoint, by published names.
            parts: prefixes of our names.
            is_tied: whether the model's embeddings are tied. A vocabulary head is then removed; it
                is a complaint if it differs from the embedding table.
        """
        kept = {name: tensor for name, tensor in state.items() if self._is_asked(name, parts)}
        head, table = kept.pop(HEAD, None) if is_tied else None, kept.get(_EMBEDDING)
        if head is None or (table is not None and torch.equal(read(head), read(table))):
            return kept, []
        return kept, [f"{HEAD} is not {_EMBEDDING}, although the embeddings are tied"]

    def _is_asked(self, published: str, parts: Sequence[str]) -> bool:
        ours = self.names.ours(published)
        if ours is None:
            return not published.startswith(self.strays)
        return _is_in(ours, parts)


def _is_in(name: str, parts: Sequence[str]) -> bool:
    return name.startswith(tuple(f"{part}." for part in parts))


def plain(state: Mapping[str, Weight], folder: Path | None, where: str) -> dict[str, Weight]:
    """Returns weights under their published names, without wrappers and with adapters merged.

    Args:
        state: the whole checkpoint, in any spelling.
        folder: folder of the checkpoint; None for one in memory.
        where: the source of the weights, for messages.

    Raises:
        UsageError: see `unwrapped` and `Spellings.respelled`.
    """
    return BLIP3O.respelled(unwrapped(state, folder, where), where)
