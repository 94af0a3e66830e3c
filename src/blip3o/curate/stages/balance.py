"""Leaves out drafts of categories that have too many."""

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import ClassVar

from blip3o.core.bounds import Share, Whole
from blip3o.core.errors import UsageError
from blip3o.curate.desk import Desk
from blip3o.curate.draft import Draft, open_drafts


@dataclasses.dataclass(frozen=True, kw_only=True)
class BalanceStage:
    """Keeps so many drafts of each category that the set has the wanted proportions.

    It keeps the largest set that the settings allow. Which drafts of a category stay is random,
    by the seed of the run and their slots: the first ones would prefer the early templates of a
    plan. Drafts without an image count as well, so this stage belongs after the last draw.

    Args:
        most: largest numbers of drafts, by category.
        shares: shares of the set, by category. They add up to 1 and name all categories; without
            them, only `most` counts.
        tolerance: most difference of a category's share of the set from the wanted one.
    """

    version: ClassVar[int] = 1
    is_whole: ClassVar[bool] = True

    kind: str = "balance"
    name: str = ""
    most: dict[str, Whole] = dataclasses.field(default_factory=dict)
    shares: dict[str, Share] = dataclasses.field(default_factory=dict)
    tolerance: Share = 0.02

    def __post_init__(self) -> None:
        """Checks the shares.

        Raises:
            ValueError: if they do not add up to 1.
        """
        total = math.fsum(self.shares.values())
        if self.shares and not math.isclose(total, 1, abs_tol=1e-6):
            raise ValueError(f"shares must add up to 1, not to {total:g}")

    def fingerprint(self) -> str:
        """Returns an empty text: the stage reads no files."""
        return ""

    def run(self, drafts: Sequence[Draft], desk: Desk) -> list[Draft]:
        """Returns the drafts after the stage.

        Args:
            drafts: all drafts of the run.
            desk: the random numbers.

        Raises:
            UsageError: if a category has no share, or no set of these drafts has the shares.
        """
        groups: dict[str, list[Draft]] = {}
        for draft in open_drafts(drafts):
            groups.setdefault(draft.category, []).append(draft)
        counts = {category: len(group) for category, group in groups.items()}
        kept = {name: min(count, self.most.get(name, count)) for name, count in counts.items()}
        if self.shares and groups:
            kept = self._shared(kept)
        dropped: dict[int, Draft] = {}
        for category, group in groups.items():
            num, count = kept[category], counts[category]
            reason = f"{num} of {count} drafts of {category} are kept, chosen at random"
            ranked = sorted(group, key=lambda one: desk.rng(one).random())
            dropped |= {one.slot: one.drop(desk.stage, reason) for one in ranked[num:]}
        return [dropped.get(one.slot, one) for one in drafts]

    def _shared(self, counts: Mapping[str, int]) -> dict[str, int]:
        """Returns the numbers of the largest set that has the shares, at most the given ones."""
        if missing := sorted(counts.keys() - self.shares.keys()):
            raise UsageError(f"balance has no share of the category {missing[0]}; 0 leaves it out")
        for total in range(sum(counts.values()), 0, -1):
            lowest, highest = self._limits(counts, total)
            is_possible = all(lowest[name] <= highest[name] for name in self.shares)
            if is_possible and sum(lowest.values()) <= total <= sum(highest.values()):
                return self._filled(lowest, highest, total)
        rarest = min(self.shares, key=lambda name: counts.get(name, 0) / (self.shares[name] or 1))
        raise UsageError(
            f"no set of these drafts has the shares: {rarest} has {counts.get(rarest, 0)} drafts "
            f"for a share of {self.shares[rarest]:g}"
        )

    def _limits(
        self, counts: Mapping[str, int], total: int
    ) -> tuple[dict[str, int], dict[str, int]]:
        """Returns the least and the largest numbers of the categories in a set of some size."""
        lowest: dict[str, int] = {}
        highest: dict[str, int] = {}
        for name, share in self.shares.items():
            # A product that should be whole may lie just beside it.
            lowest[name] = max(math.ceil((share - self.tolerance) * total - 1e-9), 0)
            most = math.floor((share + self.tolerance) * total + 1e-9) if share else 0
            highest[name] = min(most, counts.get(name, 0))
        return lowest, highest

    def _filled(
        self, lowest: Mapping[str, int], highest: Mapping[str, int], total: int
    ) -> dict[str, int]:
        """Returns numbers between the limits that are as near to the shares as they can be."""
        numbers = Counter(lowest)
        for _ in range(total - sum(lowest.values())):
            open_names = [name for name in self.shares if numbers[name] < highest[name]]
            numbers[
                max(open_names, key=lambda name: self.shares[name] * total - numbers[name])
            ] += 1
        return dict(numbers)
