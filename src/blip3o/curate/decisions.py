"""What reviewers have decided about images, and the defect rates that follow from it."""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast, get_args

from blip3o.core.errors import UsageError, shown, unknown_name
from blip3o.core.files import read_lines
from blip3o.core.log import say
from blip3o.core.texts import load_json
from blip3o.curate.draft import Draft

Verdict: TypeAlias = Literal["accept", "reject"]
Interval: TypeAlias = tuple[float, float]
"""Lower and upper end, as shares from 0 to 1."""

REASONS = ("wrong content", "bad quality", "text errors", "unsafe", "other")
"""The reasons that the page of a review offers, by the keys 1 to 5."""
Z_95 = 1.959963984540054
"""The 97.5 % quantile of the normal distribution."""
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decision:
    """The decision about one image of a draft, a line of `decisions.jsonl`.

    Args:
        slot: slot of the draft.
        image: sha256 of the image file that the reviewer saw.
        decision: whether the draft may become a record.
        reason: why it may not; empty if the reviewer gave no reason.
        reviewer: name of the reviewer; empty if none was given.

    Raises:
        UsageError: if a value is not valid.
    """

    slot: int
    image: str
    decision: Verdict
    reason: str = ""
    reviewer: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.slot, int) or isinstance(self.slot, bool) or self.slot < 0:
            raise UsageError(f"slot must be a whole number from 0, got {shown(self.slot)}")
        for name in ("image", "decision", "reason", "reviewer"):
            if not isinstance(value := getattr(self, name), str):
                raise UsageError(f"{name} must be a text, got {shown(value)}")
        if not _SHA256.fullmatch(self.image):
            raise UsageError(f"image must be the sha256 of a file, got {shown(self.image)}")
        if self.decision not in get_args(Verdict):
            raise unknown_name("decision", self.decision, get_args(Verdict))


def read_decisions(path: Path) -> dict[tuple[int, str], Decision]:
    """Returns the decisions of a file, by the slot and the sha256 of the image.

    The files of several reviewers may be concatenated. A later line about an image replaces an
    earlier one; lines that contradict an earlier one are counted in the log.

    Raises:
        UsageError: if the file cannot be read or a line is not a decision; the message names it.
    """
    decisions: dict[tuple[int, str], Decision] = {}
    num_contradictions = 0
    for number, line in enumerate(read_lines(path, "decisions"), 1):
        if not line.strip():
            continue
        try:
            found = _decision(load_json(line))
        except (UsageError, ValueError) as error:
            raise UsageError(f"{path}, line {number}: {error}") from error
        earlier = decisions.get((found.slot, found.image), found)
        num_contradictions += earlier.decision != found.decision
        decisions[found.slot, found.image] = found
    if num_contradictions:
        lines = "line contradicts" if num_contradictions == 1 else "lines contradict"
        say(f"{path}: {num_contradictions} {lines} an earlier one; the later one counts")
    return decisions


def _decision(data: object) -> Decision:
    if not isinstance(data, dict):
        raise UsageError(f"a decision must be a JSON object, got {shown(data)}")
    fields = {field.name: field for field in dataclasses.fields(Decision)}
    for name in data:
        if name not in fields:
            raise unknown_name("key", name, fields)
    for name, field in fields.items():
        if name not in data and field.default is dataclasses.MISSING:
            raise UsageError(f"the key {name!r} is missing")
    return Decision(**cast("dict[str, Any]", data))


def finished_drafts(drafts: Sequence[Draft]) -> list[Draft]:
    """Returns the drafts that a review is about: they have an image and are not dropped."""
    return [one for one in drafts if one.is_finished]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DefectRate:
    """The defect rate of a category, or of all.

    Args:
        num_drafts: number of its finished drafts.
        num_reviewed: number of those with a decision about their image.
        num_rejected: number of those that were rejected.
        rate: the share of drafts with a defect; None if none was reviewed.
        interval: 95 % interval of the rate; from 0 to 1 if none was reviewed.
    """

    num_drafts: int
    num_reviewed: int
    num_rejected: int
    rate: float | None
    interval: Interval


@dataclasses.dataclass(frozen=True, kw_only=True)
class DefectRates:
    """The defect rates of a review.

    Args:
        by_category: the rates by category, in alphabetical order.
        overall: the mean of these rates, weighted by the numbers of drafts. Categories without a
            decision are not part of it.
    """

    by_category: Mapping[str, DefectRate]
    overall: DefectRate


def defect_rates(
    drafts: Sequence[Draft], decisions: Mapping[tuple[int, str], Decision]
) -> DefectRates:
    """Returns the defect rates of the finished drafts, with Wilson intervals.

    The interval of the overall rate takes Kish's effective number of reviewed drafts: fewer than
    were reviewed, if the shares of the categories differ between the sample and the drafts.

    Args:
        drafts: the drafts; only finished ones count.
        decisions: decisions by slot and sha256 of the image. They must be about a random sample
            within each category, such as that of `write_review`.
    """
    finished = finished_drafts(drafts)
    sizes = Counter(one.category for one in finished)
    made = [(one, decisions.get((one.slot, one.image))) for one in finished]
    reviewed = Counter(one.category for one, decision in made if decision is not None)
    rejected = Counter(
        one.category for one, decision in made if decision and decision.decision == "reject"
    )
    by_category = {
        name: _rate(sizes[name], reviewed[name], rejected[name]) for name in sorted(sizes)
    }
    return DefectRates(by_category=by_category, overall=_overall(by_category.values()))


def _rate(num_drafts: int, num_reviewed: int, num_rejected: int) -> DefectRate:
    rate = num_rejected / num_reviewed if num_reviewed else None
    return DefectRate(
        num_drafts=num_drafts,
        num_reviewed=num_reviewed,
        num_rejected=num_rejected,
        rate=rate,
        interval=(0.0, 1.0) if rate is None else wilson_interval(rate, num_reviewed),
    )


def _overall(rates: Iterable[DefectRate]) -> DefectRate:
    known = [(one, one.rate) for one in rates if one.rate is not None]
    total = sum(one.num_drafts for one, _ in known)
    mean = sum(one.num_drafts * rate for one, rate in known) / total if known else None
    interval = (0.0, 1.0)
    if mean is not None:
        effective = total**2 / sum(one.num_drafts**2 / one.num_reviewed for one, _ in known)
        interval = wilson_interval(mean, effective)
    return DefectRate(
        num_drafts=total,
        num_reviewed=sum(one.num_reviewed for one, _ in known),
        num_rejected=sum(one.num_rejected for one, _ in known),
        rate=mean,
        interval=interval,
    )


def wilson_interval(rate: float, number: float) -> Interval:
    """Returns the 95 % score interval of a share by Wilson; it is also good near 0 and 1.

    Args:
        rate: the observed share.
        number: number of observations, above 0; not whole if it is an effective one.
    """
    square = Z_95 * Z_95 / number
    middle = (rate + square / 2) / (1 + square)
    half = math.sqrt(square * rate * (1 - rate) + square * square / 4) / (1 + square)
    return max(0.0, middle - half), min(1.0, middle + half)
