"""Checkpoints that are whole or not there: written aside, flushed, renamed, then pointed to.

A run folder holds `checkpoints/step-00000500/` and so on, and `latest`, a file with the name of the
one to resume from. In a checkpoint are tensors as `TensorStore` writes them, named `model/...`
(trained weights, objectives' own too), `ema/...` (their averages) and `optimizer/...` (AdamW's
moments), and `state.json` (step, counts, config, sizes and hashes of the other files, and a digest
of itself). What does not fit its hash is damaged, as what is cut short is.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blip3o.core.distributed import is_main
from blip3o.core.errors import UsageError
from blip3o.core.files import flush, write_atomic
from blip3o.core.log import say
from blip3o.train.config import RunConfig, resume_differences
from blip3o.train.ema import Ema
from blip3o.train.optimizer import NamedParameters
from blip3o.train.progress import Sums
from blip3o.train.tensors import STORE_ERRORS, TensorStore, reason_of

_MODEL, _EMA, _OPTIMIZER = "model", "ema", "optimizer"
_STATE = "state.json"
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, *STORE_ERRORS)


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

    A save copies the tensors to the CPU and returns; a thread writes the copies while training goes
    on. All processes of a run save and load together.

    Args:
        run_dir: the run folder.
        keep_last: how many are kept.
        keep_every: those of every so many steps are kept, too; 0 for none.
        parameters: trained weights by name; saved, and filled in place when loading.
        buffers: further tensors that change while training; likewise.
        ema: averages of the weights; likewise.
        optimizer: AdamW over the weights; likewise.
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

    def save(self, state: TrainState, config: dict[str, Any]) -> Path:
        """Begins to write a checkpoint that `latest` will name; returns its folder to be.

        Args:
            state: step and counts.
            config: the resolved run config as plain data.

        Raises:
            UsageError: if the save before this one failed (a full disk); earlier checkpoints stay
                as they are.
        """
        self.wait()
        name = f"step-{state.step:08d}"
        facts = {**dataclasses.asdict(state), "config": config}
        tensors = self._store.copy({**self._weights(), **self._moments()})
        self._writing = self._thread.submit(self._write, name, tensors, facts)
        return self._root / name

    @property
    def has_failed(self) -> bool:
        """Whether the last save failed; `wait` raises why."""
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
        """Waits for the writer; what it says is for `wait`."""
        self._thread.shutdown()

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
                reason = reason_of(error)
                say(f"warning: checkpoint {folder} is not whole ({reason}); trying another one")
                continue
            if folder.name != _pointed(run_dir):
                say(f"warning: {self._latest} names no whole checkpoint; taking {folder.name}")
            return state
        if candidates or self._latest.exists():
            raise UsageError(
                f"no checkpoint in {self._root} can be read; move {run_dir} away to start over"
            )
        return None

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

    def _write(self, name: str, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Writes copies; in the thread, of all processes at once."""
        scratch, folder = self._root / f".{name}.tmp", self._root / name

        def begin() -> None:
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(parents=True)

        try:
            self._store.on_main(begin)
            self._store.write(scratch, tensors)
            facts = {**facts, "hashes": self._store.hashes(scratch)}
            self._store.on_main(lambda: self._publish(scratch, folder, facts))
        except (OSError, ValueError, *STORE_ERRORS) as error:
            if is_main():
                shutil.rmtree(scratch, ignore_errors=True)
            raise UsageError(
                f"checkpoint {folder} could not be written ({reason_of(error)}); earlier ones are "
                "intact: make room and run the same command again to resume"
            ) from error

    def _publish(self, scratch: Path, folder: Path, facts: dict[str, Any]) -> None:
        """Gives written and flushed tensors their name; each rename is whole or not there."""
        sizes = {path.name: path.stat().st_size for path in sorted(scratch.iterdir())}
        facts = {**facts, "files": sizes}
        write_atomic(scratch / _STATE, json.dumps({**facts, "digest": _digest(facts)}))
        flush(scratch)
        # Only a run that resumed from an earlier step meets a folder of this name: `latest`
        # does not point to it, so it may go first.
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(scratch, folder)
        flush(self._root)
        write_atomic(self._latest, folder.name + "\n")
        flush(self._latest.parent)
        self._prune(folder.name)

    def _read(self, folder: Path) -> TrainState:
        facts = _read_facts(folder)
        del facts["config"]
        for file, size in facts.pop("files").items():
            if (folder / file).stat().st_size != size:
                raise ValueError(f"{file} is damaged")
        self._check_hashes(folder, facts.pop("hashes", None))
        state = TrainState(**facts)
        state.window = {name: (value, count) for name, (value, count) in state.window.items()}
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
            say(f"{folder} is of an older version, without hashes: its damage is not noticed")
            return
        found = self._store.hashes(folder)
        damaged = sorted(name for name in hashes if found.get(name) != hashes[name])
        if damaged:
            raise ValueError(f"{', '.join(damaged)} changed after it was written")

    def _fresh_moments(self, names: list[str]) -> dict[str, Tensor]:
        """Gives the optimizer a state to be filled, and returns it by name."""
        self._optimizer.state.clear()
        for name in names:
            owner, _, key = name.removeprefix(f"{_OPTIMIZER}/").rpartition("/")
            parameter = self._parameters[owner]
            # A step count lies beside its parameter: that is where the fused kernels want it.
            self._optimizer.state[parameter][key] = (
                torch.zeros((), device=parameter.device)
                if key == "step"
                else torch.zeros_like(parameter.detach())
            )
        return self._moments()

    def _prune(self, newest: str) -> None:
        """Removes old checkpoints and what killed runs left behind, never the newest whole one."""
        # Later steps than the newest: damaged, or left behind by hand. They do not count.
        folders = sorted(f for f in self._root.glob("step-*") if f.name <= newest)
        for folder in (*folders[: -self._keep_last], *self._root.glob(".step-*.tmp")):
            if not self._is_kept(folder):
                shutil.rmtree(folder, ignore_errors=True)

    def _is_kept(self, folder: Path) -> bool:
        step = folder.name.removeprefix("step-")
        return bool(self._keep_every) and step.isdigit() and int(step) % self._keep_every == 0


