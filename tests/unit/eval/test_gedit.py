"""GEdit-Bench: data, requests, verdicts, figures and layout."""

import dataclasses
import io
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from PIL import Image

from blip3o.core.errors import UsageError
from blip3o.eval.benchmark import Outcome, Row, Sample
from blip3o.eval.gedit.benchmark import GEditBenchmark
from blip3o.eval.gedit.layout import GEditLayout
from blip3o.eval.gedit.reading import two_grades
from blip3o.eval.gedit.statistics import TASK_TYPES
from blip3o.remote.chat import Answer, ChatImage, ChatRequest


class FakeModel:
    """Gives its answers by attempt: those about semantics, then those about quality."""

    name = "gpt-4.1"

    def __init__(self, semantics: Sequence[Answer], quality: Sequence[Answer]) -> None:
        self.given = (semantics, quality)
        self.asked: list[ChatRequest] = []

    def answers(self, requests: Sequence[ChatRequest]) -> Iterator[tuple[int, Answer]]:
        self.asked += requests
        for number, request in enumerate(requests):
            images = [part for part in request.parts if isinstance(part, ChatImage)]
            given = self.given[len(images) == 1]
            yield number, given[min(request.attempt, len(given) - 1)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FakeJudge:
    model: FakeModel
    kind: str = "fake"

    def build(self) -> FakeModel:
        return self.model


def said(text: str) -> Answer:
    return Answer(outcome="answered", text=text)


def grades(first: float, second: float) -> Answer:
    return said(json.dumps({"score": [first, second], "reasoning": "x"}))


IDLE = FakeModel([grades(4, 9)], [grades(10, 9)])


@pytest.fixture
def gedit_folder(tmp_path: Path) -> Path:
    """Returns a folder of data: each type in both languages; every second type is common."""
    rows = [
        {
            "key": f"{n:02}ab",
            "task_type": kind,
            "instruction": f"Do {n}",
            "instruction_language": language,
            "input_image": f"images/{n}.png",
            "Intersection_exist": n % 2 == 0,
        }
        for n, kind in enumerate(TASK_TYPES)
        for language in ("en", "cn")
    ]
    (tmp_path / "images").mkdir()
    for n in range(len(TASK_TYPES)):
        Image.new("RGB", (8, 6), (n, 0, 200)).save(tmp_path / "images" / f"{n}.png")
    write_rows(tmp_path, rows)
    return tmp_path


def write_rows(folder: Path, rows: Sequence[object]) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "items.jsonl").write_text(text, encoding="utf-8")


def gedit(folder: Path, model: FakeModel = IDLE) -> GEditBenchmark:
    return GEditBenchmark(data=str(folder), judge=FakeJudge(model=model))


def samples(benchmark: GEditBenchmark) -> list[Sample]:
    image = Image.new("RGB", (16, 16), (10, 20, 30))
    return [
        Sample(item=item, number=0, sha256="h", image=image, sources=benchmark.sources(item))
        for item in benchmark.items()
    ]


def judged(folder: Path, model: FakeModel) -> list[Row]:
    benchmark = gedit(folder, model)
    drawn = {one.item.id: one for one in samples(benchmark)}
    verdicts = benchmark.scorer().verdicts(list(drawn.values()))
    return [Row(drawn[one.item].item, 0, one) for one in verdicts]


# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ('{"score": [4, 7.5], "reasoning": "x"}', "json"),
        ('```json\n{"score": [4, 7.5],\n"reasoning": "use {x}"}\n```', "json"),
        ('||V^=^V||\n{"score": [4, 7.5]}\n||V^=^V||', "json"),
        ("{'score': [4, 7.5], 'reasoning': 'x',}", "damaged"),
        ('{"score": [4, 7.5], "reasoning": "the', "damaged"),
        ("**Score:** [4, 7.5]", "damaged"),
        ("[4, 7.5]", "list"),
    ],
)
def test_two_grades_are_read_in_many_forms(text: str, form: str) -> None:
    found = two_grades(text)
    assert found is not None
    assert (found.values, found.form) == ((4, 7.5), form)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I'm sorry, I can't assist.",
        "rate_limit_exceeded",
        "7",
        "Between [4, 7] I think.",
        '{"score": 4}',
        '{"score": [4]}',
        '{"score": [4, 7, 3]}',
        '{"score": [4, 11]}',
        '{"score": [-1, 7]}',
        '{"score": [4, NaN]}',
        '{"score": ["4", "7"]}',
        '{"score": [true, 7]}',
        '{"scores": [4, 7]}',
        '{"score": [4, 7], "Score": [1, 1]}',
        '{"score": [4, 7], "score": [1, 1]}',
        '{"score": [4, 7]} {"score": [1, 1]}',
        'score: [1, 1] {"score": [4, 7]}',
        '{"score": [4, 7',
        '<think>{"score": [4, 7]}',
        "{" * 5000,
    ],
)
def test_unclear_grades_are_refused(text: str) -> None:
    assert two_grades(text) is None


# ---------------------------------------------------------------------------------------------


def test_items_are_the_lines_of_the_file(gedit_folder: Path) -> None:
    both = gedit(gedit_folder).items()
    assert len(both) == 22
    assert both[1].id == "background_change.cn.00ab"
    assert (both[1].task, both[1].prompt, both[1].number) == ("edit", "Do 0", 1)
    only = dataclasses.replace(gedit(gedit_folder), language="cn").items()
    assert only == both[1::2]  # the same numbers, so the same noise


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"task_type": "other"}, "task_type 'other'"),
        ({"instruction_language": "zh"}, "instruction_language 'zh'"),
        ({"key": "a/b"}, "no name of a file"),
        ({"Intersection_exist": "yes"}, "true or false"),
        ({"input_image": "none.png"}, "no such file"),
        ({"input_image": "../items.jsonl"}, "outside its folder"),
    ],
)
def test_broken_data_are_refused(gedit_folder: Path, change: dict[str, object], fault: str) -> None:
    rows = [json.loads(one) for one in (gedit_folder / "items.jsonl").read_text().splitlines()]
    write_rows(gedit_folder, [rows[0], {**rows[1], **change}])
    with pytest.raises(UsageError, match=rf"line 2.*{fault}"):
        gedit(gedit_folder).items()
    write_rows(gedit_folder, [rows[0], rows[0]])
    with pytest.raises(UsageError, match=r"a second background_change.en.00ab"):
        gedit(gedit_folder).items()
    write_rows(gedit_folder, [{"key": "a"}])
    with pytest.raises(UsageError, match="line 1 needs the keys key, task_type"):
        gedit(gedit_folder).items()


def test_missing_data_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="give data=FOLDER"):
        GEditBenchmark(judge=FakeJudge(model=IDLE)).items()
    with pytest.raises(UsageError, match=r"has no items.jsonl"):
        gedit(tmp_path).remarks()


# ---------------------------------------------------------------------------------------------


def test_the_judge_gets_two_questions_about_images_of_one_size(
    gedit_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "s.txt").write_text("Edit {instruction}?")
    (tmp_path / "q.txt").write_text("Quality?")
    model = FakeModel([grades(4, 9)], [grades(10, 9)])
    benchmark = dataclasses.replace(
        gedit(gedit_folder, model),
        semantics_text=str(tmp_path / "s.txt"),
        quality_text=str(tmp_path / "q.txt"),
    )
    [verdict] = benchmark.scorer().verdicts(samples(benchmark)[:1])
    semantics, quality = model.asked
    assert semantics.parts[0] == "Edit Do 0?"
    assert quality.parts[0] == "Quality?"
    images = [*semantics.parts[1:], *quality.parts[1:]]
    assert len(images) == 3
    for part in images:
        assert isinstance(part, ChatImage)
        assert part.media_type == "image/jpeg"
        with Image.open(io.BytesIO(part.data)) as sent:
            assert (sent.format, sent.size) == ("JPEG", (8, 6))
    assert images[1] == images[2] != images[0]
    assert semantics.max_tokens == 1400
    assert verdict.score == 6
    assert verdict.data["semantics"] == {"grades": [4.0, 9.0], "form": "json"}
    assert verdict.judge.count("+text-") == 2

    first = dataclasses.replace(benchmark, images_first=True, max_tokens=512)
    list(first.scorer().verdicts(samples(benchmark)[:1]))
    assert model.asked[-2].parts[2] == "Edit Do 0?"
    assert model.asked[-1].max_tokens == 512


