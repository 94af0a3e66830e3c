"""Classification of errors: which ones stop the engine, and which message a client gets."""

import torch

from blip3o.core.errors import UsageError
from blip3o.core.log import say
from blip3o.serve.jobs import Failed

DEVICE_ERRORS: tuple[type[BaseException], ...] = (
    (torch.AcceleratorError,) if hasattr(torch, "AcceleratorError") else ()
)
"""Errors after which a device is unusable. All other errors end only one request."""
_NO_MEMORY = (
    "there is too little memory for this request; send smaller images or a shorter conversation"
)


def failure(error: BaseException) -> Failed:
    """Returns the failure to report to the client, and logs it unless the client caused it."""
    if isinstance(error, UsageError):
        return Failed(str(error), "request")
    say(f"blip3o: a request failed: {type(error).__name__}: {error}")
    # torch has no error class for CPU memory.
    is_cpu_memory = isinstance(error, RuntimeError) and "allocate memory" in str(error)
    if is_cpu_memory or isinstance(error, MemoryError | torch.OutOfMemoryError):
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # the next request may need blocks of other sizes
        return Failed(_NO_MEMORY, "work")
    return Failed("the work on this request failed; the server's log says why", "work")
