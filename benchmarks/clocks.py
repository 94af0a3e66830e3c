"""Measures one run: wall time, CPU time of this process and all below it, and peak memory."""

import contextlib
import gc
import os
import re
import resource
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch


class Run(NamedTuple):
    """One measured run: its output, seconds, peak memory in MB (None if unknown), and figures."""

    output: Any
    wall_s: float
    cpu_s: float
    peak_mb: float | None
    figures: Mapping[str, float] = MappingProxyType({})


def run(work: Callable[[], Any], calls: int, device: torch.device) -> Run:
    """Returns the measurements of one call of some work.

    Args:
        work: the work.
        calls: number of calls to measure together, for short work.
        device: device of the work, which is waited for.
    """
    gc.collect()
    _reset_peak(device)
    _wait(device)
    output = None
    others, own, start = _others_cpu_s(), _own_cpu_s(), time.perf_counter()
    for _ in range(calls):
        output = work()
    _wait(device)
    wall = time.perf_counter() - start
    cpu = _own_cpu_s() - own + _others_cpu_s() - others
    return Run(output, wall / calls, cpu / calls, _peak_mb(device))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _own_cpu_s() -> float:
    """Returns the CPU seconds of this process and of those below it that have ended."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _others_cpu_s() -> float:
    """Returns the CPU seconds of the running processes below this one; 0 if not on Linux."""
    ticks, pids = 0, [os.getpid()]
    while pids:
        pid = pids.pop()
        with contextlib.suppress(OSError):  # it has ended
            if pid != os.getpid():
                stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
                ticks += sum(map(int, stat.rpartition(")")[2].split()[11:15]))
            for task in Path(f"/proc/{pid}/task").iterdir():
                pids += map(int, (task / "children").read_text().split())
    return ticks / os.sysconf("SC_CLK_TCK")


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def _peak_mb(device: torch.device) -> float | None:
    """Returns the peak memory since the reset: of torch on a GPU, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    found = re.search(r"VmHWM:\s+(\d+) kB", read_file("/proc/self/status"))
    return int(found[1]) / 1024 if found else None


def read_file(path: str) -> str:
    """Returns the text of a file; empty if there is none, as /proc outside Linux."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""
