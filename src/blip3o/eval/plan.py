"""The plan of an evaluation: its items, fixed in `items.jsonl` before anything is generated."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from blip3o.core.errors import UsageError
from blip3o.core.files import read_text, write_atomic
from blip3o.eval.benchmark import Item

ITEMS, SAMPLES = "items.jsonl", "samples"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._#-]{0,199}")


class Job(NamedTuple):
    """A sample that is asked for: an item and the number of the sample within it."""

    item: Item
    number: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """All items of an evaluation, in order.

    Args:
        items: the items.
    """

    items: tuple[Item, ...]

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for item in self.items:
            if not _NAME.fullmatch(item.id) or item.id in seen:
                raise ValueError(f"the name of an item is invalid or occurs twice: {item.id!r}")
            seen.add(item.id)

    @property
    def text(self) -> str:
        """The content of `items.jsonl`."""
        return "".join(_line(item) for item in self.items)

    @property
    def sha256(self) -> str:
        """Hash of `items.jsonl`."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def jobs(self) -> list[Job]:
        """Returns all samples that are asked for, in order."""
        return [Job(item, number) for item in self.items for number in range(item.num_samples)]

    def chunks(self, size: int) -> list[list[Job]]:
        """Returns the samples in groups that are generated together.

        The groups depend on the plan and the size only. Processes share whole groups, and a resumed
        evaluation repeats whole groups, so each sample always has the same companions.

        Args:
            size: most samples in a group. All of a group have the same task.
        """
        groups: list[list[Job]] = []
        kind: object = None
        for job in self.jobs():
            own = (job.item.task, job.item.max_new_tokens)
            if own != kind or len(groups[-1]) == size:
                groups.append([])
                kind = own
            groups[-1].append(job)
        return groups


def write_plan(plan: Plan, out: Path) -> None:
    """Writes a plan into a folder that has none.

    Raises:
        UsageError: if the folder holds another plan.
    """
    file = out / ITEMS
    if not file.exists():
        write_atomic(file, plan.text, is_shared=True)
    elif read_text(file, "items") != plan.text:
        raise UsageError(
            f"{file} belongs to other settings or prompts, or was changed: use another --out"
        )


def read_plan(out: Path) -> Plan:
    """Returns the plan in a folder.

    Raises:
        UsageError: if there is none, or it is damaged.
    """
    return Plan(tuple(_items(out / ITEMS)))


def _items(file: Path) -> Iterator[Item]:
    known = {field.name for field in dataclasses.fields(Item)}
    for number, line in enumerate(read_text(file, "items").splitlines(), 1):
        try:
            values = json.loads(line)
            if not isinstance(values, dict) or values.keys() != known:
                raise ValueError("its keys are not those of an item")
            yield Item(**(values | {"sources": tuple(values["sources"])}))
        except (ValueError, TypeError) as error:
            raise UsageError(f"line {number} of {file} is not an item: {error}") from error


def _line(item: Item) -> str:
    return json.dumps(dataclasses.asdict(item), ensure_ascii=False) + "\n"


def sample_file(folder: Path, job: Job, suffix: str) -> Path:
    """Returns the file of a sample in a folder of samples.

    Args:
        folder: the folder of all samples.
        job: the sample.
        suffix: ".png" for an image, ".txt" for an answer, ".refused" for the reason why the model
            gave neither.
    """
    return folder / job.item.id / f"{job.number}{suffix}"
