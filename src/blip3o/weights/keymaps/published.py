"""Families of published weights: our weights under their names, and theirs into our modules."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from blip3o.models.unified import UnifiedModel
from blip3o.weights.keymaps.prefixes import PrefixMap
from blip3o.weights.keymaps.spellings import BLIP3O
from blip3o.weights.shards import StoredTensor, read, require_finite
from blip3o.weights.strict import require_fit
from blip3o.weights.wrappers import unwrapped

QUERIES = "generator.query_tokens.weight"
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


@dataclasses.dataclass(frozen=True)
class PublishedFamily:
    """How the checkpoints of a family name their weights.

    Args:
        names: published names and ours.
        inference_parts: fronts of our names whose weights are in every checkpoint of the family.
        strays: fronts of published names that early revisions wrote and nothing ever used.
    """

    names: PrefixMap
    inference_parts: tuple[str, ...]
    strays: tuple[str, ...] = ()

    def to_published(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns weights under their published names and in their published shapes.

        Args:
            state: weights under our names; those that no checkpoint of the family holds are left
                out.
        """
        named = {self.names.published(name): tensor for name, tensor in state.items()}
        if QUERIES in state:
            named[self.names.published(QUERIES)] = state[QUERIES].unsqueeze(0)
        return {name: tensor for name, tensor in named.items() if name is not None}

    def load_published(
        self,
        model: UnifiedModel,
        state: Mapping[str, Tensor],
        where: str,
        parts: Sequence[str] | None = None,
    ) -> None:
        """Fills parts of a model with published weights.

        A model with tied embeddings takes a checkpoint with a vocabulary head only if that head is
        the embedding table.

        Args:
            model: a model of the checkpoint's sizes.
            state: the whole checkpoint; weights of other parts of the family are passed over.
            where: where it came from, for the message.
            parts: fronts of our names to fill, such as "backbone" or "backbone.decoder"; None for
                the inference parts.

        Raises:
            UsageError: if a weight of these parts is missing, unknown or of another shape; it lists
                all of them by their published names.
        """
        parts = self.inference_parts if parts is None else parts
        own = {name: v for name, v in model.state_dict().items() if _is_in(name, parts)}
        given = self.plain(state, None, where)
        given = {name: tensor for name, tensor in given.items() if self.is_asked(name, parts)}
        also = []
        if model.backbone.lm_head is None:
            head, table = given.pop(HEAD, None), given.get(EMBEDDING)
            if head is not None and (table is None or not torch.equal(read(head), read(table))):
                also = [f"{HEAD} is not {EMBEDDING}, although the embeddings are tied"]
        expected = self.to_published(own)
        require_fit(expected, given, where, also)
        with torch.no_grad():
            for name, tensor in expected.items():
                value = read(given[name])
                require_finite(value, name, where)
                tensor.copy_(value)

    def plain(
        self,
        state: Mapping[str, Tensor | StoredTensor],
        folder: Path | None,
        where: str = "",
    ) -> dict[str, Tensor | StoredTensor]:
        """Returns weights under their published names, from any spelling.

        It removes the prefixes of wrappers, merges an adapter, and translates the names of newer
        versions of transformers to those of 4.51.

        Args:
            state: the whole checkpoint.
            folder: where it lies; None for one in memory.
            where: the place of the weights, for messages; "" means the folder.

        Raises:
            UsageError: see `unwrapped` and `Spellings.respelled`.
        """
        where = where or str(folder)
        return BLIP3O.respelled(unwrapped(state, folder, where), where)

    def is_asked(self, published: str, parts: Sequence[str]) -> bool:
        """Returns whether a weight is to be loaded or refused, and not passed over.

        Args:
            published: its published name.
            parts: fronts of our names that are filled.
        """
        ours = self.names.ours(published)
        if ours is None:
            return not published.startswith(self.strays)
        return _is_in(ours, parts)


def _is_in(name: str, parts: Sequence[str]) -> bool:
    return name.startswith(tuple(f"{part}." for part in parts))
