"""ImgEdit-Bench: edits that a judge grades with three numbers; the basic and the hard (UGE) suite.

Sources: parity family `imgedit`; PKU-YuanGroup/ImgEdit. Its files have no licence, so users supply
them.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from blip3o.core.bounds import Count
from blip3o.core.config import LocalPath, component
from blip3o.core.errors import UsageError, shown
from blip3o.core.files import file_sha256
from blip3o.core.texts import load_json
from blip3o.eval.benchmark import Benchmark, Item, Row, Sample, Scores
from blip3o.eval.figures import grouped, mean
from blip3o.eval.judges import JudgeConfig
from blip3o.eval.judges.asking import Reading, ask_each
from blip3o.eval.judges.openai import OpenAIJudge
from blip3o.eval.judges.reading import Numbers, line_numbers
from blip3o.eval.judges.scorer import JudgeScorer, JudgeText, judge_notes, judge_text, png
from blip3o.eval.layouts import FlatLayout
from blip3o.eval.prompt_files import PromptFile, ReadFile, source_file
from blip3o.imaging.load import open_image
from blip3o.remote.chat import ChatModel, ChatRequest

TYPES = (
    "extract",
    "style",
    "add",
    "adjust",
    "background",
    "replace",
    "remove",
    "action",
    "compose",
)
JUDGES_OF_FIGURES = ("gpt-4.1", "gpt-4o")
"""The paper's table names the first; the published script asks the second."""
WORST, BEST = 1, 5
PLACE = "<edit_prompt>"

_ORIGIN = "github.com/PKU-YuanGroup/ImgEdit (it has no licence)"
_BASIC = PromptFile(
    name="basic_edit.json",
    sha256="5ee9b7d61e918692416f79896300f738598c83adff8de737b25be4aaff72dc69",
    origin=_ORIGIN,
)
_UGE = PromptFile(
    name="UGE_edit.json",
    sha256="807817d8765f8fc45397be9afbf638b00fad91e37c1d44fabd5103df73074d16",
    origin=_ORIGIN,
)
_TEXTS = PromptFile(
    name="prompts.json",
    sha256="f9468dc848776ee0a6c2e2c31e678c7224e9cb61b013747c8c52d4a05627b5a0",
    origin=_ORIGIN,
)

_OWN_TEXT = """\
The first image is the original, the second image is an edit of it. The instruction was:
<edit_prompt>

Grade the edit on three scales, each from 1 (worst) to 5 (best).
Instruction: is exactly the wanted change made, and does everything else stay as it was?
Naturalness: does the changed part fit the image in light, style, perspective and edges?
Detail: are shapes, textures and fine parts whole and sharp, without damage?
An edit that does not follow the instruction is of no use: the second and third grade are never \
higher than the first.

Answer with one sentence of reasons and then three lines:
Instruction: GRADE
Naturalness: GRADE
Detail: GRADE
"""


def official_average(answer: str) -> float | None:
    """Returns the score that the official program reads from an answer, to two decimals.

    Each line counts that has exactly one colon with a space and only digits behind it. The program
    takes any number of lines, and numbers of any size.

    Raises:
        ValueError: for a superscript digit, at which the official program stops.
    """
    numbers: list[int] = []
    for line in answer.split("\n"):
        parts = line.strip().split(": ")
        if len(parts) == 2 and parts[1].isdigit():
            numbers.append(int(parts[1]))
    return round(sum(numbers) / len(numbers), 2) if numbers else None


def official_types(types: Mapping[str, str], averages: Mapping[str, float]) -> dict[str, float]:
    """Returns the score of each type of edit, to two decimals, as the official program has it.

    Args:
        types: key of each item to its type.
        averages: key to its rounded score; other keys and missing ones are passed over.
    """
    by_type = grouped((kind, averages[key]) for key, kind in types.items() if key in averages)
    return {kind: round(sum(own) / len(own), 2) for kind, own in by_type.items()}


