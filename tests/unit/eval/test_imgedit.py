"""ImgEdit-Bench: files, requests, verdicts and figures."""

import dataclasses
import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from PIL import Image

from blip3o.core.errors import UsageError
from blip3o.eval.benchmark import Outcome, Row, Sample, Scores
from blip3o.eval.imgedit import TYPES, ImgEditBenchmark, ImgEditUgeBenchmark
from blip3o.eval.prompt_files import PromptFile
from blip3o.remote.chat import Answer, ChatImage, ChatRequest


class FakeModel:
    """Gives the same answers to each request, by attempt."""

    name = "gpt-4.1"

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


GOOD = said("Brief reasoning: fine.\nPrompt Compliance: 4\nVisual Naturalness: 1\nIntegrity: 3")


@pytest.fixture
def imgedit_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns a folder with small files, which become the published ones, and images."""
    rows = {
        str(n): {"id": f"set/{kind}.jpg", "prompt": f"Do {kind}", "edit_type": kind}
        for n, kind in enumerate(TYPES)
    }
    hard = {"1": {"id": "set/add.jpg", "prompt": "Do it"}}
    (tmp_path / "set").mkdir()
    for n, kind in enumerate(TYPES):
        image = Image.new("RGB", (6, 4), (n, 200, 0))
        image.save(tmp_path / "set" / f"{kind}.jpg", quality=95)
    for name, data, benchmark in (
        ("basic_edit.json", rows, ImgEditBenchmark),
        ("UGE_edit.json", hard, ImgEditUgeBenchmark),
    ):
        (tmp_path / name).write_text(json.dumps(data))
        sha256 = hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
        monkeypatch.setattr(benchmark, "file", PromptFile(name=name, sha256=sha256))
    return tmp_path


def basic(folder: Path, model: FakeModel | None = None) -> ImgEditBenchmark:
    return ImgEditBenchmark(
        prompts=str(folder / "basic_edit.json"),
        images=str(folder),
        judge=FakeJudge(model=model or FakeModel(GOOD)),
    )


def samples(benchmark: ImgEditBenchmark) -> list[Sample]:
    image = Image.new("RGB", (5, 5), (1, 2, 3))
    return [
        Sample(item=item, number=0, sha256="h", image=image, sources=benchmark.sources(item))
        for item in benchmark.items()
    ]


# ---------------------------------------------------------------------------------------------


def test_items_are_the_entries_of_the_file(imgedit_files: Path) -> None:
    benchmark = basic(imgedit_files)
    items = benchmark.items()
    assert [item.category for item in items] == list(TYPES)
    assert [item.number for item in items] == list(range(9))
    first = items[0]
    assert (first.id, first.task, first.prompt) == ("0", "edit", "Do extract")
    data = (imgedit_files / "set" / "extract.jpg").read_bytes()
    assert first.sources == (hashlib.sha256(data).hexdigest(),)
    [source] = benchmark.sources(first)
    assert (source.size, source.mode) == ((6, 4), "RGB")


def test_a_changed_byte_is_refused_or_named(imgedit_files: Path) -> None:
    file = imgedit_files / "basic_edit.json"
    file.write_text(file.read_text().replace("Do extract", "Do Extract"))
    with pytest.raises(UsageError, match=r"is not the published basic_edit.json"):
        basic(imgedit_files).items()
    changed = dataclasses.replace(basic(imgedit_files), changed_prompts=True)
    assert len(changed.items()) == 9
    assert "not ImgEdit-Bench basic: changed prompts" in changed.remarks()


def test_missing_files_are_asked_for(imgedit_files: Path) -> None:
    benchmark = basic(imgedit_files)
    with pytest.raises(UsageError, match=r"prompts=FILE"):
        dataclasses.replace(benchmark, prompts=None).items()
    with pytest.raises(UsageError, match=r"images=FOLDER"):
        dataclasses.replace(benchmark, images=None).items()
    (imgedit_files / "set" / "style.jpg").unlink()
    with pytest.raises(UsageError, match=r"basic_edit.json: 1: no such file.*unpack"):
        benchmark.items()


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        ([], "no JSON object"),
        ({"1": []}, "'1' is no JSON object"),
        ({"1": {"id": "set/add.jpg", "prompt": "p", "edit_type": "other"}}, "edit_type 'other'"),
        ({"1": {"id": "set/add.jpg", "edit_type": "add"}}, "has no prompt"),
        ({"1": {"id": "../x", "prompt": "p", "edit_type": "add"}}, "outside its folder"),
    ],
)
def test_broken_files_are_refused(imgedit_files: Path, data: object, fault: str) -> None:
    (imgedit_files / "basic_edit.json").write_text(json.dumps(data))
    with pytest.raises(UsageError, match=fault):
        dataclasses.replace(basic(imgedit_files), changed_prompts=True).items()


# ---------------------------------------------------------------------------------------------


def test_the_judge_gets_text_source_and_result(imgedit_files: Path) -> None:
    model = FakeModel(GOOD)
    texts = {kind: f"Judge {kind}: <edit_prompt>" for kind in TYPES}
    file = imgedit_files / "prompts.json"
    file.write_text(json.dumps(texts))
    benchmark = dataclasses.replace(
        basic(imgedit_files, model), judge_text=str(file), changed_prompts=True
    )
    scorer = benchmark.scorer()
    verdicts = list(scorer.verdicts(samples(benchmark)))
    assert [request.parts[0] for request in model.asked] == [
        f"Judge {kind}: Do {kind}" for kind in TYPES
    ]
    text, source, result = model.asked[2].parts
    assert isinstance(text, str)
    for part, size in ((source, (6, 4)), (result, (5, 5))):
        assert isinstance(part, ChatImage)
        assert part.media_type == "image/png"
        with Image.open(io.BytesIO(part.data)) as sent:
            assert (sent.format, sent.size) == ("PNG", size)
    assert model.asked[0].temperature is None
    assert model.asked[0].system == ""
    assert verdicts[0].score == pytest.approx(8 / 3)
    assert verdicts[0].data["scores"] == [4, 1, 3]
    assert verdicts[0].judge.startswith("gpt-4.1+text-")
    assert any("judge_text is changed" in remark for remark in benchmark.remarks())
    with pytest.raises(UsageError, match=r"not the published prompts.json"):
        dataclasses.replace(benchmark, changed_prompts=False).scorer()
    file.write_text(json.dumps({**texts, "style": "no place"}))
    with pytest.raises(UsageError, match="for style"):
        benchmark.scorer()


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (Answer(outcome="refusal", text="I can't."), "refusal"),
        (Answer(outcome="empty", text=""), "empty"),
        (Answer(outcome="cut", text="A: 4\nB: 3"), "cut"),
        (said("A good edit."), "unreadable"),
        (said('{"a": 4, "b": 3}'), "unreadable"),
        (said("A: 4\nB: 3\nC: 6"), "unreadable"),
        (Answer(outcome="transport", text="A: 4\nB: 3\nC: 2"), "transport"),
    ],
)
def test_answers_without_a_judgement_are_kept_and_never_scored(
    imgedit_files: Path, answer: Answer, outcome: Outcome
) -> None:
    model = FakeModel(answer)
    benchmark = basic(imgedit_files, model)
    one = samples(benchmark)[0]
    [verdict] = benchmark.scorer().verdicts([one])
    assert (verdict.outcome, verdict.score, verdict.data["scores"]) == (outcome, None, None)
    assert verdict.data["answers"][0]["text"] == answer.text
    assert len(model.asked) == 1
    scores = benchmark.reduce([Row(one.item, 0, verdict)])
    assert scores.by_category["extract"] == 1
    if outcome == "transport":
        assert scores.figures["compat"]["num_left_out"] == 1


def test_asking_again_is_a_setting(imgedit_files: Path) -> None:
    model = FakeModel(said("no"), GOOD)
    benchmark = dataclasses.replace(basic(imgedit_files, model), attempts=2)
    [verdict] = benchmark.scorer().verdicts(samples(benchmark)[:1])
    assert verdict.outcome == "judged"
    assert [one["text"] for one in verdict.data["answers"]] == ["no", GOOD.text]


# ---------------------------------------------------------------------------------------------


def figures(folder: Path, answers: Sequence[str | None], extra: int = 0) -> Scores:
    """Returns the figures for one answer to each item; the first item has `extra` more samples."""
    rows: list[Row] = []
    benchmark = basic(folder)
    drawn = samples(benchmark)
    for one, text in zip(drawn + drawn[:1] * extra, answers, strict=True):
        if text is None:
            rows.append(Row(one.item, 0, None))
            continue
        [verdict] = basic(folder, FakeModel(said(text))).scorer().verdicts([one])
        rows.append(Row(one.item, 0, verdict))
    return benchmark.reduce(rows)


def grades(first: int, second: int, third: int) -> str:
    return f"A: {first}\nB: {second}\nC: {third}"


def test_both_means_are_named(imgedit_files: Path) -> None:
    scores = figures(
        imgedit_files, [grades(5, 5, 5)] + [grades(2, 2, 2)] * 8 + [grades(3, 3, 3)], 1
    )
    assert scores.by_category["extract"] == 4
    assert scores.overall == scores.figures["mean_of_types"] == pytest.approx((4 + 8 * 2) / 9)
    assert scores.figures["mean_of_samples"] == pytest.approx((5 + 3 + 8 * 2) / 10)


def test_official_figures_round_twice_and_ours_do_not(imgedit_files: Path) -> None:
    scores = figures(imgedit_files, [grades(4, 4, 5)] * 9)
    assert scores.overall == pytest.approx(13 / 3)
    compat = scores.figures["compat"]
    assert compat["by_type"] == dict.fromkeys(TYPES, 4.33)
    assert compat["mean_of_types"] == pytest.approx(4.33)
    assert compat["mean_of_samples"] == 4.33
    assert compat["num_left_out"] == 0


def test_the_official_reader_takes_answers_that_ours_refuses(imgedit_files: Path) -> None:
    good = [grades(4, 4, 4)] * 7
    scores = figures(imgedit_files, [*good, "A: 9\nB: 10", "A: \u00b2"])
    assert scores.overall == pytest.approx((7 * 4 + 2 * 1) / 9)
    compat = scores.figures["compat"]
    assert compat["by_type"]["action"] == 9.5
    assert compat["stops_at"] == ["8"]
    assert (compat["num_left_out"], compat["mean_of_types"]) == (1, None)


def test_a_missing_image_has_the_lowest_grade(imgedit_files: Path) -> None:
    scores = figures(imgedit_files, [None] + [grades(4, 4, 4)] * 8)
    assert scores.by_category["extract"] == 1
    assert scores.overall == pytest.approx((1 + 8 * 4) / 9)
    assert basic(imgedit_files).worst_score == 1


def test_the_rule_of_the_grades_is_reported_and_never_applied(imgedit_files: Path) -> None:
    scores = figures(imgedit_files, [grades(2, 5, 5)] + [grades(4, 4, 4)] * 8)
    assert scores.by_category["extract"] == 4
    assert scores.figures["num_second_or_third_above_first"] == 1
    assert any("above the first" in note for note in scores.notes)


# ---------------------------------------------------------------------------------------------


def test_the_hard_suite_has_one_mean(imgedit_files: Path) -> None:
    file = imgedit_files / "text.txt"
    file.write_text("Judge <edit_prompt>")
    model = FakeModel(GOOD)
    benchmark = ImgEditUgeBenchmark(
        prompts=str(imgedit_files / "UGE_edit.json"),
        images=str(imgedit_files),
        judge_text=str(file),
        judge=FakeJudge(model=model),
    )
    [one] = samples(benchmark)
    [verdict] = benchmark.scorer().verdicts([one])
    assert model.asked[0].parts[0] == "Judge Do it"
    scores = benchmark.reduce([Row(one.item, 0, verdict)])
    assert scores.overall == pytest.approx(8 / 3)
    assert dict(scores.by_category) == {"uge": scores.overall}
    assert scores.figures["compat"] == {
        "mean_of_samples": 2.67,
        "num_left_out": 0,
        "stops_at": [],
    }
    json.dumps(dict(scores.figures), allow_nan=False)