@pytest.mark.parametrize("is_second", [False, True])
@pytest.mark.parametrize(
    ("answer", "outcome", "num_asked"),
    [
        (Answer(outcome="refusal", text="I can't."), "refusal", 3),
        (Answer(outcome="empty", text=""), "empty", 3),
        (Answer(outcome="cut", text='{"score": [4'), "cut", 3),
        (said("A good edit."), "unreadable", 3),
        (said('{"score": 4}'), "unreadable", 3),
        (Answer(outcome="transport", text="no server"), "transport", 1),
    ],
)
def test_answers_without_a_judgement_are_kept_and_never_scored(
    gedit_folder: Path, answer: Answer, outcome: Outcome, num_asked: int, is_second: bool
) -> None:
    pair = ([grades(4, 9)], [answer]) if is_second else ([answer], [grades(4, 9)])
    benchmark = gedit(gedit_folder, FakeModel(*pair))
    one = samples(benchmark)[0]
    [verdict] = benchmark.scorer().verdicts([one])
    assert (verdict.outcome, verdict.score) == (outcome, None)
    name = "quality" if is_second else "semantics"
    assert verdict.data[name] is None
    kept = verdict.data[f"{name}_answers"]
    assert [found["text"] for found in kept] == [answer.text] * num_asked
    scores = benchmark.reduce([Row(one.item, 0, verdict)])
    assert scores.by_category["background_change"] == 0


# ---------------------------------------------------------------------------------------------


def test_the_overall_is_the_mean_of_roots_and_each_set_has_its_figures(
    gedit_folder: Path,
) -> None:
    rows = judged(gedit_folder, FakeModel([grades(4, 9)], [grades(10, 9)]))
    zero = judged(gedit_folder, FakeModel([grades(0, 9)], [grades(10, 9)]))
    by_id = {row.item.id: row for row in rows}
    by_id |= {row.item.id: row for row in zero if row.item.id == "color_alter.en.01ab"}
    scores = gedit(gedit_folder).reduce(list(by_id.values()))
    assert scores.overall == pytest.approx(6 * 10 / 11)
    assert scores.by_category["color_alter"] == 0
    assert scores.figures["en"]["semantics"]["average"] == pytest.approx(4 * 10 / 11)
    assert scores.figures["cn"]["overall"]["average"] == pytest.approx(6)
    assert scores.figures["cn"]["quality"]["average"] == pytest.approx(9)
    # Only every second type of these data is in the intersection.
    assert scores.figures["en"]["overall_intersection"]["average"] is None
    assert scores.figures["en"]["overall_intersection"]["background_change"] == 6
    assert scores.figures["compat"]["en"] == scores.figures["en"]
    assert scores.figures["compat"]["num_scored"] == 22
    assert scores.figures["forms"] == {"quality json": 22, "semantics json": 22}
    json.dumps(dict(scores.figures), allow_nan=False)
    chinese = dataclasses.replace(gedit(gedit_folder), language="cn")
    cn_rows = [row for row in by_id.values() if row.item.data["language"] == "cn"]
    assert chinese.reduce(cn_rows).overall == pytest.approx(6)
    assert "en" not in chinese.reduce(cn_rows).figures


def test_an_invented_score_is_counted_and_never_used(gedit_folder: Path) -> None:
    rows = judged(gedit_folder, FakeModel([grades(4, 9)], [grades(10, 9)]))
    refused = judged(gedit_folder, FakeModel([said("I cannot.")], [grades(10, 9)]))
    rows = [refused[0], *rows[1:]]
    scores = gedit(gedit_folder).reduce(rows)
    compat = scores.figures["compat"]
    assert compat["random"] == ["background_change.en.00ab"]
    assert (compat["num_random"], compat["num_scored"]) == (1, 21)
    assert scores.by_category["background_change"] == 0
    assert compat["en"]["overall"]["background_change"] is None
    assert scores.overall == pytest.approx(60 / 11)
    assert any("would have invented the grades of 1 samples" in note for note in scores.notes)


