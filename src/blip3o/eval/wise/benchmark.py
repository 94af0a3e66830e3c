"""The benchmarks `wise` (legacy, all figures before 2026-04-19) and `wise_verified`."""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

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
from blip3o.eval.judges.reading import Numbers, named_numbers
from blip3o.eval.judges.scorer import JudgeScorer, JudgeText, judge_notes, judge_text, png
from blip3o.eval.layouts import FlatLayout
from blip3o.eval.prompt_files import PromptFile, ReadFile
from blip3o.eval.wise import official, wording
from blip3o.eval.wise.versions import LEGACY, VERIFIED, Version, known_file
from blip3o.remote.chat import ChatModel, ChatRequest


@dataclasses.dataclass(frozen=True, kw_only=True)
class WiseBenchmark(Benchmark):
    """WISE, first version: 1,000 prompts with knowledge of the world, graded by GPT-4o.

    Args:
        prompts: folder with the three published files of prompts, known by their hashes.
        changed_prompts: accepts other files, such as rewritten prompts; the results say so.
        judge_text: file with the text for the judge; `{prompt}` and `{explanation}` are replaced.
            None takes our own wording, which is not the official one.
        judge_system: file with the system message of the judge. None takes our own wording.
        judge: the judge.
        attempts: most attempts of a request. published: 3.
    """

    prompts: LocalPath | None = None
    changed_prompts: bool = False
    judge_text: LocalPath | None = None
    judge_system: LocalPath | None = None
    judge: JudgeConfig = component(
        "blip3o.eval.judges:JUDGES", default=OpenAIJudge(model=LEGACY.judge)
    )
    attempts: Count = 3

    version: ClassVar[Version] = LEGACY
    own_text: ClassVar[str] = wording.LEGACY

    def items(self) -> list[Item]:
        """Returns the prompts in the order of their ids; see `Benchmark`."""
        rows: dict[int, Mapping[str, object]] = {}
        for file in self._files():
            for row in _prompt_rows(file.path, file.read.text):
                number = row["prompt_id"]
                if not isinstance(number, int) or number in rows:
                    raise UsageError(f"{file.path}: prompt_id {shown(number)} is no new number")
                rows[number] = row
        return [self._item(number, rows[number]) for number in sorted(rows)]

    def scorer(self) -> "WiseScorer":
        """Returns the scorer; see `Benchmark`."""
        system, text = self._texts()
        return WiseScorer(
            self.judge.build(),
            self.version,
            system,
            text,
            extra=self._extra(),
            attempts=self.attempts,
        )

    def reduce(self, rows: Sequence[Row]) -> Scores:
        """Returns the figures: ours as the headline, the official ones in `figures`."""
        by_category = _means(
            self.version, [(row.item.category, row.score_or(self.worst_score)) for row in rows]
        )
        forms = Counter(str(row.judgement.data["form"]) for row in rows if row.judgement)
        return Scores(
            overall=self.version.overall(by_category),
            by_category=by_category,
            figures={"forms": dict(sorted(forms.items())), "compat": _compat(self.version, rows)},
            notes=judge_notes(rows, [self.version.judge], ["answers"]),
        )

    def layout(self) -> FlatLayout:
        """Returns the official layout: `ID.png`."""
        return FlatLayout()

    def remarks(self) -> list[str]:
        """Returns the deviations; see `Benchmark`."""
        remarks = [
            f"not WISE: {file.path.name} holds "
            + ("the rewritten prompts of an ablation" if file.is_rewritten else "changed prompts")
            for file in self._files()
            if not file.read.is_published
        ]
        if self.judge_text is None or self.judge_system is None:
            remarks.append("not official WISE: the judge gets blip3o's own wording")
        return remarks + [text.remark for text in self._texts()]

    def _extra(self) -> Mapping[str, object]:
        """Returns further fields of each request."""
        return {}

    def _texts(self) -> tuple[JudgeText, JudgeText]:
        """Returns the system message and the text."""
        return (
            judge_text(self.judge_system, wording.SYSTEM, "judge_system"),
            judge_text(self.judge_text, self.own_text, "judge_text", wording.PLACES),
        )

    def _item(self, number: int, row: Mapping[str, object]) -> Item:
        category = self.version.category(number)
        if category is None:
            raise UsageError(f"prompt_id {number} is not from 1 to 1000")
        data = {
            "prompt_id": number,
            "explanation": str(row["Explanation"]),
            "subcategory": str(row["Subcategory"]),
        }
        prompt = str(row["Prompt"])
        return Item(id=str(number), number=number, prompt=prompt, category=category, data=data)

    def _files(self) -> list["_PromptFile"]:
        if self.prompts is None:
            origin = self.version.files[0].origin
            raise UsageError(
                f"{self.version.name} needs its prompts: get them from {origin} and give "
                "prompts=FOLDER"
            )
        return _find_files(self.version, Path(self.prompts), self.changed_prompts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WiseVerifiedBenchmark(WiseBenchmark):
    """WISE_Verified: other prompts and another judge than WISE, a score of 0 or 1.

    Args:
        judge: the judge.
        no_thinking: switches thinking of the judge off by `chat_template_kwargs`, as published; a
            server that does not know this field needs false.
    """

    judge: JudgeConfig = component(
        "blip3o.eval.judges:JUDGES", default=OpenAIJudge(model=VERIFIED.judge)
    )
    no_thinking: bool = True

    version: ClassVar[Version] = VERIFIED
    own_text: ClassVar[str] = wording.VERIFIED

    def _extra(self) -> Mapping[str, object]:
        return {"chat_template_kwargs": {"enable_thinking": False}} if self.no_thinking else {}


class WiseScorer(JudgeScorer[Numbers]):
    """Asks the judge once about each image; see `Scorer`.

    Args:
        model: the judge.
        version: the version of WISE.
        system: the system message.
        text: the text with its placeholders.
        extra: further fields of each request.
        attempts: most attempts of a request.
    """

    def __init__(
        self,
        model: ChatModel,
        version: Version,
        system: JudgeText,
        text: JudgeText,
        *,
        extra: Mapping[str, object],
        attempts: int,
    ) -> None:
        super().__init__(model, [system.mark, text.mark])
        self._version, self._system, self._text = version, system, text
        self._extra, self._attempts = extra, attempts

    def requests(self, sample: Sample) -> list[ChatRequest]:
        """Returns the request about an image."""
        explanation = str(sample.item.data["explanation"])
        filled = self._text.filled({"{prompt}": sample.item.prompt, "{explanation}": explanation})
        return [
            ChatRequest(
                parts=(filled, png(sample.drawing)),
                system=self._system.text,
                max_tokens=self._version.max_tokens,
                extra=self._extra,
            )
        ]

    def ask(
        self, requests: Sequence[Sequence[ChatRequest]]
    ) -> Iterator[tuple[int, list[Reading[Numbers]]]]:
        """Yields the grades of each image."""
        return ask_each(self.model, requests, self._read, attempts=self._attempts)

    def conclude(
        self, sample: Sample, readings: Sequence[Reading[Numbers]]
    ) -> tuple[float | None, dict[str, Any]]:
        """Returns the score of the version, and all answers."""
        del sample
        [reading] = readings
        data: dict[str, Any] = {"answers": reading.recorded(), "scores": None, "form": None}
        if reading.value is None:
            return None, data
        scores = dict(zip(self._version.score_keys(), reading.value.values, strict=True))
        return self._version.score(scores), data | {"scores": scores, "form": reading.value.form}

    def _read(self, answer: str) -> Numbers | None:
        return named_numbers(answer, list(self._version.criteria), self._version.most)


# ---------------------------------------------------------------------------------------------
# Files of prompts


@dataclasses.dataclass(frozen=True)
class _PromptFile:
    """A file of prompts that is used."""

    path: Path
    read: ReadFile
    is_rewritten: bool = False


def _find_files(version: Version, folder: Path, allow_changed: bool) -> list[_PromptFile]:
    """Returns the published files in a folder, known by their hashes; their names do not matter."""
    if not folder.is_dir():
        raise UsageError(f"prompts: no such folder: {folder}")
    hashes = {file: file_sha256(file) for file in sorted(folder.glob("*.json"))}
    by_hash = {sha256: file for file, sha256 in hashes.items()}
    sets = [version.files] + ([] if version.merged is None else [(version.merged,)])
    for wanted in sets:
        if all(one.sha256 in by_hash for one in wanted):
            paths = [by_hash[one.sha256 or ""] for one in wanted]
            return [
                _PromptFile(path, one.read(str(path)))
                for one, path in zip(wanted, paths, strict=True)
            ]
    kinds = {file: known_file(sha256) for file, sha256 in hashes.items()}
    if not allow_changed:
        raise _refusal(version, folder, kinds, by_hash)
    if not hashes:
        raise UsageError(f"{folder} holds no JSON file of prompts")
    read: list[_PromptFile] = []
    for file, sha256 in hashes.items():
        published = sha256 if kinds[file] == version.name else None
        content = PromptFile(name=file.name, sha256=published).read(str(file), allow_changed=True)
        read.append(_PromptFile(file, content, is_rewritten=kinds[file] == "rewritten"))
    return read


def _refusal(
    version: Version,
    folder: Path,
    kinds: Mapping[Path, str | None],
    by_hash: Mapping[str, Path],
) -> UsageError:
    """Returns the error for a folder without all published files."""
    otherwise = "changed_prompts=true scores the folder under another title"
    for file, kind in kinds.items():
        if kind == "rewritten":
            return UsageError(
                f"{file} holds the rewritten prompts of an ablation; a score on them is not WISE: "
                f"{otherwise}"
            )
        if kind not in (None, version.name):
            return UsageError(f"{file} belongs to {kind}: run blip3o eval {kind}")
    missing = [one.name for one in version.files if one.sha256 not in by_hash]
    return UsageError(
        f"{folder} lacks the published {', '.join(missing)} (unchanged, by hash): get them from "
        f"{version.files[0].origin}; {otherwise}"
    )


def _prompt_rows(path: Path, text: str) -> Iterator[Mapping[str, object]]:
    try:
        data = load_json(text)
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from error
    keys = {"prompt_id", "Prompt", "Explanation", "Subcategory"}
    if not isinstance(data, list):
        raise UsageError(f"{path} is no list of prompts")
    for row in data:
        if not isinstance(row, dict) or not keys <= row.keys():
            raise UsageError(f"{path}: each prompt needs {', '.join(sorted(keys))}")
        yield row


# ---------------------------------------------------------------------------------------------
# Figures


def _means(version: Version, scores: Sequence[tuple[str, float]]) -> dict[str, float | None]:
    by_category = grouped(scores)
    return {name: mean(by_category.get(name, ())) for name in version.categories}


def _compat(version: Version, rows: Sequence[Row]) -> dict[str, Any]:
    """Returns the official figures of the same answers.

    A request that our reader understood is not asked again; where the official program would ask
    again, the sample is missing in its table and counted in `num_not_asked_again`.
    """
    lines: list[str] = []
    early: list[tuple[str, float]] = []
    not_asked = num_zeros = 0
    for row in rows:
        answers = [] if row.verdict is None else _texts_of(row.verdict.data.get("answers", ()))
        found = official.first_read(version, answers)
        if found.scores is not None:
            lines.append(json.dumps({"prompt_id": row.item.data["prompt_id"], **found.scores}))
        elif 0 < found.calls < official.MOST_ATTEMPTS:
            not_asked += 1
        first = official.reader(version)(answers[0]) if answers and answers[0] is not None else {}
        values = {key: first.get(key, 0.0) for key in version.score_keys()}
        num_zeros += len(first.keys() & values.keys()) < len(values)
        early.append((row.item.category, version.score(values)))
    table = official.table(version, [lines])
    compat: dict[str, Any] = {
        "overall": table.overall,
        "printed_overall": table.printed_overall,
        "by_category": {name: dataclasses.asdict(one) for name, one in table.by_category.items()},
        "num_missing": len(table.missing_ids),
        "missing_ids": table.missing_ids[:20],
        "num_not_asked_again": not_asked,
    }
    if version is LEGACY:
        compat["before_2026_04_08"] = {
            "rule": "one attempt; a missing score counts 0",
            "overall": version.overall(_means(version, early)),
            "num_with_zeros": num_zeros,
        }
    return compat


def _texts_of(answers: Sequence[Mapping[str, str]]) -> list[str | None]:
    return [None if one["outcome"] == "transport" else one["text"] for one in answers]
