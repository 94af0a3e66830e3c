"""GEdit-Bench: edits in English and Chinese, judged for semantics and quality.

Sources: parity family `gedit`; stepfun-ai/Step1X-Edit. The data are on the hub; users export them.
"""

import dataclasses
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from blip3o.core.bounds import Count
from blip3o.core.config import LocalPath, component
from blip3o.core.errors import UsageError, shown
from blip3o.core.files import file_sha256, read_lines
from blip3o.core.texts import load_json
from blip3o.eval.benchmark import Benchmark, Found, Item, Layout, Row, Sample, Scores
from blip3o.eval.figures import grouped, mean
from blip3o.eval.judges import JudgeConfig
from blip3o.eval.judges.asking import Reading, ask_each
from blip3o.eval.judges.openai import OpenAIJudge
from blip3o.eval.judges.reading import Numbers, is_number, json_object, spoken
from blip3o.eval.judges.scorer import JudgeScorer, JudgeText, jpeg, judge_notes, judge_text
from blip3o.eval.layouts import write_png
from blip3o.eval.prompt_files import source_file
from blip3o.imaging.load import open_image
from blip3o.imaging.pixels import resized
from blip3o.remote.chat import ChatModel, ChatRequest

TASK_TYPES = (
    "background_change",
    "color_alter",
    "material_alter",
    "motion_change",
    "ps_human",
    "style_change",
    "subject-add",
    "subject-remove",
    "subject-replace",
    "text_change",
    "tone_transfer",
)
LANGUAGES = ("en", "cn")
PUBLISHED_JUDGES = ("gpt-4.1", "Qwen2.5-VL-72B-Instruct-AWQ")
PLACE = "{instruction}"
BEST = 10

_KEYS = (
    "key",
    "task_type",
    "instruction",
    "instruction_language",
    "input_image",
    "Intersection_exist",
)
_QUESTIONS = ("semantics", "quality")
_ANSWER_KEYS = [f"{name}_answers" for name in _QUESTIONS]
_ITEM_ID = re.compile(r"[A-Za-z0-9._#-]+")

_OWN_SEMANTICS = """\
The first image is the original, the second image is an edit of it. The instruction was:
{instruction}

Give two grades from 0 (worst) to 10 (best).
First: how completely does the second image do what the instruction asks for?
Second: how well does everything stay that the instruction does not mention?

Answer with one JSON object and nothing else:
{"score": [first, second], "reasoning": "one sentence"}
"""

_OWN_QUALITY = """\
Look at the image alone. Give two grades from 0 (worst) to 10 (best).
First: how natural is it? Light, shadows, sizes and distances belong to one scene.
Second: how free of damage is it? No smears, seams, broken faces, hands or letters.

Answer with one JSON object and nothing else:
{"score": [first, second], "reasoning": "one sentence"}
"""

# ---------------------------------------------------------------------------------------------
# Our reader

_GRADE = r"-?\d+(?:\.\d+)?"
_PAIR = re.compile(rf"\[\s*({_GRADE})\s*,\s*({_GRADE})\s*\]")
_SCORE_KEY = re.compile(r"(?<![A-Za-z])[\"'*]*score[\"'*]*\s*[:=][\"'*\s]*", re.IGNORECASE)


def two_grades(text: str) -> Numbers | None:
    """Returns the two grades 0..10 of an answer.

    Understood are a JSON object with `score`, damaged and cut JSON if the list itself is whole, and
    an answer that is nothing but a list. Anything else is refused: one grade, three of them, grades
    that are out of range or texts, and several lists of scores.
    """
    said = spoken(text.replace(_MARK, "\n"))
    if said is None:
        return None
    found = json_object(said)
    if found is not None:
        values = [value for key, value in found[0].items() if key.casefold() == "score"]
        if len(values) != 1 or _SCORE_KEY.search(found[1]):
            return None
        return _in_range(values[0], "json")
    keys = list(_SCORE_KEY.finditer(said))
    if len(keys) == 1:
        pair = _PAIR.match(said, keys[0].end())
        return None if pair is None else _in_range([*map(float, pair.groups())], "damaged")
    pair = _PAIR.fullmatch(said)
    return None if keys or pair is None else _in_range([*map(float, pair.groups())], "list")