def find_checkpoints(run_dir: Path) -> list[Path]:
    """Returns the checkpoint folders of a run: the one `latest` names, then newest first.

    Args:
        run_dir: the run folder; it need not exist.
    """
    found = sorted((run_dir / "checkpoints").glob("step-*"), reverse=True)
    pointed = _pointed(run_dir)
    return sorted(found, key=lambda folder: folder.name != pointed)


def newest_step(run_dir: Path) -> int | None:
    """Returns the step that a run resumes at if its newest checkpoint is whole; None without one.

    Args:
        run_dir: the run folder; it need not exist.
    """
    steps = [folder.name.removeprefix("step-") for folder in find_checkpoints(run_dir)]
    return next((int(step) for step in steps if step.isdecimal()), None)


def stored_config(run_dir: Path) -> dict[str, Any] | None:
    """Returns the config a run was last saved with as plain data; None without checkpoints.

    Args:
        run_dir: the run folder; it need not exist.
    """
    for folder in find_checkpoints(run_dir):
        try:
            return _read_facts(folder)["config"]
        except _UNREADABLE:
            continue
    return None


def check_resumable(run_dir: Path, config: RunConfig) -> None:
    """Refuses to go on with a run under other settings; cheap, so worth asking first of all.

    Args:
        run_dir: the run folder; it need not exist.
        config: the whole run.

    Raises:
        UsageError: if there are checkpoints of another config, naming what differs.
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


def _read_facts(folder: Path) -> dict[str, Any]:
    """Returns what a checkpoint says of itself, whole."""
    facts = json.loads((folder / _STATE).read_text(encoding="utf-8"))
    digest = facts.pop("digest", None)
    if digest is not None and digest != _digest(facts):
        raise ValueError(f"{_STATE} changed after it was written")
    return facts


def _digest(facts: dict[str, Any]) -> str:
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
        raise UsageError(f"{folder} is of another model: {len(names)} weights differ: {shown}")
