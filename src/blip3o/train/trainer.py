"""The one training loop. It knows batches, objectives, an optimizer and callbacks, nothing else."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from blip3o.core.config import to_dict
from blip3o.core.device import Precision, resolve_device, resolve_dtype
from blip3o.core.errors import PreemptedError, UsageError
from blip3o.core.log import MetricsLogger, say
from blip3o.core.types import Batch
from blip3o.train.checkpoint import Checkpoints, TrainState
from blip3o.train.config import RunConfig
from blip3o.train.ema import Ema
from blip3o.train.optimizer import (
    build_optimizer,
    learning_rate,
    select_trainable,
    set_learning_rate,
)
from blip3o.train.signals import StopRequest

StepLoader = Callable[[int], Iterator[list[Batch]]]
_MAY_CHANGE = ("steps", "log_every", "checkpoint_every", "sample_every", "keep_last", "device")
Sums = dict[str, tuple[float, float]]


class Trainer:
    """Trains a model; the same call again resumes where the last checkpoint left off.

    Args:
        run_dir: the run folder.
        config: the whole run.
        model: on the CPU; moved to the run's device.
        objectives: what is optimized; modules with `tasks`, `weight` and `count`.
        loader: start step -> the batches of each step from there on.
        callbacks: objects with any of `on_start(trainer)`, `on_log(trainer, step, values)`,
            `on_sample(trainer, step)`, `on_checkpoint(trainer, step, folder)`, `on_end(trainer)`.
    """

    def __init__(
        self,
        run_dir: Path,
        config: RunConfig,
        model: nn.Module,
        objectives: Sequence[nn.Module],
        loader: StepLoader,
        callbacks: Sequence[object] = (),
    ) -> None:
        train = config.train
        device = resolve_device(train.device)
        self.run_dir = run_dir
        self.config = config
        self.precision = Precision(device, resolve_dtype(train.precision, device))
        self.model = model.to(device)
        self.objectives = nn.ModuleList(objectives).to(device)
        self.parameters = select_trainable(self.model, self.objectives, train.trainable)
        self.optimizer = build_optimizer(self.parameters, train.optimizer)
        self.ema = Ema(self.parameters, train.ema_decay)
        self.state = TrainState()
        self.checkpoints = Checkpoints(run_dir, train.keep_last)
        self._loader = loader
        self._callbacks = callbacks
        if train.compile:
            for module in self.model.compile_targets():  # type: ignore[operator]
                module.compile()

    def fit(self) -> None:
        """Trains up to the last step.

        Raises:
            UsageError: if the run folder belongs to another config, or too many steps were not
                finite.
            PreemptedError: if a signal asked to stop; a checkpoint has been saved.
        """
        self._resume()
        steps = self.config.train.steps
        if self.state.step >= steps:
            say(f"{self.run_dir} has all of its {steps} steps; nothing to train")
            self._call("on_end")
            return
        self._set_modes()
        logger = MetricsLogger(self.run_dir, self.state.step)
        self._call("on_start")
        try:
            with StopRequest() as stop:
                self._run(logger, stop)
        finally:
            logger.close()
        self._call("on_end")

    def _run(self, logger: MetricsLogger, stop: StopRequest) -> None:
        train = self.config.train
        window = _Window(self.state)
        batches = self._loader(self.state.step)
        while self.state.step < train.steps:
            waiting = time.monotonic()
            groups = next(batches)
            window.waited += time.monotonic() - waiting
            window.add(self._step(groups))
            self.state.step += 1
            self.state.samples_seen += sum(len(batch) for batch in groups)
            step = self.state.step
            is_last = step == train.steps
            if step % train.log_every == 0 or is_last:
                values = window.close(self.state)
                values["lr"] = self.optimizer.param_groups[0]["lr"]
                logger.log(step, values)
                self._report(values)
                self._call("on_log", step, values)
            if step % train.checkpoint_every == 0 or is_last or stop.requested:
                self._checkpoint()
            if stop.requested and not is_last:
                raise PreemptedError(
                    f"stopped at step {step} after saving; the same command resumes"
                )
            if train.sample_every and (step % train.sample_every == 0 or is_last):
                self._call("on_sample", step)

    def _step(self, groups: list[Batch]) -> Sums:
        """One optimizer step; returns the sums to log."""
        train, step = self.config.train, self.state.step
        rate = learning_rate(step, train.steps, train.optimizer)
        set_learning_rate(self.optimizer, rate)
        self.optimizer.zero_grad(set_to_none=True)
        batches = [batch.to(self.precision.device) for batch in groups]
        totals = [
            sum(objective.count(batch) for batch in batches if batch.task in objective.tasks)  # type: ignore[operator]
            for objective in self.objectives
        ]
        sums: Sums = {"loss": (0.0, 1.0)}
        for objective, total in zip(self.objectives, totals, strict=True):
            for batch in batches:
                if batch.task in objective.tasks and total:  # type: ignore[operator]
                    self._backward(objective, batch, total, sums)
        norm = self._clip()
        sums["grad_norm"] = (norm, 1.0)
        if math.isfinite(sums["loss"][0]) and math.isfinite(norm):
            self.optimizer.step()
            self.ema.update(step)
        else:
            self._count_nonfinite()
            sums = {name: pair for name, pair in sums.items() if math.isfinite(pair[0])}
        return sums

    def _backward(self, objective: nn.Module, batch: Batch, total: float, sums: Sums) -> None:
        with self.precision.autocast():
            output = objective(self.model, batch, self.config.train.seed)
        weighted = output.loss_sum * (objective.weight / total)  # type: ignore[operator]
        weighted.backward()
        name = type(objective).__name__
        sums["loss"] = (sums["loss"][0] + float(weighted.detach()), 1.0)
        _add(sums, f"{name}/loss", float(output.loss_sum.detach()), output.count)
        for metric, (value, count) in output.metrics.items():
            _add(sums, f"{name}/{metric}", float(value), float(count))

    def _clip(self) -> float:
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        if not gradients:
            raise UsageError(
                "no objective gave a gradient: check objectives.tasks against data.mixture tasks"
            )
        norm: Tensor = nn.utils.get_total_norm(gradients, foreach=True)
        nn.utils.clip_grads_with_norm_(
            self.parameters.values(), self.config.train.grad_clip, norm, foreach=True
        )
        return float(norm)

    def _count_nonfinite(self) -> None:
        self.state.nonfinite_steps += 1
        limit = self.config.train.max_nonfinite_steps
        say(f"warning: step {self.state.step} was not finite and updated nothing")
        if self.state.nonfinite_steps > limit:
            raise UsageError(
                f"{self.state.nonfinite_steps} steps were not finite, more than "
                f"train.max_nonfinite_steps={limit}; lower train.optimizer.lr"
            )

    def _resume(self) -> None:
        restored = self.checkpoints.load(self.parameters, self.ema, self.optimizer)
        if restored is None:
            return
        self.state, stored = restored
        own = to_dict(self.config)
        for config in (stored, own):
            config["train"] = {
                key: value for key, value in config["train"].items() if key not in _MAY_CHANGE
            }
        changed = _differences(stored, own)
        if changed:
            raise UsageError(
                f"{self.run_dir} was started with other settings of {', '.join(changed[:6])}; "
                "use another --out, or the same settings to resume"
            )
        say(f"resuming {self.run_dir} at step {self.state.step}")

    def _set_modes(self) -> None:
        """Training mode exactly for modules that hold something to train."""
        self.model.eval()
        for module in self.model.modules():
            if any(parameter.requires_grad for parameter in module.parameters()):
                module.training = True
        self.objectives.train()

    def _checkpoint(self) -> None:
        folder = self.checkpoints.save(
            self.state, self.parameters, self.ema, self.optimizer, to_dict(self.config)
        )
        self._call("on_checkpoint", self.state.step, folder)

    def _report(self, values: dict[str, Any]) -> None:
        left = self.config.train.steps - self.state.step
        seconds = left * self.config.train.global_batch_size / max(values["samples_per_second"], 1e-9)
        say(
            f"step {self.state.step}/{self.config.train.steps}  loss {values.get('loss', math.nan):.4f}"
            f"  lr {values['lr']:.1e}  {values['samples_per_second']:.1f} samples/s"
            f"  {seconds / 60:.1f} min left"
        )

    def _call(self, event: str, *arguments: object) -> None:
        for callback in self._callbacks:
            handler = getattr(callback, event, None)
            if handler is not None:
                handler(self, *arguments)


class _Window:
    """Sums since the last line of metrics."""

    def __init__(self, state: TrainState) -> None:
        self.waited = 0.0
        self._restart(state)

    def _restart(self, state: TrainState) -> None:
        self.waited = 0.0
        self._sums: Sums = {}
        self._start = time.monotonic()
        self._samples = state.samples_seen

    def add(self, sums: Sums) -> None:
        """Takes in the sums of a step."""
        for name, (value, count) in sums.items():
            _add(self._sums, name, value, count)

    def close(self, state: TrainState) -> dict[str, Any]:
        """Returns the averages and the speed, and starts anew."""
        seconds = time.monotonic() - self._start
        values: dict[str, Any] = {name: v / max(c, 1e-12) for name, (v, c) in self._sums.items()}
        values["samples_seen"] = state.samples_seen
        values["samples_per_second"] = (state.samples_seen - self._samples) / seconds
        values["data_wait"] = self.waited / seconds
        values["nonfinite_steps"] = state.nonfinite_steps
        values["memory_mb"] = _memory_mb()
        self._restart(state)
        return values


def _add(sums: Sums, name: str, value: float, count: float) -> None:
    old_value, old_count = sums.get(name, (0.0, 0.0))
    sums[name] = (old_value + value, old_count + count)


def _memory_mb() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _differences(left: Any, right: Any, path: str = "") -> list[str]:  # noqa: ANN401
    """Returns the dotted paths at which two plain configs differ."""
    if isinstance(left, dict) and isinstance(right, dict):
        keys = [*left, *(key for key in right if key not in left)]
        return [
            found
            for key in keys
            for found in _differences(
                left.get(key), right.get(key), f"{path}.{key}" if path else str(key)
            )
        ]
    if isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        pairs = enumerate(zip(left, right, strict=True))
        return [found for i, (a, b) in pairs for found in _differences(a, b, f"{path}.{i}")]
    return [] if left == right else [path]
