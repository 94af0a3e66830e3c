"""Reads prompts and adds tokens to rows; other rows in the same pass never change a row's result.

CPU libraries choose a kernel by the number of rows of a product, and two kernels round in two ways.
So each pass has the same number of rows, even if some are empty, and each prompt has a pass of its
own. (Prompts in one padded pass were tried: their last bits differ from those of a single prompt.)
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from blip3o.generate.fingerprints import fingerprint, fingerprints
from blip3o.models.backbones.ragged import RowBatch, RowCache
from blip3o.models.prompts import PromptImages
from blip3o.models.unified import UnifiedModel

ROWS = 8
"""Rows of a pass. A single row takes 1.1 to 1.3 times as long as in a pass of one row with the
bundled model, and less with larger models, whose time goes into reading their weights."""


@dataclasses.dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt that was read.

    Args:
        row: its keys and values; each answer goes on from a fork of it.
        logits: of its next token, [V].
    """

    row: RowCache
    logits: Tensor


class RowDecoder:
    """Reads prompts and takes rows one token further.

    Args:
        model: in evaluation mode.
    """

    def __init__(self, model: UnifiedModel) -> None:
        self._model = model
        self._placeholder = model.config.backbone.image_token_id

    @torch.no_grad()
    def num_equal_places(self) -> int:
        """Returns how many rows may share a pass so that no place changes a row's bits, 1 to 8.

        All passes have one shape, so the place is all that can change the bits: kernels compute
        rows in tiles, and the rows after the last whole tile may be rounded in another way.
        """
        first = self._placeholder + 1  # any token but the placeholder, which asks for an image
        token = first % self._model.config.backbone.vocab_size
        prompt = self.read([token] * ROWS, None)
        with fingerprints(self._model.backbone.decoder, ROWS, axis=1) as seen:
            logits = self.advance([prompt.row.fork() for _ in range(ROWS)], [token] * ROWS)
        prints = torch.cat([*seen, fingerprint(logits, ROWS)], dim=1)
        is_equal = (prints == prints[:1]).all(1).tolist()
        return is_equal.index(False) if False in is_equal else ROWS

    @torch.no_grad()
    def read(self, ids: Sequence[int], images: PromptImages | None) -> Prompt:
        """Returns a prompt's keys and values and the logits of what follows it.

        Args:
            ids: token ids.
            images: what `UnifiedModel.prompt_images` made of its images.
        """
        model = self._model
        input_ids = torch.tensor([list(ids)], device=model.device)
        cache = model.backbone.new_cache()
        mask = torch.ones_like(input_ids, dtype=torch.bool)
        hidden = model.text_states(input_ids, mask, images, cache)
        logits = self._logits(hidden[:, -1])
        return Prompt(model.backbone.new_row(cache), logits[0])

    @torch.no_grad()
    def advance(self, rows: Sequence[RowCache], tokens: Sequence[int]) -> Tensor:
        """Adds a token to each row and returns the logits of what follows, [R, V].

        If it fails, the rows are as they were.

        Args:
            rows: at most `ROWS`.
            tokens: one id for each.
        """
        backbone, device = self._model.backbone, self._model.device
        ids = torch.zeros(ROWS, 1, dtype=torch.long)
        ids[: len(rows), 0] = torch.tensor(tokens)
        ids = ids.to(device)
        states = backbone(backbone.embed(ids), torch.ones_like(ids).bool(), RowBatch(rows, ROWS))
        return self._logits(states[:, -1])[: len(rows)]

    def _logits(self, hidden: Tensor) -> Tensor:
        logits = self._model.backbone.logits(hidden)
        # A placeholder stands for an image that was given; an answer has none to give.
        logits[:, self._placeholder] = -torch.inf
        return logits
