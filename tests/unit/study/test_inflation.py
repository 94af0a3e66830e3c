"""The section about inflation, from results with known answers."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from PIL import Image

from blip3o.study.claims import decide
from blip3o.study.contamination import LEAKS, contamination
from blip3o.study.inflation import PLOT, changes, end_items, inflation_section, start_items
from blip3o.study.leaks import CLEAN, part_scores
from blip3o.study.report import write_report
from blip3o.study.results import Items, Result, run_folder, write

COUNT = 10
GROUPS = [f"{part}/{name}" for part in ("leaked", "twin", "familiar") for name in ("a", "b")]


def shares(leaked: int, twin: int, familiar: int) -> Items:
    """Returns the scores of ten prompts a category, of which so many are right."""
    counts = {"leaked": leaked, "twin": twin, "familiar": familiar}
    right = {name: counts[name.partition("/")[0]] for name in GROUPS}
    return {name: (1.0,) * count + (0.0,) * (COUNT - count) for name, count in right.items()}


def run(arm: str, seed: int, items: Items) -> Result:
    return Result(
        arm=arm,
        seed=seed,
        status="done",
        trainable_parameters=1,
        flops_per_sample=1.0,
        scores=part_scores({n: v for n, v in items.items() if not n.startswith("start_")}),
        items=items,
    )


def runs(arm: str, each: Sequence[tuple[int, int, int]]) -> list[Result]:
    return [run(arm, seed, shares(*counts)) for seed, counts in enumerate(each)]


@pytest.fixture
def results() -> dict[str, list[Result]]:
    """The base has 4 of 10 everywhere; one leak of which twins gain half."""
    start = {f"start_{name}": values for name, values in shares(4, 4, 4).items()}
    clean = [run(CLEAN, seed, shares(5, 5, 5) | start) for seed in range(3)]
    found: dict[str, list[Result]] = {name: [] for name in LEAKS}
    found[CLEAN] = clean
    found["shape_100"] = runs("shape_100", [(9, 7, 5), (8, 7, 5), (10, 7, 5)])
    found["exact_100"] = runs("exact_100", [(9, 5, 5)])
    return found


def test_changes_are_paired_by_seed(results: dict[str, list[Result]]) -> None:
    found = changes(results["shape_100"], end_items(results[CLEAN]))
    assert found["leaked"].by_seed == pytest.approx([0.4, 0.3, 0.5])
    assert found["twin"].by_seed == pytest.approx([0.2, 0.2, 0.2])
    assert found["inflation"].by_seed == pytest.approx([0.2, 0.1, 0.3])
    assert found["wording"].by_seed == pytest.approx([0.2, 0.2, 0.2])
    assert found["familiar"].mean == 0.0
    # 4.303 x 0.1 / sqrt(3)
    assert found["inflation"].seeds == pytest.approx((0.2 - 0.2484, 0.2 + 0.2484), abs=1e-4)
    low, high = found["inflation"].prompts or (0.0, 0.0)
    assert 0.0 < low < 0.2 < high < 0.4
    assert found["familiar"].prompts == (0.0, 0.0)


def test_the_gain_over_the_start_is_that_of_tuning_too(results: dict[str, list[Result]]) -> None:
    before = start_items(results[CLEAN])
    assert changes(results[CLEAN], before)["twin"].mean == pytest.approx(0.1)
    assert changes(results["shape_100"], before)["twin"].mean == pytest.approx(0.3)


def test_seeds_without_a_reference_are_left_out(results: dict[str, list[Result]]) -> None:
    reference = end_items(results[CLEAN][:1])
    found = changes(results["shape_100"], reference)
    assert found["inflation"].by_seed == pytest.approx([0.2])
    assert found["inflation"].seeds is None
    assert changes([], reference) == {}


def test_other_prompts_are_refused(results: dict[str, list[Result]]) -> None:
    reference = {0: {name: values[:-1] for name, values in shares(5, 5, 5).items()}}
    with pytest.raises(ValueError, match="zip"):
        changes(results["shape_100"], reference)


def test_the_section_states_the_numbers(results: dict[str, list[Result]], tmp_path: Path) -> None:
    tool = {"leak_share": 1.0, "leak_found": 0.75}
    first = results["shape_100"][0]
    results["shape_100"][0] = dataclasses.replace(first, scores=first.scores | tool)
    text = inflation_section(results, tmp_path, leaks=LEAKS)
    base, _, rest = text.partition("### Against the same tuning")
    effect, _, tools = rest.partition("### Found by")
    assert "| `shape_100` | 3 | +0.500 (+0.252, +0.748)" in base
    assert "| `clean` | 3 | +0.100 (+0.100, +0.100)" in base
    assert "| `clean` |" not in effect
    assert "| `shape_100` | 3 | +0.400 (+0.152, +0.648)" in effect
    assert "| +0.200 (-0.048, +0.448) [" in effect
    assert "| `exact_100` | 1 | +0.400 [" in effect
    assert "| `shape_1` | 0 | - | - | - | - | - |" in effect
    assert "| `shape_100` | 100.00% | 75.00% | - |" in tools
    with Image.open(tmp_path / PLOT) as image:
        assert image.width > 300


def test_a_section_of_nothing_has_no_number_and_no_plot(tmp_path: Path) -> None:
    text = inflation_section({name: [] for name in LEAKS}, tmp_path, leaks=LEAKS)
    assert "| `shape_10` | 0 | - | - | - |" in text
    assert "![" not in text
    assert not [*tmp_path.iterdir()]


def test_without_matplotlib_there_is_no_plot(
    results: dict[str, list[Result]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert PLOT not in inflation_section(results, tmp_path, leaks=LEAKS)


def test_the_claims_are_decided_by_paired_seeds(results: dict[str, list[Result]]) -> None:
    """The exact arm has one seed; the interval of the inflation contains 0; twins gain 0.2."""
    claims = {claim.name: claim for claim in contamination().claims}
    verdicts: Mapping[str, str] = {
        name: decide(one, results).verdict for name, one in claims.items()
    }
    assert verdicts == {"L1": "open", "L2": "open", "L3": "held", "L4": "open"}
    results["exact_100"] = runs("exact_100", [(9, 5, 5), (8, 5, 5), (9, 5, 5)])
    assert decide(claims["L1"], results).verdict == "held"
    results["shape_100"] = runs("shape_100", [(5, 5, 5)] * 3)
    assert decide(claims["L2"], results).verdict == "refuted"


def test_the_report_of_the_study_has_the_section(
    results: dict[str, list[Result]], tmp_path: Path
) -> None:
    for arm, some in results.items():
        for one in some:
            folder = run_folder(tmp_path, arm, one.seed)
            folder.mkdir(parents=True)
            write(folder, one)
    study = contamination()
    write_report(study, study.settings, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "15 runs, 7 done, 8 missing" in text
    assert "(interval of pairs), passes" in text
    assert f"]({PLOT})" in text
    assert "Scenes by category" not in text
