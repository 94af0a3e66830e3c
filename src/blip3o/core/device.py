"""One place decides where a model runs and in which precision."""

import ctypes
import dataclasses
import sys
from contextlib import AbstractContextManager, nullcontext

import torch

from blip3o.core.choices import TORCH_NAMES, check_precision
from blip3o.core.choices import PrecisionName as PrecisionName
from blip3o.core.errors import UsageError


def resolve_device(name: str = "auto") -> torch.device:
    """Returns the device for a name.

    Args:
        name: "auto" (CUDA, then Apple's MPS, then CPU) or any torch device string.

    Raises:
        UsageError: if torch does not know the device or it is not on this machine.
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
    if device.type == "meta":  # tensors without numbers
        raise unknown
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(f"this machine or this torch has no device {name!r}; use cpu") from error
    return device


def cpu_has_fast_bf16() -> bool:
    """Returns whether this CPU multiplies bf16 matrices faster than fp32 ones.

    Those with AMX tiles or AVX512-BF16 do; on others bf16 is emulated and several times slower.
    """
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


def resolve_dtype(name: str | torch.dtype, device: torch.device) -> torch.dtype:
    """Returns the compute type for a precision name on a device.

    Args:
        name: "auto" takes bf16 where the hardware is fast at it, else fp32; torch's own names
            ("bfloat16") and types are taken, too.
        device: where the model runs.

    Raises:
        UsageError: for an unknown name.
    """
    if name == "auto":
        if device.type == "cuda":
            # Cards before Ampere only emulate bf16, which torch counts unless told not to.
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
            return torch.bfloat16 if fast else torch.float16
        return torch.bfloat16 if device.type == "cpu" and cpu_has_fast_bf16() else torch.float32
    check_precision(str(name))
    word = str(name).removeprefix("torch.")
    return getattr(torch, TORCH_NAMES.get(word, word))


def keep_freed_memory() -> None:
    """Lets a long run on the CPU keep the memory of its last step for the next one.

    glibc hands large freed blocks back to the system at once, and every step then pays for clean
    pages again: for small models a third of the time. Does nothing on other C libraries.
    """
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3
    mallopt(mmap_threshold, 32 * 2**20)  # the most that glibc allows
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(top_pad, 256 * 2**20)


@dataclasses.dataclass(frozen=True)
class Precision:
    """Where and in what type the heavy matrix work of a run is done; weights stay float32.

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
