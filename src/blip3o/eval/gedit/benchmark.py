"""The benchmark GEdit-Bench: items, scorer, figures and layout."""

import dataclasses
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from PIL import Image

from blip3o.core.bounds import Count
from blip3o.core.config import LocalPath, component
from blip3o.core.errors import UsageError, shown
from blip3o.core.files import file_sha256, read_lines
from blip3o.core.texts import load_json
from blip3o.eval.benchmark import Benchmark, Item, Row, Sample, Scores
from blip3o.eval.gedit.layout import GEditLayout
from blip3o.eval.gedit.official import official_sample
from blip3o.eval.gedit.reading import two_grades
from blip3o.eval.gedit.statistics import QUESTIONS, TASK_TYPES, ScoredEdit, statistics
from blip3o.eval.gedit.wording import OWN_QUALITY, OWN_SEMANTICS
from blip3o.eval.judges import JudgeConfig
from blip3o.eval.judges.asking import Reading, ask_each
from blip3o.eval.judges.openai import OpenAIJudge
from blip3o.eval.judges.reading import Numbers
from blip3o.eval.judges.scorer import JudgeScorer, JudgeText, jpeg, judge_notes, judge_text
from blip3o.eval.prompt_files import source_file
from blip3o.imaging.load import open_image
from blip3o.imaging.pixels import resized
from blip3o.remote.chat import ChatModel, ChatRequest

LANGUAGES = ("en", "cn")
PUBLISHED_JUDGES = ("gpt-4.1", "Qwen2.5-VL-72B-Instruct-AWQ")
PLACE = "{instruction}"

_KEYS = (
    "key",
    "task_type",
    "instruction",
    "instruction_language",
    "input_image",
    "Intersection_exist",
)
_ANSWER_KEYS = [f"{name}_answers" for name in QUESTIONS]
_ITEM_ID = re.compile(r"[A-Za-z0-9._#-]+")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GEditBenchmark(Benchmark):
    """GEdit-Bench: edits of eleven types in English and Chinese, graded from 0 to 10.

    Args:
        data: folder with `items.jsonl` and the source images; see docs/benchmarks.md.
        language: language of the instructions. The headline is the English full set; with "cn" it
            is the Chinese one.
        semantics_text: file with the question about semantics; `{instruction}` is replaced. None
            takes our own wording.
        quality_text: file with the question about quality. None takes our own wording.
        images_first: whether the images precede the text. published: false for GPT-4.1, true for
            Qwen2.5-VL-72B.
        max_tokens: longest answer. published: 1400 for GPT-4.1, 512 for Qwen2.5-VL-72B.
        judge: the judge.
        attempts: most attempts of a request.
    """

    data: LocalPath | None = None
    language: Literal["both", "en", "cn"] = "both"
    semantics_text: LocalPath | None = None
    quality_text: LocalPath | None = None
    images_first: bool = False
    max_tokens: Count = 1400
    judge: JudgeConfig = component(
        "blip3o.eval.judges:JUDGES", default=OpenAIJudge(model=PUBLISHED_JUDGES[0])
    )
    attempts: Count = 3

    prompts_setting: ClassVar[str] = "data"

    def items(self) -> list[Item]:
        """Returns the edits in the order of the file; see `Benchmark`."""
        folder = self._folder()
        items: list[Item] = []
        seen: set[str] = set()
        for number, line in enumerate(read_lines(folder / "items.jsonl", "the items of GEdit")):
            if not line.strip():
                continue
            item = _item(folder, number, line)
            if item.id in seen:
                raise UsageError(f"items.jsonl, line {number + 1}: a second {item.id}")
            seen.add(item.id)
            if self.language in ("both", item.data["language"]):
                items.append(item)
        if not items:
            raise UsageError(f"{folder / 'items.jsonl'} holds no edit: language={self.language}")
        return items

    def sources(self, item: Item) -> list[Image.Image]:
        """Returns the source image; see `Benchmark`."""
        return [open_image(source_file(self._folder(), item.data["image"], item.id))]

    def scorer(self) -> "GEditScorer":
        """Returns the scorer; see `Benchmark`."""
        return GEditScorer(
            self.judge.build(),
            *self._texts(),
            images_first=self.images_first,
            max_tokens=self.max_tokens,
            attempts=self.attempts,
        )

    def reduce(self, rows: Sequence[Row]) -> Scores:
        """Returns the figures: ours as the headline, the official ones in `figures`.

        Both grades of a sample that was not judged are 0.
        """
        languages = [one for one in LANGUAGES if self.language in ("both", one)]
        figures: dict[str, Any] = {one: statistics(_scored(rows, one)) for one in languages}
        headline = languages[0]
        overall = figures[headline]["overall"]
        forms = Counter(
            f"{name} {row.verdict.data[name]['form']}"
            for row in rows
            for name in QUESTIONS
            if row.verdict is not None and row.verdict.data.get(name)
        )
        figures |= {
            "forms": dict(sorted(forms.items())),
            "compat": _compat(rows, languages),
        }
        notes = [f"the headline is the full set in {headline}; 'intersection' is a smaller set"]
        if figures["compat"]["num_random"]:
            notes.append(
                f"the official program would have invented the grades of "
                f"{figures['compat']['num_random']} samples"
            )
        return Scores(
            overall=overall["average"],
            by_category={kind: overall[kind] for kind in TASK_TYPES},
            figures=figures,
            notes=[
                *notes,
                *judge_notes(rows, PUBLISHED_JUDGES, _ANSWER_KEYS),
            ],
        )

    def layout(self) -> GEditLayout:
        """Returns the official layout: `fullset/TASK/LANG/KEY.png` and `KEY_SRCIMG.png`."""
        return GEditLayout()

    def remarks(self) -> list[str]:
        """Returns the deviations; see `Benchmark`."""
        sha256 = file_sha256(self._folder() / "items.jsonl")
        return [
            f"items.jsonl ({sha256[:8]}) is the user's export: no hash of the data is published",
            *(text.remark for text in self._texts()),
        ]

    def _texts(self) -> tuple[JudgeText, JudgeText]:
        return (
            judge_text(self.semantics_text, OWN_SEMANTICS, "semantics_text", [PLACE]),
            judge_text(self.quality_text, OWN_QUALITY, "quality_text"),
        )

    def _folder(self) -> Path:
        if self.data is None:
            raise UsageError(
                "gedit needs its data: export stepfun-ai/GEdit-Bench as docs/benchmarks.md says "
                "and give data=FOLDER"
            )
        folder = Path(self.data)
        if not (folder / "items.jsonl").is_file():
            raise UsageError(
                f"{folder} has no items.jsonl: export stepfun-ai/GEdit-Bench as docs/benchmarks.md "
                "says"
            )
        return folder


