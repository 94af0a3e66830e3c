"""A lock, so that a run folder has at most one run at a time."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from blip3o.core.distributed import exchange, is_main
from blip3o.core.errors import UsageError
from blip3o.core.lock import locked

_LOCK = ".lock"


@contextmanager
def claimed(run_dir: Path) -> Iterator[None]:
    """Locks a run folder for the processes of this run; the main process holds the lock.

    Args:
        run_dir: created if missing.

    Raises:
        UsageError: on all processes, if another run holds the folder or it is not writable.
    """
    with ExitStack() as stack:
        failed = None
        if is_main():
            try:
                run_dir.mkdir(parents=True, exist_ok=True)
                refusal = f"trains in {run_dir}: stop it first, or use another --out"
                stack.enter_context(locked(run_dir / _LOCK, refusal))
            except UsageError as error:
                failed = error
            except FileExistsError:
                failed = UsageError(f"{run_dir} is a file: give the name of a folder to --out")
            except OSError as error:
                failed = UsageError(f"cannot write to {run_dir}: {error.strerror}")
        for error in exchange(failed):
            if error is not None:
                raise error
        yield
