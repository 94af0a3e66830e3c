"""Reads prompts and adds tokens to rows; the result of a row never depends on the other rows.

CPU libraries choose a kernel by the number of rows of a product, and kernels round differently. So
every pass has the same number of rows, some of which may be unused, and each prompt has a pass of
its own. (With several prompts in one padded pass, the last bits differed from those of a single
prompt.)
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from blip3o.generate.exact import fingerprint, fingerprints
from blip3o.models.backbones.ragged import RowBatch, RowCache
from blip3o.models.prompts import PromptImages
from blip3o.models.unified import UnifiedModel

ROWS = 8
"""Rows of a pass. With the bundled model, a single row takes 1.1 to 1.3 times as long as in a pass
of one row. With larger models the factor is smaller, because their time goes into reading weights.
"""


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

    @torch.no_grad()
    def num_equal_places(self) -> int:
        """Returns how many places of a pass, from the first, give a row the same bits: 1 to 8.

        All passes have one shape, so only the place can change the bits: kernels compute rows in
        tiles, and may round differently in the rows after the last whole tile.
        """
        first = self._placeholder + 1  # any token but the placeholder, which needs an image
        token = first % self._model.config.backbone.vocab_size
        prompt = self.read([token] * ROWS, None)
        with fingerprints(self._model.backbone.decoder, ROWS, axis=1) as seen:
            logits = self.advance([prompt.row.fork() for _ in range(ROWS)], [token] * ROWS)
        prints = torch.cat([*seen, fingerprint(logits, ROWS)], dim=1)
        is_equal = (prints == prints[:1]).all(1).tolist()
        return is_equal.index(False) if False in is_equal else ROWS

    @torch.no_grad()
    def read(self, ids: Sequence[int], images: PromptImages | None) -> Prompt:
        """Returns a prompt's keys and values and the logits of its next token.

        Args:
            ids: token ids.
            images: images of the prompt, from `UnifiedModel.prompt_images`.
        """
        model = self._model
        input_ids = torch.tensor([list(ids)], device=model.device)
        cache = model.backbone.new_cache()
        mask = torch.ones_like(input_ids, dtype=torch.bool)
        hidden = model.text_states(input_ids, mask, images, cache)
        logits = self.logits(hidden[:, -1])
        return Prompt(model.backbone.new_row(cache), logits[0])

    @torch.no_grad()
    def advance(self, rows: Sequence[RowCache], tokens: Sequence[int]) -> Tensor:
        """Adds a token to each row and returns the logits of the next tokens, [R, V].

        If it fails, the rows are unchanged.

        Args:
            rows: at most `ROWS` rows.
            tokens: one token id for each row.
        """
        backbone, device = self._model.backbone, self._model.device
        ids = torch.zeros(ROWS, 1, dtype=torch.long)
        ids[: len(rows), 0] = torch.tensor(tokens)
        ids = ids.to(device)
        states = backbone(backbone.embed(ids), torch.ones_like(ids).bool(), RowBatch(rows, ROWS))
        return self.logits(states[:, -1])[: len(rows)]

    def logits(self, hidden: Tensor) -> Tensor:
        """Returns the logits [R, V] of the tokens after states [R, D]."""
        logits = self._model.backbone.logits(hidden)
        # A placeholder represents an image of the prompt; an answer cannot hold one.
        logits[:, self._placeholder] = -torch.inf
        return logits
