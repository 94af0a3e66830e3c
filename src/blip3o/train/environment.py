"""Records the environment of a run: commit, versions, device."""

import dataclasses
import importlib.metadata
import json
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

from blip3o.core.files import write_atomic

_PACKAGES = ("blip3o", "torch", "transformers", "numpy", "pillow", "tokenizers")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Notes:
    """Facts about a start that the Trainer cannot find out itself.

    Args:
        environment: for `env.json`; plain data.
        metrics: values for every line of metrics.
    """

    environment: Mapping[str, object] = dataclasses.field(default_factory=dict)
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)


def write_environment(
    run_dir: Path, device: torch.device | None = None, more: Mapping[str, object] | None = None
) -> None:
    """Writes `env.json`: commit, versions, device and command of the first and of later starts.

    Args:
        run_dir: the run folder.
        device: device of the run; None if it has none.
        more: further facts, as plain data.
    """
    file = run_dir / "env.json"
    commit, has_changes = source_commit()
    now = {
        "commit": commit,
        "uncommitted_changes": has_changes,
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version_of(name) for name in _PACKAGES},
        "threads": torch.get_num_threads(),
        "device": None if device is None else str(device),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        **(more or {}),
    }
    starts = _earlier(file)
    if not starts or starts[-1] != now:
        starts.append(now)
    write_atomic(file, json.dumps({**starts[0], "resumed_with": starts[1:]}, indent=2) + "\n")


def _earlier(file: Path) -> list[dict[str, object]]:
    try:
        first = json.loads(file.read_text(encoding="utf-8"))
        later = first.pop("resumed_with", [])
    except (OSError, ValueError, AttributeError):  # no such file, or a foreign one
        return []
    return [first, *later]


def version_of(package: str) -> str | None:
    """Returns the version of an installed package; None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def source_commit() -> tuple[str | None, bool | None]:
    """Returns the commit of this source tree and whether it has changes; None outside of git."""
    folder = Path(__file__).parent
    if _git(folder, "ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None, None  # the package is installed inside a foreign repository
    return _git(folder, "rev-parse", "HEAD"), bool(_git(folder, "status", "--porcelain", "-uno"))


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        answer = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
