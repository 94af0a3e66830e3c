"""Notes what a run was made with, beside its config."""

import importlib.metadata
import json
import platform
import subprocess
import sys
from pathlib import Path

import torch

_PACKAGES = ("blip3o", "torch", "transformers", "numpy", "pillow", "tokenizers")


def write_environment(run_dir: Path) -> None:
    """Writes `env.json`: commit, versions, device, command.

    Args:
        run_dir: the run folder.
    """
    environment = {
        "commit": _commit(),
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
    text = json.dumps(environment, indent=2) + "\n"
    (run_dir / "env.json").write_text(text, encoding="utf-8")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    folder = Path(__file__).parent
    try:
        answer = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
