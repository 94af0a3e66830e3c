"""Checkpoints that are whole or not there: written aside, flushed, renamed, then pointed to.

A run folder holds `checkpoints/step-00000500/` and so on, and `latest`, a file with the name of the
one to resume from. In a checkpoint are `model.safetensors` (trained weights, objectives' own too),
`ema.safetensors` (their averages), `optimizer.safetensors` (AdamW's moments) and `state.json`
(step, counts, config).
"""

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from blip3o.core.errors import UsageError
from blip3o.core.log import say
from blip3o.train.ema import Ema
from blip3o.train.optimizer import NamedParameters
from blip3o.train.progress import Sums

_MODEL, _EMA, _OPTIMIZER = "model.safetensors", "ema.safetensors", "optimizer.safetensors"
_STATE = "state.json"
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, SafetensorError)


@dataclasses.dataclass(kw_only=True)
class TrainState:
    """What a run must remember besides tensors.

    Args:
        step: optimizer steps done.
        samples_seen: samples learned from.
        nonfinite_steps: steps that updated nothing.
        window: (sum, count) by name since the last line of metrics, so that a resumed run logs
            the same averages.
    """

    step: int = 0
    samples_seen: int = 0
    nonfinite_steps: int = 0
    window: Sums = dataclasses.field(default_factory=dict)


class Checkpoints:
    """The checkpoints of a run folder.

    Args:
        run_dir: the run folder.
        keep_last: how many are kept.
        parameters: trained weights by name; saved, and filled in place when loading.
        buffers: further tensors that change while training; likewise.
        ema: averages of the weights; likewise.
        optimizer: AdamW over the weights; likewise.
    """

    def __init__(
        self,
        run_dir: Path,
        keep_last: int,
        parameters: NamedParameters,
        buffers: dict[str, Tensor],
        ema: Ema,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        self._root = run_dir / "checkpoints"
        self._latest = run_dir / "latest"
        self._keep_last = keep_last
        self._parameters = parameters
        self._buffers = buffers
        self._ema = ema
        self._optimizer = optimizer

    def save(self, state: TrainState, config: dict[str, Any]) -> Path:
        """Writes a checkpoint and points `latest` to it; returns its folder.

        Args:
            state: step and counts.
            config: the resolved run config as plain data.

        Raises:
            UsageError: if it cannot be written (a full disk); earlier checkpoints stay as they are.
        """
        name = f"step-{state.step:08d}"
        scratch, folder = self._root / f".{name}.tmp", self._root / name
        try:
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(parents=True)
            _write_tensors({**self._parameters, **self._buffers}, scratch / _MODEL)
            _write_tensors(self._ema.averages, scratch / _EMA)
            _write_tensors(_flatten(self._optimizer, self._parameters), scratch / _OPTIMIZER)
            text = json.dumps({**dataclasses.asdict(state), "config": config})
            (scratch / _STATE).write_text(text, encoding="utf-8")
            for path in (*scratch.iterdir(), scratch):
                _flush(path)
            # Only a run that resumed from an earlier step meets a folder of this name: `latest`
            # does not point to it, so it may go first.
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(scratch, folder)
            _flush(self._root)
            pointer = self._latest.with_name("latest.tmp")
            pointer.write_text(name + "\n", encoding="utf-8")
            _flush(pointer)
            os.replace(pointer, self._latest)
            _flush(self._latest.parent)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(scratch, ignore_errors=True)
            raise UsageError(
                f"checkpoint {folder} could not be written ({error}); earlier ones are intact: "
                "make room and run the same command again to resume"
            ) from error
        self._prune(name)
        return folder

    def load(self) -> TrainState | None:
        """Restores the checkpoint to resume from; returns its state, or None if there is none.

        Raises:
            UsageError: if there are checkpoints but none is whole (nothing starts over in silence),
                or they are of another model.
        """
        run_dir = self._root.parent
        candidates = find_checkpoints(run_dir)
        for folder in candidates:
            try:
                state = self._read(folder)
            except _UNREADABLE as error:
                say(f"warning: checkpoint {folder} is not whole ({error}); trying another one")
                continue
            if folder.name != _pointed(run_dir):
                say(f"warning: {self._latest} names no whole checkpoint; taking {folder.name}")
            return state
        if candidates or self._latest.exists():
            raise UsageError(
                f"no checkpoint in {self._root} can be read; move {run_dir} away to start over"
            )
        return None

    def _read(self, folder: Path) -> TrainState:
        data = json.loads((folder / _STATE).read_text(encoding="utf-8"))
        data.pop("config")
        state = TrainState(**data)
        state.window = {name: (value, count) for name, (value, count) in state.window.items()}
        weights, averages = load_file(folder / _MODEL), load_file(folder / _EMA)
        moments = load_file(folder / _OPTIMIZER)
        own = {**self._parameters, **self._buffers}
        _check_same(folder, weights, own)
        _check_same(folder, averages, self._ema.averages)
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(weights[name])
        self._ema.load(averages)
        _restore(self._optimizer, self._parameters, moments)
        return state

    def _prune(self, newest: str) -> None:
        """Removes old checkpoints and what killed runs left behind, never the newest whole one."""
        # Later steps than the newest: damaged, or left behind by hand. They do not count.
        folders = sorted(f for f in self._root.glob("step-*") if f.name <= newest)
        for folder in (*folders[: -self._keep_last], *self._root.glob(".step-*.tmp")):
            shutil.rmtree(folder, ignore_errors=True)


def find_checkpoints(run_dir: Path) -> list[Path]:
    """Returns the checkpoint folders of a run: the one `latest` names, then newest first.

    Args:
        run_dir: the run folder; it need not exist.
    """
    found = sorted((run_dir / "checkpoints").glob("step-*"), reverse=True)
    pointed = _pointed(run_dir)
    return sorted(found, key=lambda folder: folder.name != pointed)


def stored_config(run_dir: Path) -> dict[str, Any] | None:
    """Returns the config a run was last saved with as plain data; None without checkpoints.

    Args:
        run_dir: the run folder; it need not exist.
    """
    for folder in find_checkpoints(run_dir):
        try:
            return json.loads((folder / _STATE).read_text(encoding="utf-8"))["config"]
        except _UNREADABLE:
            continue
    return None


def _pointed(run_dir: Path) -> str:
    try:
        return (run_dir / "latest").read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""


def _check_same(folder: Path, stored: dict[str, Tensor], own: dict[str, Any]) -> None:
    names = sorted(stored.keys() ^ own.keys())
    names += sorted(n for n in stored.keys() & own.keys() if stored[n].shape != own[n].shape)
    if names:
        shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        raise UsageError(f"{folder} is of another model: {len(names)} weights differ: {shown}")


def _flatten(optimizer: torch.optim.Optimizer, parameters: NamedParameters) -> dict[str, Tensor]:
    return {
        f"{name}/{key}": value
        for name, parameter in parameters.items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _restore(
    optimizer: torch.optim.Optimizer, parameters: NamedParameters, flat: dict[str, Tensor]
) -> None:
    optimizer.state.clear()
    for name, value in flat.items():
        owner, _, key = name.rpartition("/")
        parameter = parameters[owner]
        if key == "step":  # beside its parameter: that is where the fused kernels want it
            optimizer.state[parameter][key] = value.to(parameter.device, copy=True)
        else:
            optimizer.state[parameter][key] = torch.empty_like(parameter.detach()).copy_(value)


def _write_tensors(tensors: dict[str, Any], file: Path) -> None:
    save_file({n: t.detach().cpu().contiguous() for n, t in tensors.items()}, file)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
