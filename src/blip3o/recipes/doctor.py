"""What this machine can do: versions, device, precision, and whether the bundled model is whole."""

import importlib.metadata
import os
import platform

import torch

from blip3o import __version__
from blip3o.core.device import cpu_has_fast_bf16, resolve_device, resolve_dtype
from blip3o.core.errors import UsageError
from blip3o.weights.folder import BUNDLED, load_model

_PACKAGES = ("torch", "transformers", "safetensors", "tokenizers", "numpy", "pillow", "diffusers")


def examine() -> str:
    """Returns a report of the machine, a line a fact."""
    device = resolve_device("auto")
    lines = [
        f"blip3o {__version__}, Python {platform.python_version()}, {platform.platform()}",
        f"device: {_describe(device)}",
        f"precision: {str(resolve_dtype('auto', device)).removeprefix('torch.')}",
    ]
    if device.type == "cpu":
        fast = "yes (AMX)" if cpu_has_fast_bf16() else "no; fp32 is used"
        lines.append(f"fast bf16 on this CPU: {fast}")
    lines += [f"{name}: {_version(name)}" for name in _PACKAGES]
    lines += [f"model {name}: {_check(name)}" for name in BUNDLED]
    return "\n".join(lines)


def _describe(device: torch.device) -> str:
    if device.type == "cuda":
        gigabytes = torch.cuda.get_device_properties(device).total_memory / 2**30
        return f"{torch.cuda.get_device_name(device)}, {gigabytes:.0f} GiB"
    return f"{device.type}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _check(name: str) -> str:
    try:
        model = load_model(name).model
    except UsageError as error:
        return str(error)
    count = sum(parameter.numel() for parameter in model.parameters())
    return f"whole, {count / 1e6:.1f} M parameters"
