"""Drops what reviewers have rejected, and stops if a category has too many defects."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

from blip3o.core.bounds import Share
from blip3o.core.config import LocalPath
from blip3o.core.errors import UsageError, reason_of
from blip3o.core.files import file_sha256, home_path
from blip3o.core.log import say
from blip3o.curate.decisions import Decision, DefectRate, defect_rates, read_decisions
from blip3o.curate.desk import Desk
from blip3o.curate.draft import Draft, Step


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReviewStage:
    """Applies the decisions of reviewers.

    A decision counts only for the image that the reviewer saw. Drafts without one pass.

    Args:
        name: name of the stage in its run; empty for the kind.
        decisions: the file that the page of `write_review` saves, or several of them concatenated.
            With None, as before the review, all drafts pass.
        most_defects: largest acceptable defect rate of a category. The run stops if the upper end
            of the 95 % interval of a rate exceeds it, so too small a sample stops the run too. A
            category whose drafts are all reviewed passes: its defects are known, and dropped.
    """

    version: ClassVar[int] = 1
    is_whole: ClassVar[bool] = True

    kind: str = "review"
    name: str = ""
    decisions: LocalPath | None = None
    most_defects: Share | None = None

    def fingerprint(self) -> str:
        """Returns the hash of the decisions; empty without a file.

        Raises:
            UsageError: if the file cannot be read.
        """
        if self.decisions is None:
            return ""
        try:
            return file_sha256(home_path(self.decisions))
        except OSError as error:
            message = f"cannot read decisions from {self.decisions}: {reason_of(error)}"
            raise UsageError(message) from error

    def run(self, drafts: Sequence[Draft], desk: Desk) -> list[Draft]:
        """Returns the drafts; rejected ones are dropped with the reason.

        Raises:
            UsageError: if the decisions cannot be read, or a category has too many defects.
        """
        if self.decisions is None:
            unchecked = "" if self.most_defects is None else ", and most_defects is not checked"
            say(f"{desk.stage}: there is no file of decisions: all drafts pass{unchecked}")
            return list(drafts)
        decisions = read_decisions(home_path(self.decisions))
        shown = {(one.slot, one.image) for one in drafts}
        if num_others := len(decisions.keys() - shown):
            what = "decision is" if num_others == 1 else "decisions are"
            say(f"{desk.stage}: {num_others} {what} about another image of a slot and do not count")
        if self.most_defects is not None:
            self._check(defect_rates(drafts, decisions).by_category, self.most_defects)
        return [_decided(one, decisions.get((one.slot, one.image)), desk.stage) for one in drafts]

    @staticmethod
    def _check(rates: Mapping[str, DefectRate], most: float) -> None:
        above = [
            name
            for name, one in rates.items()
            if one.interval[1] > most and one.num_reviewed < one.num_drafts
        ]
        if not above:
            return
        worst = max(above, key=lambda name: rates[name].interval[1])
        one = rates[worst]
        found = "no draft is reviewed"
        if one.rate is not None:
            low, high = one.interval
            found = (
                f"{one.num_rejected} of {one.num_reviewed} reviewed drafts are rejected, "
                f"{one.rate:.1%} (95 % interval {low:.1%} to {high:.1%})"
            )
        others = f" (and so may {len(above) - 1} more)" if len(above) > 1 else ""
        raise UsageError(
            f"category {worst!r} may have more than {most:.1%} defects{others}: {found}; review "
            "more drafts for a narrower interval, make the earlier stages stricter, or raise "
            "most_defects"
        )


def _decided(draft: Draft, decision: Decision | None, stage: str) -> Draft:
    if decision is None or draft.dropped:
        return draft
    reviewer = decision.reviewer or "a reviewer"
    if decision.decision == "accept":
        return draft.noted(Step(stage=stage, text=f"accepted by {reviewer}"))
    text = f"rejected by {reviewer}" + (f": {decision.reason}" if decision.reason else "")
    return draft.noted(Step(stage=stage, text=text)).drop(stage, text)
