"""The machine kind of a recording, and the switch that records anew.

    BLIP3O_RECORD_GOLDEN=1 pytest tests/golden      writes what the code does now

A recording is compared exactly on the kind of machine that made it, and closely on others.
"""

import dataclasses
import os
import platform
from pathlib import Path

import pytest
import torch


@dataclasses.dataclass(frozen=True)
class Golden:
    """Where recordings are, and how they are to be used.

    Args:
        folder: holds the recordings.
        machine: the kind of this machine.
        is_recording: whether tests write recordings instead of comparing with them.
    """

    folder: Path
    machine: str
    is_recording: bool


@pytest.fixture(scope="session")
def golden() -> Golden:
    """The recordings."""
    kind = f"{_processor()}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"
    return Golden(Path(__file__).parent, kind, bool(os.environ.get("BLIP3O_RECORD_GOLDEN")))


def _processor() -> str:
    """Returns the name of the processor; libraries choose their kernels by it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    wanted = ("vendor_id", "cpu family", "model", "stepping")
    found: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in wanted:
            found.setdefault(name.strip(), value.strip())
    return " ".join(found.get(name, "?") for name in wanted)
