"""The one training loop; it knows only batches, objectives, an optimizer and callbacks."""

import dataclasses
import functools
import itertools
import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
from torch import nn
from torch.profiler import profile

from blip3o.core.config import save_yaml, to_dict
from blip3o.core.device import Precision, resolve_device
from blip3o.core.distributed import exchange, is_main, world_size
from blip3o.core.errors import PreemptedError, UsageError
from blip3o.core.log import say
from blip3o.core.rng import numpy_rng
from blip3o.core.types import Batch
from blip3o.nn.blocks import checkpoint_blocks
from blip3o.objectives import Counts, TextObjective, added, counts_of
from blip3o.train.activations import count_activations, needs_checkpointing
from blip3o.train.adapters import add_adapters
from blip3o.train.callbacks import Callback
from blip3o.train.checkpoint import Checkpoints, TrainState, check_resumable
from blip3o.train.compiling import TRIAL_STEP, compile_blocks, is_compiling_faster
from blip3o.train.config import RunConfig
from blip3o.train.diverged import DivergedError, are_finite, diverged, explaining
from blip3o.train.environment import Notes, write_environment
from blip3o.train.flops import FlopCount, count_flops, peak_tflops
from blip3o.train.learner import Learner, check_batches, local, name_objectives
from blip3o.train.model_setup import (
    apply_switches,
    blocks_of,
    halve_frozen,
    prepare_model,
    set_mode,
    training_dtype,
)
from blip3o.train.optimizer import (
    Ema,
    build_optimizer,
    clip_gradients,
    learning_rate,
    matrices_of,
    select_buffers,
    select_trainable,
    set_learning_rate,
)
from blip3o.train.profiling import profiling
from blip3o.train.progress import RunLog, Sums, Terms, Window, memory_mb, merge_sums, read_terms
from blip3o.train.rollouts import Policies
from blip3o.train.signals import StopRequest, children_outlive_sigterm

_COUNTED_STEPS = 8
"""Steps whose operations are counted, because rows and tasks differ."""

