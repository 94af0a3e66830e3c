"""Reads rows of text and images in turn in one pass, for generators of image blocks.

A row is a list of blocks: text, image, text, and so on. Block k of all rows is read together; the
shorter ones are padded, and their padding is hidden. All blocks share one cache, so a later block
sees the earlier ones whole, and never the other way. Axes: B rows, T tokens, D drawn images, L
tokens of a text block, M tokens of an image block, W width.

Reference:
    Transfusion (arXiv 2408.11039, section 3.1); parity family `transfusion`.
"""

from typing import Any, Protocol

import torch
from torch import Tensor

from blip3o.models.backbones.base import Backbone
from blip3o.models.backbones.cache import KeyValueCache
from blip3o.models.backbones.ragged import RowCache
from blip3o.models.generators.patch_unet import Skips
from blip3o.models.generators.plan import RowOutput
from blip3o.models.prompts import Rows


class ImageBlocks(Protocol):
    """The part of `BlockGenerator` that reading needs."""

    def enter(self, noisy: Tensor, sigma: Tensor) -> tuple[Tensor, Skips]:
        """Returns the image tokens of noisy features, and what `leave` needs of them."""
        ...

    def leave(self, states: Tensor, skips: Skips) -> Tensor:
        """Returns velocities of the states of image tokens."""
        ...

    def positions(self, start: Tensor, length: int) -> Tensor:
        """Returns the rotary positions of images."""
        ...

    def span(self, length: int) -> int:
        """Returns the number of rotary positions that an image occupies."""
        ...

    def block_states(
        self,
        backbone: Backbone[Any],
        hidden: Tensor,
        visible: Tensor,
        cache: KeyValueCache,
        positions: Tensor,
    ) -> Tensor:
        """Returns the states of image tokens."""
        ...

    def read_block(
        self, backbone: Backbone[Any], cache: KeyValueCache, start: int, clean: Tensor
    ) -> int:
        """Appends a clean image to a cache; returns the position after it."""
        ...


def read_rows(
    generator: ImageBlocks,
    backbone: Backbone[Any],
    rows: Rows,
    noisy: Tensor,
    sigma: Tensor,
    is_dropped: Tensor,
    *,
    keep_states: bool,
) -> RowOutput:
    """See `Generator.read_rows`. Text and images see the noisy images before them."""
    ids, drawn = rows.input_ids, rows.drawn
    waiting: list[list[int]] = [[] for _ in ids]  # numbers of the images of each row
    for number, (row, _) in enumerate(drawn):
        waiting[row].append(number)
    embeds = _embed(backbone, rows)
    tokens, skips = generator.enter(noisy, sigma)
    reader = _Reader(generator, backbone, len(ids), ids.device)
    begins, ends = [0] * len(ids), rows.attention_mask.sum(1).tolist()
    states, velocities = torch.zeros_like(embeds), [noisy[:0]] * len(drawn)
    for turn in range(max(map(len, waiting)) + 1):
        here = {row: some[turn] for row, some in enumerate(waiting) if turn < len(some)}
        if not (here or keep_states):
            break  # nothing reads the last text
        stops = [drawn[here[row]][1].start if row in here else end for row, end in enumerate(ends)]
        lines, columns, read = reader.text(embeds, begins, stops)
        if keep_states:
            states = states.index_put((lines, columns), read)
        if here:
            numbers = list(here.values())
            found = reader.images(tokens[numbers], list(here), is_dropped[numbers])
            drawn_now = generator.leave(found, tuple(one[numbers] for one in skips))
            for number, velocity in zip(numbers, drawn_now, strict=True):
                velocities[number] = velocity
        begins = [
            drawn[here[row]][1].start + drawn[here[row]][1].length if row in here else end
            for row, end in enumerate(ends)
        ]
    velocity = torch.stack(velocities)[rows.targets].to(noisy.dtype)
    return RowOutput(velocity, states if keep_states else None)


