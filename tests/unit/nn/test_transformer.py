"""The compact transformer block."""

import pytest
import torch

from blip3o.nn.attention import KeyValueCache
from blip3o.nn.rope import grid_rope_table
from blip3o.nn.transformer import TransformerBlock


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="does not divide"):
        TransformerBlock(8, 3)


def test_masked_tokens_change_nothing() -> None:
    block, hidden = TransformerBlock(8, 2), torch.randn(2, 4, 8)
    mask = torch.tensor([[True, True, False, False], [True, True, True, False]])
    other = torch.where(mask[..., None], hidden, torch.randn(2, 4, 8))
    first, second = (block(x, mask=mask[:, None, None]) for x in (hidden, other))
    torch.testing.assert_close(first[mask], second[mask])
    assert not torch.allclose(first, second)


@pytest.mark.parametrize("padded", [False, True])
def test_causal_block_with_cache_equals_the_whole_sequence(padded: bool) -> None:
    block, hidden = TransformerBlock(16, 2, is_causal=True), torch.randn(2, 5, 16)
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[1, 0] = not padded
    cos, sin = grid_rope_table(1, 5, 8)
    whole = block(hidden, rope=(cos, sin), mask=mask[:, None, None] if padded else None)
    cache = KeyValueCache(2, 2, 5, 8)
    parts: list[torch.Tensor] = []
    for start, stop in ((0, 2), (2, 3), (3, 5)):
        seen = mask[:, None, None, :stop] if padded else None
        table = (cos[start:stop], sin[start:stop])
        with torch.no_grad():
            parts.append(block(hidden[:, start:stop], rope=table, mask=seen, cache=cache))
    torch.testing.assert_close(torch.cat(parts, dim=1)[mask], whole[mask])
