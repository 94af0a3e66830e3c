"""DPG-Bench: questions about each image of a long prompt, which depend on each other.

Two readings of the same answers are reported. The headline counts all items and all images. The
figures `compat_ella` repeat the faults of the official program, so that published numbers can be
met (parity family `dpg`).
"""

import csv
import dataclasses
import functools
import io
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from blip3o.core.bounds import Count
from blip3o.core.config import LocalPath, component, to_dict
from blip3o.core.errors import UsageError
from blip3o.eval.benchmark import Benchmark, Item, Row, Sample, Scores
from blip3o.eval.figures import grouped, mean
from blip3o.eval.grids import GridLayout
from blip3o.eval.judges import JudgeConfig
from blip3o.eval.judges.asking import Reading, ask_each
from blip3o.eval.judges.openai import OpenAIJudge
from blip3o.eval.judges.scorer import JudgeScorer, judge_notes, png
from blip3o.eval.prompt_files import PromptFile, ReadFile
from blip3o.eval.vqa import read_yes_no
from blip3o.remote.chat import ChatModel, ChatRequest

PROMPTS = PromptFile(
    name="dpg/prompts.jsonl",
    sha256="826c237bcb8b400f6123e6ffc39c6b0de855b4228a5079aba5e96a44aff8771a",
    is_bundled=True,
)
QUESTIONS = PromptFile(
    name="dpg_bench.csv",
    git_blob="98457fc9901943f51ff9a30367250fc292533bed",
    origin="github.com/TencentQQGYLab/ELLA dpg_bench/dpg_bench.csv, and set questions=PATH",
)
PUBLISHED_JUDGE = "mplug_visual-question-answering_coco_large_en"
_COLUMNS = ("item_id", "proposition_id", "dependency", "tuple", "question_natural_language")
_MOST_TILES = 4
_SAME = 0.005
"""Percentages that differ by less are printed alike."""

