"""The one training loop. It knows batches, objectives, an optimizer and callbacks, nothing else."""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from blip3o.core.config import save_yaml, to_dict
from blip3o.core.device import Precision, resolve_device, resolve_dtype
from blip3o.core.errors import PreemptedError, UsageError
from blip3o.core.log import MetricsLogger, say
from blip3o.core.rng import numpy_rng
from blip3o.core.types import Batch
from blip3o.nn.checkpointing import checkpoint_blocks
from blip3o.objectives import Objective
from blip3o.train.adapters import add_adapters
from blip3o.train.checkpoint import Checkpoints, TrainState, stored_config
from blip3o.train.config import RunConfig, resume_differences
from blip3o.train.ema import Ema
from blip3o.train.environment import write_environment
from blip3o.train.flops import count_flops, peak_tflops
from blip3o.train.optimizer import (
    build_optimizer,
    learning_rate,
    select_buffers,
    select_trainable,
    set_learning_rate,
)
from blip3o.train.progress import Progress, Sums, Window, add_sums, memory_mb
from blip3o.train.signals import StopRequest, children_outlive_sigterm

StepLoader = Callable[[int], Iterator[list[Batch]]]
_Terms = list[tuple[str, Tensor, float]]  # name, sum on the device, count


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

    Raises:
        UsageError: if the run folder belongs to another config, or the config does not fit the
            model or this machine.
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
        check_resumable(run_dir, config)
        train = config.train
        device = resolve_device(train.device)
        self.run_dir = run_dir
        self.config = config
        self.precision = Precision(device, _training_dtype(config, device))
        self.model = model.to(device)
        modules = nn.ModuleList(objectives).to(device)
        self.objectives = modules
        trainable = add_adapters(self.model, train)
        self.parameters = select_trainable(self.model, modules, trainable)
        self.optimizer = build_optimizer(self.parameters, train.optimizer)
        self.ema = Ema(self.parameters, train.ema_decay)
        self.state = TrainState()
        self._named_objectives = _name(cast("Sequence[Objective]", objectives))
        self._checkpoints = Checkpoints(
            run_dir,
            train.keep_last,
            self.parameters,
            select_buffers(self.model, modules),
            self.ema,
            self.optimizer,
        )
        self._loader = loader
        self._callbacks = callbacks
        if train.activation_checkpointing:
            checkpoint_blocks(self.model)
        if train.compile:
            _compile(self.model)

    def fit(self) -> None:
        """Trains up to the last step.

        Raises:
            UsageError: if no checkpoint can be read, the config does not fit the data, too many
                steps were not finite, or a checkpoint cannot be written.
            PreemptedError: if a signal asked to stop; a checkpoint has been saved.
        """
        train = self.config.train
        self.state = self._checkpoints.load() or self.state
        if self.state.step >= train.steps:
            say(f"{self.run_dir} is finished: step {self.state.step} of {train.steps}")
            self._call("on_end")
            return
        if self.state.step:
            say(f"resuming {self.run_dir} at step {self.state.step}")
        self.run_dir.mkdir(parents=True, exist_ok=True)
        save_yaml(self.config, self.run_dir / "config.yaml")
        write_environment(self.run_dir, self.precision.device)
        self._set_modes()
        logger = MetricsLogger(self.run_dir, self.state.step)
        progress = Progress(self.state.step, train.steps, train.global_batch_size)
        batches = self._loader(self.state.step)
        try:
            self._call("on_start")
            with StopRequest() as stop:
                self._run(batches, logger, progress, stop)
        finally:
            progress.close()
            logger.close()
            if hasattr(batches, "close"):
                batches.close()  # ends the loader's workers now, not when Python finds the time
        self._call("on_end")

    def _run(
        self,
        batches: Iterator[list[Batch]],
        logger: MetricsLogger,
        progress: Progress,
        stop: StopRequest,
    ) -> None:
        train, state = self.config.train, self.state
        window = Window(state.window, peak_tflops(self.precision.device))
        is_saved = state.step > 0  # by the run that this one resumes
        is_first = True
        while state.step < train.steps and not stop.requested:
            start = time.monotonic()
            groups = self._next(batches, is_first=is_first)
            waited, is_first = time.monotonic() - start, False
            if stop.requested:
                break
            rate = learning_rate(state.step, train.steps, train.optimizer)
            samples = sum(len(batch) for batch in groups)
            tokens = sum(int(batch.attention_mask.sum()) for batch in groups)
            if window.flops_per_token is None and not train.compile:
                with count_flops(self.model) as count:
                    sums = self._step(groups, rate)
                window.flops_per_token = count.total / max(tokens, 1)
            else:
                sums = self._step(groups, rate)
            window.add(sums, samples, tokens, waited)
            state.step += 1
            state.samples_seen += samples
            is_last = state.step == train.steps
            progress.advance()
            if state.step % train.log_every == 0 or is_last:
                values = {**window.close(), **self._facts(), "lr": rate}
                logger.log(state.step, values)
                progress.report(values)
                self._call("on_log", state.step, values)
            is_saved = state.step % train.checkpoint_every == 0 or is_last
            if is_saved:
                self._save()
            if train.sample_every and (state.step % train.sample_every == 0 or is_last):
                self._call("on_sample", state.step)
                self._set_modes()
        if state.step < train.steps:
            if not is_saved:
                self._save()
            raise PreemptedError(
                f"stopped at step {state.step} after saving; the same command resumes"
            )

    def _next(self, batches: Iterator[list[Batch]], *, is_first: bool) -> list[Batch]:
        with children_outlive_sigterm() if is_first else nullcontext():  # workers start now
            groups = next(batches, None)
        if groups is None:
            raise UsageError(f"the data ended at step {self.state.step}; lower train.steps")
        return groups

    def _step(self, groups: list[Batch], rate: float) -> Sums:
        """One optimizer step; returns the sums to log."""
        step = self.state.step
        # Our own draws are keyed by sample. This one is for parts that use torch's global
        # generator (dropout in a library's module): they, too, must not depend on the past.
        torch.manual_seed(int(numpy_rng(self.config.train.seed, "step", step).integers(2**62)))
        set_learning_rate(self.optimizer, rate)
        self.optimizer.zero_grad(set_to_none=True)
        self._check_tasks(groups)
        batches = [batch.to(self.precision.device) for batch in groups]
        terms: _Terms = []
        for name, objective in self._named_objectives.items():
            counted = [(b, objective.count(b)) for b in batches if b.task in objective.tasks]
            total = sum(count for _, count in counted)
            for batch, count in counted:
                if count:
                    terms += self._backward(name, objective, batch, total)
        terms.append(("grad_norm", self._clip(), 1.0))
        sums = _read(terms)
        if all(math.isfinite(sums[name][0]) for name in ("loss", "grad_norm") if name in sums):
            self.optimizer.step()
            self.ema.update(step)
            return sums
        self._count_nonfinite()
        return {name: pair for name, pair in sums.items() if math.isfinite(pair[0])}

    def _backward(self, name: str, objective: Objective, batch: Batch, total: float) -> _Terms:
        with self.precision.autocast():
            output = objective(cast("Any", self.model), batch, self.config.train.seed)
        weighted = output.loss_sum * (objective.weight / total)
        if not weighted.requires_grad:
            raise UsageError(
                f"no gradient reaches anything from the objective {name}: train.trainable "
                f"({', '.join(self.config.train.trainable)}) names no part it goes through"
            )
        weighted.backward()
        return [
            ("loss", weighted.detach(), 0.0),  # summed over a step; `_read` counts the step
            (f"{name}/loss", output.loss_sum.detach(), output.count),
            *((f"{name}/{key}", v.detach(), c) for key, (v, c) in output.metrics.items()),
        ]

    def _clip(self) -> Tensor:
        """Scales all gradients together; returns their norm before."""
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients, foreach=True)
        nn.utils.clip_grads_with_norm_(
            self.parameters.values(), self.config.train.grad_clip, norm, foreach=True
        )
        return norm

    def _count_nonfinite(self) -> None:
        self.state.nonfinite_steps += 1
        limit = self.config.train.max_nonfinite_steps
        say(f"warning: step {self.state.step} was not finite and updated nothing")
        if self.state.nonfinite_steps > limit:
            raise UsageError(
                f"{self.state.nonfinite_steps} steps were not finite, more than "
                f"train.max_nonfinite_steps={limit}; lower train.optimizer.lr"
            )

    def _check_tasks(self, groups: list[Batch]) -> None:
        learned = {task for o in self._named_objectives.values() for task in o.tasks}
        for batch in groups:
            if batch.task not in learned:
                raise UsageError(
                    f"no objective learns from the task {batch.task!r} of data.mixture; "
                    f"objectives.*.tasks name {', '.join(sorted(learned))}"
                )

    def _set_modes(self) -> None:
        _set_mode(self.model, is_training=True)
        self.objectives.train()

    def _save(self) -> None:
        folder = self._checkpoints.save(self.state, to_dict(self.config))
        self._call("on_checkpoint", self.state.step, folder)

    def _facts(self) -> dict[str, Any]:
        return {
            "samples_seen": self.state.samples_seen,
            "nonfinite_steps": self.state.nonfinite_steps,
            "memory_mb": memory_mb(self.precision.device),
        }

    def _call(self, event: str, *arguments: object) -> None:
        for callback in self._callbacks:
            handler = getattr(callback, event, None)
            if handler is not None:
                handler(self, *arguments)


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


