"""The report of a study: a function of its result files, whole or partial."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from blip3o.core.files import write_atomic
from blip3o.study.claims import LEAST_SEEDS, Claim, Outcome, decide
from blip3o.study.figures import draw_curves, draw_samples
from blip3o.study.grid import Study, StudySettings
from blip3o.study.results import SAMPLES, Failure, Result, read, run_folder
from blip3o.study.statistics import mean_interval

REPORT, CURVES, SAMPLE_SHEET = "report.md", "curves.png", "samples.png"

_Record = Result | Failure | None
"""What there is of a run; None if it has not ended yet."""


@dataclasses.dataclass(frozen=True)
class Records:
    """What there is of all runs of a study.

    Args:
        by_run: by name of the arm and seed, in the order of the arms and the seeds.
    """

    by_run: Mapping[tuple[str, int], _Record]

    @classmethod
    def read(cls, study: Study, settings: StudySettings, out: Path) -> "Records":
        """Returns the records in the folder of a study."""
        runs = [(arm.name, seed) for arm in study.arms for seed in settings.seeds]
        return cls({run: read(run_folder(out, *run)) for run in runs})

    def of_arm(self, arm: str) -> list[Result]:
        """Returns the results of an arm, of diverged runs too."""
        found = [one for (name, _), one in self.by_run.items() if name == arm]
        return [one for one in found if isinstance(one, Result)]

    def done(self) -> dict[str, list[Result]]:
        """Returns the results of all arms, without diverged runs."""
        names = dict.fromkeys(name for name, _ in self.by_run)
        return {name: [r for r in self.of_arm(name) if r.status == "done"] for name in names}


def write_report(study: Study, settings: StudySettings, out: Path) -> None:
    """Writes `report.md`, `curves.png` and `samples.png` in the folder of a study.

    Args:
        study: the study.
        settings: its seeds and measurements.
        out: its folder. Only result files and sample images in it are read.
    """
    records = Records.read(study, settings, out)
    done = records.done()
    figures = [] if study.section is None else [study.section(done, out)]
    titles = {arm.name: arm.title for arm in study.arms}
    if draw_curves({titles[name]: runs for name, runs in done.items()}, out / CURVES):
        figures.append(f"## Curves\n\n![curves]({CURVES})\n")
    rows = {
        titles[name]: run_folder(out, name, runs[0].seed) / SAMPLES
        for name, runs in done.items()
        if runs
    }
    if draw_samples(rows, settings.evaluation.sample_prompts, out / SAMPLE_SHEET):
        text = "The same prompts and the same noise for all arms, first seed that is done."
        figures.append(f"## Samples\n\n{text}\n\n![samples]({SAMPLE_SHEET})\n")
    text = "\n".join([report_text(study, settings, records), *figures])
    write_atomic(out / REPORT, text, is_shared=True)


def report_text(study: Study, settings: StudySettings, records: Records) -> str:
    """Returns the text of a report without its images."""
    done = records.done()
    kinds = Counter(_kind(one) for one in records.by_run.values())
    counts = ", ".join(f"{kinds[kind]} {kind}" for kind in ("done", *_UNDONE) if kinds[kind])
    return "\n".join(
        [
            f"# {study.title}\n",
            f"`blip3o study {study.name}`: {len(records.by_run)} runs, {counts}.",
            "A value is the mean over the seeds and half the width of its 95 % t-interval; a value",
            "of one run has none. Differences of two arms have Welch intervals.\n",
            "## Arms\n",
            *_arm_table(study, records),
            "\n## Scores\n",
            *_score_table(study, done, per_category=False),
            *_category_lines(study, done),
            "\n## Claims\n",
            f"A test passes if the whole interval lies where it says, over at least {LEAST_SEEDS}",
            "finished runs of each arm. A claim is open if neither its tests nor those against it",
            "pass.\n",
            *(line for claim in study.claims for line in _claim_lines(claim, done)),
            *_run_lines(records),
        ]
    )


_UNDONE = ("diverged", "failed", "missing")


def _kind(record: _Record) -> str:
    if isinstance(record, Result):
        return record.status
    return "missing" if record is None else "failed"


def _arm_table(study: Study, records: Records) -> list[str]:
    lines = [
        "| arm | name | runs done | trained parameters | operations per sample | samples | "
        "seconds | CPU seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for arm in study.arms:
        runs = records.of_arm(arm.name)
        ends = [run.points[-1] for run in runs if run.points]
        cells = [
            arm.title,
            f"`{arm.name}`",
            str(len(ends)),
            f"{runs[0].trainable_parameters:,}" if runs else "-",
            _cell([run.flops_per_sample for run in runs], with_interval=False),
            f"{ends[0].samples:,}" if ends else "-",
            _cell([end.seconds for end in ends]),
            _cell([end.cpu_seconds for end in ends]),
        ]
        lines.append(_row(cells))
    return lines


def _score_table(
    study: Study, done: Mapping[str, Sequence[Result]], *, per_category: bool
) -> list[str]:
    found = dict.fromkeys(n for runs in done.values() for run in runs for n in run.scores)
    names = [name for name in found if ("/" in name) == per_category]
    lines = [
        _row(["arm", *(name.partition("/")[2] or name for name in names)]),
        "|" + "---|" * (1 + len(names)),
    ]
    for arm in study.arms:
        runs = done[arm.name]
        values = [[run.scores[name] for run in runs if name in run.scores] for name in names]
        lines.append(_row([arm.title, *map(_cell, values)]))
    return lines


def _category_lines(study: Study, done: Mapping[str, Sequence[Result]]) -> list[str]:
    """Returns the table of scores by category, if the study has such scores."""
    if not any("/" in name for runs in done.values() for run in runs for name in run.scores):
        return []
    return ["\n## Scenes by category\n", *_score_table(study, done, per_category=True)]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(values: Sequence[float], *, with_interval: bool = True) -> str:
    """Returns a mean with half the width of its interval; "-" without values."""
    if not values:
        return "-"
    if len(values) == 1 or not with_interval:
        return f"{sum(values) / len(values):.4g}"
    found = mean_interval(values)
    return f"{found.mean:.4g} \u00b1 {found.high - found.mean:.2g}"


def _claim_lines(claim: Claim, done: Mapping[str, Sequence[Result]]) -> list[str]:
    decision = decide(claim, done)
    return [
        f"### {claim.name}: {decision.verdict}\n",
        f"{claim.text}\n",
        *(f"- held if {_words(one)}" for one in decision.held_if),
        *(f"- refuted if {_words(one)}" for one in decision.refuted_if),
        "",
    ]


def _words(outcome: Outcome) -> str:
    """Returns a test, the value that was found, and whether the test passes."""
    test = outcome.test
    value = f"`{test.score}` of `{test.arm}`"
    if test.flops_share is not None:
        value += f" at {test.flops_share:g} x the operations of `{test.minus}`"
    if test.minus:
        value += f" minus `{test.minus}`"
    limit = f"{test.limit:g}" if test.is_ in ("above", "below") else f"\u00b1 {test.limit:g}"
    if outcome.interval is None:
        found = f"not known, fewer than {LEAST_SEEDS} runs"
    else:
        kind = {"pairs": "interval of pairs"}.get(test.over, test.over)
        found = f"{outcome.interval} ({kind}), {'passes' if outcome.passed else 'does not pass'}"
    return f"{value} is {test.is_} {limit}: {found}"


def _run_lines(records: Records) -> list[str]:
    """Returns a line for every run that is not done."""
    lines = []
    for (arm, seed), record in records.by_run.items():
        kind = _kind(record)
        if kind != "done":
            reason = f": {record.reason}" if isinstance(record, Result | Failure) else ""
            lines.append(f"- `{arm}`, seed {seed}: {kind}{reason}")
    return ["## Runs that are not done\n", *lines, ""] if lines else []
