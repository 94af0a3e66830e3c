"""The compact transformer block."""

import pytest
import torch

from blip3o.nn.attention import KeyValueCache
from blip3o.nn.rope import rope_table
from blip3o.nn.transformer import TransformerBlock


def test_fresh_conditioned_block_is_the_identity() -> None:
    block, hidden = TransformerBlock(8, 2, condition_size=5), torch.randn(2, 3, 8)
    assert torch.equal(block(hidden, torch.randn(2, 5)), hidden)


def test_conditioning_changes_only_its_own_row() -> None:
    block = TransformerBlock(8, 2, condition_size=5)
    assert block.modulation is not None
    torch.nn.init.normal_(block.modulation.weight)
    hidden, vector = torch.randn(2, 3, 8), torch.randn(2, 5)
    before = block(hidden, vector)
    vector[1] += 1
    after = block(hidden, vector)
    assert torch.equal(before[0], after[0])
    assert not torch.allclose(before[1], after[1])


def test_vector_must_fit_the_block() -> None:
    hidden, vector = torch.randn(1, 2, 8), torch.randn(1, 8)
    with pytest.raises(ValueError, match="conditioning vector"):
        TransformerBlock(8, 2)(hidden, vector)
    with pytest.raises(ValueError, match="conditioning vector"):
        TransformerBlock(8, 2, condition_size=8)(hidden)
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
    cos, sin = rope_table(torch.arange(5), 8)
    whole = block(hidden, rope=(cos, sin), mask=mask[:, None, None] if padded else None)
    cache = KeyValueCache(2, 2, 5, 8)
    parts: list[torch.Tensor] = []
    for start, stop in ((0, 2), (2, 3), (3, 5)):
        seen = mask[:, None, None, :stop] if padded else None
        table = (cos[start:stop], sin[start:stop])
        with torch.no_grad():
            parts.append(block(hidden[:, start:stop], rope=table, mask=seen, cache=cache))
    torch.testing.assert_close(torch.cat(parts, dim=1)[mask], whole[mask])