def _in_range(values: object, form: str) -> Numbers | None:
    if not isinstance(values, list) or len(values) != 2 or not all(map(is_number, values)):
        return None
    grades = tuple(float(value) for value in values)
    return Numbers(grades, form) if all(0 <= grade <= BEST for grade in grades) else None


# ---------------------------------------------------------------------------------------------
# The official program

_MARK = "||V^=^V||"
_BARE_PAIR = re.compile(r"\[\s*(\d{1,18})\s*,\s*(\d{1,18})\s*\]")
_RATE_LIMIT = "rate_limit_exceeded"

OfficialAnswer = list[object] | Literal["random", "stopped"] | None
"""Scores; "random" if the official program invents a number; "stopped" at its rate limit."""


def official_scores(answer: str, *, is_first: bool) -> OfficialAnswer:
    """Returns the scores that the official program reads from an answer; None if it reads none.

    Args:
        answer: the answer.
        is_first: whether it is the first try. On later ones the program takes a random number
            0..10 for an answer without braces; we never do.
    """
    if answer == _RATE_LIMIT:
        return "stopped"
    start, end = answer.find("{"), answer.rfind("}") + 1
    if answer.count(_MARK) >= 2:
        body = answer.split(_MARK)[1]
    elif 0 <= start < end:
        body = answer[start:end]
    elif not is_first:
        return "random"
    else:
        return _official_bare(answer)
    body = body.replace("\n", "").strip()
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        data = _repaired(body)
    if not isinstance(data, dict) or "score" not in data:
        return None
    score = data["score"]
    return score if isinstance(score, list) else [score]


def _official_bare(answer: str) -> list[object] | None:
    pair = _BARE_PAIR.search(answer)
    if pair is not None:
        return [int(pair[1]), int(pair[2])]
    number = answer.strip()
    is_score = re.fullmatch(r"\d{1,18}", number) is not None and int(number) <= BEST
    return [int(number)] if is_score else None


def _repaired(body: str) -> dict[str, object] | None:
    """Returns an object whose keys have no quotes, if all its values are numbers or words.

    The official program repairs more texts than these by chance; those stay unread here.
    """
    if not body.startswith("{") or re.search(r"[\[\]\"']", body):
        return None
    data: dict[str, object] = {}
    for pair in body[1:-1].split(","):
        key, colon, value = (part.strip() for part in pair.partition(":"))
        if not colon or not re.fullmatch(r"\w+", key) or not value:
            return None
        number = re.fullmatch(_GRADE, value)
        data[key] = value if number is None else [json.loads(value)]
    return data


@dataclasses.dataclass(frozen=True)
class OfficialSample:
    """The official result of a sample.

    Args:
        outcome: "scored"; "random" if it would hold an invented number; "stopped" if the program
            stops there; "unread" if these answers do not end its tries.
        calls: answers that were used.
        semantics: lower grade for semantics; None unless scored.
        quality: lower grade for quality; None unless scored.
        overall: the root of their product; None unless scored.
    """

    outcome: Literal["scored", "random", "stopped", "unread"]
    calls: int
    semantics: float | None = None
    quality: float | None = None
    overall: float | None = None


def official_sample(pairs: Sequence[tuple[str, str]]) -> OfficialSample:
    """Returns the result of tries, each of which asks both questions.

    Args:
        pairs: answers about semantics and quality of each try.
    """
    for number, pair in enumerate(pairs):
        calls = 2 * (number + 1)
        read = [official_scores(answer, is_first=number == 0) for answer in pair]
        if None in read:
            continue
        if "random" in read:
            return OfficialSample("random", calls)
        try:
            semantics, quality = (_least(scores) for scores in read)
            overall = math.sqrt(semantics * quality)
        except ValueError:
            return OfficialSample("stopped", calls)
        return OfficialSample("scored", calls, semantics, quality, overall)
    return OfficialSample("unread", 2 * len(pairs))


def _least(scores: OfficialAnswer) -> float:
    """Returns the lowest score; a ValueError is the stop of the official program."""
    numbers = scores if isinstance(scores, list) else []
    if not all(isinstance(one, int | float) for one in numbers):
        raise ValueError("a score is no number")
    return min(one for one in numbers if isinstance(one, int | float))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoredEdit:
    """The grades of a sample.

    Args:
        task_type: its type.
        in_intersection: whether it belongs to the intersection.
        semantics: lower grade for semantics, 0..10.
        quality: lower grade for quality, 0..10.
    """

    task_type: str
    in_intersection: bool
    semantics: float
    quality: float

    @property
    def overall(self) -> float:
        """The root of the product of both."""
        return math.sqrt(self.semantics * self.quality)


