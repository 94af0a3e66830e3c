"""The parts of a benchmark: items, samples, verdicts, scores, and the protocols that join them.

An evaluation is a chain of files (`blip3o.eval.stages`):

    plan       `items.jsonl`      what the benchmark asks, `Benchmark.items`
    generate   `samples/`         what the model draws or answers
    score      `verdicts.jsonl`   what the judge says of each sample, `Scorer.verdicts`
    report     `results.json`     figures, a pure function of the other files, `Benchmark.reduce`
"""

import abc
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, get_args

from PIL import Image

from blip3o.core.bounds import Count, Guidance, Seed

Task = Literal["text_to_image", "edit", "question", "reconstruction"]
Outcome = Literal[
    "judged", "missing", "broken", "refusal", "empty", "cut", "unreadable", "transport"
]
"""`missing` and `broken` are faults of the samples; the last five are faults of the judge's answer
(see `blip3o.remote.chat`; `unreadable`: the answer does not have the form that was asked for)."""
_FAILURES = ("missing", "broken")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Item:
    """One task of a benchmark for a model.

    Args:
        id: unique name in the benchmark and name of its folder of samples; letters, digits and
            "._-#" only.
        number: keys the noise; unique among the items of one task.
        task: kind of the task.
        prompt: prompt, instruction or question; empty for reconstructions.
        category: category in the report.
        num_samples: number of outputs that are asked for.
        max_new_tokens: longest answer to a question; None for the default of the model.
        sources: sha256 of each file of an input image; empty if the images follow from `data`.
        data: facts for the scorer, as JSON.
    """

    id: str
    number: int
    task: Task = "text_to_image"
    prompt: str = ""
    category: str = ""
    num_samples: int = 1
    max_new_tokens: int | None = None
    sources: tuple[str, ...] = ()
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """One output of a model, ready to be judged.

    Args:
        item: its item.
        number: number of the sample within the item, from 0.
        sha256: hash of the file (for a tile of a grid: of the file and the tile).
        image: the image in RGB; None for an answer to a question.
        text: the answer; None for an image.
        sources: input images of the item in RGB.
    """

    item: Item
    number: int
    sha256: str
    image: Image.Image | None = None
    text: str | None = None
    sources: Sequence[Image.Image] = ()

    @property
    def drawing(self) -> Image.Image:
        """The image.

        Raises:
            ValueError: if the sample is an answer.
        """
        if self.image is None:
            raise ValueError(f"sample {self.number} of {self.item.id} is no image")
        return self.image


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """The judgement of a scorer on one sample; a line of `verdicts.jsonl`.

    Args:
        item: id of the item.
        number: number of the sample.
        sha256: hash of the sample.
        judge: `Scorer.judge`.
        outcome: "judged", or the reason why there is no judgement.
        score: main figure of the sample, higher is better; None if there is none.
        data: everything that `Benchmark.reduce` and a reader need, as JSON: detections, raw
            answers of the judge, readings.
        file: file of the sample relative to the folder of the evaluation; None for its own place in
            `samples/`. Set by the stages.
        tile: `Found.tile` of the file.
    """

    item: str
    number: int
    sha256: str
    judge: str
    outcome: Outcome = "judged"
    score: float | None = None
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    file: str | None = None
    tile: tuple[int, int, int, int] | None = None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Verdict":
        """Returns the verdict of a line of `verdicts.jsonl`.

        Raises:
            ValueError: if a key is unknown or missing, or the outcome or the score is invalid.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = data.keys() - known
        if unknown:
            raise ValueError(f"unknown keys {', '.join(sorted(unknown))}")
        try:
            values: dict[str, Any] = dict(data)
            verdict = cls(**values | {"tile": values.get("tile") and tuple(values["tile"])})
        except TypeError as error:
            raise ValueError(str(error)) from error
        if verdict.tile is not None and len(verdict.tile) != 4:
            raise ValueError("its tile is not four numbers")
        is_score = verdict.score is None or isinstance(verdict.score, int | float)
        if verdict.outcome not in get_args(Outcome) or not is_score:
            raise ValueError("it has an unknown outcome or a score that is no number")
        return verdict


@dataclasses.dataclass(frozen=True)
class Row:
    """A sample that was asked for, with its verdict.

    A row whose verdict is None or has another outcome than "judged" counts as the worst one.

    Args:
        item: the item.
        number: number of the sample within the item.
        verdict: the verdict; None if there is none.
    """

    item: Item
    number: int
    verdict: Verdict | None

    @property
    def judgement(self) -> Verdict | None:
        """The verdict of a judged sample; None for a sample that counts as the worst."""
        is_judged = self.verdict is not None and self.verdict.outcome == "judged"
        return self.verdict if is_judged else None

    @property
    def is_failure(self) -> bool:
        """Whether the sample is missing or broken."""
        return self.verdict is None or self.verdict.outcome in _FAILURES

    @property
    def is_unjudged(self) -> bool:
        """Whether the judge has failed on the sample."""
        return not self.is_failure and self.judgement is None

    def score_or(self, worst: float) -> float:
        """Returns the score of a judged sample, and the worst one otherwise."""
        score = None if self.judgement is None else self.judgement.score
        return worst if score is None else score


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
    """The figures of a benchmark.

    Args:
        overall: the headline, on the scale in which the benchmark is published.
        by_category: the same by category.
        figures: further figures by name, such as those of the official program with its faults.
        notes: remarks that a reader of the figures needs.
    """

    overall: float | None
    by_category: Mapping[str, float | None]
    figures: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    notes: Sequence[str] = ()


class Scorer(Protocol):
    """Judges samples; made by a benchmark, and holds the models of the judge.

    Attributes:
        judge: the judge with its version, "mask2former-swin-s-743b7d99+openai-clip-vit-l-14". It is
            part of the title of the results: another judge makes another benchmark.
        batch_size: samples that are best judged together.
    """

    judge: str
    batch_size: int

    def verdicts(self, samples: Sequence[Sample]) -> Iterator[Verdict]:
        """Yields the verdict of each sample, each as soon as it is there, in any order."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """A sample that a layout finds in a folder, not read yet.

    Args:
        item: id of the item.
        number: number of the sample.
        file: the file.
        tile: (column, row, columns, rows) of the sample in a grid; None for the whole image.
        tile_px: the side that a tile must have; None for any.
    """

    item: str
    number: int
    file: Path
    tile: tuple[int, int, int, int] | None = None
    tile_px: int | None = None


class Layout(abc.ABC):
    """The folder form in which a benchmark's own program expects or leaves the samples."""

    @abc.abstractmethod
    def read(self, folder: Path, items: Sequence[Item]) -> Iterator[Found]:
        """Yields the samples in a folder.

        Raises:
            UsageError: if the folder does not have this form, or holds what the benchmark's own
                program would read wrongly; the message names the file and the remedy.
        """

    @abc.abstractmethod
    def write(self, folder: Path, samples: Sequence[Sample]) -> None:
        """Writes all samples of one item into a folder, each file atomically."""

    def notes(self, folder: Path, items: Sequence[Item]) -> list[str]:
        """Returns remarks on a folder that can be read, for the reader of the figures.

        Args:
            folder: as for `read`.
            items: as for `read`.
        """
        del folder, items
        return []


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark(abc.ABC):
    """A benchmark: a frozen dataclass of settings, which all have defaults.

    Args:
        seed: seed of the noise, and of all choices of the benchmark.
        batch_size: samples that are generated together; affects only speed and memory.
        num_inference_steps: DiT steps; None means the default of the model.
        guidance_scale: guidance scale; None means the default of the model.
        num_decoder_steps: steps of the image decoder; None means the default of the model.
        decoder_guidance_scale: guidance scale of the image decoder; None means its default.

    Attributes:
        worst_score: score of a sample that is missing or broken.
        prompts_setting: the setting that names the user's copy of the prompts.
    """

    worst_score: ClassVar[float] = 0.0
    prompts_setting: ClassVar[str] = "prompts"

    seed: Seed = 42
    batch_size: Count = 32
    num_inference_steps: Count | None = None
    guidance_scale: Guidance | None = None
    num_decoder_steps: Count | None = None
    decoder_guidance_scale: Guidance | None = None

    @abc.abstractmethod
    def items(self) -> Sequence[Item]:
        """Returns all items; the same settings always give the same items.

        Raises:
            UsageError: if a file of prompts is missing, or is not the published one (its hash).
        """

    def prompt_texts(self) -> Sequence[str]:
        """Returns all prompts and instructions, which training data must not hold.

        They need the file of prompts, and neither images nor files of questions.

        Raises:
            UsageError: as `items`.
        """
        return [item.prompt for item in self.items()]

    @abc.abstractmethod
    def scorer(self) -> Scorer:
        """Loads and returns the scorer.

        Raises:
            UsageError: if weights are missing or wrong, or a server is not named.
        """

    @abc.abstractmethod
    def reduce(self, rows: Sequence[Row]) -> Scores:
        """Returns the figures: a pure function of the rows of all samples."""

    def resampled(self, rows: Sequence[Row]) -> Scores:
        """Returns the figures of a resample of the items, from which their intervals are made.

        A benchmark leaves out the figures that resamples would bias or that take too long.
        """
        return self.reduce(rows)

    def sources(self, item: Item) -> list[Image.Image]:
        """Returns the input images of an item in RGB; none unless a benchmark says so."""
        del item
        return []

    def layout(self) -> Layout | None:
        """Returns the layout of the benchmark's own program; None if it has none."""
        return None

    def remarks(self) -> Sequence[str]:
        """Returns the deviations from the published benchmark, which the headline states."""
        return ()