def _embed(backbone: Backbone[Any], rows: Rows) -> Tensor:
    """Returns the input embeddings [B, T, W] of rows; those of drawn images are arbitrary."""
    ids = rows.input_ids.clone()
    for row, place in rows.drawn:
        ids[row, place.start : place.start + place.length] = backbone.filler_id
    return backbone.embed(ids, rows.read_images())


def start_row(
    generator: ImageBlocks, backbone: Backbone[Any], rows: Rows, clean: Tensor
) -> tuple[RowCache, Tensor]:
    """See `Generator.start_row`."""
    ids, drawn = rows.input_ids, [place for _, place in rows.drawn]
    embeds = _embed(backbone, rows)
    cache = KeyValueCache()
    begin = position = 0
    states = embeds[:, :0]
    for number, stop in enumerate([*(place.start for place in drawn), ids.shape[1]]):
        steps = torch.arange(position, position + stop - begin, device=ids.device).unsqueeze(0)
        visible = ids.new_ones(1, cache.num_tokens, dtype=torch.bool)
        states = backbone.block_states(embeds[:, begin:stop], visible, cache, steps, is_causal=True)
        position += stop - begin
        if number < len(drawn):
            image = clean[number : number + 1]
            position = generator.read_block(backbone, cache, position, image)
            begin = stop + drawn[number].length
    return RowCache.of(cache.key_values(), position - cache.num_tokens), states[:, -1]


class _Reader:
    """A pass over rows, block by block, over one cache."""

    def __init__(
        self,
        generator: ImageBlocks,
        backbone: Backbone[Any],
        num_rows: int,
        device: torch.device,
    ) -> None:
        self._generator = generator
        self._backbone = backbone
        self._cache = KeyValueCache()
        self._visible = torch.zeros(num_rows, 0, dtype=torch.bool, device=device)
        self._start = torch.zeros(num_rows, dtype=torch.int64, device=device)

    def text(
        self, embeds: Tensor, begins: list[int], stops: list[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Reads columns `begins` to `stops` of the rows' embeddings [B, T, W].

        Returns:
            Row, column and state of each token, [tokens], [tokens] and [tokens, W].
        """
        first, last = (torch.tensor(one, device=embeds.device) for one in (begins, stops))
        steps = torch.arange(int((last - first).max()), device=embeds.device)
        columns = first.unsqueeze(1) + steps
        is_real = columns < last.unsqueeze(1)
        lines = torch.arange(len(embeds), device=embeds.device).unsqueeze(1)
        block = embeds[lines, columns.clamp(max=embeds.shape[1] - 1)]
        positions = self._start.unsqueeze(1) + steps
        states = self._backbone.block_states(
            block, self._visible, self._cache, positions, is_causal=True
        )
        self._append(is_real, last - first)
        return lines.expand_as(columns)[is_real], columns[is_real], states[is_real]

    def images(self, tokens: Tensor, rows: list[int], is_dropped: Tensor) -> Tensor:
        """Reads one image of some rows; returns the states of its tokens, [rows, M, W].

        Args:
            tokens: tokens of the images, [rows, M, W].
            rows: numbers of the rows; the others are padded.
            is_dropped: True for an image that sees only itself, [rows].
        """
        lines = torch.tensor(rows, device=tokens.device)
        block = tokens.new_zeros(len(self._start), *tokens.shape[1:]).index_copy(0, lines, tokens)
        is_hidden = torch.zeros_like(self._start, dtype=torch.bool)
        is_hidden = is_hidden.index_copy(0, lines, is_dropped)
        positions = self._generator.positions(self._start, tokens.shape[1])
        visible = self._visible & ~is_hidden.unsqueeze(1)
        states = self._generator.block_states(
            self._backbone, block, visible, self._cache, positions
        )
        # A row without this image has no later block, so it does not matter what its cache holds.
        self._append(
            block.new_ones(block.shape[:2], dtype=torch.bool), self._generator.span(len(block[0]))
        )
        return states[lines]

    def _append(self, visible: Tensor, num_positions: Tensor | int) -> None:
        self._visible = torch.cat([self._visible, visible], dim=1)
        self._start = self._start + num_positions
