"""GenEval 2: spellings, soft scores by hand-computed numbers, and the map of images."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from PIL import Image

from blip3o.core.errors import UsageError
from blip3o.eval.benchmark import Item, Row, Sample
from blip3o.eval.geneval2 import GenEval2Benchmark, MapLayout, SoftScorer, geometric_mean, spellings
from blip3o.remote.chat import Answer, AnswerOutcome, ChatRequest

LINES = [
    {
        "prompt": "two red cats",
        "atom_count": 3,
        "vqa_list": [["How many cats are there?", "two"], ["Are the cats red?", "Yes"]],
        "skills": ["count", "attribute"],
    },
    {
        "prompt": "a dog",
        "atom_count": 4,
        "vqa_list": [["Is there a dog?", "Yes"]],
        "skills": ["object"],
    },
]


class Judge:
    """States the probabilities of first tokens by the beginning of the question."""

    name = "a-judge"

    def __init__(
        self, tokens: Mapping[str, Mapping[str, float]], outcome: AnswerOutcome = "cut"
    ) -> None:
        self._tokens = tokens
        self._outcome: AnswerOutcome = outcome

    def answers(self, requests: Sequence[ChatRequest]) -> Iterator[tuple[int, Answer]]:
        for place, request in enumerate(requests):
            text = str(request.parts[1])
            tokens = next(some for start, some in self._tokens.items() if text.startswith(start))
            first = tuple((token, math.log(share)) for token, share in tokens.items())
            yield place, Answer(outcome=self._outcome, text="x", first_token=first)


@pytest.fixture
def benchmark(tmp_path: Path) -> GenEval2Benchmark:
    file = tmp_path / "data.jsonl"
    file.write_text("\n".join(map(json.dumps, LINES)) + "\n")
    return GenEval2Benchmark(data=str(file), changed_prompts=True)


def sample(item: Item) -> Sample:
    return Sample(
        item=item, number=0, sha256="", image=Image.new("RGB", (3, 3), (item.number,) * 3)
    )


def judged(benchmark: GenEval2Benchmark, judge: Judge) -> list[Row]:
    scorer = SoftScorer(judge, instruction="One word.", attempts=1)
    items = {item.id: item for item in benchmark.items()}
    found = list(scorer.verdicts([sample(item) for item in items.values()]))
    json.dumps([dataclasses.asdict(one) for one in found])
    return [Row(items[one.item], 0, one) for one in found]


TOKENS = {
    "How many": {"two": 0.25, " 2": 0.125, " ": 0.5, "three": 0.0625},
    "Are": {"Yes": 0.5, " yes": 0.25, "No": 0.25},
    "Is": {"yes": 0.25, "No": 0.75},
}


def test_soft_scores_sum_the_right_spellings(benchmark: GenEval2Benchmark) -> None:
    first, second = judged(benchmark, Judge(TOKENS))
    assert first.verdict is not None
    assert second.verdict is not None
    assert first.verdict.data["soft"] == pytest.approx([0.375, 0.75])
    assert first.verdict.data["soft_with_space"] == pytest.approx([0.875, 0.75])
    assert first.verdict.data["is_likeliest"] == [False, True]  # " " is no right answer
    assert second.verdict.data["is_likeliest"] == [False]
    assert first.verdict.score == pytest.approx(math.sqrt(0.375 * 0.75))


def test_the_figures_are_means_over_prompts_skills_and_counts(benchmark: GenEval2Benchmark) -> None:
    scores = benchmark.reduce(judged(benchmark, Judge(TOKENS)))
    first = math.sqrt(0.375 * 0.75)
    assert scores.overall == pytest.approx(100 * (first + 0.25) / 2)
    assert scores.by_category == pytest.approx({"3 atoms": 100 * first, "4 atoms": 25})
    assert scores.figures["soft_am"] == pytest.approx(100 * (0.5625 + 0.25) / 2)
    assert scores.figures["tifa_am"] == pytest.approx(100 * 0.5 / 2)
    assert scores.figures["tifa_gm"] == 0
    assert scores.figures["skills_am"] == pytest.approx(
        {"count": 37.5, "attribute": 75, "object": 25}
    )
    json.dumps(dataclasses.asdict(scores))


def test_tifa_reads_the_likeliest_token_in_lower_case(benchmark: GenEval2Benchmark) -> None:
    tokens = {"How": {"TWO": 0.5, "3": 0.25}, "Are": {"YES": 0.5}, "Is": {"NO": 0.5}}
    first, second = judged(benchmark, Judge(tokens))
    assert first.verdict is not None
    assert second.verdict is not None
    assert first.verdict.data["is_likeliest"] == [True, True]
    assert first.verdict.data["soft"] == [0, 0]
    assert second.verdict.data["is_likeliest"] == [False]


def test_a_missing_image_counts_as_0(benchmark: GenEval2Benchmark) -> None:
    rows = judged(benchmark, Judge(TOKENS))
    rows[1] = Row(rows[1].item, 0, None)
    scores = benchmark.reduce(list(reversed(rows)))
    assert scores.overall == pytest.approx(100 * math.sqrt(0.375 * 0.75) / 2)
    assert scores.figures["num_images_without_score"] == 1


def test_an_empty_answer_with_probabilities_is_judged(benchmark: GenEval2Benchmark) -> None:
    (_, second) = judged(benchmark, Judge(TOKENS, outcome="empty"))
    assert second.verdict is not None
    assert (second.verdict.outcome, second.verdict.score) == ("judged", pytest.approx(0.25))
    (_, second) = judged(benchmark, Judge(TOKENS, outcome="refusal"))
    assert second.verdict is not None
    assert (second.verdict.outcome, second.verdict.score) == ("refusal", None)


def test_numbers_have_six_spellings() -> None:
    assert spellings("How many cats?", "two") == ("two", "Two", " two", " Two", "2", " 2")
    assert spellings("How many cats?", "2") == spellings("How many cats?", "two")
    assert spellings("How many cats?", "eleven") == ("other", "Other", " other", " Other")
    assert set(spellings("Is it two?", "two")) == {"Yes", "yes", " yes", " Yes"}


def test_a_zero_makes_the_geometric_mean_zero() -> None:
    assert geometric_mean([0.5, 0.0]) == 0
    assert geometric_mean([0.25, 1.0]) == pytest.approx(0.5)


def test_only_the_published_file_is_accepted_without_a_remark(
    benchmark: GenEval2Benchmark, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert "not the published" in benchmark.remarks()[0]
    digest = hashlib.sha256(Path(str(benchmark.data)).read_bytes()).hexdigest()
    with pytest.raises(UsageError, match=digest[:16]):
        dataclasses.replace(benchmark, changed_prompts=False).items()
    with pytest.raises(UsageError, match="CC BY-NC"):
        GenEval2Benchmark().items()
    with pytest.raises(UsageError, match="OPENAI_API_KEY"):
        benchmark.scorer()


@pytest.mark.parametrize("change", [{"skills": ["count"]}, {"vqa_list": []}, {"atom_count": None}])
def test_a_damaged_line_is_named(benchmark: GenEval2Benchmark, change: dict[str, object]) -> None:
    Path(str(benchmark.data)).write_text(json.dumps({**LINES[0], **change}))
    with pytest.raises(UsageError, match="line 1"):
        benchmark.items()


def test_the_map_is_read_as_written(benchmark: GenEval2Benchmark, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    items = benchmark.items()
    for item in items:
        MapLayout().write(folder, [sample(item)])
    found = list(MapLayout().read(folder, items))
    assert [(one.item, one.number) for one in found] == [("000", 0), ("001", 0)]
    assert [Image.open(one.file).getpixel((0, 0)) for one in found] == [(0, 0, 0), (1, 1, 1)]
    assert json.loads((folder / "images.json").read_text()) == {
        "two red cats": "000.png",
        "a dog": "001.png",
    }
    assert list(MapLayout().read(folder / "images.json", items)) == found


def test_rewritten_prompts_in_the_map_are_refused_and_missing_ones_said(
    benchmark: GenEval2Benchmark, tmp_path: Path
) -> None:
    file = tmp_path / "map.json"
    file.write_text(json.dumps({"a dog": "/else/where.png"}))
    (found,) = MapLayout().read(file, benchmark.items())
    assert found.file == Path("/else/where.png")
    (note,) = MapLayout().notes(file, benchmark.items())
    assert "'two red cats'" in note
    file.write_text(json.dumps({"A dog!": "x.png"}))
    with pytest.raises(UsageError, match="'A dog!'"):
        list(MapLayout().read(file, benchmark.items()))
    file.write_text("[]")
    with pytest.raises(UsageError, match="one JSON object"):
        list(MapLayout().read(file, benchmark.items()))
    (tmp_path / "second.json").write_text("{}")
    with pytest.raises(UsageError, match="2 JSON files"):
        list(MapLayout().read(tmp_path, benchmark.items()))