StepLoader = Callable[[int], Iterator[list[Batch]]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Loaded:
    """The message that each process sends to the others before a step.

    Args:
        stop: whether it must stop: a signal came, or the last checkpoint failed.
        error: the error that keeps it from going on.
        samples: number of its samples.
        tokens: number of tokens of their texts.
        waited: seconds it waited for the data.
    """

    stop: bool
    error: UsageError | None
    samples: int
    tokens: int
    waited: float


class Trainer:
    """Trains a model; the same call again resumes from the last checkpoint.

    All processes that a launcher started train one model: the loss and gradient of a step are those
    of its global batch, whatever the number of processes.

    Args:
        run_dir: the run folder.
        config: the whole run.
        model: on the CPU; moved to the run's device.
        objectives: modules that implement `Objective`.
        loader: maps a start step to this process's batches of every step from there on.
        callbacks: called on the main process only.
        notes: further facts for `env.json` and for every line of metrics.

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
        callbacks: Sequence[Callback] = (),
        notes: Notes | None = None,
    ) -> None:
        check_resumable(run_dir, config)
        train = config.train
        device = resolve_device(train.device)
        self.run_dir = run_dir
        self.config = config
        self.precision = Precision(device, training_dtype(config, device))
        self.model = model
        self.learner = Learner(model, objectives)
        trainable = add_adapters(self.model, train)
        self.objectives = self.learner.objectives
        self.parameters = select_trainable(self.model, self.objectives, trainable)
        self._is_halved = halve_frozen(self.model, self.precision.dtype)
        self.learner.to(device)
        with self._no_training():
            prepare_model(model, objectives)
        apply_switches(self.model, train)
        if world_size() > 1:
            self.learner.shard(self.precision)  # replaces the parameter objects
            self.parameters = select_trainable(self.model, self.objectives, trainable)
        matrices = [
            matrix for network in (self.model, *self.objectives) for matrix in matrices_of(network)
        ]
        self.optimizer = build_optimizer(
            self.parameters, train.optimizer, matrices, self.precision.dtype
        )
        self.ema = Ema(self.parameters, train.ema_decay)
        self.state = TrainState()
        self._first_done: tuple[int, float] | None = None
        self._has_chosen = train.activation_checkpointing != "auto"
        self._named_objectives = name_objectives(objectives)
        self._policies = Policies(
            self.learner, [*self._named_objectives.values()], self.ema.averages
        )
        self._checkpoints = Checkpoints(
            run_dir,
            train.keep_last,
            train.keep_every,
            self.parameters,
            select_buffers(self.model, self.objectives),
            self.ema,
            self.optimizer,
        )
        self._loader = loader
        self._callbacks = tuple(callbacks) if is_main() else ()
        self._notes = notes or Notes()

    def fit(self) -> None:
        """Trains up to the last step.

        Raises:
            UsageError: if checkpoints exist but none can be read, the config does not fit the data,
                too many steps were not finite, or a checkpoint cannot be written.
            PreemptedError: if a signal asked to stop; a checkpoint has been saved.
        """
        try:
            self._fit()
        finally:
            self._checkpoints.close()

    @contextmanager
    def stored(self, step: int) -> Iterator[None]:
        """Holds the averaged weights of a stored step in the model until the context ends.

        Args:
            step: a step whose checkpoint was kept.

        Raises:
            UsageError: if the checkpoint is missing or damaged.
        """
        self.state = self._checkpoints.load_step(step)
        with self.learner.using(self.ema.averages):
            yield

    def flops_per_sample(self) -> float:
        """Returns the mean operations per sample of the first steps, forward and backward.

        These steps are done with a learning rate of 0. Use a trainer that does not train
        afterwards.
        """
        self._set_modes()
        self._has_chosen = True  # a trial would be counted
        batches = self._loader(0)
        samples = 0
        try:
            with count_flops(self.model) as count:
                steps = min(_COUNTED_STEPS, self.config.train.steps)
                for groups in itertools.islice(batches, steps):
                    self._step(groups, 0.0)
                    samples += sum(len(batch) for batch in groups)
        finally:
            if isinstance(batches, Generator):
                batches.close()
        return sum(exchange(count.total)) / sum(exchange(samples))

    def _fit(self) -> None:
        train = self.config.train
        self.state = self._checkpoints.load() or self.state
        if self.state.step >= train.steps:
            say(f"{self.run_dir} is finished: step {self.state.step} of {train.steps}")
            self._end()
            return
        if self.state.step:
            say(f"resuming {self.run_dir} at step {self.state.step}")
            if train.compile == "auto" and self.state.is_compiled:
                compile_blocks(blocks_of(self.model))
        if is_main():
            self.run_dir.mkdir(parents=True, exist_ok=True)
            save_yaml(self.config, self.run_dir / "config.yaml")
            write_environment(self.run_dir, self.precision.device, self._notes.environment)
        self._set_modes()
        log = RunLog(self.run_dir, self.state.step, train.steps, train.global_batch_size)
        batches = self._loader(self.state.step)
        try:
            for callback in self._callbacks:
                callback.on_start(self)
            profile_dir = self.run_dir / "profile" if train.profile and is_main() else None
            with StopRequest() as stop, profiling(profile_dir, self.precision.device) as profiler:
                self._run(batches, log, stop, profiler)
        finally:
            log.close()
            if isinstance(batches, Generator):
                batches.close()  # ends the loader's workers now, not at garbage collection
        self._end()

    def _end(self) -> None:
        """Calls `on_end`, unless the model is too damaged to keep."""
        state, rate = self.state, self.config.train.optimizer.lr
        if not all(exchange(are_finite(self.ema.averages.values()))):
            raise diverged(state.step, rate, "weights are not numbers")
        if 2 * state.nonfinite_steps > state.step:
            symptom = f"{state.nonfinite_steps} steps were not finite and updated nothing"
            raise diverged(state.step, rate, symptom)
        self._show(lambda callback: callback.on_end(self))

    def _run(
        self,
        batches: Iterator[list[Batch]],
        log: RunLog,
        stop: StopRequest,
        profiler: profile | None,
    ) -> None:
        train, state = self.config.train, self.state
        peak = peak_tflops(self.precision.device)
        window = Window(state.window, peak and peak * world_size())
        is_saved = state.step > 0  # by an earlier start
        is_first = True
        while state.step < train.steps:
            groups, all_loaded = self._next(batches, stop, is_first=is_first)
            is_first = False
            if any(one.stop for one in all_loaded):
                break
            rate = learning_rate(state.step, train.steps, train.optimizer)
            samples = sum(one.samples for one in all_loaded)
            tokens = sum(one.tokens for one in all_loaded)
            # The first step of a start may try out a forward pass, which must not be counted.
            is_plain = train.compile is not True and not state.is_compiled
            is_counting = window.flops_per_token is None and self._has_chosen and is_plain
            counting = count_flops(self.model) if is_counting else nullcontext(FlopCount())
            with self._explaining(), counting as count:
                sums = self._step(groups, rate)
            if is_counting:
                window.flops_per_token = sum(exchange(count.total)) / max(tokens, 1)
            window.add(sums, samples, tokens, max(one.waited for one in all_loaded))
            state.step += 1
            self._first_done = self._first_done or (state.step, time.monotonic())
            state.samples_seen += samples
            is_last = state.step == train.steps
            if profiler is not None:
                profiler.step()
            log.advance()
            if state.step % train.log_every == 0 or is_last:
                values = {**window.close(), **self._facts(), "lr": rate}
                log.log(values)
                for callback in self._callbacks:
                    callback.on_log(self, state.step, values)
            is_saved = state.step % train.checkpoint_every == 0 or is_last
            if is_saved:
                self._save()
            if train.sample_every and (state.step % train.sample_every == 0 or is_last):
                self._show(lambda callback: callback.on_sample(self, state.step))
                self._set_modes()
        self._checkpoints.wait()
        if state.step < train.steps:
            if not is_saved:
                self._save()
                self._checkpoints.wait()
            raise PreemptedError(
                f"stopped at step {state.step} after saving; the same command resumes"
            )

    def _next(
        self, batches: Iterator[list[Batch]], stop: StopRequest, *, is_first: bool
    ) -> tuple[list[Batch], list[_Loaded]]:
        """Returns this process's batches of a step, and the messages of all processes.

        An error on any process is raised on all of them.
        """
        start, groups, error = time.monotonic(), None, None
        try:
            with children_outlive_sigterm() if is_first else nullcontext():  # workers start now
                groups = next(batches, None)
            check_batches(groups, self._named_objectives.values(), self.state.step)
        except UsageError as caught:
            error = caught
        groups = groups or []
        loaded = _Loaded(
            stop=stop.requested or self._checkpoints.has_failed,
            error=error,
            samples=sum(len(batch) for batch in groups),
            tokens=sum(int(batch.attention_mask.sum()) for batch in groups),
            waited=time.monotonic() - start,
        )
        all_loaded = exchange(loaded)
        for one in all_loaded:
            if one.error is not None:
                raise one.error
        return groups, all_loaded

    def _step(self, groups: list[Batch], rate: float) -> Sums:
        """Runs one optimizer step; returns the sums to log."""
        step = self.state.step
        # Our own random numbers are keyed by sample. This seed is for modules that use torch's
        # global generator (a library's dropout): they must not depend on earlier steps either.
        torch.manual_seed(int(numpy_rng(self.config.train.seed, "step", step).integers(2**62)))
        set_learning_rate(self.optimizer, rate)
        self.optimizer.zero_grad(set_to_none=True)
        batches = [batch.to(self.precision.device) for batch in groups]
        objectives = list(self._named_objectives.values())
        counts = [[counts_of(one, batch) for batch in batches] for one in objectives]
        everywhere = exchange([added(some) for some in counts])
        totals = [added(some) for some in zip(*everywhere, strict=True)]
        rolled = self._roll_out(batches)
        self.learner.gather()
        if not self._has_chosen:
            self._choose_checkpointing(rolled, counts)
        backward = functools.partial(self._all_backward, rolled, counts, totals)
        if self._may_compile():
            self._choose_compiling(backward)
        terms = backward()
        self.learner.reduce()
        norm = clip_gradients(self.parameters.values(), self.config.train.grad_clip)
        if is_main():
            terms.append(("grad_norm", norm, 1.0))
        reports = exchange((read_terms(terms), self.learner.untouched()))
        sums = merge_sums(part for part, _ in reports)
        if all(math.isfinite(sums[name][0]) for name in ("loss", "grad_norm") if name in sums):
            self.learner.drop_gradients(set.intersection(*(names for _, names in reports)))
            self.optimizer.step()
            self.ema.update(step)
            return sums
        self._count_nonfinite()
        return {name: pair for name, pair in sums.items() if math.isfinite(pair[0])}

    def _may_compile(self) -> bool:
        """Returns whether the next step may choose to compile; later steps keep the choice."""
        state, train = self.state, self.config.train
        is_open = train.compile == "auto" and state.is_compiled is None
        return is_open and state.step >= TRIAL_STEP and world_size() == 1

    def _choose_compiling(self, backward: Callable[[], Terms]) -> None:
        """Compiles the blocks if that makes the rest of the run faster; changes nothing else."""
        train, state = self.config.train, self.state
        if self._first_done is None or self._first_done[0] == state.step:
            return  # the first steps of a start are slower than others
        step, begin = self._first_done
        seconds = (time.monotonic() - begin) / (state.step - step) * (train.steps - state.step)
        buffers = [(buffer, buffer.clone()) for buffer in self.learner.buffers()]
        with torch.random.fork_rng():
            state.is_compiled = is_compiling_faster(
                blocks_of(self.model), backward, self.config, self.precision, seconds
            )
        with torch.no_grad():  # running statistics
            for buffer, kept in buffers:
                buffer.copy_(kept)
        self.optimizer.zero_grad(set_to_none=True)

    def _choose_checkpointing(
        self, batches: Sequence[Sequence[Batch]], counts: Sequence[Sequence[Counts]]
    ) -> None:
        """Checkpoints the blocks if the largest batch of an objective leaves too little memory."""
        self._has_chosen = True
        seed, weights = self.config.train.seed, [*self.learner.parameters()]
        most = 0
        self.learner.eval()  # running statistics and dropout stay out of the trial
        for number, (some, some_counts) in enumerate(zip(batches, counts, strict=True)):
            counted = [one for one, count in zip(some, some_counts, strict=True) if any(count)]
            if counted:
                largest = max(counted, key=lambda batch: batch.input_ids.numel())
                with torch.random.fork_rng(), self.precision.autocast():
                    forward = functools.partial(self.learner, number, largest, seed)
                    most = max(most, count_activations(forward, weights))
        self._set_modes()
        trained = sum(local(parameter).nbytes for parameter in self.parameters.values())
        copies = 1 if self.optimizer.state else 3  # gradients, and two moments
        if needs_checkpointing(most, copies * trained, self.precision.device):
            checkpoint_blocks(self.model)

    def _roll_out(self, batches: list[Batch]) -> list[list[Batch]]:
        """Returns the batches for each objective; see `Policies`."""
        if not self._policies.are_needed:
            return [batches for _ in self._named_objectives]
        self.model.eval()
        try:
            return self._policies.roll_out(batches, self.config.train.seed, self.precision)
        finally:
            self._set_modes()

    def _all_backward(
        self,
        batches: Sequence[Sequence[Batch]],
        counts: Sequence[Sequence[Counts]],
        totals: Sequence[Counts],
    ) -> Terms:
        """Adds up the gradients of a step."""
        terms: Terms = []
        for number, total in enumerate(totals):
            for batch, count in zip(batches[number], counts[number], strict=True):
                if any(count):
                    terms += self._backward(number, batch, total)
        return terms

    def _backward(self, number: int, batch: Batch, totals: Counts) -> Terms:
        name, objective = list(self._named_objectives.items())[number]
        with self.precision.autocast():
            sums, output = self.learner(number, batch, self.config.train.seed)
        text_weight = objective.text_weight if isinstance(objective, TextObjective) else 0.0
        weights = (objective.weight, text_weight)
        first, *others = [s * (w / n) for s, w, n in zip(sums, weights, totals, strict=False) if n]
        weighted = sum(others, first)
        if not weighted.requires_grad:
            raise UsageError(
                f"the objective {name} gives no trained weight a gradient: train.trainable "
                f"({', '.join(self.config.train.trainable)}) names no part that it uses"
            )
        (weighted * world_size()).backward()  # FSDP averages gradients over processes
        return [
            ("loss", weighted.detach(), 0.0),
            (f"{name}/loss", output.loss_sum.detach(), output.count),
            *((f"{name}/{key}", v.detach(), c) for key, (v, c) in output.metrics.items()),
        ]

    def _count_nonfinite(self) -> None:
        self.state.nonfinite_steps += 1
        limit = self.config.train.max_nonfinite_steps
        say(f"warning: step {self.state.step} was not finite and updated nothing")
        if self.state.nonfinite_steps > limit:
            raise DivergedError(
                f"{self.state.nonfinite_steps} steps were not finite, more than "
                f"train.max_nonfinite_steps={limit}; lower train.optimizer.lr"
            )

    def _set_modes(self) -> None:
        set_mode(self.model, is_training=True)
        self.objectives.train()

    def _save(self) -> None:
        folder = self._checkpoints.save(self.state, to_dict(self.config))
        for callback in self._callbacks:
            callback.on_checkpoint(self, self.state.step, folder)

    def _facts(self) -> dict[str, float]:
        return {
            "samples_seen": self.state.samples_seen,
            "nonfinite_steps": self.state.nonfinite_steps,
            "memory_mb": memory_mb(self.precision.device),
            **self._notes.metrics,
        }

    def _show(self, notify: Callable[[Callback], None]) -> None:
        """Notifies the callbacks with the averaged weights in the model; other processes wait."""
        with self.learner.using(self.ema.averages), self._no_training():
            with self._explaining():
                for callback in self._callbacks:
                    notify(callback)
            exchange(None)

    def _no_training(self) -> AbstractContextManager[object]:
        """Returns the context of passes outside of steps; halved weights need autocast."""
        return self.precision.autocast() if self._is_halved else nullcontext()

    def _explaining(self) -> AbstractContextManager[None]:
        weights = (*self.parameters.values(), *self.ema.averages.values())
        return explaining(self.state.step, self.config.train.optimizer.lr, weights)
