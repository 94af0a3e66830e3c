"""Reports on this machine: versions, device, precision, bundled models, memory for a model."""

import os
import platform
from collections.abc import Sequence

import torch

from blip3o import __version__
from blip3o.core.device import cpu_has_fast_bf16, resolve_device, resolve_dtype
from blip3o.core.errors import UsageError
from blip3o.doctor.memory import PRECISIONS, Need, choose, config_of, needs_of
from blip3o.generate.offload import OFFLOADS
from blip3o.train.environment import version_of
from blip3o.weights.folder import BUNDLED, load_model

_PACKAGES = ("torch", "transformers", "safetensors", "tokenizers", "numpy", "pillow", "diffusers")
_CARDS_GB = (8, 12, 16, 24, 40, 80)
"""Memory of common GPUs, in units of 10**9 bytes."""


def examine(model: str | None = None, device_name: str = "auto") -> str:
    """Returns a report on this machine, one fact per line.

    Args:
        model: a model whose memory needs the report includes, as in `config_of`; None for none.
        device_name: "auto" or a torch device; the model should fit on it.

    Raises:
        UsageError: if the model or the device does not exist.
    """
    device = resolve_device(device_name)
    needs = None if model is None else needs_of(config_of(model))
    lines = [
        f"blip3o {__version__}, Python {platform.python_version()}, {platform.platform()}",
        f"device: {_describe(device)}",
        f"precision: {str(resolve_dtype('auto', device)).removeprefix('torch.')}",
    ]
    if device.type == "cpu":
        fast = "yes" if cpu_has_fast_bf16() else "no; fp32 is used"
        lines.append(f"fast bf16 on this CPU: {fast}")
    lines += [f"{name}: {version_of(name) or 'not installed'}" for name in _PACKAGES]
    lines += [f"model {name}: {_check(name)}" for name in BUNDLED]
    if needs is not None:
        lines += ["", f"memory for {model}, GiB of weights (and with activations):"]
        lines += [*table(needs), "", *_advice(needs, device)]
    return "\n".join(lines)


def table(needs: Sequence[Need]) -> list[str]:
    """Returns a table of a model's memory needs in GiB, line by line."""
    columns = "".join(f"{f'offload {name}':>22}" for name in OFFLOADS)
    lines = [f"{'backbone':<10}{'precision':<10}{columns}"]
    forms = {(need.quantize, need.precision): dict[str, str]() for need in needs}
    for need in needs:
        cell = f"{need.weights / 2**30:.2f} ({need.peak / 2**30:.2f})"
        forms[need.quantize, need.precision][need.offload] = cell
    for (quantize, precision), cells in forms.items():
        row = "".join(f"{cells[name]:>22}" for name in OFFLOADS)
        lines.append(f"{quantize or 'plain':<10}{precision:<10}{row}")
    return lines


def _advice(needs: Sequence[Need], device: torch.device) -> list[str]:
    """Returns the options to use on this device and on common GPUs, one line each."""
    dtype = resolve_dtype("auto", device)
    own = next(name for name, kind in PRECISIONS.items() if kind == dtype)
    precisions = list(dict.fromkeys((own, "bf16")))
    best, lacking = choose(needs, _capacity(device), precisions, may_offload=device.type == "cuda")
    room = f"{_capacity(device) / 2**30:.1f} GiB"
    if lacking <= 0:
        lines = [f"this machine ({device.type}, {room}): {best.flags}"]
    else:
        short = f"{lacking / 2**30:.1f} GiB are missing even with {best.flags}"
        lines = [f"this machine ({device.type}, {room}): {short}"]
    for gigabytes in _CARDS_GB:
        best, lacking = choose(needs, gigabytes * 10**9, ["bf16"])
        answer = best.flags if lacking <= 0 else f"lacks {lacking / 2**30:.1f} GiB"
        lines.append(f"a card of {gigabytes} GB: {answer}")
    return lines


def _capacity(device: torch.device) -> int:
    """Returns the bytes of a GPU's memory, or of the machine's memory for other devices."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _describe(device: torch.device) -> str:
    if device.type == "cuda":
        gigabytes = torch.cuda.get_device_properties(device).total_memory / 2**30
        return f"{torch.cuda.get_device_name(device)}, {gigabytes:.0f} GiB"
    return f"{device.type}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


def _check(name: str) -> str:
    try:
        model = load_model(name).model
    except UsageError as error:
        return str(error)
    count = sum(parameter.numel() for parameter in model.parameters())
    return f"whole, {count / 1e6:.1f} M parameters"