def statistics(edits: Sequence[ScoredEdit]) -> dict[str, dict[str, float | None]]:
    """Returns the tables of one language: mean of each type, and the plain mean of the types.

    Args:
        edits: all scored samples of the language.

    Returns:
        Tables "semantics", "quality" and "overall", each also with "_intersection". A type without
        samples has None, and so has the "average" of its table.
    """
    tables: dict[str, dict[str, float | None]] = {}
    for ending, chosen in (
        ("", edits),
        ("_intersection", [one for one in edits if one.in_intersection]),
    ):
        for name in (*_QUESTIONS, "overall"):
            by_type = grouped((one.task_type, getattr(one, name)) for one in chosen)
            means = {kind: mean(by_type.get(kind, ())) for kind in TASK_TYPES}
            there = [value for value in means.values() if value is not None]
            average = mean(there) if len(there) == len(TASK_TYPES) else None
            tables[name + ending] = {**means, "average": average}
    return tables


# ---------------------------------------------------------------------------------------------
# The benchmark


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
            for name in _QUESTIONS
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

    def layout(self) -> "GEditLayout":
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
            judge_text(self.semantics_text, _OWN_SEMANTICS, "semantics_text", [PLACE]),
            judge_text(self.quality_text, _OWN_QUALITY, "quality_text"),
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
        for name, reading in zip(_QUESTIONS, readings, strict=True):
            data[f"{name}_answers"] = reading.recorded()
            data[f"{name}_outcome"] = reading.outcome
            data[name] = None
            if reading.value is not None:
                data[name] = {"grades": list(reading.value.values), "form": reading.value.form}
                least.append(min(reading.value.values))
        return (math.sqrt(least[0] * least[1]) if len(least) == len(_QUESTIONS) else None), data


def _scored(rows: Sequence[Row], language: str) -> list[ScoredEdit]:
    """Returns the grades of a language's samples; those of unjudged ones are 0."""
    edits: list[ScoredEdit] = []
    for row in rows:
        if row.item.data["language"] == language:
            data = None if row.judgement is None else row.judgement.data
            semantics, quality = (
                0.0 if data is None else min(data[name]["grades"]) for name in _QUESTIONS
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


class GEditLayout(Layout):
    """The folder SAVE/MODEL of the official program: `fullset/TASK/LANG/KEY.png`; a `Layout`.

    The source image lies beside each result as `KEY_SRCIMG.png`.
    """

    def read(self, folder: Path, items: Sequence[Item]) -> Iterator[Found]:
        """Yields the samples; see `Layout`. `folder` may also be SAVE with one model in it."""
        base = _fullset(folder)
        wrong = sorted(base.glob("*/zh"))
        if wrong:
            raise UsageError(f"{wrong[0]} is not read by the benchmark's own program: name it cn")
        found = [(item, file) for item in items if (file := _result(base, item)).is_file()]
        if not found:
            raise UsageError(f"{base} holds no sample: they are named TASK/LANG/KEY.png")
        for item, file in found:
            yield Found(item=item.id, number=0, file=file)

    def write(self, folder: Path, samples: Sequence[Sample]) -> None:
        """Writes result and source image of an item; see `Layout`."""
        for sample in samples:
            if sample.image is None or sample.number:
                continue
            file = _result(folder / "fullset", sample.item)
            write_png(file.with_name(f"{file.stem}_SRCIMG.png"), sample.sources[0])
            write_png(file, sample.image)


def _result(fullset: Path, item: Item) -> Path:
    return fullset / item.category / item.data["language"] / f"{item.data['key']}.png"


def _fullset(folder: Path) -> Path:
    if not folder.is_dir():
        raise UsageError(f"no such folder: {folder}")
    inside = [folder, *sorted(one for one in folder.iterdir() if one.is_dir())]
    found = [one / "fullset" for one in inside if (one / "fullset").is_dir()]
    if len(found) != 1:
        state = "no folder fullset" if not found else f"{len(found)} models"
        raise UsageError(f"{folder} holds {state}: give SAVE/MODEL, with fullset/TASK/LANG/KEY.png")
    return found[0]
