"""T2I-CompBench: colors, shapes and textures of the things in an image.

Each noun phrase of the prompt is a question, "a green bench?", and the score of an image is the
product of the probabilities of a yes.
"""

import dataclasses
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from blip3o.core.bounds import Count
from blip3o.core.config import LocalPath, component
from blip3o.core.errors import UsageError
from blip3o.core.files import read_text
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
from blip3o.eval.prompt_files import PromptFile

CompCategory = Literal["color", "shape", "texture"]

PROMPTS: Mapping[CompCategory, PromptFile] = {
    "color": PromptFile(
        name="t2i_compbench/color_val.txt",
        sha256="1634259756dbc77d13093d907d414480080ec9790a8c97ad09efaea7b2534f2d",
        is_bundled=True,
    ),
    "shape": PromptFile(
        name="t2i_compbench/shape_val.txt",
        sha256="37e1a276906c7ea9516cbd7ac8501be896006c0c17ca7344f260562834455bae",
        is_bundled=True,
    ),
    "texture": PromptFile(
        name="t2i_compbench/texture_val.txt",
        sha256="fbb5363515b4a28009e360afaaaf389d2dd2289e50dbb0c6ef4ea0c7fe4f3d4f",
        is_bundled=True,
    ),
}
PUBLISHED_JUDGE = "BLIP-VQA"
_IMAGES_PER_PROMPT = 10
_MOST_PHRASES = 8
_MOST_WORDS = 4
_WORD = re.compile(r"[A-Za-z']+")
_ARTICLES = {"a", "an"}
_NOT_IN_PHRASE = re.compile(
    "a|an|the|and|or|of|with|on|in|at|by|for|from|near|next|to|while|which|that|one|two|is|are|"
    "was|were|has|have"
)
_UNJUDGED = {"top", "the side", "the left", "the right"}
"""Phrases that are no things: the official program asks nothing about them."""


def _prompts(file: PromptFile) -> list[str]:
    lines = [line.removesuffix("\r") for line in file.read().text.split("\n")]
    return [line for line in lines if line]


def simple_phrases(prompt: str) -> list[str] | None:
    """Returns the noun phrases of a prompt that joins two of them, and None for other prompts.

    "a round pizza and a rectangular piece of lasagna" has three: "of" separates phrases as well.
    A phrase is an article, which plurals lack, and up to four words.
    """
    halves = prompt.removesuffix(".").split(" and ")
    if len(halves) != 2:
        return None
    phrases = [phrase for half in halves for phrase in half.split(" of ")]
    for phrase in phrases:
        words = phrase.split(" ")
        inner = words[1:] if words[0] in _ARTICLES else words
        if not 1 <= len(inner) <= _MOST_WORDS:
            return None
        if any(not _WORD.fullmatch(word) or _NOT_IN_PHRASE.fullmatch(word) for word in inner):
            return None
    return phrases


