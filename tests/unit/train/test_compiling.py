"""The choice of a run whether to compile its blocks."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from blip3o.core.errors import PreemptedError
from blip3o.train import compiling
from blip3o.train.trainer import Trainer


class Clock:
    """Gives every timed call a number of seconds; compiled calls take another one."""

    def __init__(self, plain: float, compiled: float) -> None:
        self.plain, self.compiled = plain, compiled
        self.blocks: list[nn.Module] = []
        self.trials = 0

    def seconds(self, run: Callable[[], object], device: torch.device) -> float:
        self.trials += 1
        run()
        return self.compiled if self.blocks else self.plain


@pytest.fixture
def long_run(
    toys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Trainer, Clock]]:
    """Returns a function that builds a run that is long enough, without a compiler."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(compiling, "_LEAST_SECONDS", 0.0)

    def build(name: str, plain: float = 1.0, compiled: float = 0.5, **parts: Any) -> Any:
        clock = Clock(plain, compiled)
        monkeypatch.setattr(compiling, "_seconds", clock.seconds)
        monkeypatch.setattr(nn.Module, "compile", lambda module: clock.blocks.append(module))
        model = toys.model()
        model.__dict__["compile_targets"] = lambda: [model.head]
        config = toys.with_train(compile=parts.pop("compile", "auto"), steps=16)
        return toys.trainer(tmp_path / name, config, model=model, **parts), clock

    return build


def files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").rglob("*.json"))


@pytest.mark.parametrize("compiled", [0.5, 0.99, 2.0])
def test_blocks_are_compiled_if_that_was_measured_to_be_faster(
    long_run: Any, tmp_path: Path, compiled: float, capsys: pytest.CaptureFixture
) -> None:
    trainer, clock = long_run("run", compiled=compiled)
    trainer.fit()
    is_faster = compiled == 0.5
    assert trainer.state.is_compiled == is_faster
    assert clock.trials == 2
    assert clock.blocks == [trainer.model.head]
    assert "blocks are compiled" in capsys.readouterr().err or not is_faster
    (file,) = files(tmp_path)
    assert json.loads(file.read_text()) == {"plain": 1.0, "compiled": compiled}


def test_a_measured_choice_is_kept_for_later_runs_unless_the_file_is_damaged(
    long_run: Any, tmp_path: Path
) -> None:
    long_run("first")[0].fit()
    trainer, clock = long_run("second")
    trainer.fit()
    assert (clock.trials, clock.blocks) == (0, [trainer.model.head])
    files(tmp_path)[0].write_text("{")
    trainer, clock = long_run("third", compiled=2.0)
    trainer.fit()
    assert clock.trials == 2
    trainer, clock = long_run("fourth")
    trainer.fit()
    assert (clock.trials, clock.blocks, trainer.state.is_compiled) == (0, [], False)


def test_other_settings_are_measured_anew(
    long_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long_run("first")[0].fit()
    monkeypatch.setattr(compiling, "_machine", lambda device: "another machine")
    long_run("second")[0].fit()
    assert len(files(tmp_path)) == 2


def test_a_trial_changes_nothing_else(long_run: Any, tmp_path: Path, read_run: Any) -> None:
    long_run("tried", compiled=2.0)[0].fit()
    long_run("plain", compile=False)[0].fit()
    tried, plain = (read_run(tmp_path / name) for name in ("tried", "plain"))
    assert (tried["state"].pop("is_compiled"), plain["state"].pop("is_compiled")) == (False, None)
    del tried["state"]["digest"], plain["state"]["digest"]
    assert tried == plain


@pytest.mark.parametrize("stop_at", [5, 15])
def test_a_resumed_run_keeps_its_choice(long_run: Any, toys: Any, stop_at: int) -> None:
    trainer, _ = long_run("run", callbacks=[toys.stop_after(stop_at, 15)])
    with pytest.raises(PreemptedError):
        trainer.fit()
    has_chosen = stop_at > compiling.TRIAL_STEP
    assert trainer.state.is_compiled is (True if has_chosen else None)
    resumed, clock = long_run("run", compiled=2.0)  # would not be chosen now
    resumed.fit()
    assert clock.trials == (0 if has_chosen else 2)
    assert resumed.state.is_compiled == has_chosen
    assert clock.blocks == [resumed.model.head]


def test_a_short_run_does_not_try(
    long_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "_LEAST_SECONDS", 900.0)
    trainer, clock = long_run("run")
    trainer.fit()
    assert (clock.trials, clock.blocks, trainer.state.is_compiled) == (0, [], False)
    assert files(tmp_path) == []


def test_a_run_goes_on_if_compiling_fails(
    long_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    trainer, clock = long_run("run")

    def seconds(run: Callable[[], object], device: torch.device) -> float:
        if clock.blocks:
            raise RuntimeError("no compiler is here\nand more")
        return 1.0

    monkeypatch.setattr(compiling, "_seconds", seconds)
    trainer.fit()
    assert trainer.state.is_compiled is False
    assert "not compiled: RuntimeError: no compiler is here\n" in capsys.readouterr().err
    assert files(tmp_path) == []


@pytest.mark.compile
@pytest.mark.parametrize("share", [1e9, 0.0])
def test_compiled_blocks_are_used_only_if_they_are_chosen(
    toys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(compiling, "_LEAST_SECONDS", 0.0)
    monkeypatch.setattr(compiling, "_LARGEST_SHARE", share)
    found = {}
    for name in (False, "auto"):
        model = toys.model()
        model.__dict__["compile_targets"] = lambda model=model: [model.head]
        config = toys.with_train(compile=name, steps=16)
        trainer = toys.trainer(tmp_path / str(name), config, model=model)
        trainer.fit()
        found[name] = {key: p.detach() for key, p in trainer.parameters.items()}
    assert trainer.state.is_compiled == (share > 1)
    assert (model.head._compiled_call_impl is not None) == (share > 1)
    for key, expected in found[False].items():
        torch.testing.assert_close(found["auto"][key], expected, rtol=1e-4, atol=1e-5)