def _item(folder: Path, number: int, line: str) -> Item:
    what = f"items.jsonl, line {number + 1}"
    try:
        row = load_json(line)
    except ValueError as error:
        raise UsageError(f"{what}: {error}") from error
    if not isinstance(row, dict) or not row.keys() >= set(_KEYS):
        raise UsageError(f"{what} needs the keys {', '.join(_KEYS)}")
    task, language, key = row["task_type"], row["instruction_language"], row["key"]
    if task not in TASK_TYPES or language not in LANGUAGES:
        raise UsageError(
            f"{what}: task_type {shown(task)} and instruction_language {shown(language)} must be "
            f"one of {', '.join(TASK_TYPES)} and one of {', '.join(LANGUAGES)}"
        )
    if not isinstance(key, str) or not _ITEM_ID.fullmatch(key):
        raise UsageError(f"{what}: the key {shown(key)} is no name of a file")
    if not isinstance(row["instruction"], str) or not isinstance(row["Intersection_exist"], bool):
        raise UsageError(f"{what}: instruction must be a text, Intersection_exist true or false")
    source = source_file(folder, row["input_image"], what)
    return Item(
        id=f"{task}.{language}.{key}",
        number=number,
        task="edit",
        prompt=row["instruction"],
        category=task,
        sources=(file_sha256(source),),
        data={
            "key": key,
            "language": language,
            "image": row["input_image"],
            "intersection": row["Intersection_exist"],
        },
    )


