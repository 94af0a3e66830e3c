"""A set gets the wanted proportions, and which drafts stay is random but repeatable."""

import dataclasses
from collections import Counter

import pytest

from blip3o.core.config import from_dict
from blip3o.core.errors import UsageError
from blip3o.curate.desk import Desk
from blip3o.curate.draft import Draft
from blip3o.curate.stages.balance import BalanceStage


def drafts_of(**counts: int) -> list[Draft]:
    categories = [name for name, count in counts.items() for _ in range(count)]
    return [Draft(slot=slot, category=name) for slot, name in enumerate(categories)]


def kept(desk: Desk, drafts: list[Draft], **settings: object) -> list[Draft]:
    after = from_dict(BalanceStage, settings).run(drafts, desk)
    assert [one.slot for one in after] == [one.slot for one in drafts]
    return [one for one in after if not one.dropped]


def numbers(drafts: list[Draft]) -> dict[str, int]:
    return dict(Counter(one.category for one in drafts))


def test_a_category_has_at_most_its_number(desk: Desk) -> None:
    drafts = drafts_of(count=30, text=5, color=9)
    assert numbers(kept(desk, drafts, most={"count": 10, "text": 8})) == {
        "count": 10, "text": 5, "color": 9,
    }  # fmt: skip
    after = BalanceStage(most={"count": 10}).run(drafts, desk)
    reasons = {(one.dropped, one.dropped_by) for one in after if one.dropped}
    assert reasons == {("10 of 30 drafts of count are kept, chosen at random", "stage")}


@pytest.mark.parametrize("tolerance", [0, 0.02, 0.1])
@pytest.mark.parametrize(
    "counts",
    [{"a": 300, "b": 40, "c": 100}, {"a": 500, "b": 300, "c": 200}, {"a": 7, "b": 5, "c": 9}],
)
def test_the_set_has_the_shares_and_is_the_largest(
    desk: Desk, counts: dict[str, int], tolerance: float
) -> None:
    shares = {"a": 0.5, "b": 0.3, "c": 0.2}
    found = numbers(kept(desk, drafts_of(**counts), shares=shares, tolerance=tolerance))
    total = sum(found.values())
    for name, share in shares.items():
        assert found[name] <= counts[name]
        assert abs(found[name] / total - share) <= tolerance + 1e-9
    larger = range(total + 1, sum(counts.values()) + 1)
    assert not any(has_shares(counts, shares, tolerance, size) for size in larger)


def has_shares(
    counts: dict[str, int], shares: dict[str, float], tolerance: float, size: int
) -> bool:
    """Whether a set of some size is possible: each category has a range of numbers."""
    ranges = [
        [num for num in range(count + 1) if abs(num / size - shares[name]) <= tolerance + 1e-9]
        for name, count in counts.items()
    ]
    if not all(ranges):
        return False
    return sum(one[0] for one in ranges) <= size <= sum(one[-1] for one in ranges)


def test_numbers_limit_the_shares(desk: Desk) -> None:
    settings = {"shares": {"a": 0.5, "b": 0.5}, "most": {"a": 10}, "tolerance": 0}
    assert numbers(kept(desk, drafts_of(a=50, b=50), **settings)) == {"a": 10, "b": 10}


def test_a_share_of_nothing_leaves_the_category_out(desk: Desk) -> None:
    found = kept(desk, drafts_of(a=20, b=20), shares={"a": 1, "b": 0}, tolerance=0.1)
    assert numbers(found) == {"a": 20}


def test_the_choice_is_random_and_repeatable(desk: Desk) -> None:
    drafts = drafts_of(a=1000)
    first = kept(desk, drafts, most={"a": 500})
    assert kept(desk, drafts[::-1], most={"a": 500})[::-1] == first
    early = sum(one.slot < 500 for one in first)
    assert 200 < early < 300, "the first slots are not preferred"
    for other in (dataclasses.replace(desk, seed=1), dataclasses.replace(desk, stage="second")):
        assert kept(other, drafts, most={"a": 500}) != first


def test_only_open_drafts_count(desk: Desk) -> None:
    drafts = drafts_of(a=10)
    drafts[3] = drafts[3].drop("judge", "it is bad")
    after = BalanceStage(most={"a": 9}).run(drafts, desk)
    assert after == drafts


def test_shares_that_no_set_can_have_are_refused(desk: Desk) -> None:
    with pytest.raises(UsageError, match=r"b has 0 drafts for a share of 0\.3"):
        kept(desk, drafts_of(a=10), shares={"a": 0.7, "b": 0.3})
    with pytest.raises(UsageError, match="no share of the category b"):
        kept(desk, drafts_of(a=10, b=2), shares={"a": 1})
    with pytest.raises(UsageError, match=r"must add up to 1, not to 0\.9"):
        from_dict(BalanceStage, {"shares": {"a": 0.5, "b": 0.4}})
    with pytest.raises(UsageError, match="most"):
        from_dict(BalanceStage, {"most": {"a": -1}})


def test_an_empty_set_is_balanced(desk: Desk) -> None:
    assert kept(desk, [], shares={"a": 1}) == []