def test_a_question_that_was_understood_keeps_its_answer(gedit_folder: Path) -> None:
    # The official program reads neither quotes of this kind nor asks only one question again.
    loose = said("{'score': [4, 9], 'reasoning': 'x'}")
    rows = judged(gedit_folder, FakeModel([said("{}"), grades(1, 1)], [grades(10, 9)]))
    scores = gedit(gedit_folder).reduce(rows)
    assert scores.figures["compat"]["en"]["overall"]["average"] == pytest.approx(3)
    unread = gedit(gedit_folder).reduce(judged(gedit_folder, FakeModel([loose], [grades(10, 9)])))
    assert unread.overall == pytest.approx(6)
    assert unread.figures["compat"]["num_unread"] == 22


def test_the_official_program_takes_or_stops_at_grades_that_ours_refuses(
    gedit_folder: Path,
) -> None:
    odd = gedit(gedit_folder).reduce(
        judged(gedit_folder, FakeModel([grades(12, 12)], [grades(3, 3)]))
    )
    assert odd.overall == 0
    assert odd.figures["compat"]["en"]["overall"]["average"] == pytest.approx(math.sqrt(36))
    for answer in ('{"score": []}', '{"score": ["1"]}', '{"score": [-1, 1]}'):
        rows = judged(gedit_folder, FakeModel([said(answer)], [grades(3, 3)]))
        assert gedit(gedit_folder).reduce(rows).figures["compat"]["num_stopped"] == 22


def test_a_missing_image_has_the_grade_zero(gedit_folder: Path) -> None:
    rows = judged(gedit_folder, FakeModel([grades(4, 9)], [grades(10, 9)]))
    scores = gedit(gedit_folder).reduce([Row(rows[0].item, 0, None), *rows[1:]])
    assert scores.by_category["background_change"] == 0
    assert scores.overall == pytest.approx(60 / 11)


# ---------------------------------------------------------------------------------------------


def test_the_official_layout_is_written_and_read(gedit_folder: Path, tmp_path: Path) -> None:
    benchmark = gedit(gedit_folder)
    layout, drawn = GEditLayout(), samples(benchmark)
    out = tmp_path / "save" / "model"
    for one in drawn:
        layout.write(out, [one])
    folder = out / "fullset" / "subject-add" / "cn"
    assert sorted(one.name for one in folder.iterdir()) == ["06ab.png", "06ab_SRCIMG.png"]
    with Image.open(folder / "06ab_SRCIMG.png") as source:
        assert (source.size, source.getpixel((0, 0))) == ((8, 6), (6, 0, 200))
    for place in (out, tmp_path / "save"):
        found = list(layout.read(place, benchmark.items()))
        assert [one.item for one in found] == [one.item.id for one in drawn]
        with Image.open(found[0].file) as image:
            assert (image.size, image.getpixel((0, 0))) == ((16, 16), (10, 20, 30))
    (folder / "06ab.png").unlink()
    assert len(list(layout.read(out, benchmark.items()))) == 21


def test_folders_of_another_form_are_refused(gedit_folder: Path, tmp_path: Path) -> None:
    items = gedit(gedit_folder).items()
    with pytest.raises(UsageError, match="no such folder"):
        list(GEditLayout().read(tmp_path / "none", items))
    with pytest.raises(UsageError, match="no folder fullset"):
        list(GEditLayout().read(tmp_path / "images", items))
    (tmp_path / "save" / "a" / "fullset").mkdir(parents=True)
    with pytest.raises(UsageError, match="holds no sample"):
        list(GEditLayout().read(tmp_path / "save", items))
    (tmp_path / "save" / "a" / "fullset" / "ps_human" / "zh").mkdir(parents=True)
    with pytest.raises(UsageError, match="name it cn"):
        list(GEditLayout().read(tmp_path / "save", items))
    (tmp_path / "save" / "b" / "fullset").mkdir(parents=True)
    with pytest.raises(UsageError, match="2 models"):
        list(GEditLayout().read(tmp_path / "save", items))
