"""Metrics and progress of a run: averages since the last line of metrics, speed, time left."""

import dataclasses
import math
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from blip3o.core.distributed import is_main
from blip3o.core.log import MetricsLogger, say

Sums = dict[str, tuple[float, float]]
Terms = list[tuple[str, Tensor, float]]
"""Terms of sums: name, value on the device, count."""


@dataclasses.dataclass(kw_only=True)
class TrainState:
    """State of a run other than tensors.

    Args:
        step: number of optimizer steps done.
        samples_seen: number of samples trained on.
        nonfinite_steps: number of steps that updated nothing.
        is_compiled: whether the blocks are compiled; None before a run has chosen.
        window: (sum, count) by name since the last line of metrics, so that a resumed run logs
            the same averages.
    """

    step: int = 0
    samples_seen: int = 0
    nonfinite_steps: int = 0
    is_compiled: bool | None = None
    window: Sums = dataclasses.field(default_factory=dict)


def add_sums(total: Sums, part: Sums) -> None:
    """Adds (sum, count) pairs name by name, in place."""
    for name, (value, count) in part.items():
        old_value, old_count = total.get(name, (0.0, 0.0))
        total[name] = (old_value + value, old_count + count)


def read_terms(terms: Terms) -> Sums:
    """Returns the sums by name as plain numbers; synchronizes with the device once."""
    sums: Sums = {}
    if not terms:
        return sums
    device = terms[-1][1].device
    numbers = torch.stack([tensor.to(device, torch.float32) for _, tensor, _ in terms]).tolist()
    for (name, _, count), number in zip(terms, numbers, strict=True):
        add_sums(sums, {name: (number, float(count))})
    return sums


def merge_sums(parts: Iterable[Sums]) -> Sums:
    """Returns the sums over all processes.

    Args:
        parts: the sums of each process. The parts of `loss` add up to the loss of one step.
    """
    total: Sums = {}
    for part in parts:
        add_sums(total, part)
    if "loss" in total:
        total["loss"] = (total["loss"][0], 1.0)
    return total


class Window:
    """Sums and speed since the last line of metrics.

    Args:
        sums: sums of a resumed run before it stopped; updated in place.
        peak_tflops: peak of all devices, in 10^12 operations per second; None if unknown.
    """

    def __init__(self, sums: Sums, peak_tflops: float | None = None) -> None:
        self._sums = sums
        self._peak_tflops = peak_tflops
        self.flops_per_token: float | None = None
        self._restart()

    def _restart(self) -> None:
        self._start, self._cpu_start = time.monotonic(), time.process_time()
        self._waited = 0.0
        self._samples = 0
        self._tokens = 0

    def add(self, sums: Sums, samples: int, tokens: int, waited: float) -> None:
        """Adds a step.

        Args:
            sums: (sum, count) by name.
            samples: number of samples.
            tokens: number of tokens of their texts, image placeholders included.
            waited: seconds that the step waited for data.
        """
        add_sums(self._sums, sums)
        self._samples += samples
        self._tokens += tokens
        self._waited += waited

    def close(self) -> dict[str, float]:
        """Returns the averages and the speed, and starts a new window."""
        seconds = max(time.monotonic() - self._start, 1e-9)
        values = {n: v / c if c else 0.0 for n, (v, c) in self._sums.items()}
        values["samples_per_second"] = self._samples / seconds
        values["tokens_per_second"] = self._tokens / seconds
        values["busy_cores"] = (time.process_time() - self._cpu_start) / seconds
        values["data_wait"] = self._waited / seconds
        if self.flops_per_token is not None:
            values["tflops"] = self.flops_per_token * self._tokens / seconds / 1e12
            if self._peak_tflops is not None:
                values["mfu"] = values["tflops"] / self._peak_tflops
        self._sums.clear()
        self._restart()
        return values


class RunLog:
    """Writes the metrics of a run, and shows them as a progress bar, or as text without a terminal.

    Only the main process writes and shows anything.

    Args:
        run_dir: the run folder.
        step: number of steps done.
        steps: number of steps of the whole run.
        batch_size: samples per step.
    """

    def __init__(self, run_dir: Path, step: int, steps: int, batch_size: int) -> None:
        self._step, self._steps, self._batch_size = step, steps, batch_size
        self._logger = MetricsLogger(run_dir, step) if is_main() else None
        self._bar = None
        if is_main() and sys.stderr.isatty():
            self._bar = tqdm(
                initial=step, total=steps, desc="train", unit="step", dynamic_ncols=True
            )

    def advance(self) -> None:
        """Counts a step."""
        self._step += 1
        if self._bar is not None:
            self._bar.update()

    def log(self, values: dict[str, float]) -> None:
        """Writes and shows a line of metrics.

        Args:
            values: the metrics: `lr`, `samples_per_second`; `loss`, if any step was finite; others.
        """
        if self._logger is None:
            return
        self._logger.log(self._step, values)
        loss = f"loss {values.get('loss', math.nan):.4f}"
        rest = f"lr {values['lr']:.1e}  {values['samples_per_second']:.1f} samples/s"
        if self._bar is not None:
            self._bar.set_postfix_str(f"{loss}  {rest}")
            return
        left = (self._steps - self._step) * self._batch_size
        seconds = left / max(values["samples_per_second"], 1e-9)
        say(f"step {self._step}/{self._steps}  {loss}  {rest}  {_duration(seconds)} left")

    def close(self) -> None:
        """Closes the files and the bar."""
        for part in (self._bar, self._logger):
            if part is not None:
                part.close()


def memory_mb(device: torch.device) -> float:
    """Returns the peak memory so far, in MiB: that of a CUDA device, otherwise of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def _duration(seconds: float) -> str:
    minutes = math.ceil(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"
