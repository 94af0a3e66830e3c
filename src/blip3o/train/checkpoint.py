"""Atomic checkpoints: written to a scratch folder, flushed, renamed, then named by `latest`.

A run folder holds `checkpoints/step-00000500/` and so on, and `latest`, a file with the name of the
checkpoint to resume from. A checkpoint holds the files of a `TensorStore` and `state.json`. The
tensors are named `model/...` (trained weights, including those of objectives), `ema/...` (their
averages) and `optimizer/...` (AdamW's moments). `state.json` holds step, counts, config, sizes and
hashes of the other files, and a digest of itself. A file that is cut short or does not match its
hash is damaged.
"""

import hashlib
import json
import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NotRequired, TypedDict

import torch
from torch import Tensor

from blip3o.core.distributed import is_main
from blip3o.core.errors import UsageError
from blip3o.core.files import flush, write_atomic
from blip3o.core.log import say
from blip3o.train.config import RunConfig, resume_differences
from blip3o.train.optimizer import Ema, NamedParameters
from blip3o.train.progress import Sums, TrainState
from blip3o.train.tensors import STORE_ERRORS, TensorStore, reason_of

_MODEL, _EMA, _OPTIMIZER = "model", "ema", "optimizer"
_STATE = "state.json"
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, *STORE_ERRORS)


class _Facts(TypedDict):
    """Content of `state.json`."""

    step: int
    samples_seen: int
    nonfinite_steps: int
    is_compiled: NotRequired[bool | None]
    window: Sums
    config: dict[str, object]
    files: NotRequired[dict[str, int]]
    hashes: NotRequired[dict[str, str]]
    digest: NotRequired[str]


