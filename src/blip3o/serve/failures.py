"""Failures of work: which of them end the engine, and which words a client gets for the others."""

import torch

from blip3o.core.errors import UsageError
from blip3o.core.log import say
from blip3o.serve.jobs import Failed

DEVICE_ERRORS: tuple[type[BaseException], ...] = (
    (torch.AcceleratorError,) if hasattr(torch, "AcceleratorError") else ()
)
"""Errors after which a device cannot go on. All other errors end one request only."""
_NO_MEMORY = (
    "there is too little memory for this request; send smaller images or a shorter conversation"
)


def failure(error: BaseException) -> Failed:
    """Returns the failure for the client, and logs it unless it is the client's fault.

    Args:
        error: the error that ended the work on a request.
    """
    if isinstance(error, UsageError):
        return Failed(str(error), "request")
    say(f"blip3o: a request failed: {type(error).__name__}: {error}")
    if is_out_of_memory(error):
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # for the next request, which may need blocks of another size
        return Failed(_NO_MEMORY, "work")
    return Failed("the work on this request failed; the server's log says why", "work")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, of the machine or of a device.

    Args:
        error: any.
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # torch has no class for the memory of the CPU.
    return isinstance(error, RuntimeError) and "allocate memory" in str(error)
