"""Says what changed in the data of a run since its last start.

`data_files.json` in the run folder holds the files and fingerprints of the last start, and what
changed at which step. A run with other data goes on: the order of samples is a function of the seed
and of how many records there are, so it is that of the new data from there on.
"""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from blip3o.core.distributed import is_main
from blip3o.core.files import write_atomic
from blip3o.core.log import say
from blip3o.data.inventory import Inventory
from blip3o.data.sources import Source
from blip3o.train.checkpoint import newest_step
from blip3o.train.environment import Notes

_FILE = "data_files.json"


def watch_data(run_dir: Path, sources: Iterable[Source], steps: int) -> Notes:
    """Compares the data of a run with those of its last start, says what changed and notes it.

    Args:
        run_dir: the run folder.
        sources: the opened sources, one for each entry of the mixture.
        steps: steps of the whole run. A run that is finished compares nothing.

    Returns:
        What `env.json` and every line of metrics say of it.
    """
    step = newest_step(run_dir)
    if not is_main() or (step is not None and step >= steps):
        return Notes()
    now = {source.name: Inventory.take(source) for source in sources}
    before, changes = _read(run_dir / _FILE)
    if step is None:  # a first start: an earlier one without a checkpoint does not count
        changes = []
    elif before is None:
        say(f"{run_dir} has no {_FILE} (older version): whether its data changed is not known")
    else:
        found = _compare(before, now)
        if found:
            changes.append({"step": step, "changes": found})
            say(_warning(run_dir, step, found, _keeps_order(before, now)))
    plain = {name: dataclasses.asdict(one) for name, one in now.items()}
    write_atomic(run_dir / _FILE, json.dumps({"sources": plain, "changes": changes}, indent=1))
    told = {
        name: {"records": one.records, "fingerprint": one.fingerprint} for name, one in now.items()
    }
    return Notes(
        environment={"data": told, "data_changes": changes},
        metrics={"data_changes": len(changes)} if changes else {},
    )


def _compare(before: dict[str, Inventory], now: dict[str, Inventory]) -> list[str]:
    return [
        f"{name}: {', '.join(changes)}"
        for name, one in now.items()
        if name in before and (changes := one.changes_since(before[name]))
    ]


def _keeps_order(before: dict[str, Inventory], now: dict[str, Inventory]) -> bool:
    """Returns whether every record is where it was: nothing came or went, files were edited."""
    return all(
        one.records == before[name].records
        and one.files is not None
        and one.files.keys() == (before[name].files or {}).keys()
        for name, one in now.items()
        if name in before
    )


def _warning(run_dir: Path, step: int, found: list[str], keeps_order: bool) -> str:
    order = (
        "the order of records stays"
        if keeps_order
        else "their order is a new one, so this epoch repeats some records and misses others"
    )
    return (
        f"warning: the data changed since the last start of {run_dir}: {'; '.join(found)}. "
        f"Training goes on from step {step} with the data as they are now; {order}. For a run on "
        f"these data alone, use another --out"
    )


def _read(file: Path) -> tuple[dict[str, Inventory] | None, list[Any]]:
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        sources = {str(k): Inventory.from_dict(one) for k, one in stored["sources"].items()}
        return sources, list(stored["changes"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None, []
