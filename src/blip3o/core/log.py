"""Output of a run: metrics as JSONL and for TensorBoard, progress as a bar or as plain lines."""

import contextlib
import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sized
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeVar

from blip3o.core.distributed import is_main
from blip3o.core.files import naming, write_atomic

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter

T = TypeVar("T")

_SLOW = 0.1
"""Rate in items per second below which the seconds per item are shown instead."""
_SOON_S = 20.0
"""A shorter remaining time is not shown."""


class MetricsLogger:
    """Writes one JSON object per line to `metrics.jsonl` and the numbers to `tensorboard/`.

    Args:
        run_dir: the run folder; created if missing.
        resume_step: the step to resume from; lines of later steps are removed.
    """

    def __init__(self, run_dir: Path, resume_step: int = 0) -> None:
        run_dir.mkdir(parents=True, exist_ok=True)
        self.path = run_dir / "metrics.jsonl"
        self._drop_after(resume_step)
        self._file: IO[str] = self.path.open("a", encoding="utf-8")
        self._board = self._open_board(run_dir, resume_step)

    def log(self, step: int, values: Mapping[str, object]) -> None:
        """Writes and flushes the values of a step, so that a killed run keeps them."""
        with naming(self.path):
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Closes the files."""
        self._file.close()
        if self._board is not None:
            self._board.close()

    def _drop_after(self, step: int) -> None:
        if not self.path.exists():
            return
        text = self.path.read_text(encoding="utf-8", errors="replace")
        kept = "".join(f"{line}\n" for line in text.split("\n") if line and _step_of(line) <= step)
        if kept != text:
            write_atomic(self.path, kept)

    @staticmethod
    def _open_board(run_dir: Path, step: int) -> "SummaryWriter | None":
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError:
            return None
        return SummaryWriter(str(run_dir / "tensorboard"), purge_step=step + 1 if step else None)


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):  # a killed run cut the line short
        return float("inf")


def progress(
    items: Iterable[T], *, total: int | None = None, what: str = "", every_s: float = 10.0
) -> Iterator[T]:
    """Yields the items and shows the progress: a bar on a terminal, plain lines elsewhere.

    Args:
        items: the items to iterate over.
        total: their number; None takes it from `len` where possible.
        what: a word or two before the bar or at the start of each line.
        every_s: seconds between plain lines if stderr is not a terminal.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(items, total=total, desc=what, file=sys.stderr)
        return
    start = last = time.monotonic()
    for count, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - last >= every_s:
            last = now
            of = f"/{total}" if total else ""
            _print_line(f"{what} {count}{of} ({_pace(count, total, now - start)})")


def _pace(count: int, total: int | None, seconds: float) -> str:
    """Returns the speed, and the remaining time if it is long."""
    rate = count / max(seconds, 1e-9)
    speed = f"{rate:.1f}/s" if rate >= _SLOW else f"{1 / rate:.0f} s each"
    left = (total - count) / rate if total else 0.0
    if left < _SOON_S:
        return speed
    return f"{speed}, {left:.0f} s left" if left < 120 else f"{speed}, {left / 60:.0f} min left"


def say(message: str) -> None:
    """Prints a line to stderr in the main process only; stdout is for results."""
    if is_main():
        _print_line(message)


_CONTROLS = {code: repr(chr(code))[1:-1] for code in (*range(32), *range(127, 160)) if code != 10}
"""Control characters, which could clear the terminal if the name of a file holds them."""


def _print_line(line: str) -> None:
    """Prints to stderr; a closed stderr (`2>&1 | tee log` after Ctrl-C) does not end the run."""
    with contextlib.suppress(OSError):
        print(line.translate(_CONTROLS), file=sys.stderr, flush=True)
