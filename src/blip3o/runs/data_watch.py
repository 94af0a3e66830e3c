"""Reports changes of a run's data since its last start.

`data_files.json` in the run folder holds the files and fingerprints of the last start, and all
changes with their steps. A run continues with changed data. The order of samples depends on the
seed and the number of records only, so from that step on it is the order of the new data.
"""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias, TypedDict

from blip3o.core.distributed import is_main
from blip3o.core.files import write_atomic
from blip3o.core.log import say
from blip3o.data.inventory import Inventory
from blip3o.data.sources import Source
from blip3o.train.checkpoint import newest_step
from blip3o.train.environment import Notes

_FILE = "data_files.json"

_Inventories: TypeAlias = dict[str, Inventory]
"""Inventories of the sources of a run, by name."""


class _Change(TypedDict):
    """Changes of the data that the start at `step` found, one line for each source."""

    step: int
    changes: list[str]


def watch_data(run_dir: Path, sources: Iterable[Source], steps: int) -> Notes:
    """Compares the data of a run with the data of its last start, and reports and stores changes.

    Args:
        run_dir: the run folder.
        sources: the opened sources, one for each entry of the mixture.
        steps: steps of the whole run. The data of a finished run are not compared.

    Returns:
        Notes for `env.json` and for each line of metrics.
    """
    step = newest_step(run_dir)
    if not is_main() or (step is not None and step >= steps):
        return Notes()
    now = {source.name: Inventory.take(source) for source in sources}
    before, changes = _read(run_dir / _FILE)
    if step is None:  # earlier starts that saved no checkpoint do not count
        changes = []
    elif before is None:
        say(f"{run_dir} has no {_FILE} (older version), so changes of its data are not known")
    else:
        found = _compare(before, now)
        if found:
            changes.append(_Change(step=step, changes=found))
            say(_warning(run_dir, step, found, _keeps_order(before, now)))
    plain = {name: dataclasses.asdict(one) for name, one in now.items()}
    write_atomic(run_dir / _FILE, json.dumps({"sources": plain, "changes": changes}, indent=1))
    data = {
        name: {"records": one.records, "fingerprint": one.fingerprint} for name, one in now.items()
    }
    return Notes(
        environment={"data": data, "data_changes": changes},
        metrics={"data_changes": len(changes)} if changes else {},
    )


def _compare(before: _Inventories, now: _Inventories) -> list[str]:
    return [
        f"{name}: {', '.join(changes)}"
        for name, one in now.items()
        if name in before and (changes := one.changes_since(before[name]))
    ]


def _keeps_order(before: _Inventories, now: _Inventories) -> bool:
    """Returns whether every record kept its place: files were edited, but not added or removed."""
    return all(
        one.records == before[name].records
        and one.files is not None
        and one.files.keys() == (before[name].files or {}).keys()
        for name, one in now.items()
        if name in before
    )


def _warning(run_dir: Path, step: int, found: list[str], keeps_order: bool) -> str:
    order = (
        "the order of records stays the same"
        if keeps_order
        else "their order changed, so this epoch repeats some records and skips others"
    )
    return (
        f"warning: the data changed since the last start of {run_dir}: {'; '.join(found)}. "
        f"Training continues from step {step} with the new data; {order}. To train on the new "
        f"data only, use another --out"
    )


def _read(file: Path) -> tuple[_Inventories | None, list[_Change]]:
    """Returns the inventories of the last start and all changes so far; None if unreadable."""
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        sources = {str(k): Inventory.from_dict(one) for k, one in stored["sources"].items()}
        return sources, list(stored["changes"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None, []
