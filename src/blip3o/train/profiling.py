"""Profiles a few steps of a run: a trace, the most expensive operations, the memory of a GPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from blip3o.core.files import atomic_file, write_atomic
from blip3o.core.log import say

_WAIT, _WARM_UP, _ACTIVE = 2, 2, 3
"""Numbers of steps: skipped, run to warm the profiler up, recorded."""
_BEFORE = _WAIT + _WARM_UP
_SHOWN = 10
_MEMORY_EVENTS = 100_000


@contextmanager
def profiling(folder: Path | None, device: torch.device) -> Iterator[profile | None]:
    """Records some of the first steps; the caller calls the profiler's `step()` after each step.

    Writes `trace.json.gz` (Chrome trace), `operations.txt` (the most expensive operations, with
    their memory) and, on a CUDA device, `memory.pickle` (a snapshot for pytorch.org/memory_viz).
    The results of the run stay the same.

    Args:
        folder: where to write; created if missing, files of an earlier start are replaced. None
            profiles nothing.
        device: device of the run.
    """
    if folder is None:
        yield None
        return
    is_cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_cuda else [])]

    def write(finished: profile) -> None:
        if finished.step_num <= _BEFORE:  # the run ended during the warm-up
            return
        try:
            _write(folder, finished, is_cuda=is_cuda)
            say(f"profile: {folder}")
        except OSError as error:  # a full disk does not end the run
            say(f"warning: the profile could not be written: {error}")

    if is_cuda:
        torch.cuda.memory._record_memory_history(max_entries=_MEMORY_EVENTS)
    try:
        with profile(
            activities=activities,
            schedule=schedule(wait=_WAIT, warmup=_WARM_UP, active=_ACTIVE, repeat=1),
            on_trace_ready=write,
            record_shapes=True,
            profile_memory=True,
        ) as profiler:
            yield profiler
    finally:
        if is_cuda:
            torch.cuda.memory._record_memory_history(enabled=None)
    if profiler.step_num <= _BEFORE:
        say(f"warning: train.profile recorded nothing: it needs more than {_BEFORE} steps")


def _write(folder: Path, finished: profile, *, is_cuda: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(folder / "trace.json.gz") as scratch:
        # The profiler compresses only files whose name ends in .gz.
        compressed = scratch.with_name(f"{scratch.name}.gz")
        finished.export_chrome_trace(str(compressed))
        compressed.replace(scratch)
    by = "self_device_time_total" if is_cuda else "self_cpu_time_total"
    table = finished.key_averages().table(sort_by=by, row_limit=_SHOWN)
    write_atomic(folder / "operations.txt", table)
    if is_cuda:
        with atomic_file(folder / "memory.pickle") as scratch:
            torch.cuda.memory._dump_snapshot(str(scratch))
        torch.cuda.memory._record_memory_history(enabled=None)  # later steps run at full speed
