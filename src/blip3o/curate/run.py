"""Runs a curation: units of drafts through stages, whose results are files named by content.

    OUT/work/02-draw/KEY-000007.jsonl    drafts of unit 7 after the stage `draw`

KEY is a hash of the stage's settings and version, of its models, and of the key before it. So a
changed setting repeats only the stages after it, and a file is there completely or not at all. Any
number of processes, on any machines that share the folder, may work at the same time: each takes a
free unit. The bytes depend neither on their number nor on their ends.
"""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Sequence
from pathlib import Path

from blip3o.core.config import dump_yaml, to_dict
from blip3o.core.errors import PreemptedError, UsageError
from blip3o.core.files import write_atomic
from blip3o.core.lock import HeldError, locked
from blip3o.core.log import progress, say
from blip3o.core.shard import WHOLE, Shard
from blip3o.curate.config import CurateConfig
from blip3o.curate.desk import Desk
from blip3o.curate.draft import Draft, read_drafts, write_drafts
from blip3o.curate.images import ImageStore
from blip3o.curate.models import Lost, Place
from blip3o.curate.stages import AskingStage, StageConfig

IMAGES, REQUESTS, WORK = "images", "requests", "work"
"""Folders of a run: image files, the journal of requests, and the drafts after each stage."""
SETTINGS = "curation.yaml"
"""File of a run with the settings of its last call."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Step:
    """A stage in its run.

    Args:
        stage: the stage.
        desk: its surroundings.
        folder: folder of its results.
        keys: key of the result of each unit.
    """

    stage: StageConfig
    desk: Desk
    folder: Path
    keys: Sequence[str]

    def file(self, unit: int) -> Path:
        """Returns the file of the drafts of a unit after the stage."""
        return self.folder / f"{self.keys[unit][:16]}-{unit:06d}.jsonl"

    def missing(self) -> list[int]:
        """Returns the units that are not done."""
        return [unit for unit in range(len(self.keys)) if not self.file(unit).exists()]


class Curation:
    """A curation in its folder.

    Args:
        config: the settings.
        out: the folder; created if missing.
        lost: treatment of requests whose answers were lost.

    Raises:
        UsageError: if a model or a file of a stage is missing, a licence is unknown, or the folder
            cannot be written.
    """

    def __init__(self, config: CurateConfig, out: Path, lost: Lost = "stop") -> None:
        config.check_licenses()
        self.config = config
        self.out = out
        self.lost: Lost = lost
        self.images = ImageStore(out / IMAGES)
        self._plan = config.plan()
        place = Place(
            folder=out / REQUESTS,
            images=self.images,
            max_cost=config.max_cost,
            max_requests=config.max_requests,
            lost=lost,
        )
        models = {one.name: one.build(place) for one in config.models}
        self._steps: list[_Step] = []
        keys: Sequence[str] = [
            _hash({"plan": [to_dict(one) for one in self._plan[config.unit(number)]]})
            for number in range(config.num_units)
        ]
        for number, (name, stage) in enumerate(zip(config.stage_names, config.stages, strict=True)):
            keys = self._keys(stage, name, keys)
            desk = Desk(stage=name, seed=config.seed, images=self.images, models=models)
            folder = out / WORK / f"{number:02d}-{name}"
            self._steps.append(_Step(stage=stage, desk=desk, folder=folder, keys=keys))
        for step in self._steps:
            step.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(out / SETTINGS, dump_yaml(config), is_shared=True)

    def _keys(self, stage: StageConfig, name: str, before: Sequence[str]) -> list[str]:
        """Returns the key of each unit after a stage."""
        own = {
            "name": name,  # part of the random numbers
            "stage": to_dict(stage),
            "version": stage.version,
            "files": stage.fingerprint(),
            "seed": self.config.seed,
            "model": self.config.model(stage.model).identity()
            if isinstance(stage, AskingStage)
            else None,
        }
        if stage.is_whole:
            whole = _hash({**own, "before": list(before)})
            return [_hash({"whole": whole, "unit": unit}) for unit in range(len(before))]
        return [_hash({**own, "before": one}) for one in before]

    def run(self, shard: Shard = WHOLE) -> list[Draft] | None:
        """Does the work that is left, and returns all drafts; None if other shards have work left.

        Args:
            shard: the part of the units that this process does. Whole stages are done by the
                process that finds their input complete.

        Raises:
            UsageError: if a stage refuses its input, or a server refuses all requests.
            PreemptedError: if a cap is reached or a server does not answer; the same command goes
                on from there.
        """
        for start, end in self._segments():
            if not self._run_segment(start, end, shard):
                return None
        return self.drafts()

    def drafts(self, before: str | None = None) -> list[Draft] | None:
        """Returns all drafts before the first stage of a kind; None if they are not complete.

        Args:
            before: the kind; None, or a kind that the run lacks, for the end of the last stage.
        """
        kinds = [step.stage.kind for step in self._steps]
        after = kinds.index(before) if before in kinds else len(kinds)
        if after and self._steps[after - 1].missing():
            return None
        return [one for unit in range(self.config.num_units) for one in self._before(after, unit)]

    def _segments(self) -> list[tuple[int, int]]:
        """Returns ranges of stages: each whole stage alone, and the runs of others between them."""
        ends = [n for n, step in enumerate(self._steps) if step.stage.is_whole]
        cuts = sorted({0, len(self._steps), *ends, *(end + 1 for end in ends)})
        return list(itertools.pairwise(cuts))

    def _run_segment(self, start: int, end: int, shard: Shard) -> bool:
        """Does the stages of a segment; returns whether all of their units are done."""
        last = self._steps[end - 1]
        if last.stage.is_whole:
            with locked(last.folder / ".lock"):
                if last.missing():
                    self._run_whole(end - 1)
            return True
        units = [unit for unit in last.missing() if unit % shard.count == shard.number - 1]
        names = f"{self._steps[start].desk.stage} to {last.desk.stage}"
        held: list[int] = []
        for unit in progress(units, what=names):
            try:
                self._run_unit(start, end, unit, "works on this unit")
            except HeldError:
                held.append(unit)
        for unit in held:  # wait for the others, and do what they did not finish
            self._run_unit(start, end, unit, None)
        left = len(last.missing())
        if left:
            say(f"shard {shard.number}/{shard.count} is done; {left} units are left to others")
        return not left

    def _run_unit(self, start: int, end: int, unit: int, refusal: str | None) -> None:
        locks = self.out / WORK / "locks"
        locks.mkdir(exist_ok=True)
        with locked(locks / f"{unit:06d}", refusal):
            for number in range(start, end):
                step = self._steps[number]
                if not step.file(unit).exists():
                    self._publish(number, [unit], self._before(number, unit))

    def _run_whole(self, number: int) -> None:
        units = range(self.config.num_units)
        self._publish(number, units, [one for unit in units for one in self._before(number, unit)])

    def _publish(self, number: int, units: Sequence[int], drafts: Sequence[Draft]) -> None:
        """Runs a stage over drafts of some units and writes their files."""
        step = self._steps[number]
        try:
            result = step.stage.run(drafts, step.desk)
        except (UsageError, PreemptedError) as error:
            raise type(error)(f"stage {step.desk.stage}: {error}") from error
        if [one.slot for one in result] != [one.slot for one in drafts]:
            raise AssertionError(f"stage {step.desk.stage} lost or moved drafts")
        first = 0
        for unit in units:
            count = len(self._plan[self.config.unit(unit)])
            write_drafts(step.file(unit), result[first : first + count])
            first += count

    def _before(self, number: int, unit: int) -> list[Draft]:
        """Returns the drafts of a unit before a stage."""
        if number == 0:
            return self._plan[self.config.unit(unit)]
        return read_drafts(self._steps[number - 1].file(unit))


def _hash(content: object) -> str:
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