def _training_dtype(config: RunConfig, device: torch.device) -> torch.dtype:
    dtype = resolve_dtype(config.train.precision, device)
    if dtype != torch.float16:
        return dtype
    if config.train.precision == "auto":
        return torch.float32
    raise UsageError("training in fp16 needs scaled losses, which we lack; use bf16 or fp32")


def _set_mode(module: nn.Module, *, is_training: bool) -> None:
    """Training mode for what holds something to train; without weights (dropout), as its parent."""
    parameters = list(module.parameters())
    if parameters:
        is_training = any(parameter.requires_grad for parameter in parameters)
    module.training = is_training
    for child in module.children():
        _set_mode(child, is_training=is_training)


def _compile(model: nn.Module) -> None:
    if not hasattr(model, "compile_targets"):
        say("warning: train.compile does nothing: the model names no compile_targets()")
        return
    for module in cast("Any", model).compile_targets():
        module.compile()


def _name(objectives: Sequence[Objective]) -> dict[str, Objective]:
    """Returns the objectives by the name they are logged under; equal ones are numbered."""
    seen: Counter[str] = Counter()
    named: dict[str, Objective] = {}
    for objective in objectives:
        name = type(objective).__name__
        seen[name] += 1
        named[name if seen[name] == 1 else f"{name}-{seen[name]}"] = objective
    return named


def _read(terms: _Terms) -> Sums:
    """Returns the sums by name as plain numbers; the device is waited for once."""
    device = terms[-1][1].device
    numbers = torch.stack([tensor.to(device, torch.float32) for _, tensor, _ in terms]).tolist()
    sums: Sums = {}
    for (name, _, count), number in zip(terms, numbers, strict=True):
        add_sums(sums, {name: (number, float(count))})
    if "loss" in sums:
        sums["loss"] = (sums["loss"][0], 1.0)
    return sums
