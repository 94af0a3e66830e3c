"""Public mis-measurements, rebuilt: each is refused or flagged, and the faulty figure is said.

1. A grid is cropped at the wrong size.
2. Scores of levels come from the last image of a grid only.
3. The first row of a table of questions is skipped.
4. Scores of levels depend on the number of processes.
5. Failed images are dropped from the mean.
6. Rewritten prompts are scored as those of the benchmark.
7. Wrong weights of a detector give zeros only.
8. Another training run of the detector takes the place of the official one.
9. The precision of the detector changes on newer GPUs.
10. The judge is swapped or updated.
11. The weights of the categories are wrong.
12. Another variant of the checkpoint is evaluated.
13. A checkpoint lacks its projector or decoder.
14. An unreadable answer of the judge gets a random score.
15. Fewer than four images of a prompt are drawn.
"""

import json
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest

from blip3o.core.errors import UsageError
from blip3o.eval.benchmark import Item
from blip3o.eval.report.evaluation import Evaluation
from blip3o.eval.report.results import Results
from blip3o.eval.report.text import report


def half_of_two(item: Item, number: int) -> float:
    return float(number < 2)


def notes_of(folder: Path) -> str:
    return "\n".join(Results.read(folder).notes)


def mean_without_failures(folder: Path) -> float:
    """Returns the headline of a faulty program: the mean over all scores that are there."""
    verdicts = Evaluation.read(folder).verdicts.values()
    return statistics.fmean(one.score for one in verdicts if one.score is not None)


def test_5_failed_images_count_and_the_figure_without_them_is_said(
    make_folder: Callable[..., Path],
) -> None:
    # The images that fail are those that would be wrong.
    folder = make_folder(
        score=half_of_two, outcome=lambda item, number: "broken" if number == 3 else "judged"
    )
    faulty = mean_without_failures(folder)
    assert faulty == pytest.approx(2 / 3)
    assert Results.read(folder).overall == 0.5
    assert "18 broken of 72 samples count as failures" in notes_of(folder)
    assert f"a program that leaves them out says {faulty:.4g}" in report([folder], None)


def test_6_results_of_rewritten_prompts_have_another_title(
    make_folder: Callable[..., Path],
) -> None:
    official = make_folder("official")
    rewritten = make_folder("rewritten", remarks=["rewritten prompts"])
    with pytest.raises(UsageError, match="rewritten prompts' are different benchmarks"):
        report([official, rewritten], None)
    assert report([rewritten], None).splitlines()[0].endswith("; rewritten prompts")


def test_7_zeros_only_are_flagged(make_folder: Callable[..., Path]) -> None:
    folder = make_folder(score=lambda item, number: 0.0)
    assert "All 72 judged samples score 0: wrong or badly read weights" in report([folder], None)


def test_10_results_of_another_judge_cannot_be_compared_or_relabelled(
    make_folder: Callable[..., Path],
) -> None:
    old = make_folder("old", judge="gpt-4o-2024-05-13", score=half_of_two)
    new = make_folder("new", judge="gpt-4o-2024-11-20", score=lambda item, number: 0.25)
    with pytest.raises(UsageError, match=r"'fake\(gpt-4o-2024-05-13\)' and 'fake\(gpt-4o-2024-11"):
        report([old, new], None)
    # The faulty tool would have said 0.50 against 0.25; side by side each has its judge.
    text = report([old, new], None, side_by_side=True)
    assert "- old: fake(gpt-4o-2024-05-13)" in text
    assert "cannot be compared" in text
    file = new / "results.json"
    file.write_text(file.read_text().replace("2024-11-20", "2024-05-13"))
    with pytest.raises(UsageError, match="has no verdict of gpt-4o-2024-05-13"):
        report([old, new], None)


def test_12_results_without_the_identity_of_the_model_are_refused(
    make_folder: Callable[..., Path],
) -> None:
    folder = make_folder()
    file = folder / "results.json"
    for model in ({}, {"name": None}, None):
        file.write_text(json.dumps({**json.loads(file.read_text()), "model": model}))
        with pytest.raises(UsageError, match="it lacks model"):
            report([folder], None)


def test_12_and_13_other_weights_under_one_name_are_said(make_folder: Callable[..., Path]) -> None:
    whole = make_folder("whole")
    broken = make_folder(
        "broken",
        score=lambda item, number: 0.25,
        changes={"model": {"name": "tiny", "weights_sha256": "07" * 32}},
    )
    text = report([whole, broken], None)
    assert "broken against whole: the models have one name but differ: weights_sha256=0707" in text


def test_14_an_unreadable_answer_is_never_scored(make_folder: Callable[..., Path]) -> None:
    folder = make_folder(
        score=half_of_two, outcome=lambda item, number: "unreadable" if number == 3 else "judged"
    )
    results = Results.read(folder)
    assert results.overall is None
    assert results.intervals.overall is None
    assert results.outcomes == {"judged": 54, "unreadable": 18}
    assert "18 of 72 samples have no judgement (18 unreadable)" in notes_of(folder)
    # With a random score of 0..1 the faulty tool would have said 0.625 in the mean.
    assert "at least 0.5; a program that leaves them out says 0.6667" in notes_of(folder)


def test_15_fewer_images_than_asked_count_as_failures(make_folder: Callable[..., Path]) -> None:
    folder = make_folder(
        score=half_of_two, outcome=lambda item, number: "missing" if number >= 1 else "judged"
    )
    assert mean_without_failures(folder) == 1.0
    assert Results.read(folder).overall == 0.25
    assert "54 missing of 72 samples count as failures" in notes_of(folder)
    assert "a program that leaves them out says 1." in report([folder], None)


def test_15_a_smaller_number_of_samples_is_said_in_a_comparison(
    make_folder: Callable[..., Path],
) -> None:
    text = report([make_folder("four"), make_folder("one", samples_per_item=1)], None)
    assert "one against four: num_samples differs: 18 against 72." in text
