"""WISE and WISE_Verified as benchmarks: prompts, requests, verdicts and figures."""

import dataclasses
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from blip3o.core.config import to_dict
from blip3o.core.errors import UsageError
from blip3o.eval.benchmark import Item, Outcome, Row, Sample, Verdict
from blip3o.eval.prompt_files import PromptFile
from blip3o.eval.wise import versions
from blip3o.eval.wise.benchmark import WiseBenchmark, WiseVerifiedBenchmark
from blip3o.eval.wise.versions import LEGACY, VERIFIED, Version
from blip3o.remote.chat import Answer, ChatImage, ChatRequest


class FakeModel:
    """Gives the same answers to each request, by attempt."""

    name = "gpt-4o-2024-05-13"

    def __init__(self, *given: Answer) -> None:
        self.given = given
        self.asked: list[ChatRequest] = []

    def answers(self, requests: Sequence[ChatRequest]) -> Iterator[tuple[int, Answer]]:
        self.asked += requests
        for number, request in enumerate(requests):
            yield number, self.given[min(request.attempt, len(self.given) - 1)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FakeJudge:
    model: FakeModel
    kind: str = "fake"

    def build(self) -> FakeModel:
        return self.model


def said(text: str) -> Answer:
    return Answer(outcome="answered", text=text)


GOOD = said("Consistency: 1\nRealism: 2\nAesthetic Quality: 0")
IDLE = FakeJudge(model=FakeModel(GOOD))


def entries(ids: Sequence[int]) -> list[dict[str, object]]:
    keys = ("Prompt", "Explanation", "Category", "Subcategory")
    return [{"prompt_id": n, **{key: f"{key} {n}" for key in keys}} for n in ids]


Make = Callable[..., Path]


@pytest.fixture
def wise_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Returns a function that writes small files and makes them the published ones."""

    def make(version: Version, benchmark: type[WiseBenchmark]) -> Path:
        folder = tmp_path / version.name
        folder.mkdir()
        files = []
        for file, part in zip(version.files, ("culture", "space-time", "science"), strict=True):
            name = f"{part}.json"  # only the hash counts
            data = json.dumps(entries(list(version.ids(part))[:2])).encode()
            (folder / name).write_bytes(data)
            files.append(dataclasses.replace(file, sha256=hashlib.sha256(data).hexdigest()))
        small = dataclasses.replace(version, files=tuple(files))
        monkeypatch.setattr(versions, "LEGACY" if version is LEGACY else "VERIFIED", small)
        monkeypatch.setattr(benchmark, "version", small)
        return folder

    return make


# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "sizes", "weights"),
    [
        (LEGACY, [400, 167, 133, 100, 100, 100], [0.4, 0.167, 0.133, 0.1, 0.1, 0.1]),
        (VERIFIED, [400, 120, 120, 120, 120, 120], [0.4, 0.12, 0.12, 0.12, 0.12, 0.12]),
    ],
)
def test_weights_are_the_shares_of_the_prompts(
    version: Version, sizes: list[int], weights: list[float]
) -> None:
    # A widely used copy of the scoring had other weights and published other figures.
    categories = list(version.categories.values())
    assert list(version.categories) == [
        "culture",
        "time",
        "space",
        "biology",
        "physics",
        "chemistry",
    ]
    assert [one.last - one.first + 1 for one in categories] == sizes
    assert [one.weight for one in categories] == weights
    assert [size / 1000 for size in sizes] == weights
    assert sum(weights) == pytest.approx(1)
    ids = [number for one in categories for number in range(one.first, one.last + 1)]
    assert ids == list(range(1, 1001))


def test_the_score_of_an_image_has_the_published_weights() -> None:
    assert dict(LEGACY.criteria) == {"Consistency": 0.7, "Realism": 0.2, "Aesthetic Quality": 0.1}
    best = {"consistency": 2.0, "realism": 2.0, "aesthetic_quality": 2.0}
    assert LEGACY.score(best) == pytest.approx(1)
    for key, share in (("consistency", 0.7), ("realism", 0.2), ("aesthetic_quality", 0.1)):
        assert LEGACY.score({**dict.fromkeys(best, 0.0), key: 2.0}) == pytest.approx(share)
    assert VERIFIED.score({"score": 1.0}) == 1


# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "benchmark"), [(LEGACY, WiseBenchmark), (VERIFIED, WiseVerifiedBenchmark)]
)
def test_prompts_are_known_by_their_hashes(
    wise_folder: Make, version: Version, benchmark: type[WiseBenchmark]
) -> None:
    folder = wise_folder(version, benchmark)
    wise = benchmark(prompts=str(folder), judge=IDLE)
    items = wise.items()
    assert [item.id for item in items[:2]] == ["1", "2"]
    assert [item.category for item in items] == [version.category(item.number) for item in items]
    assert items[0].prompt == "Prompt 1"
    assert items[0].data["explanation"] == "Explanation 1"
    assert wise.sources(items[0]) == []
    assert not any("prompts" in remark for remark in wise.remarks())


def test_a_changed_byte_in_the_prompts_is_refused(wise_folder: Make) -> None:
    folder = wise_folder(LEGACY, WiseBenchmark)
    file = folder / "science.json"
    file.write_text(file.read_text().replace("Prompt 701", "Prompt 7O1"))
    with pytest.raises(UsageError, match=r"lacks the published natural_science.json"):
        WiseBenchmark(prompts=str(folder), judge=IDLE).items()
    changed = WiseBenchmark(prompts=str(folder), judge=IDLE, changed_prompts=True)
    assert len(changed.items()) == 6
    remarks = [one for one in changed.remarks() if one.startswith("not WISE")]
    assert remarks == ["not WISE: science.json holds changed prompts"]


def test_rewritten_prompts_are_refused_or_named(
    wise_folder: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = wise_folder(LEGACY, WiseBenchmark)
    data = (folder / "culture.json").read_bytes().replace(b"Prompt 1", b"Simple 1")
    (folder / "culture.json").write_bytes(data)
    monkeypatch.setattr(versions, "REWRITTEN", (hashlib.sha256(data).hexdigest()[:8],))
    with pytest.raises(UsageError, match="rewritten prompts of an ablation"):
        WiseBenchmark(prompts=str(folder), judge=IDLE).items()
    changed = WiseBenchmark(prompts=str(folder), judge=IDLE, changed_prompts=True)
    assert "not WISE: culture.json holds the rewritten prompts of an ablation" in changed.remarks()


def test_prompts_of_the_other_version_are_refused(wise_folder: Make) -> None:
    folder = wise_folder(LEGACY, WiseBenchmark)
    with pytest.raises(UsageError, match="belongs to wise: run blip3o eval wise"):
        WiseVerifiedBenchmark(prompts=str(folder), judge=IDLE).items()


def test_one_merged_file_is_enough_for_verified(
    wise_folder: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wise_folder(VERIFIED, WiseVerifiedBenchmark)
    data = json.dumps(entries([1, 500])).encode()
    (tmp_path / "all.json").write_bytes(data)
    merged = PromptFile(name="merge.json", sha256=hashlib.sha256(data).hexdigest())
    small = dataclasses.replace(WiseVerifiedBenchmark.version, merged=merged)
    monkeypatch.setattr(WiseVerifiedBenchmark, "version", small)
    items = WiseVerifiedBenchmark(prompts=str(tmp_path), judge=IDLE).items()
    assert [item.category for item in items] == ["culture", "time"]


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        ([{"prompt_id": 1}], "each prompt needs"),
        ({"prompt_id": 1}, "no list"),
        (entries([1, 1]), "no new number"),
        (entries([1001]), "not from 1 to 1000"),
    ],
)
def test_broken_prompt_files_are_refused(tmp_path: Path, rows: object, fault: str) -> None:
    (tmp_path / "own.json").write_text(json.dumps(rows))
    with pytest.raises(UsageError, match=fault):
        WiseBenchmark(prompts=str(tmp_path), judge=IDLE, changed_prompts=True).items()


def test_missing_prompts_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"give prompts=FOLDER"):
        WiseBenchmark(judge=IDLE).items()
    with pytest.raises(UsageError, match="no such folder"):
        WiseBenchmark(judge=IDLE, prompts=str(tmp_path / "none")).items()
    with pytest.raises(UsageError, match="no JSON file"):
        WiseBenchmark(judge=IDLE, prompts=str(tmp_path), changed_prompts=True).items()


# ---------------------------------------------------------------------------------------------


def sample(number: int = 1) -> Sample:
    item = Item(
        id=str(number),
        number=number,
        prompt="a {explanation}",
        category=LEGACY.category(number) or "",
        data={"prompt_id": number, "explanation": "an image", "subcategory": "x"},
    )
    return Sample(item=item, number=0, sha256="h", image=Image.new("RGB", (3, 2), (9, 8, 7)))


def test_the_judge_gets_system_text_and_image(tmp_path: Path) -> None:
    system, text = tmp_path / "system.txt", tmp_path / "text.txt"
    system.write_text("Be strict.")
    text.write_text("PROMPT {prompt} EXPLANATION {explanation}")
    model = FakeModel(GOOD)
    wise = WiseBenchmark(
        judge=FakeJudge(model=model), judge_text=str(text), judge_system=str(system)
    )
    scorer = wise.scorer()
    [verdict] = scorer.verdicts([sample()])
    [request] = model.asked
    assert request.system == "Be strict."
    assert request.parts[0] == "PROMPT a {explanation} EXPLANATION an image"
    image = request.parts[1]
    assert isinstance(image, ChatImage)
    assert image.media_type == "image/png"
    with Image.open(io.BytesIO(image.data)) as sent:
        assert sent.tobytes() == bytes([9, 8, 7] * 6)
    assert (request.temperature, request.max_tokens, dict(request.extra)) == (0.0, 2000, {})
    assert verdict.score == 0.55
    assert verdict.data["scores"] == {"consistency": 1, "realism": 2, "aesthetic_quality": 0}
    assert verdict.data["answers"][0]["text"] == GOOD.text
    assert verdict.judge == scorer.judge
    assert scorer.judge.startswith("gpt-4o-2024-05-13+text-")


def test_our_wording_is_named_in_the_judge_and_in_the_remarks(wise_folder: Make) -> None:
    for version, benchmark in ((LEGACY, WiseBenchmark), (VERIFIED, WiseVerifiedBenchmark)):
        folder = wise_folder(version, benchmark)
        wise = benchmark(prompts=str(folder), judge=IDLE)
        assert "+own-" in wise.scorer().judge
        assert "not official WISE: the judge gets blip3o's own wording" in wise.remarks()


def test_verified_asks_for_one_score_without_thoughts() -> None:
    model = FakeModel(said("<think>hm</think>**Score:** 1"))
    wise = WiseVerifiedBenchmark(judge=FakeJudge(model=model))
    [verdict] = wise.scorer().verdicts([sample()])
    assert (verdict.score, verdict.data["scores"]) == (1, {"score": 1})
    [request] = model.asked
    assert request.max_tokens == 500
    assert dict(request.extra) == {"chat_template_kwargs": {"enable_thinking": False}}
    other = WiseVerifiedBenchmark(judge=FakeJudge(model=model), no_thinking=False)
    list(other.scorer().verdicts([sample()]))
    assert dict(model.asked[-1].extra) == {}


@pytest.mark.parametrize(
    ("answer", "outcome", "num_asked"),
    [
        (Answer(outcome="refusal", text="I can't."), "refusal", 3),
        (Answer(outcome="empty", text=""), "empty", 3),
        (Answer(outcome="cut", text="Consistency: 1\nRea"), "cut", 3),
        (said("The image is fine."), "unreadable", 3),
        (said('{"Consistency": 1}'), "unreadable", 3),
        (Answer(outcome="transport", text="no server"), "transport", 1),
    ],
)
def test_answers_without_a_judgement_are_kept_and_never_scored(
    answer: Answer, outcome: Outcome, num_asked: int
) -> None:
    model = FakeModel(answer)
    wise = WiseBenchmark(judge=FakeJudge(model=model))
    [verdict] = wise.scorer().verdicts([sample()])
    assert (verdict.outcome, verdict.score, verdict.data["scores"]) == (outcome, None, None)
    assert [one["text"] for one in verdict.data["answers"]] == [answer.text] * num_asked
    assert [one["outcome"] for one in verdict.data["answers"]] == [answer.outcome] * num_asked
    scores = wise.reduce([Row(sample().item, 0, verdict)])
    assert scores.by_category["culture"] == 0


# ---------------------------------------------------------------------------------------------


def judged(number: int, *texts: str) -> Row:
    """Returns a row as the scorer makes it from answers by attempt."""
    model = FakeModel(*map(said, texts))
    wise = WiseBenchmark(judge=FakeJudge(model=model))
    one = sample(number)
    [verdict] = wise.scorer().verdicts([one])
    return Row(one.item, 0, verdict)


def score(row: Row) -> float:
    assert row.verdict is not None
    assert row.verdict.score is not None
    return row.verdict.score


def lines(consistency: int, realism: int, aesthetic: int) -> str:
    return f"Consistency: {consistency}\nRealism: {realism}\nAesthetic Quality: {aesthetic}"


@pytest.fixture(scope="module")
def all_rows() -> list[Row]:
    return [judged(n, lines(n % 3, n // 3 % 3, n // 9 % 3)) for n in range(1, 1001)]


def reduced(rows: list[Row]) -> Any:
    return WiseBenchmark(judge=IDLE).reduce(rows)


def test_ours_and_the_official_figures_agree_on_plain_answers(all_rows: list[Row]) -> None:
    scores = reduced(all_rows)
    compat = scores.figures["compat"]
    assert scores.overall == pytest.approx(compat["overall"], abs=1e-12)
    assert compat["printed_overall"] == f"{scores.overall:.2f}"
    assert compat["before_2026_04_08"]["overall"] == pytest.approx(scores.overall, abs=1e-12)
    assert compat["by_category"]["time"]["n"] == 167
    assert scores.figures["forms"] == {"plain": 1000}
    # The mean of the samples is another figure only by the rounding of the weights.
    mean = sum(map(score, all_rows)) / 1000
    assert scores.overall == pytest.approx(mean, abs=1e-3)


def test_a_missing_image_counts_zero_and_stops_the_official_table(all_rows: list[Row]) -> None:
    scores = reduced([Row(all_rows[0].item, 0, None), *all_rows[1:]])
    whole = reduced(all_rows)
    lost = 0.4 * score(all_rows[0]) / 400
    assert scores.overall == pytest.approx(whole.overall - lost)
    compat = scores.figures["compat"]
    assert (compat["overall"], compat["printed_overall"]) == (None, None)
    assert (compat["num_missing"], compat["missing_ids"]) == (1, [1])
    assert compat["before_2026_04_08"]["overall"] == pytest.approx(scores.overall)


def test_an_unread_answer_counts_zero(all_rows: list[Row]) -> None:
    scores = reduced([judged(1, "no"), *all_rows[1:]])
    missing = reduced([Row(all_rows[0].item, 0, None), *all_rows[1:]])
    assert scores.overall == missing.overall
    assert scores.figures["compat"]["num_not_asked_again"] == 0


def test_the_official_reader_differs_where_ours_understands_more_or_refuses() -> None:
    bold = judged(1, lines(2, 2, 2).replace(": ", ": **") + "**")
    high = judged(2, lines(2, 7, 2), lines(2, 2, 2))
    half = judged(401, "Consistency: 2\nRealism: 2", lines(0, 0, 0))
    scores = reduced([bold, high, half])
    assert list(map(score, (bold, high, half))) == pytest.approx([1, 1, 0])
    assert scores.by_category["culture"] == pytest.approx(1)
    compat = scores.figures["compat"]
    assert compat["by_category"]["culture"] == {"mean": pytest.approx(1.5), "n": 1}
    assert compat["num_not_asked_again"] == 1
    # The old rule: one attempt, and only a score that is missing counts 0.
    assert compat["before_2026_04_08"]["num_with_zeros"] == 2
    assert compat["by_category"]["time"] == {"mean": 0.0, "n": 1}


def test_another_judge_and_the_stated_model_are_remarked(all_rows: list[Row]) -> None:
    verdict = all_rows[0].verdict
    assert verdict is not None
    answers = [{**verdict.data["answers"][0], "model": "gpt-4o-2024-08-06"}]
    stated = dataclasses.replace(verdict, data={**verdict.data, "answers": answers})
    notes = reduced([Row(all_rows[0].item, 0, stated)]).notes
    assert "the server states that gpt-4o-2024-08-06 answered" in notes
    other: Verdict = dataclasses.replace(verdict, judge="gpt-4o-2024-08-06+own-1")
    notes = reduced([Row(all_rows[0].item, 0, other)]).notes
    assert any("another judge makes another benchmark" in note for note in notes)


def test_verdicts_hold_plain_json_and_settings_are_plain(all_rows: list[Row]) -> None:
    verdict = all_rows[0].verdict
    assert verdict is not None
    assert json.loads(json.dumps(dict(verdict.data))) == verdict.data
    json.dumps(reduced(all_rows).figures, allow_nan=False)
    assert "version" not in to_dict(WiseBenchmark(judge=IDLE))
