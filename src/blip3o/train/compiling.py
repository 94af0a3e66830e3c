"""Chooses by measurement whether a run compiles the blocks of its model.

Compiling takes minutes and saves a fifth of each step, or nothing: that depends on the machine, the
model and the sizes of a batch. So a long run measures both forms at an early step, and the result
is kept for later runs on this machine.
"""

import hashlib
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from blip3o.core.config import to_dict
from blip3o.core.device import Precision
from blip3o.core.files import user_cache, write_atomic
from blip3o.core.log import say
from blip3o.train.config import RunConfig

TRIAL_STEP = 10
"""Step before which a run chooses; the first steps are slower than later ones."""
_LEAST_SECONDS = 900.0
"""A run that takes less time does not try: compiling takes two minutes of it."""
_LARGEST_SHARE = 0.97
"""Compiled steps must take at most this share of the time of plain ones."""
_ROUNDS = 3
_CPUS = Path("/proc/cpuinfo")
_MOST_FORMS = 16
"""Compiled forms of a block after which torch runs plain code for new ones; 8 by default.

The layers share them. Prompts, images after a prompt, rows of more keys than `nn.attention` takes
products for, and inputs with and without gradient need each a form for the first size, one for
other lengths and one for any size.
"""


def compile_blocks(blocks: list[nn.Module]) -> None:
    """Compiles modules in place, each when it is first called."""
    torch._dynamo.config.recompile_limit = _MOST_FORMS
    for block in blocks:
        block.compile()


def is_compiling_faster(
    blocks: list[nn.Module],
    gradients: Callable[[], object],
    config: RunConfig,
    precision: Precision,
    seconds_left: float,
) -> bool:
    """Returns whether the rest of a run is faster with compiled blocks; they are compiled if so.

    The result for the same model, settings and machine is read from the user's cache folder, or
    measured and written there.

    Args:
        blocks: the modules to compile, not compiled yet.
        gradients: computes the gradients of a step.
        config: the whole run.
        precision: device and dtype of the run.
        seconds_left: estimate of the time of the rest of the run.
    """
    if not blocks or seconds_left < _LEAST_SECONDS:
        return False
    file = user_cache("compiling") / f"{_key(config, precision)}.json"
    times = _read(file)
    if times is not None:
        is_faster = times["compiled"] <= _LARGEST_SHARE * times["plain"]
        if is_faster:
            compile_blocks(blocks)
        say(f"blocks are {_chosen(is_faster)}: measured before, {file}")
        return is_faster
    say("measuring whether compiled blocks are faster, two minutes once for this model and machine")
    plain = _seconds(gradients, precision.device)
    compile_blocks(blocks)
    try:
        compiled = _seconds(gradients, precision.device)
    except RuntimeError as error:  # there is no compiler, or it cannot compile this model
        _undo(blocks)
        reason = str(error).strip().partition("\n")[0]
        say(f"warning: blocks are not compiled: {type(error).__name__}: {reason}")
        return False
    is_faster = compiled <= _LARGEST_SHARE * plain
    if not is_faster:
        _undo(blocks)
    say(
        f"blocks are {_chosen(is_faster)}: a step takes {compiled:.3g} s compiled and "
        f"{plain:.3g} s plain"
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, json.dumps({"plain": plain, "compiled": compiled}), is_shared=True)
    return is_faster


def _chosen(is_faster: bool) -> str:
    return "compiled" if is_faster else "not compiled"


def _undo(blocks: list[nn.Module]) -> None:
    for block in blocks:
        block._compiled_call_impl = None  # torch has no public way back


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    """Returns the median time of a call, after two calls to get warm."""
    times = []
    for _ in range(2 + _ROUNDS):
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])


def _key(config: RunConfig, precision: Precision) -> str:
    """Returns a name of everything that the times depend on."""
    train = config.train
    facts = {
        "machine": _machine(precision.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "dtype": str(precision.dtype),
        "model": to_dict(config.model),
        "tasks": sorted({entry.task for entry in config.data.mixture}),
        "trained": [train.trainable, None if train.adapter is None else to_dict(train.adapter)],
        "batch": [train.global_batch_size, train.micro_batch_size],
        "memory": [train.activation_checkpointing, train.padding_free],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _machine(device: torch.device) -> str:
    """Returns the name of the device that computes."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    names = [platform.machine(), torch.backends.cpu.get_cpu_capability()]
    if _CPUS.exists():
        names += [line for line in _CPUS.read_text().splitlines() if "model name" in line][:1]
    return f"{device.type} {' '.join(names)}"


def _read(file: Path) -> dict[str, float] | None:
    try:
        times = json.loads(file.read_text(encoding="utf-8"))
        return {name: float(times[name]) for name in ("plain", "compiled")}
    except (OSError, ValueError, KeyError, TypeError):  # missing, or damaged: measured anew
        return None
