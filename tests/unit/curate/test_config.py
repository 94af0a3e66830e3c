"""The settings and the plan of a curation."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from blip3o.core.config import from_dict
from blip3o.core.errors import UsageError
from blip3o.curate.config import CurateConfig, read_curation, recipe_names
from blip3o.curate.estimate import estimate_text, estimated


def config(**changes: Any) -> CurateConfig:
    data = {
        "name": "x",
        "num_drafts": 97,
        "categories": {"a": 0.5, "b": 0.3, "c": 0.2},
        "stages": [{"kind": "templates", "grammar": "edits"}],
    }
    return from_dict(CurateConfig, {**data, **changes})


def test_every_prefix_of_the_plan_has_the_shares() -> None:
    plan = config().plan()
    counts: Counter[str] = Counter()
    for slot, draft in enumerate(plan):
        assert (draft.slot, draft.rank) == (slot, counts[draft.category])
        counts[draft.category] += 1
        for name, share in {"a": 0.5, "b": 0.3, "c": 0.2}.items():
            assert abs(counts[name] - share * (slot + 1)) <= 1


def test_a_larger_plan_begins_with_the_same_drafts() -> None:
    assert config(num_drafts=400).plan()[:97] == config().plan()


def test_shares_need_not_sum_to_one() -> None:
    assert config(categories={"a": 5, "b": 3, "c": 2}).plan() == config().plan()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"stages": []}, "needs stages"),
        ({"categories": {}}, "need shares above 0"),
        ({"categories": {"a": 0}}, "need shares above 0"),
        ({"name": "a/b"}, "the name of a curation cannot be 'a/b'"),
        ({"stages": [{"kind": "dedup"}, {"kind": "dedup"}]}, "occurs twice: dedup"),
        ({"stages": [{"kind": "draw", "model": "nobody"}]}, "unknown model"),
        ({"stages": [{"kind": "paint"}]}, "unknown stage 'paint'"),
    ],
)
def test_invalid_settings_are_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        config(**changes)


@pytest.mark.parametrize("name", recipe_names())
def test_bundled_curations_are_valid_and_can_be_estimated(name: str) -> None:
    curation = read_curation(name, ["num_drafts=100"])
    assert len(curation.plan()) == 100
    asked = [one.stage for one in estimated(curation)]
    assert "draw" in asked
    assert {one.num_requests for one in estimated(curation)} <= {100, 200}


def test_an_estimate_counts_prices() -> None:
    prices = ["models.1.image_price=0.04", "models.2.prompt_price=2", "models.2.completion_price=8"]
    found = {one.stage: one.cost for one in estimated(read_curation("curate.blip3o_60k", prices))}
    assert found["draw"] == pytest.approx(80_000 * 0.04)
    assert found["write"] == 0
    judged = found["judge"]
    assert judged is not None
    assert 80_000 * 2 * (1_369 * 2 + 300 * 8) / 1e6 < judged < 2 * 80_000 * 2 * 5_200 / 1e6


def test_an_estimate_warns_of_a_grammar_that_is_too_small(tmp_path: Path) -> None:
    grammar = tmp_path / "mine.yaml"
    grammar.write_text(
        "words:\n  color: [red, blue, green]\n  thing: [cat, dog]\n"
        "categories:\n  a: ['a {color} {thing}']\n  b: ['{color}']\n  c: ['a {thing}']\n"
    )
    stages = [{"kind": "templates", "grammar": str(grammar), "categories": ["a", "b"]}]
    made = config(stages=stages, categories={"a": 0.2, "b": 0.2, "c": 0.6}, num_drafts=10)
    warnings = [line for line in estimate_text([], made).splitlines() if "warning" in line]
    (warning,) = warnings
    assert "about 2 different sentences for the 2 drafts of the category 'b'" in warning
    assert "warning" not in estimate_text([], read_curation("curate.edits", ["num_drafts=50"]))


def test_unknown_curations_are_named() -> None:
    with pytest.raises(UsageError, match=r"did you mean curate\.scenes"):
        read_curation("curate.scene", [])
