"""`results.json` is refused without the keys that shaped its score."""

import json
from pathlib import Path
from typing import Any

import pytest

from blip3o.core.errors import UsageError
from blip3o.eval.report.results import SHAPERS, Results, title_of


@pytest.fixture
def plain() -> dict[str, Any]:
    return {
        "benchmark": "fake",
        "title": "fake(judge-1); rewritten prompts",
        "judge": "judge-1",
        "overall": 0.5,
        "by_category": {"colors": 0.25, "counting": None},
        "num_samples": 8,
        "outcomes": {"judged": 8},
        "items_sha256": "ab" * 32,
        "model": {"name": "m"},
        "sampler": {"num_inference_steps": 30},
        "seed": 0,
        "version": "1.0",
        "commit": "abc",
        "worst_score": 0.0,
        "settings": {"batch_size": 1},
        "intervals": {
            "overall": [0.4, 0.6],
            "by_category": {"colors": [0.1, 0.3], "counting": None},
        },
        "figures": {"compat": {"total": 1}},
        "notes": ["a note"],
    }


def test_results_are_read_back_equal_and_unknown_keys_are_kept(
    tmp_path: Path, plain: dict[str, Any]
) -> None:
    results = Results.from_dict({**plain, "reward_model": {"a": 1}})
    assert results.other == {"reward_model": {"a": 1}}
    results.write(tmp_path)
    assert Results.read(tmp_path) == results
    assert json.loads((tmp_path / "results.json").read_text()) == {
        **plain,
        "reward_model": {"a": 1},
    }
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.parametrize("key", SHAPERS)
@pytest.mark.parametrize("value", [None, "", {}, {"name": None}, "gone"])
def test_results_without_a_key_that_shaped_them_are_refused(
    tmp_path: Path, plain: dict[str, Any], key: str, value: object
) -> None:
    if value == "gone":
        del plain[key]
    else:
        plain[key] = value
    (tmp_path / "results.json").write_text(json.dumps(plain))
    with pytest.raises(
        UsageError, match=rf"results.json does not say .* it lacks {key}; "
    ) as error:
        Results.read(tmp_path)
    assert "\n" not in str(error.value)


def test_one_line_names_all_missing_keys(plain: dict[str, Any]) -> None:
    for key in ("seed", "sampler", "overall"):
        del plain[key]
    plain["judge"] = None
    with pytest.raises(UsageError, match="it lacks overall, seed, sampler, judge;"):
        Results.from_dict(plain)


def test_results_that_a_reader_would_refuse_are_not_written(
    tmp_path: Path, plain: dict[str, Any]
) -> None:
    plain["commit"] = "abc"
    results = Results.from_dict(plain)
    object.__setattr__(results, "commit", "")
    with pytest.raises(UsageError, match="it lacks commit"):
        results.write(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("overall", "0.5"),
        ("overall", float("nan")),
        ("overall", True),
        ("by_category", {"colors": "high"}),
        ("by_category", [0.5]),
        ("num_samples", 1.5),
        ("outcomes", {"judged": -1}),
        ("seed", 4.2),
        ("notes", "a note"),
        ("notes", [1]),
        ("title", 5),
        ("settings", []),
        ("intervals", {"overall": [0.6, 0.4]}),
        ("intervals", {"overall": [0.6]}),
        ("intervals", {"by_category": {"colors": "0.1"}}),
        ("intervals", {"by_category": 1}),
    ],
)
def test_values_of_a_wrong_type_are_refused(plain: dict[str, Any], key: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"results.json: {key}.* must be "):
        Results.from_dict({**plain, key: value})


def test_a_title_that_names_another_judge_is_refused(plain: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="does not name the judge 'judge-2'"):
        Results.from_dict({**plain, "judge": "judge-2"})


def test_a_damaged_or_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no results\.json: finish"):
        Results.read(tmp_path)
    (tmp_path / "results.json").write_text('{"judge": "a", "judge": "b"}')
    with pytest.raises(UsageError, match=r"is damaged \(the key 'judge' appears twice\)"):
        Results.read(tmp_path)
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(UsageError, match="must hold a JSON object"):
        Results.read(tmp_path)


def test_a_title_has_the_judge_and_all_remarks() -> None:
    assert title_of("wise", "gpt-4o") == "wise(gpt-4o)"
    assert title_of("dpg", "vqa", ["one", "two"]) == "dpg(vqa); one; two"
