"""GenEval 2: questions about each image, scored by the probability of the right answer.

The file of prompts and questions is licensed CC BY-NC 4.0 and not part of this package: the user
gives it.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from blip3o.core.bounds import Count
from blip3o.core.config import LocalPath, component
from blip3o.core.errors import UsageError
from blip3o.core.files import read_text, write_atomic
from blip3o.core.texts import load_json
from blip3o.eval.benchmark import Benchmark, Found, Item, Layout, Row, Sample, Scores
from blip3o.eval.figures import grouped
from blip3o.eval.judges import JudgeConfig
from blip3o.eval.judges.asking import (
    YES_SPELLINGS,
    Reading,
    token_probability,
)
from blip3o.eval.judges.openai import OpenAIJudge
from blip3o.eval.judges.scorer import FirstTokenScorer, judge_notes
from blip3o.eval.layouts import write_png
from blip3o.eval.prompt_files import PromptFile, ReadFile
from blip3o.eval.vqa import DIGITS
from blip3o.remote.chat import Answer

DATA = PromptFile(
    name="geneval2_data.jsonl",
    sha256="09233adbc9f877fba205f1a20efa4a8640e7e62a91dfd55893562bed8a928e43",
    origin="github.com/facebookresearch/GenEval2 (licence CC BY-NC 4.0), and set data=PATH",
)
PUBLISHED_JUDGE = "Qwen3-VL-8B-Instruct"
MAP_NAME = "images.json"
"""Name of the map from prompts to images in a folder that is written."""


def spellings(question: str, answer: str) -> tuple[str, ...]:
    """Returns the first tokens that count as the right answer.

    Args:
        question: a question; the answer to one that begins with "How many" is a number.
        answer: the right answer: a number word or a digit; other questions are always answered yes.
    """
    if not question.startswith("How many"):
        return YES_SPELLINGS
    word = answer.strip().lower()
    word = next((name for name, digit in DIGITS.items() if word == digit), word)
    if word not in DIGITS:
        word = "other"
    words = [word, word.capitalize(), f" {word}", f" {word.capitalize()}"]
    digits = [DIGITS[word], f" {DIGITS[word]}"] if word in DIGITS else []
    return (*words, *digits)


def arithmetic_mean(values: Sequence[float]) -> float:
    """Returns the mean."""
    return sum(values) / len(values)


def geometric_mean(values: Sequence[float]) -> float:
    """Returns the geometric mean; 0 if a value is 0."""
    if min(values) <= 0:
        return 0.0
    return math.exp(sum(math.log(value) for value in values) / len(values))


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenEval2Benchmark(Benchmark):
    """GenEval 2: 800 prompts of 3 to 10 atoms, judged by the probabilities of answers.

    Args:
        data: the published file of prompts and questions.
        changed_prompts: accepts another file.
        judge: the model that answers the questions; it must state probabilities of tokens.
        instruction: text after each question.
        attempts: most requests for an answer.
    """

    data: LocalPath | None = None
    changed_prompts: bool = False
    judge: JudgeConfig = component(
        "blip3o.eval.judges:JUDGES", default=OpenAIJudge(model=PUBLISHED_JUDGE)
    )
    instruction: str = "Answer in one word."
    attempts: Count = 1

    prompts_setting: ClassVar[str] = "data"

    def items(self) -> Sequence[Item]:
        """Returns an item for each prompt; see `Benchmark`."""
        lines = [line for line in self._read().text.split("\n") if line.strip()]
        return [_item(number, line) for number, line in enumerate(lines)]

    def scorer(self) -> "SoftScorer":
        """Returns the scorer; see `Benchmark`."""
        return SoftScorer(self.judge.build(), instruction=self.instruction, attempts=self.attempts)

    def reduce(self, rows: Sequence[Row]) -> Scores:
        """Returns the figures in percent; see `Benchmark`.

        The score of a prompt is the mean of the probabilities of its right answers: geometric in
        the headline. All questions about an image that was not judged count as 0.
        """
        in_order = sorted(rows, key=lambda row: (row.item.number, row.number))  # sums round
        soft = [_marks(row, "soft") for row in in_order]
        hard = [_marks(row, "is_likeliest") for row in in_order]
        with_space = [_marks(row, "soft_with_space") for row in in_order]
        skills = grouped(
            (skill, mark)
            for row, marks in zip(in_order, soft, strict=True)
            for skill, mark in zip(row.item.data["skills"], marks, strict=True)
        )
        by_count = grouped(
            (row.item.category, geometric_mean(marks))
            for row, marks in zip(in_order, soft, strict=True)
        )
        figures: dict[str, Any] = {
            "soft_gm": _total(soft, geometric_mean),
            "soft_am": _total(soft, arithmetic_mean),
            "tifa_gm": _total(hard, geometric_mean),
            "tifa_am": _total(hard, arithmetic_mean),
            # The tokens of " 3" may be " " and "3": the official sum then holds the space alone.
            "soft_gm_with_space_token": _total(with_space, geometric_mean),
            "soft_am_with_space_token": _total(with_space, arithmetic_mean),
            "skills_am": {name: 100 * arithmetic_mean(some) for name, some in skills.items()},
            "num_images": len(rows),
            "num_images_without_score": sum(row.judgement is None for row in rows),
        }
        notes = [
            "each first token counts once; the official program counts a token that two spellings "
            "share twice",
            *judge_notes(rows, [PUBLISHED_JUDGE]),
        ]
        return Scores(
            overall=figures["soft_gm"],
            by_category={name: 100 * arithmetic_mean(some) for name, some in by_count.items()},
            figures=figures,
            notes=notes,
        )

    def layout(self) -> "MapLayout":
        """Returns the map from prompts to images."""
        return MapLayout()

    def remarks(self) -> Sequence[str]:
        """Returns the deviations from the published benchmark."""
        read = self._read()
        if read.is_published:
            return []
        return [f"prompts are not the published ones (sha256 {read.sha256[:16]})"]

    def _read(self) -> ReadFile:
        return DATA.read(self.data, allow_changed=self.changed_prompts)


def _item(number: int, line: str) -> Item:
    try:
        data = json.loads(line)
        pairs = [(str(question), str(answer)) for question, answer in data["vqa_list"]]
        skills = [str(skill) for skill in data["skills"]]
        prompt, atoms = str(data["prompt"]), int(data["atom_count"])
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{DATA.name}, line {number + 1}: it needs prompt, atom_count, vqa_list and skills"
        ) from error
    if not pairs or len(pairs) != len(skills):
        raise UsageError(
            f"{DATA.name}, line {number + 1}: {len(pairs)} questions, {len(skills)} skills"
        )
    return Item(
        id=f"{number:03}",
        number=number,
        prompt=prompt,
        category=f"{atoms} atoms",
        data={"questions": [list(pair) for pair in pairs], "skills": skills},
    )


def _marks(row: Row, name: str) -> list[float]:
    """Returns a figure of each question of an image; 0 without a judgement."""
    if row.judgement is None:
        return [0.0] * len(row.item.data["questions"])
    return [float(mark) for mark in row.judgement.data[name]]


def _total(
    images: Sequence[Sequence[float]], mean: Callable[[Sequence[float]], float]
) -> float | None:
    return 100 * arithmetic_mean([mean(marks) for marks in images]) if images else None


class SoftScorer(FirstTokenScorer):
    """Asks every question and sums the probabilities of the right first tokens; see `Scorer`."""

    def questions(self, sample: Sample) -> list[str]:
        """Returns the questions about an image."""
        return [question for question, _ in sample.item.data["questions"]]

    def conclude(
        self, sample: Sample, readings: Sequence[Reading[str]]
    ) -> tuple[float, dict[str, Any]]:
        """Returns the geometric mean of the probabilities, and the answers with their readings."""
        right = [spellings(*pair) for pair in sample.item.data["questions"]]
        answers = [reading.answers[-1] for reading in readings]
        pairs = list(zip(answers, right, strict=True))
        soft = [token_probability(answer, some) for answer, some in pairs]
        return geometric_mean(soft), {
            "soft": soft,
            "soft_with_space": [_with_space(answer, some) for answer, some in pairs],
            "is_likeliest": [_likeliest(answer) in some for answer, some in pairs],
            "answers": [reading.texts for reading in readings],
            "first_tokens": [list(answer.first_token) for answer in answers],
        }


def _with_space(answer: Answer, right: Sequence[str]) -> float:
    has_digit = any(word.strip().isdecimal() for word in right)
    return token_probability(answer, (*right, " ") if has_digit else right)


def _likeliest(answer: Answer) -> str | None:
    if not answer.first_token:
        return None
    token, _ = max(answer.first_token, key=lambda pair: pair[1])
    return token.lower()


class MapLayout(Layout):
    """A JSON file {prompt: path of the image}; paths are relative to its folder."""

    def read(self, folder: Path, items: Sequence[Item]) -> Iterator[Found]:
        """Yields the images; see `Layout`.

        Args:
            folder: the JSON file, or a folder with one.
            items: the items.

        Raises:
            UsageError: if there is no such file, or it is no such map.
        """
        file = _map_file(folder)
        paths = _read_map(file)
        prompts = {item.prompt for item in items}
        if unknown := [prompt for prompt in paths if prompt not in prompts]:
            raise UsageError(
                f"{file}: {len(unknown)} texts are no prompts of GenEval 2, such as "
                f"{unknown[0]!r}: the keys must be the published prompts, letter by letter"
            )
        for item in items:
            if item.prompt in paths:
                yield Found(item=item.id, number=0, file=file.parent / paths[item.prompt])

    def notes(self, folder: Path, items: Sequence[Item]) -> list[str]:
        """Returns the number of prompts without an image; see `Layout`."""
        paths = _read_map(_map_file(folder))
        missing = [item.prompt for item in items if item.prompt not in paths]
        if not missing:
            return []
        return [
            f"{len(missing)} prompts have no image, such as {missing[0]!r}: the official program "
            "stops there"
        ]

    def write(self, folder: Path, samples: Sequence[Sample]) -> None:
        """Writes the image of an item and adds it to the map; see `Layout`."""
        (sample,) = samples
        name = f"{sample.item.id}.png"
        write_png(folder / name, sample.drawing)
        file = folder / MAP_NAME
        paths = _read_map(file) if file.exists() else {}
        write_atomic(file, json.dumps({**paths, sample.item.prompt: name}, indent=1) + "\n")


def _map_file(folder: Path) -> Path:
    if folder.is_file():
        return folder
    files = sorted(folder.glob("*.json"))
    if len(files) != 1:
        raise UsageError(
            f"{folder} has {len(files)} JSON files: give the file that maps prompts to images"
        )
    return files[0]


def _read_map(file: Path) -> Mapping[str, str]:
    try:
        data = load_json(read_text(file, "the map of images"))
    except ValueError as error:
        raise UsageError(f"{file}: {error}") from error
    if not isinstance(data, dict) or not all(isinstance(path, str) for path in data.values()):
        raise UsageError(f"{file} must be one JSON object, {{prompt: path}}")
    return data
