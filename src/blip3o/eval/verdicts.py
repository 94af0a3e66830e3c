"""The file of verdicts: appended and synced line by line, shared by the processes of a run."""

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from blip3o.core.errors import UsageError
from blip3o.core.files import naming, write_atomic
from blip3o.core.lock import locked
from blip3o.core.texts import load_json
from blip3o.eval.benchmark import Verdict
from blip3o.eval.plan import Job

FILE = "verdicts.jsonl"

Key = tuple[str, int]
"""Id of the item and number of the sample."""


def key_of(job: Job) -> Key:
    """Returns the key of a sample."""
    return job.item.id, job.number


class VerdictFile:
    """The verdicts of an evaluation.

    A killed process may leave an incomplete last line; it is cut off before the next line is
    written. Of several verdicts on one sample the last one counts.

    Args:
        out: folder of the evaluation.
    """

    def __init__(self, out: Path) -> None:
        self.path = out / FILE
        self._lock = out / f".{FILE}.lock"

    def read(self) -> dict[Key, Verdict]:
        """Returns all verdicts.

        Raises:
            UsageError: if a line other than the last is damaged.
        """
        if not self.path.exists():
            return {}
        lines = self.path.read_bytes().split(b"\n")
        found: dict[Key, Verdict] = {}
        for number, line in enumerate(lines[:-1], 1):
            try:
                data = load_json(line)
                if not isinstance(data, dict):
                    raise ValueError("it is not a JSON object")
                verdict = Verdict.from_dict(data)
            except ValueError as error:
                raise UsageError(
                    f"line {number} of {self.path} is damaged ({error}): remove the line; the "
                    "sample is then judged again"
                ) from error
            found[verdict.item, verdict.number] = verdict
        return found

    def append(self, verdict: Verdict) -> None:
        """Adds a verdict and waits until it is on the disk."""
        line = (_line(verdict)).encode()
        with locked(self._lock), naming(self.path), self.path.open("ab+") as file:
            _cut_incomplete_line(file.fileno())
            file.seek(0, os.SEEK_END)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def rewrite(self, verdicts: Mapping[Key, Verdict], order: Iterable[Key]) -> None:
        """Replaces the file by the same verdicts in a given order, one for each sample.

        So the file does not depend on the number of processes and on interruptions.
        """
        text = "".join(_line(verdicts[key]) for key in order)
        with locked(self._lock):
            if not self.path.exists() or self.path.read_bytes() != text.encode():
                write_atomic(self.path, text)


def _line(verdict: Verdict) -> str:
    return json.dumps(dataclasses.asdict(verdict), ensure_ascii=False) + "\n"


def _cut_incomplete_line(descriptor: int) -> None:
    size = os.fstat(descriptor).st_size
    end = size
    while end and os.pread(descriptor, 1, end - 1) != b"\n":
        end -= 1
    if end != size:
        os.ftruncate(descriptor, end)