# ---------------------------------------------------------------------------------------------
# The table of questions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """A row of the table.

    Args:
        key: name of the question among those of its item: the id of its proposition, and for a
            repeated id "3.2", "3.3".
        proposition: id of its proposition.
        parents: ids of the propositions on which it depends.
        level_1: "entity", "attribute", "relation", "global" or "other".
        level_2: level 1 with a detail, "attribute - color".
        text: the question.
    """

    key: str
    proposition: int
    parents: tuple[int, ...]
    level_1: str
    level_2: str
    text: str


@dataclasses.dataclass(frozen=True)
class QuestionTable:
    """The table in both readings.

    Args:
        questions: all questions of each item, in the order of the table.
        official: keys of the questions that the official program asks about each item, in its
            order: it skips the first row, a later block of rows of an item replaces an earlier one,
            and a later question with the id of an earlier one takes its place.
        official_stop: why the official program cannot read the table; empty if it can.
    """

    questions: Mapping[str, Sequence[Question]]
    official: Mapping[str, Sequence[str]]
    official_stop: str = ""


def read_table(text: str) -> QuestionTable:
    """Returns the table of questions.

    Raises:
        UsageError: if a column is missing, or an id is not a number.
    """
    reader = csv.DictReader(io.StringIO(text, newline=""))
    if missing := [name for name in _COLUMNS if name not in (reader.fieldnames or [])]:
        raise UsageError(f"the table of questions has no column {missing[0]!r}")
    rows = list(reader)
    questions: dict[str, list[Question]] = defaultdict(list)
    official: dict[str, dict[int, str]] = {}
    before = None
    for number, row in enumerate(rows):
        item = row["item_id"]
        known = questions[item]
        question = _question(row, f"line {number + 2}", known)
        known.append(question)
        if number == 0:
            continue
        if item != before:
            official[item] = {}
        official[item][question.proposition] = question.key
        before = item
    stop = ""
    if _are_numbers(row["item_id"] for row in rows):
        official = {}  # its ids are numbers then, and never equal the name of a file
    elif _are_numbers(row["dependency"] for row in rows):
        stop = "no question has two parents, so the column is read as numbers"
    keys = {item: list(places.values()) for item, places in official.items()}
    return QuestionTable(dict(questions), keys, stop)


def _question(row: Mapping[str, str], place: str, known: Sequence[Question]) -> Question:
    try:
        proposition = int(row["proposition_id"])
        parents = tuple(int(part) for part in row["dependency"].split(",") if part.strip())
    except ValueError as error:
        raise UsageError(
            f"the table of questions, {place}: proposition_id and dependency must be numbers"
        ) from error
    repeats = sum(other.proposition == proposition for other in known)
    level_2 = row["tuple"].partition("(")[0].strip()
    return Question(
        key=f"{proposition}.{repeats + 1}" if repeats else str(proposition),
        proposition=proposition,
        parents=tuple(parent for parent in parents if parent != 0),
        level_1=level_2.partition("-")[0].strip(),
        level_2=level_2,
        text=row["question_natural_language"],
    )


def _are_numbers(cells: Iterable[str]) -> bool:
    try:
        return all(float(cell) is not None for cell in cells)
    except ValueError:
        return False


# ---------------------------------------------------------------------------------------------
# Scores of one image


def zeroed(questions: Sequence[Question], is_yes: Mapping[str, bool]) -> dict[str, bool]:
    """Returns the answers after each question with a refused parent has become a no.

    A no runs down to all descendants, whatever the order of the table. A parent that the table
    lacks refuses nothing.

    Args:
        questions: the questions of the item.
        is_yes: whether the answer is yes, by the key of the question.
    """
    marks = dict(is_yes)
    is_open = True
    while is_open:
        refused = {one.proposition for one in questions if not marks[one.key]}
        fallen = [q.key for q in questions if marks[q.key] and not refused.isdisjoint(q.parents)]
        marks |= dict.fromkeys(fallen, False)
        is_open = bool(fallen)
    return marks


@dataclasses.dataclass(frozen=True)
class OfficialImage:
    """The result of the official program for one file.

    Args:
        tiles: score of each tile, from 0 to 1.
        levels: level 1, level 2 and answer of each question of the last tile, before zeroing.
    """

    tiles: Sequence[float]
    levels: Sequence[tuple[str, str, bool]]

    @property
    def score(self) -> float:
        """The mean over the tiles."""
        return sum(self.tiles) / len(self.tiles)


def official_image(
    questions: Sequence[Question], answers: Sequence[Mapping[str, str]]
) -> OfficialImage | None:
    """Returns the result of the official program; None if it fails and leaves the image out.

    In the order of the table, a question becomes a no if a parent is a no at that moment. A parent
    that the table lacks is a failure, if no earlier parent is a no.

    Args:
        questions: the questions that the official program asks, in its order.
        answers: answers of the judge for each tile, by the key of the question.
    """
    tiles: list[float] = []
    for tile in answers:
        marks = {one.proposition: tile[one.key] == "yes" for one in questions}
        for one in questions:
            for parent in one.parents:
                if parent not in marks:
                    return None
                if not marks[parent]:
                    marks[one.proposition] = False
                    break
        tiles.append(sum(marks.values()) / len(marks))
    last = answers[-1]
    return OfficialImage(tiles, [(q.level_1, q.level_2, last[q.key] == "yes") for q in questions])


def official_figures(images: Sequence[OfficialImage]) -> dict[str, Any]:
    """Returns the figures of the official program in percent; the score is None without images."""
    levels = [level for image in images for level in image.levels]
    return {
        "score": _percent([image.score for image in images]),
        "level_1": _percents((first, mark) for first, _, mark in levels),
        "level_2": _percents((second, mark) for _, second, mark in levels),
    }


def _percent(values: Sequence[float]) -> float | None:
    share = mean(values)
    return None if share is None else 100 * share


def _percents(marks: Iterable[tuple[str, float]]) -> dict[str, float | None]:
    return {name: _percent(values) for name, values in sorted(grouped(marks).items())}


# ---------------------------------------------------------------------------------------------
# The benchmark


@dataclasses.dataclass(frozen=True, kw_only=True)
class DPGBenchmark(Benchmark):
    """DPG-Bench: 1,065 long prompts, judged by questions that depend on each other.

    Args:
        questions: the published table of questions, `dpg_bench.csv`.
        prompts: prompts in place of the bundled ones, which are the published ones.
        changed_prompts: accepts prompts and questions that are not the published ones; items
            without a question are left out.
        images_per_prompt: images of each prompt, 1 to 4.
        resolution: side of an image in a folder of grids, and in a grid that is written; None for
            the size of the images.
        judge: the model that answers the questions. published: mPLUG-large, which has no server of
            this kind; any other judge makes another benchmark.
        instruction: text after each question; empty for a model that only answers questions.
        attempts: most requests for an answer that cannot be read.

    Raises:
        ValueError: for more than 4 images.
    """

    questions: LocalPath | None = None
    prompts: LocalPath | None = None
    changed_prompts: bool = False
    images_per_prompt: Count = 4
    resolution: Count | None = None
    judge: JudgeConfig = component(
        "blip3o.eval.judges:JUDGES", default=OpenAIJudge(model=PUBLISHED_JUDGE)
    )
    instruction: str = "Answer with one word: yes or no."
    attempts: Count = 1

    def __post_init__(self) -> None:
        if self.images_per_prompt > _MOST_TILES:
            raise ValueError(f"images_per_prompt must be from 1 to {_MOST_TILES}")

    def items(self) -> Sequence[Item]:
        """Returns an item for each prompt; see `Benchmark`."""
        prompts, table = self._read_prompts(), self._read_questions()
        lines = [json.loads(line) for line in prompts.text.splitlines() if line.strip()]
        texts: dict[str, str] = {line["item_id"]: line["prompt"] for line in lines}
        read = read_table(table.text)
        without = [name for name in texts if name not in read.questions]
        others = [name for name in read.questions if name not in texts]
        if (without or others) and not self.changed_prompts:
            raise UsageError(
                f"{len(without)} prompts have no questions and {len(others)} items of the table no "
                f"prompt, such as {(without + others)[0]}: use the published files"
            )
        return [
            Item(
                id=name,
                number=number,
                prompt=prompt,
                category=name.rstrip("0123456789") or "numbered",
                num_samples=self.images_per_prompt,
                data={
                    "questions": [to_dict(one) for one in read.questions[name]],
                    "official": list(read.official.get(name, ())),
                    "official_stop": read.official_stop,
                },
            )
            for number, (name, prompt) in enumerate(texts.items())
            if name in read.questions
        ]

    def scorer(self) -> "DPGScorer":
        """Returns the scorer; see `Benchmark`."""
        return DPGScorer(
            self.judge.build(),
            instruction=self.instruction,
            attempts=self.attempts,
            tile_px=self.resolution,
        )

    def reduce(self, rows: Sequence[Row]) -> Scores:
        """Returns the figures of both readings; see `Benchmark`.

        All answers about an image that was not judged count as no.
        """
        in_order = sorted(rows, key=lambda row: (row.item.number, row.number))  # sums round
        items = {row.item.id: row.item for row in rows}
        questions = {name: _questions(item) for name, item in items.items()}
        tiles = [_Tile.of(row, questions[row.item.id]) for row in in_order]
        by_item = grouped((tile.row.item.id, tile) for tile in tiles)
        means = [sum(t.score for t in some) / len(some) for some in by_item.values()]
        unread = sum(len(tile.questions) - len(tile.read) for tile in tiles if tile.answers)
        lost = sum(not tile.answers for tile in tiles)
        compat = _compat(by_item)
        # A name here says which answers of which tiles a level is made of.
        marks = [
            (q, tile.zeroed[q.key], tile.is_yes[q.key]) for tile in tiles for q in tile.questions
        ]
        level_1 = _percents((q.level_1, after) for q, after, _ in marks)
        figures: dict[str, Any] = {
            "level_1_all_tiles_zeroed": level_1,
            "level_2_all_tiles_zeroed": _percents((q.level_2, after) for q, after, _ in marks),
            "level_1_all_tiles_raw": _percents((q.level_1, raw) for q, _, raw in marks),
            "level_2_all_tiles_raw": _percents((q.level_2, raw) for q, _, raw in marks),
            "compat_ella": compat,
            "num_items": len(by_item),
            "num_tiles": len(tiles),
            "num_tiles_without_answers": lost,
            "num_answers_neither_yes_nor_no": unread,
            "num_answers_yes_in_another_form": sum(tile.num_loose for tile in tiles),
            "num_questions_without_their_parent": sum(map(_lacks_parent, questions.values())),
        }
        notes = [*judge_notes(rows, [PUBLISHED_JUDGE]), *_notes(figures), *_compat_notes(figures)]
        return Scores(overall=_percent(means), by_category=level_1, figures=figures, notes=notes)

    def layout(self) -> GridLayout:
        """Returns the folder of grids of the official program."""
        side = 1 if self.images_per_prompt == 1 else 2
        return GridLayout(columns=side, rows=side, tile_px=self.resolution)

    def remarks(self) -> Sequence[str]:
        """Returns the deviations from the published benchmark."""
        remarks: list[str] = []
        if self.images_per_prompt != _MOST_TILES:
            remarks.append(f"{self.images_per_prompt} images per prompt in place of {_MOST_TILES}")
        prompts, table = self._read_prompts(), self._read_questions()
        if not prompts.is_published:
            remarks.append(f"prompts are not the published ones (sha256 {prompts.sha256[:16]})")
        if not table.is_published:
            remarks.append(f"questions are not the published ones (sha256 {table.sha256[:16]})")
        return remarks

    def _read_prompts(self) -> ReadFile:
        return PROMPTS.read(self.prompts, allow_changed=self.changed_prompts)

    def _read_questions(self) -> ReadFile:
        return QUESTIONS.read(self.questions, allow_changed=self.changed_prompts)


class DPGScorer(JudgeScorer[bool]):
    """Asks the judge every question about each image; see `Scorer`.

    Args:
        model: the judge.
        instruction: text after each question.
        attempts: most requests for an answer that cannot be read.
        tile_px: the side that each image must have; None for any.
    """

    batch_size = 8

    def __init__(
        self, model: ChatModel, *, instruction: str, attempts: int, tile_px: int | None
    ) -> None:
        super().__init__(model)
        self._instruction = instruction
        self._attempts = attempts
        self._tile_px = tile_px

    def requests(self, sample: Sample) -> list[ChatRequest]:
        """Returns a request for each question.

        Raises:
            UsageError: if the image does not have the size that the settings state.
        """
        image, side = sample.drawing, self._tile_px
        if side is not None and image.size != (side, side):
            raise UsageError(
                f"image {sample.number} of {sample.item.id} is {image.width} x {image.height}, and "
                f"resolution={side}: set resolution to the size of the images"
            )
        file = png(image)
        return [
            ChatRequest(parts=(file, f"{one.text} {self._instruction}".strip()), max_tokens=16)
            for one in _questions(sample.item)
        ]

    def ask(
        self, requests: Sequence[Sequence[ChatRequest]]
    ) -> Iterator[tuple[int, list[Reading[bool]]]]:
        """Yields the answers about each image, which say yes or no."""
        return ask_each(self.model, requests, read_yes_no, attempts=self._attempts)

    def conclude(
        self, sample: Sample, readings: Sequence[Reading[bool]]
    ) -> tuple[float, dict[str, Any]]:
        """Returns the share of questions with a yes after zeroing, and all answers."""
        questions = _questions(sample.item)
        by_key = {one.key: reading for one, reading in zip(questions, readings, strict=True)}
        is_yes = {key: reading.value is True for key, reading in by_key.items()}
        marks = zeroed(questions, is_yes).values()
        faults = {key: one.outcome for key, one in by_key.items() if one.outcome != "judged"}
        answers = {key: reading.texts for key, reading in by_key.items()}
        return sum(marks) / len(marks), {"answers": answers, "outcomes": faults}


@dataclasses.dataclass(frozen=True)
class _Tile:
    """One image with its answers.

    Args:
        row: its row.
        questions: the questions of its item.
        answers: first and later answers to each question; empty without a verdict.
        read: whether the answer is yes, of each question with an answer that can be read; also of
            an image that was not judged, because another answer is missing.
    """

    row: Row
    questions: Sequence[Question]
    answers: Mapping[str, Sequence[str]]
    read: Mapping[str, bool]

    @classmethod
    def of(cls, row: Row, questions: Sequence[Question]) -> "_Tile":
        """Returns the tile of a row."""
        data = row.verdict.data if row.verdict is not None else {}
        answers: Mapping[str, Sequence[str]] = data.get("answers", {})
        faults: Mapping[str, str] = data.get("outcomes", {})
        read = {key: read_yes_no(texts[-1]) for key, texts in answers.items() if key not in faults}
        sure = {key: mark for key, mark in read.items() if mark is not None}
        return cls(row, questions, answers, sure)

    @functools.cached_property
    def is_yes(self) -> dict[str, bool]:
        """Whether the answer to each question is yes; it is not if the image was not judged."""
        is_judged = self.row.judgement is not None
        return {one.key: is_judged and self.read.get(one.key, False) for one in self.questions}

    @functools.cached_property
    def zeroed(self) -> dict[str, bool]:
        """The same after zeroing."""
        return zeroed(self.questions, self.is_yes)

    @property
    def score(self) -> float:
        """Share of questions with a yes after zeroing."""
        marks = self.zeroed.values()
        return sum(marks) / len(marks)

    @property
    def num_loose(self) -> int:
        """Number of answers that mean yes but are not the three letters."""
        return sum(mark and self.answers[key][-1] != "yes" for key, mark in self.read.items())

    @property
    def official_answers(self) -> dict[str, str] | None:
        """First answer to each question; None if the official program fails on this tile."""
        verdict = self.row.verdict
        if verdict is None or not self.answers or verdict.outcome == "transport":
            return None
        return {key: texts[0] for key, texts in self.answers.items()}


def _questions(item: Item) -> list[Question]:
    return [
        Question(
            key=one["key"],
            proposition=one["proposition"],
            parents=tuple(one["parents"]),
            level_1=one["level_1"],
            level_2=one["level_2"],
            text=one["text"],
        )
        for one in item.data["questions"]
    ]


def _lacks_parent(questions: Sequence[Question]) -> int:
    known = {one.proposition for one in questions}
    return sum(not known.issuperset(one.parents) for one in questions)


def _compat(by_item: Mapping[str, Sequence[_Tile]]) -> dict[str, Any]:
    """Returns the figures of the official program and the items that it leaves out."""
    images: list[OfficialImage] = []
    left_out: list[str] = []
    for name, tiles in by_item.items():
        data = tiles[0].row.item.data
        if data["official_stop"]:
            return {"error": data["official_stop"]}
        by_key = {one.key: one for one in tiles[0].questions}
        asked = [by_key[key] for key in data["official"]]
        answers = [tile.official_answers for tile in tiles]
        complete = [some for some in answers if some is not None]
        image = official_image(asked, complete) if asked and len(complete) == len(answers) else None
        if image is None:
            left_out.append(name)
        else:
            images.append(image)
    return {**official_figures(images), "num_items": len(images), "left_out": sorted(left_out)}


def _notes(figures: Mapping[str, Any]) -> list[str]:
    """Returns the remarks about the figures."""
    counts = {
        "num_answers_yes_in_another_form": "answers mean yes but are not the exact text yes, which "
        "alone counts in compat_ella",
        "num_questions_without_their_parent": "questions depend on a question that is not in the "
        "table; the official program leaves their images out",
    }
    return [f"{figures[name]} {text}" for name, text in counts.items() if figures[name]]


def _compat_notes(figures: Mapping[str, Any]) -> list[str]:
    """Returns where the official program would say something else, with its figures."""
    compat: Mapping[str, Any] = figures["compat_ella"]
    notes: list[str] = []
    if left_out := compat.get("left_out"):
        notes.append(
            f"the official program skips the first row of the table, and leaves {len(left_out)} of "
            f"{figures['num_items']} items out, such as {left_out[0]} (compat_ella)"
        )
    ours: Mapping[str, float] = figures["level_1_all_tiles_zeroed"]
    theirs: Mapping[str, float] = compat.get("level_1", {})
    other = [name for name in ours if name in theirs and abs(ours[name] - theirs[name]) > _SAME]
    if other:
        name = max(other, key=lambda name: abs(ours[name] - theirs[name]))
        notes.append(
            "the official program has levels of the last image only, such as "
            f"{name} {theirs[name]:.4g} in place of {ours[name]:.4g} (compat_ella)"
        )
    return notes
