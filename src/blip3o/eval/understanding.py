"""Questions about the user's images, whose answers are compared with the right ones.

Each line of the file is one question: `{"image": "cat.png", "question": "What is it?", "answers":
["cat"], "category": "animals"}`. The category may be absent, and paths are relative to the file.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from blip3o.core.bounds import Count
from blip3o.core.config import LocalPath
from blip3o.core.errors import UsageError
from blip3o.core.files import read_text
from blip3o.core.texts import load_json
from blip3o.eval.benchmark import Benchmark, Item, Row, Sample, Scores, Verdict
from blip3o.eval.figures import grouped
from blip3o.eval.vqa import (
    MME_COGNITION,
    MME_PERCEPTION,
    mme_score,
    normalize_answer,
    read_mme,
    read_yes_no,
    soft_accuracy,
)
from blip3o.imaging.load import open_image

AnswerMetric = Literal["exact", "vqa", "yes_no", "mme"]

_LEAST_ANNOTATORS = 4
"""With fewer answers of annotators, no prediction can have the soft accuracy 1."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnderstandingBenchmark(Benchmark):
    """Understanding: your questions about images, compared with the right answers.

    Args:
        questions: JSONL file of the questions.
        metric: how answers are compared: `exact` normalizes both and accepts any of the answers;
            `vqa` is the soft accuracy of VQAv2 and needs the answers of all annotators; `yes_no`
            reads the first word; `mme` is the reading and the scoring of MME, whose categories have
            two questions for each image.
        max_new_tokens: longest answer.
    """

    questions: LocalPath | None = None
    metric: AnswerMetric = "exact"
    max_new_tokens: Count = 128

    def items(self) -> Sequence[Item]:
        """Returns an item for each question; see `Benchmark`."""
        file = self._file
        lines = [line for line in read_text(file, "questions").split("\n") if line.strip()]
        if not lines:
            raise UsageError(f"{file} has no questions")
        hashes: dict[str, str] = {}
        return [self._item(file, number, line, hashes) for number, line in enumerate(lines)]

    def sources(self, item: Item) -> list[Image.Image]:
        """Returns the image of a question."""
        return [open_image(self._file.parent / item.data["image"])]

    def scorer(self) -> "AnswerScorer":
        """Returns the scorer, which needs no model."""
        return AnswerScorer(self.metric)

    def reduce(self, rows: Sequence[Row]) -> Scores:
        """Returns the mean score in percent, or the sum of MME; see `Benchmark`.

        A question without an answer that can be read counts as wrong.
        """
        in_order = sorted(rows, key=lambda row: (row.item.number, row.number))  # sums round
        marks = [(row, row.score_or(self.worst_score)) for row in in_order]
        unread = sum(row.judgement is None or not row.judgement.data["is_read"] for row in rows)
        figures: dict[str, Any] = {"num_questions": len(rows), "num_unread": unread}
        by_category: Mapping[str, float]
        overall: float | None
        if self.metric == "mme":
            by_image = grouped((row.item.category, (row.item.data["image"], m)) for row, m in marks)
            by_category = {
                name: mme_score({k: [m == 1 for m in some] for k, some in grouped(pairs).items()})
                for name, pairs in by_image.items()
            }
            overall = sum(by_category.values())
            figures["perception"] = _sum(by_category, MME_PERCEPTION)
            figures["cognition"] = _sum(by_category, MME_COGNITION)
        else:
            some = grouped((row.item.category, mark) for row, mark in marks)
            by_category = {name: 100 * sum(ms) / len(ms) for name, ms in some.items()}
            overall = 100 * sum(mark for _, mark in marks) / len(marks) if marks else None
        notes = [f"{unread} questions have no readable answer and count as wrong"] if unread else []
        return Scores(overall=overall, by_category=by_category, figures=figures, notes=notes)

    def remarks(self) -> Sequence[str]:
        """Returns the file of questions, which is part of the benchmark."""
        digest = hashlib.sha256(read_text(self._file, "questions").encode()).hexdigest()
        return [f"questions of {self._file.name} (sha256 of the text {digest[:16]})"]

    @property
    def _file(self) -> Path:
        if self.questions is None:
            raise UsageError("understanding needs a file of questions: set questions=FILE.jsonl")
        return Path(self.questions)

    def _item(self, file: Path, number: int, line: str, hashes: dict[str, str]) -> Item:
        place = f"{file}, line {number + 1}"
        try:
            data = load_json(line)
        except ValueError as error:
            raise UsageError(f"{place}: {error}") from error
        if not isinstance(data, dict) or not {"image", "question", "answers"} <= set(data):
            raise UsageError(f"{place}: it needs image, question and answers")
        answers = data["answers"]
        if not isinstance(answers, list) or not answers:
            raise UsageError(f"{place}: answers must be a list of texts")
        answers = [str(answer) for answer in answers]
        if self.metric == "vqa" and len(answers) < _LEAST_ANNOTATORS:
            raise UsageError(
                f"{place}: metric=vqa needs the answers of all annotators (VQAv2 has ten), got "
                f"{len(answers)}; metric=exact accepts any of the answers"
            )
        if self.metric in {"yes_no", "mme"} and read_yes_no(answers[0]) is None:
            raise UsageError(f"{place}: metric={self.metric} needs the answer yes or no")
        image = str(data["image"])
        if image not in hashes:
            try:
                content = (file.parent / image).read_bytes()
            except OSError as error:
                raise UsageError(f"{place}: cannot read {image}: {error.strerror}") from error
            hashes[image] = hashlib.sha256(content).hexdigest()
        return Item(
            id=f"{number:06}",
            number=number,
            task="question",
            prompt=str(data["question"]),
            category=str(data.get("category", "")),
            max_new_tokens=self.max_new_tokens,
            sources=(hashes[image],),
            data={"image": image, "answers": answers},
        )


def _sum(scores: Mapping[str, float], names: Sequence[str]) -> float | None:
    """Returns the sum of the scores of some categories; None if one is missing."""
    return sum(scores[name] for name in names) if set(names) <= set(scores) else None


class AnswerScorer:
    """Compares answers with the right ones; see `Scorer`.

    Args:
        metric: how they are compared.
    """

    batch_size = 64

    def __init__(self, metric: AnswerMetric) -> None:
        self.judge = f"answers-{metric}"
        self._score = _SCORES[metric]

    def verdicts(self, samples: Sequence[Sample]) -> Iterator[Verdict]:
        """Yields the verdicts; see `Scorer`."""
        for sample in samples:
            text = sample.text or ""
            score = self._score(text, sample.item.data["answers"]) if text.strip() else None
            yield Verdict(
                item=sample.item.id,
                number=sample.number,
                sha256=sample.sha256,
                judge=self.judge,
                score=score or 0.0,  # the model answers here, not a judge: its faults are mistakes
                data={"answer": text, "is_read": score is not None},
            )


def _exact(text: str, answers: Sequence[str]) -> float | None:
    return float(normalize_answer(text) in {normalize_answer(answer) for answer in answers})


def _yes_no(text: str, answers: Sequence[str]) -> float | None:
    read = read_yes_no(text)
    return None if read is None else float(read == read_yes_no(answers[0]))


def _mme(text: str, answers: Sequence[str]) -> float | None:
    read = read_mme(text)
    return None if read == "other" else float((read == "yes") == read_yes_no(answers[0]))


_SCORES: Mapping[AnswerMetric, Callable[[str, Sequence[str]], float | None]] = {
    "exact": _exact,
    "vqa": soft_accuracy,
    "yes_no": _yes_no,
    "mme": _mme,
}