@dataclasses.dataclass(frozen=True, kw_only=True)
class T2ICompBenchmark(Benchmark):
    """T2I-CompBench: colors, shapes and textures, judged by the probability of a yes.

    Args:
        categories: categories to score, each with 300 prompts.
        images_per_prompt: images of each prompt.
        phrases: JSON file with the noun phrases of each prompt, {prompt: [phrase, ...]}; the
            official program finds them with a parser. None uses a simple grammar.
        simple_prompts: without `phrases`, scores only the prompts that the grammar can read: "a
            green bench and a blue bowl", 240 of 300 in each category.
        judge: the model that answers the questions; it must state probabilities of tokens.
            published: BLIP-VQA, which has no server of this kind; any other judge makes another
            benchmark.
        instruction: text after each question; empty for a model that only answers questions.
        attempts: most requests for an answer.
    """

    categories: tuple[CompCategory, ...] = ("color", "shape", "texture")
    images_per_prompt: Count = _IMAGES_PER_PROMPT
    phrases: LocalPath | None = None
    simple_prompts: bool = False
    judge: JudgeConfig = component(
        "blip3o.eval.judges:JUDGES", default=OpenAIJudge(model=PUBLISHED_JUDGE)
    )
    instruction: str = "Answer with one word: yes or no."
    attempts: Count = 1

    def __post_init__(self) -> None:
        if not self.categories or len(set(self.categories)) < len(self.categories):
            raise ValueError("categories must name each category once")

    def prompt_texts(self) -> Sequence[str]:
        """Returns the prompts; see `Benchmark`."""
        return [prompt for name in self.categories for prompt in _prompts(PROMPTS[name])]

    def items(self) -> Sequence[Item]:
        """Returns an item for each prompt; see `Benchmark`."""
        phrases = None if self.phrases is None else _read_phrases(Path(self.phrases))
        items: list[Item] = []
        without: list[str] = []
        start = 0
        for category, file in PROMPTS.items():
            prompts = _prompts(file)
            for place, prompt in enumerate(prompts):
                if category not in self.categories:
                    continue
                some = simple_phrases(prompt) if phrases is None else phrases.get(prompt)
                if not some:
                    without.append(prompt)
                    continue
                items.append(
                    Item(
                        id=f"{category}-{place:03}",
                        number=start + place,
                        prompt=prompt,
                        category=category,
                        num_samples=self.images_per_prompt,
                        data={"phrases": _judged(some), "place": place},
                    )
                )
            start += len(prompts)
        if without and phrases is not None:
            raise UsageError(
                f"{self.phrases} has no phrases for {len(without)} prompts, such as {without[0]!r}"
            )
        if without and not self.simple_prompts:
            raise UsageError(
                f"{len(without)} prompts are sentences, such as {without[0]!r}: set phrases=FILE "
                "to their noun phrases, or simple_prompts=true to leave them out"
            )
        return items

    def scorer(self) -> "PhraseScorer":
        """Returns the scorer; see `Benchmark`."""
        return PhraseScorer(
            self.judge.build(), instruction=self.instruction, attempts=self.attempts
        )

    def reduce(self, rows: Sequence[Row]) -> Scores:
        """Returns the mean score of the images of each category, from 0 to 1; see `Benchmark`.

        An image without a judgement counts as 0.
        """
        in_order = sorted(rows, key=lambda row: (row.item.number, row.number))  # sums round
        marks = grouped((row.item.category, row.score_or(self.worst_score)) for row in in_order)
        means = {name: sum(some) / len(some) for name, some in marks.items()}
        unread = sum(row.judgement is None for row in rows)
        notes = judge_notes(rows, [PUBLISHED_JUDGE])
        if len(means) > 1:
            notes.append("the benchmark publishes categories only; overall is their mean")
        return Scores(
            overall=sum(means.values()) / len(means) if means else None,
            by_category=means,
            figures={"num_images": len(rows), "num_images_without_score": unread},
            notes=notes,
        )

    def layout(self) -> "CompLayout":
        """Returns the folders of the official program."""
        return CompLayout(self.categories)

    def remarks(self) -> Sequence[str]:
        """Returns the deviations from the published benchmark."""
        remarks = ["noun phrases are not those of the official parser"]
        if self.phrases is None and self.simple_prompts:
            remarks = [f"only the {len(self.items())} prompts that a simple grammar reads"]
        if self.images_per_prompt != _IMAGES_PER_PROMPT:
            remarks.append(
                f"{self.images_per_prompt} images per prompt in place of {_IMAGES_PER_PROMPT}"
            )
        return remarks


def _judged(phrases: Sequence[str]) -> list[str]:
    return [phrase for phrase in phrases if phrase not in _UNJUDGED][:_MOST_PHRASES]


def _read_phrases(path: Path) -> dict[str, list[str]]:
    try:
        data = load_json(read_text(path, "phrases"))
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from error
    if not isinstance(data, dict):
        raise UsageError(f"{path} must be one JSON object, {{prompt: [phrase, ...]}}")
    for prompt, some in data.items():
        if not isinstance(some, list) or not all(isinstance(one, str) and one for one in some):
            raise UsageError(f"{path}: the phrases of {prompt!r} must be a list of texts")
    return data


class PhraseScorer(FirstTokenScorer):
    """Asks the judge for each phrase whether the image shows it; see `Scorer`."""

    def questions(self, sample: Sample) -> list[str]:
        """Returns the questions about an image."""
        return [f"{phrase}?" for phrase in sample.item.data["phrases"]]

    def conclude(
        self, sample: Sample, readings: Sequence[Reading[str]]
    ) -> tuple[float, dict[str, Any]]:
        """Returns the product of the probabilities of a yes, and the answers."""
        del sample
        yes = [token_probability(one.answers[-1], YES_SPELLINGS) for one in readings]
        # Four decimals, as the official program writes each score.
        return round(math.prod(yes), 4), {
            "probabilities_of_yes": yes,
            "answers": [reading.texts for reading in readings],
            "first_tokens": [list(one.answers[-1].first_token) for one in readings],
        }


