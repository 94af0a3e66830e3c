"""The benchmark DPG-Bench: items, scorer and figures."""

import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from blip3o.core.bounds import Count
from blip3o.core.config import LocalPath, component, to_dict
from blip3o.core.errors import UsageError
from blip3o.eval.benchmark import Benchmark, Item, Row, Sample, Scores
from blip3o.eval.dpg.official import OfficialImage, official_figures, official_image
from blip3o.eval.dpg.table import Question, read_table, zeroed
from blip3o.eval.figures import grouped, percent, percents
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
_MOST_TILES = 4
_SAME = 0.005
"""Two percentages that differ by less have the same two decimals in print."""


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

    def prompt_texts(self) -> Sequence[str]:
        """Returns the prompts; see `Benchmark`."""
        return list(self._prompts_by_item().values())

    def items(self) -> Sequence[Item]:
        """Returns an item for each prompt; see `Benchmark`."""
        texts, table = self._prompts_by_item(), self._read_questions()
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
        level_1 = percents((q.level_1, after) for q, after, _ in marks)
        figures: dict[str, Any] = {
            "level_1_all_tiles_zeroed": level_1,
            "level_2_all_tiles_zeroed": percents((q.level_2, after) for q, after, _ in marks),
            "level_1_all_tiles_raw": percents((q.level_1, raw) for q, _, raw in marks),
            "level_2_all_tiles_raw": percents((q.level_2, raw) for q, _, raw in marks),
            "compat_ella": compat,
            "num_items": len(by_item),
            "num_tiles": len(tiles),
            "num_tiles_without_answers": lost,
            "num_answers_neither_yes_nor_no": unread,
            "num_answers_yes_in_another_form": sum(tile.num_loose for tile in tiles),
            "num_questions_without_their_parent": sum(map(_lacks_parent, questions.values())),
        }
        notes = [*judge_notes(rows, [PUBLISHED_JUDGE]), *_notes(figures), *_compat_notes(figures)]
        return Scores(overall=percent(means), by_category=level_1, figures=figures, notes=notes)

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

    def _prompts_by_item(self) -> dict[str, str]:
        """Returns the prompts by the names of their items."""
        lines = self._read_prompts().text.splitlines()
        rows = [json.loads(line) for line in lines if line.strip()]
        return {row["item_id"]: row["prompt"] for row in rows}

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
