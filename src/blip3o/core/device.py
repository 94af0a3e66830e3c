"""Selects the device and the precision of a model."""

import ctypes
import dataclasses
import sys
from contextlib import AbstractContextManager, nullcontext

import torch

from blip3o.core.choices import TORCH_NAMES, check_precision
from blip3o.core.errors import UsageError


def resolve_device(name: str = "auto") -> torch.device:
    """Returns the device for a name.

    Args:
        name: "auto" (CUDA, then Apple's MPS, then CPU) or any torch device string.

    Raises:
        UsageError: if torch does not know the device or this machine does not have it.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    unknown = UsageError(f"unknown device {name!r}; use auto, cpu, cuda, cuda:N or mps")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise unknown from error
    if device.type == "meta":  # tensors without data
        raise unknown
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(f"this machine or this torch has no device {name!r}; use cpu") from error
    return device


def cpu_has_fast_bf16() -> bool:
    """Returns whether this CPU multiplies bf16 matrices faster than fp32 ones.

    CPUs with AMX tiles or AVX512-BF16 do. All others emulate bf16, which is several times slower.
    """
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


def resolve_dtype(name: str | torch.dtype, device: torch.device) -> torch.dtype:
    """Returns the compute type for a precision name on a device.

    Args:
        name: "auto" selects bf16 on hardware that computes it fast; otherwise fp16 on CUDA and
            fp32 elsewhere. Torch's own names ("bfloat16") and types are accepted as well.
        device: the device of the model.

    Raises:
        UsageError: for an unknown name.
    """
    if name == "auto":
        if device.type == "cuda":
            # GPUs before Ampere only emulate bf16; torch counts emulation by default.
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
            return torch.bfloat16 if fast else torch.float16
        return torch.bfloat16 if device.type == "cpu" and cpu_has_fast_bf16() else torch.float32
    check_precision(str(name))
    word = str(name).removeprefix("torch.")
    return _DTYPES[TORCH_NAMES.get(word, word)]


_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def keep_freed_memory() -> None:
    """Lets a long run on the CPU reuse the memory of one step in the next.

    By default, glibc returns large freed blocks to the system immediately, and every step waits for
    zeroed pages again, which takes a third of the time of small models. Does nothing with other C
    libraries.
    """
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3
    mallopt(mmap_threshold, 32 * 2**20)  # the maximum that glibc allows
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(top_pad, 256 * 2**20)


@dataclasses.dataclass(frozen=True)
class Precision:
    """Device and type of a run's matrix products; weights stay float32.

    Args:
        device: the device of all parameters.
        dtype: the type of matrix products under `autocast`.
    """

    device: torch.device
    dtype: torch.dtype

    def autocast(self) -> AbstractContextManager[object]:
        """Returns the context for a forward pass; a no-op in float32."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)
