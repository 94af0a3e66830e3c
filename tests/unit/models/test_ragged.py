"""Rows of different lengths decoded in one pass equal rows decoded alone, for every backbone."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from blip3o.models.backbones import BACKBONES
from blip3o.models.backbones import ragged as ragged_module
from blip3o.models.backbones.ragged import RowBatch, RowCache

SIZE = 4


def build(name: str) -> Any:
    torch.manual_seed(0)
    backbone = BACKBONES.get(name).tiny().build().eval()
    for parameter in backbone.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)
        else:
            nn.init.normal_(parameter, mean=1.0, std=0.1)
    return backbone


PASSES: dict[str, Any] = {
    "own layers": None,
    "called": {"may_copy": False},
    "copied": {"may_copy": True},
}
"""Passes of one token: by the decoder's own layers, and by a `TokenStep`."""


@pytest.fixture(params=PASSES, autouse=True)
def _a_pass(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.SETTINGS", PASSES[request.param])


SETTINGS: Any = None


@pytest.fixture(params=BACKBONES.names())
def backbone(request: pytest.FixtureRequest) -> Any:
    return build(request.param)


def prompt(length: int) -> Tensor:
    generator = torch.Generator().manual_seed(length)
    return torch.randint(10, 300, (1, length), generator=generator)


@torch.no_grad()
def read(backbone: Any, ids: Tensor, positions: Tensor | None = None) -> RowCache:
    cache = backbone.new_cache()
    extra = {} if positions is None else {"positions": positions}
    backbone(backbone.embed(ids), torch.ones_like(ids).bool(), cache, **extra)
    return backbone.new_rows(cache, torch.ones_like(ids).bool())[0]


@torch.no_grad()
def step(backbone: Any, rows: list[RowCache], tokens: list[int]) -> Tensor:
    """Returns the logits of the next tokens, [R, V]."""
    ids = torch.tensor([tokens + [0] * (SIZE - len(tokens))]).T
    embeds, batch = backbone.embed(ids), RowBatch(rows, SIZE)
    if SETTINGS is None:
        states = backbone(embeds, torch.ones_like(ids).bool(), batch)
        assert states.shape == (SIZE, 1, backbone.config.hidden_size)
        logits = backbone.logits(states[:, 0])
    else:
        fast = backbone.token_step(num_rows=SIZE, **SETTINGS)
        logits = fast.logits(batch.fast_states(fast, embeds[:, 0]))
    assert logits.shape == (SIZE, backbone.config.vocab_size)
    return logits[: len(rows)]


def walk(backbone: Any, row: RowCache, tokens: list[int]) -> list[Tensor]:
    return [step(backbone, [row], [token])[0] for token in tokens]


def test_a_row_continues_like_a_whole_pass(backbone: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ragged_module, "_BLOCK", 3)  # so that it grows several times
    ids, tokens = prompt(5), list(range(20, 31))
    logits = walk(backbone, read(backbone, ids), tokens)
    whole = torch.cat([ids, torch.tensor([tokens])], dim=1)
    with torch.no_grad():
        states = backbone(backbone.embed(whole), torch.ones_like(whole).bool())[0, 5:]
        expected = backbone.logits(states)
    torch.testing.assert_close(torch.stack(logits), expected, rtol=1e-4, atol=1e-4)


def test_rotary_positions_continue_after_those_of_an_image() -> None:
    backbone = build("qwen2_5_vl")
    ids, tokens = prompt(9), [20, 21, 22]
    # Nine tokens that span six positions, as after an image.
    positions = torch.tensor([0, 1, 2, 2, 2, 2, 3, 4, 5]).expand(3, 1, -1)
    row = read(backbone, ids, positions)
    assert (row.num_tokens, row.position) == (9, 6)
    logits = walk(backbone, row, tokens)
    assert (row.num_tokens, row.position) == (12, 9)
    whole = torch.cat([ids, torch.tensor([tokens])], dim=1)
    places = torch.cat([positions, torch.tensor([6, 7, 8]).expand(3, 1, -1)], dim=2)
    with torch.no_grad():
        mask = torch.ones_like(whole).bool()
        expected = backbone.logits(backbone(backbone.embed(whole), mask, None, places)[0, 9:])
    torch.testing.assert_close(torch.stack(logits), expected, rtol=1e-4, atol=1e-4)


def test_a_row_has_the_same_bits_in_any_batch(backbone: Any) -> None:
    """Other rows join late, leave early, and differ in length and place."""
    tokens = [30, 31, 32, 33, 34]
    alone = [walk(backbone, read(backbone, prompt(length)), tokens) for length in (3, 40, 9)]
    first, second, third = (read(backbone, prompt(length)) for length in (3, 40, 9))
    extra = read(backbone, prompt(70))
    seen: dict[int, list[Tensor]] = {id(row): [] for row in (first, second, third, extra)}
    for rows in (
        [first],
        [second, first],
        [third, second, extra, first],
        [third, first, second],
        [second, third, first],
        [third, second],
        [third],
    ):
        places = [tokens[len(seen[id(row)])] for row in rows]
        for row, state in zip(rows, step(backbone, rows, places), strict=True):
            seen[id(row)].append(state)
    for row, expected in zip((first, second, third), alone, strict=True):
        assert len(seen[id(row)]) == len(tokens)
        assert all(map(torch.equal, seen[id(row)], expected))


def test_forks_are_independent(backbone: Any) -> None:
    start = read(backbone, prompt(6))
    walk(backbone, start, [20])
    expected = {token: walk(backbone, start.fork(), [token, token + 1]) for token in (50, 60)}
    one, two = start.fork(), start.fork()
    both = [step(backbone, [one, two], [50, 60]), step(backbone, [two, one], [61, 51])]
    assert torch.equal(both[0][0], expected[50][0])
    assert torch.equal(both[0][1], expected[60][0])
    assert torch.equal(both[1][0], expected[60][1])
    assert torch.equal(both[1][1], expected[50][1])
    assert (start.num_tokens, one.num_tokens) == (7, 9)


def test_a_failed_pass_can_be_repeated(backbone: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [read(backbone, prompt(length)) for length in (4, 7)]
    expected = step(backbone, [row.fork() for row in rows], [20, 21])
    attend, calls = functional.scaled_dot_product_attention, []

    def breaks(*arguments: Any, **settings: Any) -> Tensor:
        calls.append(None)
        if len(calls) == 3:  # in the second layer
            raise MemoryError
        return attend(*arguments, **settings)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", breaks)
    with pytest.raises(MemoryError):
        step(backbone, rows, [20, 21])
    assert [row.num_tokens for row in rows] == [4, 7]
    assert torch.equal(step(backbone, rows, [20, 21]), expected)
