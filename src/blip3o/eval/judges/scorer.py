"""The scorer of benchmarks with a judge, its texts, and remarks on both."""

import abc
import dataclasses
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from PIL import Image

from blip3o.core.errors import UsageError
from blip3o.core.files import read_text
from blip3o.eval.benchmark import Row, Sample, Verdict
from blip3o.eval.judges.asking import Reading, ask_first_tokens, worst_outcome
from blip3o.imaging.encode import to_jpeg, to_png
from blip3o.remote.chat import ChatImage, ChatModel, ChatRequest

T = TypeVar("T")


class JudgeScorer(abc.ABC, Generic[T]):
    """Scores samples by requests to a judge; a `Scorer`.

    Args:
        model: the judge.
        marks: marks of its texts, which are part of the name of the judge.
    """

    batch_size: int = 32

    def __init__(self, model: ChatModel, marks: Sequence[str] = ()) -> None:
        self.judge = "+".join([model.name, *marks])
        self.model = model

    @abc.abstractmethod
    def requests(self, sample: Sample) -> Sequence[ChatRequest]:
        """Returns the requests about a sample.

        Raises:
            UsageError: if the sample does not fit the settings.
        """

    @abc.abstractmethod
    def ask(
        self, requests: Sequence[Sequence[ChatRequest]]
    ) -> Iterator[tuple[int, Sequence[Reading[T]]]]:
        """Yields the readings of each sample by its position; see `ask_each`."""

    @abc.abstractmethod
    def conclude(
        self, sample: Sample, readings: Sequence[Reading[T]]
    ) -> tuple[float | None, Mapping[str, Any]]:
        """Returns score and data of a verdict; the score counts only if all readings are judged."""

    def verdicts(self, samples: Sequence[Sample]) -> Iterator[Verdict]:
        """Yields the verdict of each sample as soon as all its requests are answered."""
        for position, readings in self.ask([self.requests(sample) for sample in samples]):
            sample = samples[position]
            outcome = worst_outcome(readings)
            score, data = self.conclude(sample, readings)
            yield Verdict(
                item=sample.item.id,
                number=sample.number,
                sha256=sample.sha256,
                judge=self.judge,
                outcome=outcome,
                score=score if outcome == "judged" else None,
                data=data,
            )


class FirstTokenScorer(JudgeScorer[str]):
    """Scores samples by the probabilities of the first tokens of answers; a `Scorer`.

    Args:
        model: the judge.
        instruction: text after each question.
        attempts: most requests for an answer.
    """

    batch_size = 8

    def __init__(self, model: ChatModel, *, instruction: str, attempts: int) -> None:
        super().__init__(model)
        self._instruction = instruction
        self._attempts = attempts

    @abc.abstractmethod
    def questions(self, sample: Sample) -> Sequence[str]:
        """Returns the questions about a sample."""

    def requests(self, sample: Sample) -> list[ChatRequest]:
        """Returns a request for each question."""
        file = png(sample.drawing)
        return [
            ChatRequest(
                parts=(file, f"{question} {self._instruction}".strip()),
                max_tokens=1,
                top_logprobs=20,
            )
            for question in self.questions(sample)
        ]

    def ask(
        self, requests: Sequence[Sequence[ChatRequest]]
    ) -> Iterator[tuple[int, list[Reading[str]]]]:
        """Yields the answers about each image; raises as `ask_first_tokens`."""
        return ask_first_tokens(self.model, requests, attempts=self._attempts)


def png(image: Image.Image) -> ChatImage:
    """Returns an image of a request as a PNG file."""
    return ChatImage(to_png(image))


def jpeg(image: Image.Image) -> ChatImage:
    """Returns an image of a request as a JPEG file of Pillow's default quality, 75."""
    return ChatImage(to_jpeg(image), "image/jpeg")


@dataclasses.dataclass(frozen=True)
class JudgeText:
    """A text that is put to a judge.

    Args:
        text: the text with its placeholders.
        mark: identifies the text in the name of the judge: another text makes another judge.
        remark: the sentence about it in the headline.
    """

    text: str
    mark: str
    remark: str

    def filled(self, values: Mapping[str, str]) -> str:
        """Returns the text with each placeholder replaced; inserted texts stay as they are."""
        places = re.compile("|".join(map(re.escape, values)))
        return places.sub(lambda found: values[found[0]], self.text)


def judge_text(path: str | None, own: str, name: str, places: Sequence[str] = ()) -> JudgeText:
    """Returns the text of a user's file, or our own wording.

    Args:
        path: the user's file; None for our wording.
        own: our wording.
        name: name of the setting, for messages and remarks.
        places: placeholders that the text must contain.

    Raises:
        UsageError: if the file cannot be read or lacks a placeholder.
    """
    if path is None:
        remark = f"{name} is blip3o's own wording, not the official text"
        return JudgeText(own, f"own-{_short_hash(own)}", remark)
    text = read_text(Path(path), name)
    for place in places:
        if place not in text:
            raise UsageError(f"{name}: {path} lacks {place}: write it where the value belongs")
    mark = f"text-{_short_hash(text)}"
    return JudgeText(text, mark, f"{name} is {Path(path).name} ({mark}), supplied by the user")


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def judge_notes(
    rows: Sequence[Row], published: Sequence[str], records: Sequence[str] = ()
) -> list[str]:
    """Returns remarks about the judge, which is part of the benchmark.

    Args:
        rows: all rows.
        published: judges of the published figures.
        records: keys of `Verdict.data` that hold answers as `Reading.recorded` returns them.
    """
    judges: set[str] = set()
    stated: set[str] = set()
    for row in rows:
        if row.is_failure or row.verdict is None:
            continue
        judges.add(row.verdict.judge)
        answers = [one for key in records for one in row.verdict.data.get(key, ())]
        stated |= {one["model"] for one in answers if one["model"]}
    notes = []
    if len(judges) > 1:
        notes.append(f"the verdicts of several judges are mixed: {', '.join(sorted(judges))}")
    for judge in sorted(judges):
        if not any(re.match(rf"{re.escape(name)}(?![\w.-])", judge) for name in published):
            notes.append(
                f"the judge is {judge}; published figures are of {' or '.join(published)}: another "
                "judge makes another benchmark"
            )
    others = {name for name in stated if not any(judge.startswith(name) for judge in judges)}
    if others:
        notes.append(f"the server states that {', '.join(sorted(others))} answered")
    return notes
