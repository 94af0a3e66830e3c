"""Passes of several sizes give the same bits, and follow changes of the weights."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from blip3o.generate import decoding
from blip3o.generate.decoding import Prompt, RowDecoder
from blip3o.generate.pipeline import Blip3oPipeline
from blip3o.models.unified import UnifiedModel
from blip3o.nn.quantized import quantize_linears

LENGTHS = (3, 9, 5, 20, 4, 7, 12, 6, 8, 15, 3)


def prompts(decoder: RowDecoder) -> list[Prompt]:
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(10, 300, (length,), generator=generator) for length in LENGTHS]
    return [decoder.read(row.tolist(), None) for row in rows]


def walk(decoder: RowDecoder, chosen: list[Prompt]) -> Tensor:
    """Returns the logits of three passes, [3, R, V]."""
    rows = [prompt.row.fork() for prompt in chosen]
    return torch.stack([decoder.advance(rows, [20 + turn] * len(rows)) for turn in range(3)])


@pytest.fixture
def model(tiny_pipe: Blip3oPipeline) -> UnifiedModel:
    """A copy that a test may change."""
    model = tiny_pipe.model.config.build().eval()
    model.load_state_dict(tiny_pipe.model.state_dict())
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_have_the_same_bits_alone_and_in_company(
    model: UnifiedModel, dtype: torch.dtype
) -> None:
    decoder = RowDecoder(model.to(dtype))
    read = prompts(decoder)
    alone = torch.cat([walk(decoder, [prompt]) for prompt in read], dim=1)
    for count in (2, 3, 8, len(read)):
        assert torch.equal(walk(decoder, read[:count]), alone[:, :count])


def test_only_sizes_with_the_bits_of_the_largest_are_used(
    model: UnifiedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, sizes = RowDecoder._pass, list[int]()

    def differs(decoder: Any, rows: Any, tokens: Any, size: int, *trace: Any) -> Tensor:
        sizes.append(size)
        logits = plain(decoder, rows, tokens, size, *trace)
        if size == 1:
            logits += 1e-6
        if size == 4:
            logits[3:] += 1e-6
        return logits

    monkeypatch.setattr(RowDecoder, "_pass", differs)
    decoder = RowDecoder(model)
    read = prompts(decoder)
    for count, size in ((1, 2), (2, 2), (3, 4), (4, 8), (8, 8)):
        walk(decoder, read[:count])
        assert sizes[-1] == size


def scaled(model: UnifiedModel) -> None:
    with torch.no_grad():
        model.get_parameter("backbone.decoder.layers.0.mlp.up_proj.weight").mul_(1.5)


def replaced(model: UnifiedModel) -> None:
    shape = model.get_parameter("backbone.decoder.layers.1.self_attn.o_proj.weight").shape
    fresh = torch.nn.Linear(shape[1], shape[0], bias=False)
    model.set_submodule("backbone.decoder.layers.1.self_attn.o_proj", fresh)


CHANGES: dict[str, Callable[[UnifiedModel], object]] = {
    "written to": scaled,
    "replaced": replaced,
    "converted": lambda model: model.to(torch.bfloat16),
    "quantized": lambda model: quantize_linears(model.backbone.decoder, "int8"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_weights_are_noticed(model: UnifiedModel, change: str) -> None:
    decoder = RowDecoder(model)
    before = walk(decoder, prompts(decoder)[:2])
    CHANGES[change](model)
    after = walk(decoder, prompts(decoder)[:2])
    assert not torch.equal(after.float(), before)
    fresh = RowDecoder(model)
    assert torch.equal(after, walk(fresh, prompts(fresh)[:2]))


def test_large_models_are_not_copied_and_say_the_same(
    model: UnifiedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = RowDecoder(model)
    expected = walk(copied, prompts(copied))
    monkeypatch.setattr(decoding, "_MOST_COPIED_BYTES", 0)
    called = RowDecoder(model)
    torch.testing.assert_close(walk(called, prompts(called)), expected, rtol=0, atol=1e-4)


def test_a_padded_batch_is_read_as_its_rows_are(model: UnifiedModel) -> None:
    decoder = RowDecoder(model)
    ids = torch.arange(10, 34).reshape(3, 8)
    mask = torch.arange(8) >= torch.tensor([[0], [5], [2]])
    together = decoder.read_batch(ids, mask, None)
    alone = [decoder.read(row[real].tolist(), None) for row, real in zip(ids, mask, strict=True)]
    assert [prompt.row.num_tokens for prompt in together] == [8, 3, 6]
    found = [walk(decoder, read) for read in (together, alone)]
    torch.testing.assert_close(*found, rtol=0, atol=1e-4)
