"""Checkpoints that are whole or not there: written aside, flushed, renamed, then pointed to.

    checkpoints/step-00000500/  model.safetensors      trained weights, objectives' own too
                                ema.safetensors        their averages
                                optimizer.safetensors  AdamW's moments
                                state.json             step, counts, config
    latest                                             name of the newest one
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

_MODEL, _EMA, _OPTIMIZER = "model.safetensors", "ema.safetensors", "optimizer.safetensors"
_STATE = "state.json"


@dataclasses.dataclass(kw_only=True)
class TrainState:
    """What a run must remember besides tensors.

    Args:
        step: optimizer steps done.
        samples_seen: samples learned from.
        nonfinite_steps: steps that updated nothing.
    """

    step: int = 0
    samples_seen: int = 0
    nonfinite_steps: int = 0


class Checkpoints:
    """The checkpoints of a run folder.

    Args:
        run_dir: the run folder.
        keep_last: how many are kept.
    """

    def __init__(self, run_dir: Path, keep_last: int) -> None:
        self._root = run_dir / "checkpoints"
        self._latest = run_dir / "latest"
        self._keep_last = keep_last

    def save(
        self,
        state: TrainState,
        parameters: NamedParameters,
        ema: Ema,
        optimizer: torch.optim.Optimizer,
        config: dict[str, Any],
    ) -> Path:
        """Writes a checkpoint and points `latest` to it; returns its folder.

        Args:
            state: step and counts.
            parameters: trained weights by name.
            ema: their averages.
            optimizer: AdamW.
            config: the resolved run config as plain data.

        Raises:
            UsageError: if it cannot be written (a full disk); earlier checkpoints stay as they are.
        """
        name = f"step-{state.step:08d}"
        scratch, folder = self._root / f".{name}.tmp", self._root / name
        try:
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(parents=True)
            weights = {key: value.detach().cpu() for key, value in parameters.items()}
            save_file(weights, scratch / _MODEL)
            save_file({key: value.cpu() for key, value in ema.averages.items()}, scratch / _EMA)
            save_file(_flatten(optimizer, parameters), scratch / _OPTIMIZER)
            text = json.dumps({**dataclasses.asdict(state), "config": config})
            (scratch / _STATE).write_text(text, encoding="utf-8")
            for file in scratch.iterdir():
                _flush(file)
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(scratch, folder)
            _flush(self._root)
            pointer = self._latest.with_name("latest.tmp")
            pointer.write_text(name + "\n", encoding="utf-8")
            _flush(pointer)
            os.replace(pointer, self._latest)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(scratch, ignore_errors=True)
            raise UsageError(f"checkpoint {folder} could not be written: {error}") from error
        self._prune()
        return folder

    def load(
        self, parameters: NamedParameters, ema: Ema, optimizer: torch.optim.Optimizer
    ) -> tuple[TrainState, dict[str, Any]] | None:
        """Restores the newest whole checkpoint; returns its state and config, or None if none.

        Args:
            parameters: trained weights, filled in place.
            ema: averages, filled in place.
            optimizer: AdamW, filled in place.

        Raises:
            UsageError: if there are checkpoints but none is whole: nothing starts over in silence.
        """
        candidates = sorted(self._root.glob("step-*"), reverse=True) if self._root.exists() else []
        if not candidates:
            return None
        pointed = self._latest.read_text().strip() if self._latest.exists() else ""
        if pointed != candidates[0].name:
            say(f"warning: {self._latest} does not name the newest checkpoint; looking for it")
        for folder in candidates:
            try:
                return self._read(folder, parameters, ema, optimizer)
            except (OSError, ValueError, KeyError, SafetensorError) as error:
                say(f"warning: checkpoint {folder} is not whole ({error}); trying an older one")
        raise UsageError(
            f"no checkpoint in {self._root} can be read; move the folder away to start over"
        )

    def _read(
        self,
        folder: Path,
        parameters: NamedParameters,
        ema: Ema,
        optimizer: torch.optim.Optimizer,
    ) -> tuple[TrainState, dict[str, Any]]:
        data = json.loads((folder / _STATE).read_text(encoding="utf-8"))
        config = data.pop("config")
        weights, averages = load_file(folder / _MODEL), load_file(folder / _EMA)
        moments = load_file(folder / _OPTIMIZER)
        for stored in (weights, averages):
            different = sorted(stored.keys() ^ parameters.keys())
            if different:
                raise UsageError(
                    f"{folder} is of another model: weights differ in {', '.join(different[:5])}"
                )
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(weights[name])
        ema.load(averages)
        _restore(optimizer, parameters, moments)
        return TrainState(**data), config

    def _prune(self) -> None:
        for folder in sorted(self._root.glob("step-*"))[: -self._keep_last]:
            shutil.rmtree(folder, ignore_errors=True)


def _flatten(optimizer: torch.optim.Optimizer, parameters: NamedParameters) -> dict[str, Tensor]:
    flat: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            flat[f"{name}/{key}"] = value.detach().cpu()
    return flat


def _restore(
    optimizer: torch.optim.Optimizer, parameters: NamedParameters, flat: dict[str, Tensor]
) -> None:
    by_name: dict[str, dict[str, Tensor]] = {}
    for key, value in flat.items():
        name, _, entry = key.rpartition("/")
        by_name.setdefault(name, {})[entry] = value
    optimizer.state.clear()
    for name, parameter in parameters.items():
        if name in by_name:
            optimizer.state[parameter] = {
                key: value if key == "step" else value.to(parameter)
                for key, value in by_name[name].items()
            }


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
