"""The compact transformer block."""

import pytest
import torch

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
