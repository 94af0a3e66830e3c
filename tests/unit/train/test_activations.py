"""The memory of activations, and the choice that depends on it."""

from pathlib import Path

import pytest
import torch
from torch import nn

from blip3o.train import activations
from blip3o.train.activations import count_activations, needs_checkpointing

CPU = torch.device("cpu")


def test_every_kept_tensor_counts_once_and_weights_do_not() -> None:
    first, second = nn.Linear(8, 6), nn.Linear(6, 4, bias=False)
    inputs = torch.randn(100, 8)

    def forward() -> torch.Tensor:
        hidden = first(inputs).tanh()
        return second(hidden) + second(hidden)  # `hidden` is kept by three operations

    kept = count_activations(forward, [*first.parameters(), *second.parameters()])
    assert kept == inputs.nbytes + 100 * 6 * 4


def test_a_counted_pass_keeps_nothing() -> None:
    layers = nn.Sequential(*[nn.Linear(64, 64) for _ in range(8)])
    kept: list[torch.Tensor] = []
    result = count_activations(lambda: kept.append(layers(torch.randn(50, 64))), [])
    assert result >= 8 * 50 * 64 * 4
    with pytest.raises(AssertionError, match="no backward pass"):
        kept[0].sum().backward()


@pytest.mark.parametrize(
    ("kept", "more", "free", "expected"),
    [(49, 0, 100, False), (51, 0, 100, True), (49, 10, 100, True), (51, 0, None, False)],
)
def test_activations_may_fill_half_of_the_free_memory(
    kept: int,
    more: int,
    free: int | None,
    expected: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(activations, "_free_bytes", lambda device: free)
    assert needs_checkpointing(kept, more, CPU) is expected
    assert ("activation checkpointing is on" in capsys.readouterr().err) is expected


def test_the_limit_of_a_container_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 900 kB\nMemAvailable: 500 kB\n")
    monkeypatch.setattr(activations, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(activations, "_CGROUP", tmp_path)
    assert activations._free_bytes(CPU) == 500 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.stat").write_text("anon 1000\nfile 90000\n")
    assert activations._free_bytes(CPU) == 500 * 1024
    (tmp_path / "memory.max").write_text("300000\n")
    assert activations._free_bytes(CPU) == 299_000
