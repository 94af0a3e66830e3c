"""Reads prompts and adds tokens to rows; the result of a row never depends on the other rows.

Libraries choose a kernel by the number of rows of a product, and kernels round differently. So a
pass has one of the sizes that give the same bits as the largest one on this machine, for this
model; places that no row needs are padding. Each prompt has a pass of its own. (With several
prompts in one padded pass, the last bits differed from those of a single prompt.)
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from blip3o.generate.exact import fingerprint, fingerprints
from blip3o.models.backbones.ragged import RowBatch, RowCache
from blip3o.models.prompts import PromptImages
from blip3o.models.unified import UnifiedModel
from blip3o.nn.token_step import TokenStep

ROWS = 8
"""Most rows of a pass."""
_SIZES = (1, 2, 4, ROWS)
_MOST_COPIED_BYTES = 2 * 2**30
"""Largest backbone whose weights are copied for fast passes on a CPU, see `JoinedLinear`."""


@dataclasses.dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt that the model has read.

    Args:
        row: keys and values of the prompt; each answer continues from a fork of them.
        logits: logits of the next token, [V].
    """

    row: RowCache
    logits: Tensor


class RowDecoder:
    """Reads prompts, and adds one token to each of several rows.

    Args:
        model: the model, in evaluation mode.
    """

    def __init__(self, model: UnifiedModel) -> None:
        self._model = model
        self._placeholder = model.config.backbone.image_token_id
        self._states: list[tuple[object, ...]] = []
        self._step: TokenStep | None = None
        self._places: dict[int, int] = {}
        self._prints: Tensor | None = None

    def refresh(self) -> None:
        """Notices changed weights; must be called before the first pass of an answer."""
        weights = list(self._model.backbone.parameters())
        states = [_state(weight) for weight in weights]
        if states == self._states:
            return
        self._states = states
        self._step = self._model.backbone.token_step(
            may_copy=sum(weight.nbytes for weight in weights) <= _MOST_COPIED_BYTES, num_rows=ROWS
        )
        self._prints = None
        self._places.clear()

    @torch.no_grad()
    def num_equal_places(self) -> int:
        """Returns how many places of a pass of `ROWS`, from the first, give a row the same bits.

        The place can change the bits, because kernels compute rows in tiles and may round
        differently in the rows after the last whole tile.
        """
        self.refresh()
        return self._equal_places(ROWS)

    @torch.no_grad()
    def read(self, ids: Sequence[int], images: PromptImages | None) -> Prompt:
        """Returns a prompt's keys and values and the logits of its next token.

        Args:
            ids: token ids.
            images: images of the prompt, from `UnifiedModel.prompt_images`.
        """
        input_ids = torch.tensor([list(ids)], device=self._model.device)
        (prompt,) = self.read_batch(input_ids, torch.ones_like(input_ids).bool(), images)
        return prompt

    @torch.no_grad()
    def read_batch(
        self, input_ids: Tensor, attention_mask: Tensor, images: PromptImages | None
    ) -> list[Prompt]:
        """Returns the prompts of a padded batch, read in one pass; their bits depend on the batch.

        Args:
            input_ids: prompts, padded on the left, [B, T].
            attention_mask: True for real tokens, [B, T].
            images: images of all prompts, from `UnifiedModel.prompt_images`.
        """
        self.refresh()
        backbone = self._model.backbone
        cache = backbone.new_cache()
        hidden = self._model.text_states(input_ids, attention_mask, images, cache)
        logits = self.logits(hidden[:, -1])
        return list(map(Prompt, backbone.new_rows(cache, attention_mask), logits))

    @torch.no_grad()
    def advance(self, rows: Sequence[RowCache], tokens: Sequence[int]) -> Tensor:
        """Adds a token to each row and returns the logits of the next tokens, [R, V].

        If a pass fails, its rows are unchanged. Up to `num_equal_places` rows share a pass.

        Args:
            rows: one or more rows.
            tokens: one token id for each row.
        """
        together = 1 if len(rows) == 1 else self._equal_places(ROWS)
        starts = range(0, len(rows), together)
        groups = [slice(start, start + together) for start in starts]
        logits = [self._pass(rows[one], tokens[one], self._size(len(rows[one]))) for one in groups]
        return logits[0] if len(logits) == 1 else torch.cat(logits)

    def logits(self, hidden: Tensor) -> Tensor:
        """Returns the logits [R, V] of the tokens after states [R, D]."""
        head = self._model.backbone if self._step is None else self._step
        logits = head.logits(hidden)
        # A placeholder represents an image of the prompt; an answer cannot hold one.
        logits[:, self._placeholder] = -torch.inf
        return logits

    def _pass(
        self,
        rows: Sequence[RowCache],
        tokens: Sequence[int],
        size: int,
        trace: list[Tensor] | None = None,
    ) -> Tensor:
        """Returns the logits of `advance` by one pass of a size."""
        backbone, num_rows = self._model.backbone, len(rows)
        padded = [*tokens, *[backbone.filler_id] * (size - num_rows)]
        ids = torch.tensor(padded, device=self._model.device)
        batch = RowBatch(rows, size)
        if self._step is not None:
            states = batch.fast_states(self._step, backbone.decoder.embed_tokens(ids), trace)
        else:
            ids = ids.unsqueeze(1)
            states = backbone(backbone.embed(ids), torch.ones_like(ids).bool(), batch)[:, -1]
        return self.logits(states)[:num_rows]

    def _size(self, num_rows: int) -> int:
        """Returns the smallest size of a pass in which some rows get their bits."""
        sizes = (size for size in _SIZES if num_rows <= size)
        return next(size for size in sizes if num_rows <= self._equal_places(size))

    def _equal_places(self, size: int) -> int:
        """Returns how many places of a pass of a size give the bits of the first one of `ROWS`."""
        if self._step is None and size < ROWS:
            return 0  # the decoder's own layers are not compared between sizes
        if size not in self._places:
            prints = self._fingerprints(size)
            if self._prints is None:
                self._prints = (prints if size == ROWS else self._fingerprints(ROWS))[:1]
            is_equal = (prints == self._prints).all(1).tolist()
            self._places[size] = is_equal.index(False) if False in is_equal else size
        return self._places[size]

    @torch.no_grad()
    def _fingerprints(self, size: int) -> Tensor:
        """Returns fingerprints [size, ...] of the places of a pass in which all rows are equal."""
        model, token = self._model, self._model.backbone.filler_id
        ids = torch.full((1, ROWS), token, device=model.device)
        cache, mask = model.backbone.new_cache(), torch.ones_like(ids).bool()
        model.text_states(ids, mask, None, cache)
        (row,) = model.backbone.new_rows(cache, mask)
        trace: list[Tensor] = []
        with fingerprints(model.backbone.decoder, size, axis=1) as seen:
            logits = self._pass([row.fork() for _ in range(size)], [token] * size, size, trace)
        return torch.cat([*seen, *(fingerprint(one, size) for one in (*trace, logits))], dim=1)


def _state(weight: Tensor) -> tuple[object, ...]:
    """Returns a value that changes when a weight is replaced, moved or written to."""
    version = None if weight.is_inference() else weight._version
    return id(weight), weight.data_ptr(), weight.dtype, version