class GEditScorer(JudgeScorer[Numbers]):
    """Asks the judge two questions about each edit; see `Scorer`.

    Args:
        model: the judge.
        semantics: the question about source and result.
        quality: the question about the result alone.
        images_first: whether the images precede the text.
        max_tokens: longest answer.
        attempts: most attempts of a request.
    """

    def __init__(
        self,
        model: ChatModel,
        semantics: JudgeText,
        quality: JudgeText,
        *,
        images_first: bool,
        max_tokens: int,
        attempts: int,
    ) -> None:
        super().__init__(model, [semantics.mark, quality.mark])
        self._semantics, self._quality = semantics, quality
        self._images_first, self._max_tokens, self._attempts = images_first, max_tokens, attempts

    def requests(self, sample: Sample) -> list[ChatRequest]:
        """Returns the questions about semantics and quality, with images of one size."""
        source = jpeg(sample.sources[0])
        result = jpeg(resized(sample.drawing, sample.sources[0].size))
        asked = self._semantics.filled({PLACE: sample.item.prompt})
        return [
            ChatRequest(
                parts=(*images, text) if self._images_first else (text, *images),
                max_tokens=self._max_tokens,
            )
            for text, images in ((asked, [source, result]), (self._quality.text, [result]))
        ]

    def ask(
        self, requests: Sequence[Sequence[ChatRequest]]
    ) -> Iterator[tuple[int, list[Reading[Numbers]]]]:
        """Yields the two pairs of grades of each edit."""
        return ask_each(self.model, requests, two_grades, attempts=self._attempts)

    def conclude(
        self, sample: Sample, readings: Sequence[Reading[Numbers]]
    ) -> tuple[float | None, dict[str, Any]]:
        """Returns the root of the product of the lower grades, and all answers."""
        del sample
        data: dict[str, Any] = {}
        least: list[float] = []
        for name, reading in zip(QUESTIONS, readings, strict=True):
            data[f"{name}_answers"] = reading.recorded()
            data[f"{name}_outcome"] = reading.outcome
            data[name] = None
            if reading.value is not None:
                data[name] = {"grades": list(reading.value.values), "form": reading.value.form}
                least.append(min(reading.value.values))
        return (math.sqrt(least[0] * least[1]) if len(least) == len(QUESTIONS) else None), data


def _scored(rows: Sequence[Row], language: str) -> list[ScoredEdit]:
    """Returns the grades of a language's samples; those of unjudged ones are 0."""
    edits: list[ScoredEdit] = []
    for row in rows:
        if row.item.data["language"] == language:
            data = None if row.judgement is None else row.judgement.data
            semantics, quality = (
                0.0 if data is None else min(data[name]["grades"]) for name in QUESTIONS
            )
            edits.append(_edit(row.item, semantics, quality))
    return edits


def _edit(item: Item, semantics: float, quality: float) -> ScoredEdit:
    return ScoredEdit(
        task_type=item.category,
        in_intersection=bool(item.data["intersection"]),
        semantics=semantics,
        quality=quality,
    )


def _compat(rows: Sequence[Row], languages: Sequence[str]) -> dict[str, Any]:
    """Returns the official figures of the same answers, without the samples scored at random.

    The official program asks both questions again if one is not read. Here a question that was
    understood is not asked again, and its last answer stands for the later tries.
    """
    by_language: dict[str, list[ScoredEdit]] = {one: [] for one in languages}
    outcomes: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        result = official_sample([] if row.verdict is None else _pairs(row.verdict.data))
        outcomes[result.outcome].append(row.item.id)
        if result.semantics is not None and result.quality is not None:
            own = by_language.get(row.item.data["language"], [])
            own.append(_edit(row.item, result.semantics, result.quality))
    return {
        **{one: statistics(edits) for one, edits in by_language.items()},
        "num_scored": len(outcomes["scored"]),
        "num_random": len(outcomes["random"]),
        "random": outcomes["random"],
        "num_stopped": len(outcomes["stopped"]),
        "num_unread": len(outcomes["unread"]),
    }


def _pairs(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    semantics, quality = (
        [one["text"] for one in data.get(key, ()) if one["outcome"] != "transport"]
        for key in _ANSWER_KEYS
    )
    if not semantics or not quality:
        return []
    tries = max(len(semantics), len(quality))
    return [
        (semantics[min(number, len(semantics) - 1)], quality[min(number, len(quality) - 1)])
        for number in range(tries)
    ]
