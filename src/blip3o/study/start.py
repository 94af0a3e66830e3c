"""Starts a study: trains and measures its runs one after another, and reports after each."""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from blip3o.core.config import to_dict
from blip3o.core.errors import PreemptedError, UsageError, first_line
from blip3o.core.files import write_atomic
from blip3o.core.lock import locked
from blip3o.core.log import say
from blip3o.core.shard import WHOLE, Shard
from blip3o.runs.assemble import MODEL
from blip3o.runs.checks import check_run
from blip3o.runs.scenes import ensure_scenes
from blip3o.runs.start import train
from blip3o.study.grid import Grid, Study, resolve
from blip3o.study.report import write_report
from blip3o.study.results import Failure, Result, read, run_folder, write
from blip3o.study.run import complete, seeded
from blip3o.train.claim import claimed

SHARED = "shared"
"""Folder of the shared runs."""
SETTINGS = "study.json"
"""File with the settings of a study, which all processes must share."""


def run_study(
    study: Study, out: Path, assignments: Sequence[str] = (), shard: Shard = WHOLE
) -> bool:
    """Does the runs of a study that have no result yet, and writes `out/report.md` after each.

    Several processes, also on several machines, may share the folder: a run belongs to the process
    that has claimed it.

    Args:
        study: the study.
        out: folder of the study; created if missing.
        assignments: `path=value` changes, see `resolve`.
        shard: the part of the runs that this process does.

    Returns:
        Whether every run of the shard has a result now.

    Raises:
        UsageError: for a bad change, or if the folder holds results with other settings.
        PreemptedError: if a signal asked to stop; the same call goes on.
    """
    grid = resolve(study, assignments, out / SHARED)
    for config in (*grid.shared.values(), *grid.arms.values()):
        check_run(config)
    # Seed by seed, so that an unfinished study compares all arms with the same seeds.
    runs = [(arm, seed) for seed in grid.settings.seeds for arm in grid.arms]
    own = runs[shard.number - 1 :: shard.count]
    out.mkdir(parents=True, exist_ok=True)
    with locked(out / ".prepare.lock"):  # one process prepares, the others wait
        _check_settings(study, assignments, out)
        _prepare(study, grid, out)
    write_report(study, grid.settings, out)
    for number, (arm, seed) in enumerate(own, 1):
        say(f"run {number} of {len(own)}: {arm}, seed {seed}")
        if _do(grid, out, arm, seed):
            write_report(study, grid.settings, out)
    return all(isinstance(read(run_folder(out, *run)), Result) for run in own)


def _do(grid: Grid, out: Path, arm: str, seed: int) -> bool:
    """Does a run and returns True, unless it is done or another process does it.

    A failure is written down; the next call tries again.
    """
    folder = run_folder(out, arm, seed)
    evaluation = grid.settings.evaluation
    config = seeded(grid.arms[arm], seed, evaluation.num_points)
    with ExitStack() as stack:
        try:
            stack.enter_context(claimed(folder))
        except UsageError as error:
            say(f"left out: {error}")
            return False
        if isinstance(read(folder), Result):
            return False
        try:
            complete(config, evaluation, arm, folder)
        except PreemptedError:
            raise
        except Exception as error:  # noqa: BLE001  (a broken run does not stop the others)
            reason = f"{type(error).__name__}: {first_line(error)}"
            say(f"{folder} has failed; the next call tries it again: {reason}")
            write(folder, Failure(arm=arm, seed=seed, reason=reason))
    return True


def _prepare(study: Study, grid: Grid, out: Path) -> None:
    """Writes missing data and trains the shared runs that have no model yet."""
    if study.write_data is not None:
        study.write_data(grid, out / SHARED)
    for config in (*grid.shared.values(), *grid.arms.values()):
        ensure_scenes(config.data)
    for name, config in grid.shared.items():
        folder = out / SHARED / name
        if not (folder / MODEL).exists():
            say(f"shared run {name}")
            train(config, folder)


def _check_settings(study: Study, assignments: Sequence[str], out: Path) -> None:
    """Stores the settings of a study; refuses to mix results of different settings.

    Arms and seeds may be added.

    Raises:
        UsageError: if the folder has results with other settings; names the parts that differ.
    """
    file = out / SETTINGS
    grid = resolve(study, assignments, Path(SHARED))  # a folder that may be moved
    now: dict[str, object] = {
        "study": study.name,
        "evaluation": to_dict(grid.settings.evaluation),
        **{f"{SHARED}.{name}": to_dict(config) for name, config in grid.shared.items()},
        **{name: to_dict(config) for name, config in grid.arms.items()},
    }
    before: dict[str, object] = {}
    if file.exists():
        before = json.loads(file.read_text(encoding="utf-8"))
    changed = [name for name in now if name in before and before[name] != now[name]]
    if changed:
        raise UsageError(
            f"{out} holds results with other settings of {', '.join(changed)}; "
            "use another --out, or the same settings"
        )
    write_atomic(file, json.dumps({**before, **now}, indent=1) + "\n")