class Checkpoints:
    """Saves, loads and prunes the checkpoints of a run folder.

    A save copies the tensors to the CPU and returns; a thread writes the copies while training
    continues. All processes of a run save and load together. Loading fills the given weights,
    buffers, averages and optimizer in place.

    Args:
        run_dir: the run folder.
        keep_last: number of checkpoints kept.
        keep_every: checkpoints at multiples of this step are kept as well; 0 for none.
        parameters: trained weights by name.
        buffers: further tensors that training changes, by name.
        ema: averages of the weights.
        optimizer: AdamW over the weights.
    """

    def __init__(
        self,
        run_dir: Path,
        keep_last: int,
        keep_every: int,
        parameters: NamedParameters,
        buffers: dict[str, Tensor],
        ema: Ema,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        self._root = run_dir / "checkpoints"
        self._latest = run_dir / "latest"
        self._keep_last = keep_last
        self._keep_every = keep_every
        self._parameters = parameters
        self._buffers = buffers
        self._ema = ema
        self._optimizer = optimizer
        self._store = TensorStore()
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None

    def save(self, state: TrainState, config: dict[str, object]) -> Path:
        """Starts to write a checkpoint; returns its folder, which appears once it is complete.

        Args:
            state: step and counts.
            config: the resolved run config as plain data.

        Raises:
            UsageError: if the previous save failed (a full disk); earlier checkpoints stay intact.
        """
        self.wait()
        name = _name(state.step)
        facts: _Facts = {
            "step": state.step,
            "samples_seen": state.samples_seen,
            "nonfinite_steps": state.nonfinite_steps,
            "is_compiled": state.is_compiled,
            "window": dict(state.window),
            "config": config,
        }
        tensors = self._store.copy({**self._weights(), **self._moments()})
        self._writing = self._thread.submit(self._write, name, tensors, facts)
        return self._root / name

    @property
    def has_failed(self) -> bool:
        """Whether the last save failed; `wait` raises its error."""
        writing = self._writing
        return writing is not None and writing.done() and writing.exception() is not None

    def wait(self) -> None:
        """Waits until the last save is done.

        Raises:
            UsageError: if it failed.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        """Waits for the writer; its error, if any, is left to `wait`."""
        self._thread.shutdown()

    def load(self) -> TrainState | None:
        """Restores the checkpoint to resume from; returns its state, or None without checkpoints.

        Raises:
            UsageError: if there are checkpoints but none is whole (a run never starts over
                silently), or they belong to another model.
        """
        run_dir = self._root.parent
        candidates = find_checkpoints(run_dir)
        for folder in candidates:
            try:
                state = self._read(folder)
            except _UNREADABLE as error:
                reason = reason_of(error)
                say(f"warning: checkpoint {folder} is not whole ({reason}); trying the next one")
                continue
            if folder.name != _pointed(run_dir):
                say(f"warning: {self._latest} names no whole checkpoint; using {folder.name}")
            return state
        if candidates or self._latest.exists():
            raise UsageError(
                f"no checkpoint in {self._root} can be read; move {run_dir} away to start over"
            )
        return None

    def load_step(self, step: int) -> TrainState:
        """Restores the checkpoint of a step; returns its state.

        Raises:
            UsageError: if it is missing, damaged or of another model.
        """
        folder = self._root / _name(step)
        try:
            return self._read(folder)
        except _UNREADABLE as error:
            raise UsageError(f"checkpoint {folder} is not whole ({reason_of(error)})") from error

    def _weights(self) -> dict[str, Tensor]:
        own = {**self._parameters, **self._buffers}
        return {
            **{f"{_MODEL}/{name}": tensor.detach() for name, tensor in own.items()},
            **{f"{_EMA}/{name}": average for name, average in self._ema.averages.items()},
        }

    def _moments(self) -> dict[str, Tensor]:
        return {
            f"{_OPTIMIZER}/{name}/{key}": value
            for name, parameter in self._parameters.items()
            for key, value in self._optimizer.state.get(parameter, {}).items()
        }

    def _write(self, name: str, tensors: dict[str, Tensor], facts: _Facts) -> None:
        """Writes the copies; runs in the threads of all processes together."""
        scratch, folder = self._root / f".{name}.tmp", self._root / name

        def begin() -> None:
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(parents=True)

        try:
            self._store.on_main(begin)
            self._store.write(scratch, tensors)
            facts["hashes"] = self._store.hashes(scratch)
            self._store.on_main(lambda: self._publish(scratch, folder, facts))
        except (OSError, ValueError, *STORE_ERRORS) as error:
            if is_main():
                shutil.rmtree(scratch, ignore_errors=True)
            raise UsageError(
                f"checkpoint {folder} could not be written ({reason_of(error)}); earlier ones "
                "are intact: make room and run the same command again to resume"
            ) from error

    def _publish(self, scratch: Path, folder: Path, facts: _Facts) -> None:
        """Moves written and flushed files to their final place by atomic renames."""
        facts["files"] = {path.name: path.stat().st_size for path in sorted(scratch.iterdir())}
        write_atomic(scratch / _STATE, json.dumps({**facts, "digest": _digest(facts)}))
        flush(scratch)
        # A folder of this name exists only if the run resumed from an earlier step. `latest` does
        # not point to it, so it may be removed first.
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(scratch, folder)
        flush(self._root)
        write_atomic(self._latest, folder.name + "\n")
        flush(self._latest.parent)
        self._prune(folder.name)

    def _read(self, folder: Path) -> TrainState:
        facts = _read_facts(folder)
        for file, size in facts["files"].items():
            if (folder / file).stat().st_size != size:
                raise ValueError(f"{file} is damaged")
        self._check_hashes(folder, facts.get("hashes"))
        state = TrainState(
            step=facts["step"],
            samples_seen=facts["samples_seen"],
            nonfinite_steps=facts["nonfinite_steps"],
            is_compiled=facts.get("is_compiled"),  # older versions did not choose
            window={name: (value, count) for name, (value, count) in facts["window"].items()},
        )
        shapes = self._store.shapes(folder)
        moments = [name for name in shapes if name.startswith(f"{_OPTIMIZER}/")]
        weights = self._weights()
        _check_same(
            folder,
            {name: shape for name, shape in shapes.items() if name not in moments},
            {name: tensor.shape for name, tensor in weights.items()},
        )
        self._store.read(folder, {**weights, **self._fresh_moments(moments)})
        return state

    def _check_hashes(self, folder: Path, hashes: dict[str, str] | None) -> None:
        if hashes is None:
            say(f"{folder} has no hashes (older version): damaged files cannot be detected")
            return
        found = self._store.hashes(folder)
        damaged = sorted(name for name in hashes if found.get(name) != hashes[name])
        if damaged:
            raise ValueError(f"{', '.join(damaged)} changed after writing")

    def _fresh_moments(self, names: list[str]) -> dict[str, Tensor]:
        """Creates an optimizer state to be filled, and returns its tensors by name."""
        self._optimizer.state.clear()
        for name in names:
            owner, _, key = name.removeprefix(f"{_OPTIMIZER}/").rpartition("/")
            parameter = self._parameters[owner]
            # The fused kernels need the step count on the parameter's device.
            self._optimizer.state[parameter][key] = (
                torch.zeros((), device=parameter.device)
                if key == "step"
                else torch.zeros_like(parameter.detach())
            )
        return self._moments()

    def _prune(self, newest: str) -> None:
        """Removes old checkpoints and leftovers of killed runs, never the newest whole one."""
        # Folders of later steps are damaged or were put there by hand; they do not count.
        folders = sorted(f for f in self._root.glob("step-*") if f.name <= newest)
        for folder in (*folders[: -self._keep_last], *self._root.glob(".step-*.tmp")):
            if not self._is_kept(folder):
                shutil.rmtree(folder, ignore_errors=True)

    def _is_kept(self, folder: Path) -> bool:
        step = folder.name.removeprefix("step-")
        return bool(self._keep_every) and step.isdigit() and int(step) % self._keep_every == 0


def _name(step: int) -> str:
    return f"step-{step:08d}"


def find_checkpoints(run_dir: Path) -> list[Path]:
    """Returns a run's checkpoint folders: the one that `latest` names, then newest first."""
    found = sorted((run_dir / "checkpoints").glob("step-*"), reverse=True)
    pointed = _pointed(run_dir)
    return sorted(found, key=lambda folder: folder.name != pointed)


def newest_step(run_dir: Path) -> int | None:
    """Returns the step of a run's newest checkpoint, whole or not; None without checkpoints."""
    steps = [folder.name.removeprefix("step-") for folder in find_checkpoints(run_dir)]
    return next((int(step) for step in steps if step.isdecimal()), None)


def stored_config(run_dir: Path) -> dict[str, object] | None:
    """Returns the config of a run's last checkpoint as plain data; None without checkpoints."""
    for folder in find_checkpoints(run_dir):
        try:
            return _read_facts(folder)["config"]
        except _UNREADABLE:
            continue
    return None


def check_resumable(run_dir: Path, config: RunConfig) -> None:
    """Refuses to resume a run with other settings; cheap, so it is checked first.

    Args:
        run_dir: the run folder; it need not exist.
        config: the config to resume with.

    Raises:
        UsageError: if the last checkpoint has another config; names the differences.
    """
    stored = stored_config(run_dir)
    if stored is None:
        return
    changed = resume_differences(stored, config)
    if changed:
        shown = ", ".join(changed[:6]) + (", ..." if len(changed) > 6 else "")
        raise UsageError(
            f"{run_dir} was started with other settings of {shown}; "
            "use another --out, or the same settings to resume"
        )


def _read_facts(folder: Path) -> _Facts:
    """Returns the content of a checkpoint's `state.json`, checked against its digest."""
    facts: _Facts = json.loads((folder / _STATE).read_text(encoding="utf-8"))
    digest = facts.pop("digest", None)
    if digest is not None and digest != _digest(facts):
        raise ValueError(f"{_STATE} changed after writing")
    return facts


def _digest(facts: _Facts) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _pointed(run_dir: Path) -> str:
    try:
        return (run_dir / "latest").read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""


def _check_same(folder: Path, stored: dict[str, torch.Size], own: dict[str, torch.Size]) -> None:
    differing = {name for name in {**stored, **own} if stored.get(name) != own.get(name)}
    names = sorted({name.partition("/")[2] for name in differing})
    if names:
        shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        raise UsageError(f"{folder} belongs to another model: {len(names)} weights differ: {shown}")