def official_mean(averages: Mapping[str, float]) -> float | None:
    """Returns the figure of the hard suite: the mean of rounded scores, to two decimals."""
    return round(sum(averages.values()) / len(averages), 2) if averages else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImgEditBenchmark(Benchmark):
    """ImgEdit-Bench: 737 edits of nine types, graded by a judge from 1 to 5.

    Args:
        prompts: the published `basic_edit.json`.
        images: folder of the source images, unpacked from `Benchmark.tar`.
        changed_prompts: accepts other files of prompts and texts; the results say so.
        judge_text: the published `prompts.json`, one text for each type of edit with
            `<edit_prompt>` in the place of the instruction. None takes our own wording.
        judge: the judge.
        attempts: most attempts of a request. published: 1.
    """

    prompts: LocalPath | None = None
    images: LocalPath | None = None
    changed_prompts: bool = False
    judge_text: LocalPath | None = None
    judge: JudgeConfig = component(
        "blip3o.eval.judges:JUDGES", default=OpenAIJudge(model=JUDGES_OF_FIGURES[0])
    )
    attempts: Count = 1

    worst_score: ClassVar[float] = WORST
    suite: ClassVar[str] = "ImgEdit-Bench basic"
    file: ClassVar[PromptFile] = _BASIC

    def prompt_texts(self) -> list[str]:
        """Returns the instructions; see `Benchmark`."""
        return [self._instruction(key, row) for key, row in self._rows()]

    def items(self) -> list[Item]:
        """Returns the edits in the order of the file; see `Benchmark`."""
        folder = self._folder()
        items: list[Item] = []
        for number, (key, row) in enumerate(self._rows()):
            what = f"{self.file.name}: {key}"
            source = source_file(folder, row.get("id"), what)
            kind, prompt = self._kind(row, what), self._instruction(key, row)
            items.append(
                Item(
                    id=key,
                    number=number,
                    task="edit",
                    prompt=prompt,
                    category=kind,
                    sources=(file_sha256(source),),
                    data={"image": row["id"]},
                )
            )
        return items

    def sources(self, item: Item) -> list[Image.Image]:
        """Returns the source image; see `Benchmark`."""
        return [open_image(source_file(self._folder(), item.data["image"], item.id))]

    def scorer(self) -> "EditScorer":
        """Returns the scorer; see `Benchmark`."""
        return EditScorer(self.judge.build(), self._texts(), attempts=self.attempts)

    def reduce(self, rows: Sequence[Row]) -> Scores:
        """Returns the figures: ours as the headline, the official ones in `figures`."""
        scores = [(row.item.category, row.score_or(self.worst_score)) for row in rows]
        by_category = self._means(scores)
        overall = self._overall(by_category)
        judged = [row.judgement.data for row in rows if row.judgement is not None]
        num_breaks = sum(bool(data["breaks_rule"]) for data in judged)
        notes = judge_notes(rows, JUDGES_OF_FIGURES, ["answers"])
        if num_breaks:
            notes.append(
                f"in {num_breaks} answers the second or third grade is above the first, against "
                "the rule; they are scored as they are"
            )
        figures: dict[str, Any] = {
            "mean_of_samples": mean([score for _, score in scores]),
            "num_second_or_third_above_first": num_breaks,
            "forms": dict(sorted(Counter(str(data["form"]) for data in judged).items())),
            "compat": self._compat(rows),
        }
        if len(self._kinds()) > 1:
            figures["mean_of_types"] = overall
        return Scores(overall=overall, by_category=by_category, figures=figures, notes=notes)

    def layout(self) -> FlatLayout:
        """Returns the official layout: `KEY.png`."""
        return FlatLayout()

    def remarks(self) -> list[str]:
        """Returns the deviations; see `Benchmark`."""
        remarks = []
        if not self._prompts().is_published:
            remarks.append(f"not {self.suite}: changed prompts")
        return remarks + sorted({text.remark for text in self._texts().values()})

    def _kinds(self) -> Sequence[str]:
        """Returns the categories."""
        return TYPES

    def _kind(self, row: Mapping[str, object], what: str) -> str:
        """Returns the category of an entry."""
        kind = row.get("edit_type")
        if kind not in TYPES:
            raise UsageError(
                f"{what} has the edit_type {shown(kind)}: it must be one of {', '.join(TYPES)}"
            )
        return str(kind)

    def _texts(self) -> dict[str, JudgeText]:
        """Returns the text of each category."""
        if self.judge_text is None:
            return dict.fromkeys(TYPES, judge_text(None, _OWN_TEXT, "judge_text"))
        read = _TEXTS.read(self.judge_text, allow_changed=self.changed_prompts)
        data = _object(read.text, self.judge_text)
        texts: dict[str, JudgeText] = {}
        for kind in TYPES:
            text = data.get(kind)
            if not isinstance(text, str) or PLACE not in text:
                raise UsageError(f"{self.judge_text} has no text with {PLACE} for {kind}")
            mark = f"text-{read.sha256[:8]}"
            state = "the published prompts.json" if read.is_published else f"changed ({mark})"
            texts[kind] = JudgeText(text, mark, f"judge_text is {state}")
        return texts

    def _rows(self) -> list[tuple[str, Mapping[str, object]]]:
        return _entries(self._prompts().text, self.file.name)

    def _instruction(self, key: str, row: Mapping[str, object]) -> str:
        prompt = row.get("prompt")
        if not isinstance(prompt, str) or not prompt:
            raise UsageError(f"{self.file.name}: {key} has no prompt: get the published file")
        return prompt

    def _prompts(self) -> ReadFile:
        if self.prompts is None:
            raise UsageError(
                f"{self.suite} needs {self.file.name}: get it from {self.file.origin} and give "
                "prompts=FILE"
            )
        return self.file.read(self.prompts, allow_changed=self.changed_prompts)

    def _folder(self) -> Path:
        if self.images is None:
            raise UsageError(
                f"{self.suite} needs its source images: unpack them and give images=FOLDER"
            )
        return Path(self.images)

    def _means(self, scores: Sequence[tuple[str, float]]) -> dict[str, float | None]:
        by_kind = grouped(scores)
        return {kind: mean(by_kind.get(kind, ())) for kind in self._kinds()}

    def _overall(self, means: Mapping[str, float | None]) -> float | None:
        """Returns the mean of the categories; None if one has no sample."""
        there = [value for value in means.values() if value is not None]
        return mean(there) if len(there) == len(means) else None

    def _compat(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Returns the official figures of the same answers: the first one of each request."""
        averages: dict[str, float] = {}
        stopped: list[str] = []
        for row in rows:
            answers = () if row.verdict is None else row.verdict.data.get("answers", ())
            if not answers or answers[0]["outcome"] == "transport":
                continue
            try:
                average = official_average(answers[0]["text"])
            except ValueError:
                stopped.append(row.item.id)
                continue
            if average is not None:
                averages[row.item.id] = average
        types = official_types({row.item.id: row.item.category for row in rows}, averages)
        compat: dict[str, Any] = {
            "mean_of_samples": official_mean(averages),
            "num_left_out": len(rows) - len(averages),
            "stops_at": stopped,
        }
        if len(self._kinds()) > 1:
            is_complete = len(types) == len(self._kinds())
            compat |= {"by_type": types}
            compat |= {"mean_of_types": mean(list(types.values())) if is_complete else None}
        return compat


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImgEditUgeBenchmark(ImgEditBenchmark):
    """ImgEdit-Bench, hard suite (UGE): 47 edits without types.

    Args:
        prompts: the published `UGE_edit.json`.
        judge_text: file with one text for the judge, with `<edit_prompt>` in the place of the
            instruction. None takes our own wording.
    """

    suite: ClassVar[str] = "ImgEdit-Bench UGE"
    file: ClassVar[PromptFile] = _UGE

    def _kinds(self) -> Sequence[str]:
        return ("uge",)

    def _kind(self, row: Mapping[str, object], what: str) -> str:
        return "uge"

    def _texts(self) -> dict[str, JudgeText]:
        return {"uge": judge_text(self.judge_text, _OWN_TEXT, "judge_text", [PLACE])}


class EditScorer(JudgeScorer[Numbers]):
    """Asks the judge once about each edit; see `Scorer`.

    Args:
        model: the judge.
        texts: text of each category.
        attempts: most attempts of a request.
    """

    def __init__(self, model: ChatModel, texts: Mapping[str, JudgeText], *, attempts: int) -> None:
        super().__init__(model, sorted({text.mark for text in texts.values()}))
        self._texts, self._attempts = texts, attempts

    def requests(self, sample: Sample) -> list[ChatRequest]:
        """Returns the request about an edit."""
        text = self._texts[sample.item.category].filled({PLACE: sample.item.prompt})
        images = [png(sample.sources[0]), png(sample.drawing)]
        return [ChatRequest(parts=(text, *images), temperature=None, max_tokens=2048)]

    def ask(
        self, requests: Sequence[Sequence[ChatRequest]]
    ) -> Iterator[tuple[int, list[Reading[Numbers]]]]:
        """Yields the three grades of each edit."""
        return ask_each(self.model, requests, _grades, attempts=self._attempts)

    def conclude(
        self, sample: Sample, readings: Sequence[Reading[Numbers]]
    ) -> tuple[float | None, dict[str, Any]]:
        """Returns the mean of the grades, and all answers."""
        del sample
        [reading] = readings
        data: dict[str, Any] = {"answers": reading.recorded(), "scores": None, "form": None}
        if reading.value is None:
            return None, data
        scores = list(reading.value.values)
        data |= {"scores": scores, "form": reading.value.form}
        return mean(scores), data | {"breaks_rule": max(scores[1:]) > scores[0]}


def _grades(answer: str) -> Numbers | None:
    return line_numbers(answer, 3, WORST, BEST)


def _object(text: str, name: str) -> dict[str, object]:
    try:
        data = load_json(text)
    except ValueError as error:
        raise UsageError(f"{name}: {error}") from error
    if not isinstance(data, dict):
        raise UsageError(f"{name} is no JSON object: get the published file")
    return data


def _entries(text: str, name: str) -> list[tuple[str, Mapping[str, object]]]:
    entries: list[tuple[str, Mapping[str, object]]] = []
    for key, row in _object(text, name).items():
        if not isinstance(row, dict):
            raise UsageError(f"{name}: {shown(key)} is no JSON object: get the published file")
        entries.append((key, row))
    return entries