@dataclasses.dataclass(frozen=True)
class CompLayout(Layout):
    """The folders of the official program: `samples/PROMPT_NNNNNN.png`.

    The prompt is the name up to the first underscore, and the number its last part. The images of a
    prompt are taken in the order of their numbers. Several categories have a folder each:
    `CATEGORY/samples`.

    Args:
        categories: the categories.
    """

    categories: Sequence[CompCategory]

    def read(self, folder: Path, items: Sequence[Item]) -> Iterator[Found]:
        """Yields the images; see `Layout`.

        Raises:
            UsageError: if a folder is missing, or a prompt has more images than are asked for.
        """
        for one in self._categories(folder, items):
            for item in one.items:
                files = one.files[item.prompt]
                if len(files) > item.num_samples:
                    raise UsageError(
                        f"{one.place}: {item.prompt!r} has {len(files)} images, and "
                        f"images_per_prompt={item.num_samples}; the official program counts all of "
                        "them: set images_per_prompt"
                    )
                for number, file in enumerate(files):
                    yield Found(item=item.id, number=number, file=file)

    def notes(self, folder: Path, items: Sequence[Item]) -> list[str]:
        """Returns the files without a prompt and the missing images; see `Layout`."""
        notes: list[str] = []
        for one in self._categories(folder, items):
            place = os.path.relpath(one.place, folder.parent)
            if one.unknown:
                notes.append(
                    f"{place}: {len(one.unknown)} files belong to no prompt, and are passed "
                    f"over: {', '.join(one.unknown[:3])}"
                )
            wanted = sum(item.num_samples for item in one.items)
            num_files = sum(map(len, one.files.values()))
            if num_files < wanted:
                notes.append(
                    f"{place}: {num_files} of {wanted} images are there; the official program "
                    "leaves the others out"
                )
        return notes

    def write(self, folder: Path, samples: Sequence[Sample]) -> None:
        """Writes the images of an item; see `Layout`."""
        item = samples[0].item
        place = folder if len(self.categories) == 1 else folder / item.category
        for sample in samples:
            number = item.data["place"] * item.num_samples + sample.number
            write_png(place / "samples" / f"{item.prompt}_{number:06}.png", sample.drawing)

    def _categories(self, folder: Path, items: Sequence[Item]) -> Iterator["_CategoryFolder"]:
        for category in self.categories:
            place = folder if len(self.categories) == 1 else folder / category
            place = place / "samples" if (place / "samples").is_dir() else place
            yield _CategoryFolder.of(place, [item for item in items if item.category == category])


@dataclasses.dataclass(frozen=True, kw_only=True)
class _CategoryFolder:
    """The folder of a category.

    Args:
        place: the folder.
        items: items of the category.
        files: images of each prompt in their order.
        unknown: names of the files that belong to no prompt.
    """

    place: Path
    items: Sequence[Item]
    files: Mapping[str, Sequence[Path]]
    unknown: Sequence[str]

    @classmethod
    def of(cls, place: Path, items: Sequence[Item]) -> "_CategoryFolder":
        """Returns the content of a folder.

        Raises:
            UsageError: if it is missing, or holds no image of a prompt.
        """
        numbered: dict[str, list[tuple[int, Path]]] = {item.prompt: [] for item in items}
        unknown: list[str] = []
        try:
            entries = sorted(place.iterdir())
        except OSError as error:
            raise UsageError(f"{place} is not a folder of images: {error.strerror}") from error
        for entry in entries:
            prompt, _, number = entry.stem.rpartition("_")
            prompt = prompt.partition("_")[0]
            if prompt in numbered and number.isdecimal():
                numbered[prompt].append((int(number), entry))
            else:
                unknown.append(entry.name)
        if not any(numbered.values()):
            raise UsageError(f"{place} has no file of the form PROMPT_000000.png")
        files = {prompt: [file for _, file in sorted(some)] for prompt, some in numbered.items()}
        return cls(place=place, items=items, files=files, unknown=unknown)
