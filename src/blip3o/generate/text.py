"""Writes text with the backbone: batched greedy decoding with a key/value cache."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from blip3o.models.unified import UnifiedModel


def left_pad(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Returns token rows padded on the left to one length, and the mask of real tokens.

    Args:
        rows: token ids of each row.
        pad_id: fills the front; masked out.

    Returns:
        input_ids [B, T] and attention_mask [B, T].
    """
    length = max(len(row) for row in rows)
    ids = torch.tensor([[pad_id] * (length - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[False] * (length - len(row)) + [True] * len(row) for row in rows])
    return ids, mask


@torch.no_grad()
def generate_tokens(
    model: UnifiedModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    prompt_features: Tensor | None,
    *,
    stop_id: int,
    pad_id: int,
    max_new_tokens: int,
) -> Iterator[Tensor]:
    """Yields the next token of every row [B], greedily, until all rows have stopped.

    Args:
        model: in evaluation mode.
        input_ids: left-padded prompts, [B, T].
        attention_mask: True for real tokens, [B, T].
        prompt_features: raw features of the rows' pictures, [M, N, C].
        stop_id: ends a row.
        pad_id: what a stopped row yields.
        max_new_tokens: the longest answer.
    """
    cache = model.backbone.new_cache()
    hidden = model.text_states(input_ids, attention_mask, prompt_features, cache)
    running = torch.ones(len(input_ids), dtype=torch.bool, device=input_ids.device)
    for _ in range(max_new_tokens):
        token = model.backbone.logits(hidden[:, -1]).argmax(-1)
        token = torch.where(running, token, pad_id)
        running = running & (token != stop_id)
        yield token
        if not bool(running.any()):
            return
        attention_mask = torch.cat([attention_mask, running.unsqueeze(1)], dim=1)
        # A stopped row goes on with masked padding, which no real token ever attends to.
        hidden = model.text_states(token.unsqueeze(1), attention_mask, None, cache)
