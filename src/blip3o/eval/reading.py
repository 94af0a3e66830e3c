"""Parts that benchmarks with a judge share: texts, requests, reading of answers, and remarks.

The readers here read numbers in more forms than the official programs do, name the form, and refuse
an answer that is out of range or that can be read in two ways. They never guess.
"""

import dataclasses
import hashlib
import io
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from PIL import Image

from blip3o.core.errors import UsageError, shown
from blip3o.core.files import atomic_file, read_text
from blip3o.core.texts import load_json
from blip3o.eval.benchmark import Found, Item, Outcome, Row, Sample, Verdict
from blip3o.eval.judges import JUDGES, JudgeConfig
from blip3o.eval.judges.asking import Reading, ask
from blip3o.remote.chat import ChatImage, ChatModel, ChatRequest

T = TypeVar("T")

JUDGE_FAULTS = ("refusal", "empty", "cut", "unreadable", "transport")
"""Outcomes without a judgement that are no fault of the sample."""
_BATCH = 32

# ---------------------------------------------------------------------------------------------
# Judges and their texts


def openai_judge(model: str) -> JudgeConfig:
    """Returns the settings of a judge behind an OpenAI-compatible server.

    Args:
        model: name of the model that published figures use.
    """
    make: Callable[..., JudgeConfig] = JUDGES.get("openai")  # imported when it is first used
    return make(model=model)


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


def png(image: Image.Image) -> ChatImage:
    """Returns an image as a PNG file."""
    return _encoded(image, "PNG", "image/png")


def jpeg(image: Image.Image) -> ChatImage:
    """Returns an image as a JPEG file of Pillow's default quality, 75."""
    return _encoded(image, "JPEG", "image/jpeg")


def _encoded(image: Image.Image, form: str, media_type: str) -> ChatImage:
    file = io.BytesIO()
    image.save(file, format=form)
    return ChatImage(file.getvalue(), media_type)


class JudgeScorer(Generic[T]):
    """Scores samples by requests to a judge; a `Scorer`.

    Args:
        model: the judge.
        marks: marks of its texts.
        requests: returns the requests about a sample, always the same number.
        read: reads an answer.
        conclude: returns score and data of a sample's readings; the score counts only if all of
            them are judged.
        attempts: most attempts of a request.
    """

    def __init__(
        self,
        model: ChatModel,
        marks: Sequence[str],
        requests: Callable[[Sample], Sequence[ChatRequest]],
        read: Callable[[str], T | None],
        conclude: Callable[[Sequence[Reading[T]]], tuple[float | None, Mapping[str, Any]]],
        *,
        attempts: int,
    ) -> None:
        self.judge = "+".join([model.name, *marks])
        self.batch_size = _BATCH
        self._model = model
        self._requests = requests
        self._read = read
        self._conclude = conclude
        self._attempts = attempts

    def verdicts(self, samples: Sequence[Sample]) -> Iterator[Verdict]:
        """Yields the verdict of each sample as soon as all its requests are answered."""
        requests: list[ChatRequest] = []
        places: list[tuple[int, int]] = []
        waiting: list[int] = []
        for position, sample in enumerate(samples):
            own = self._requests(sample)
            requests += own
            places += [(position, number) for number in range(len(own))]
            waiting.append(len(own))
        readings: dict[int, dict[int, Reading[T]]] = defaultdict(dict)
        for place, reading in ask(self._model, requests, self._read, attempts=self._attempts):
            position, number = places[place]
            readings[position][number] = reading
            if len(readings[position]) == waiting[position]:
                done = readings.pop(position)
                yield self._verdict(samples[position], [done[one] for one in sorted(done)])

    def _verdict(self, sample: Sample, readings: Sequence[Reading[T]]) -> Verdict:
        faults = [one.outcome for one in readings if one.outcome != "judged"]
        outcome: Outcome = faults[0] if faults else "judged"
        score, data = self._conclude(readings)
        return Verdict(
            item=sample.item.id,
            number=sample.number,
            sha256=sample.sha256,
            judge=self.judge,
            outcome=outcome,
            score=None if faults else score,
            data=data,
        )


def recorded(reading: Reading[T]) -> list[dict[str, str]]:
    """Returns all answers of a request for the verdict: outcome, text, stated model."""
    return [
        {
            "outcome": answer.outcome,
            "text": answer.text,
            "model": answer.model,
            "fingerprint": answer.fingerprint,
        }
        for answer in reading.answers
    ]


# ---------------------------------------------------------------------------------------------
# Reading numbers


@dataclasses.dataclass(frozen=True)
class Numbers:
    """The numbers of an answer.

    Args:
        values: the numbers, in the order in which they were asked for.
        form: the form in which the judge wrote them: "plain", "json", "bold+table" ...
    """

    values: tuple[float, ...]
    form: str


# Repeats have limits, because a judge may answer with thousands of spaces, digits or stars.
_MARKS = r"[*_`\s]{0,40}"
_NUMBER = r"[-+]?\d{1,9}(?:[.,]\d{1,9})?"
_SEPARATOR = r"[:=|\uff1a]|(?<=\s)[-\u2013\u2014](?=\s)"
_DOUBT = re.compile(
    r"[\w%]|\.\d|,\s*\d|\s*(?:or|to|/|[-~\u2013\u2014]+>?|\u2192)\s*\d", re.IGNORECASE
)
"""A number that goes on like this is a part of a number, a range or a change of mind."""


def spoken(text: str) -> str | None:
    """Returns an answer without thoughts; None if it ends within a thought.

    Everything before an end of a thought that has no beginning is a thought, because some servers
    leave the beginning out.
    """
    *thoughts, last = text.split("</think>")
    said = ""
    for part in thoughts:
        before, beginning, _ = part.partition("<think>")
        said = said + before if beginning else ""
    return None if "<think>" in last else (said + last).strip()


def named_numbers(text: str, names: Sequence[str], most: int) -> Numbers | None:
    """Returns the whole number 0..most of each name in an answer.

    Understood are lines, tables and lists with or without bold marks, a range in brackets after the
    name, "2/2", a full-width colon, JSON, and answers that are nothing but one number a line.

    Args:
        text: the answer.
        names: the names, such as "Aesthetic Quality"; their case and spaces do not matter.
        most: the largest number.

    Returns:
        None if a name has no number, two different ones, or one that is out of range, no whole
        number, or unclear.
    """
    said = spoken(text)
    if said is None:
        return None
    found = _json_numbers(said, names)
    outside = said
    values: dict[str, int] = {}
    forms: set[str] = set()
    if found is not None:
        values, outside = found
        forms.add("json")
    for name in names:
        for match in _name_pattern(name, most).finditer(outside):
            gap, number, tail = match["gap"], match["number"], outside[match.end() :]
            line = tail.partition("\n")[0]
            if "\n" in gap and line.strip(" \t\r*_`"):
                continue  # the number of a list, which belongs to the next line
            value = _whole(number)
            if value is None or _DOUBT.match(tail) or values.setdefault(name, value) != value:
                return None
            forms |= _features(outside[match.start("gap") : match.end()])
    if not values:
        return _bare_numbers(said, len(names), most)
    if any(not 0 <= values.get(name, -1) <= most for name in names):
        return None
    return Numbers(tuple(values[name] for name in names), "+".join(sorted(forms)) or "plain")


def _name_pattern(name: str, most: int) -> re.Pattern[str]:
    words = r"[\s_-]+".join(map(re.escape, name.split()))
    return re.compile(
        rf"(?<![^\W_]){words}(?:[ \t]+(?:score|rating))?(?P<gap>{_MARKS}(?:\([^()\n]{{0,40}}\))?"
        rf"{_MARKS}(?:{_SEPARATOR})?[*_`\s|]{{0,40}})(?P<number>{_NUMBER})"
        rf"(?:\s*/\s*{most}(?!\d)|\s+out of {most}(?!\d))?",
        re.IGNORECASE,
    )


def _features(written: str) -> set[str]:
    """Returns names of everything that is not plain between a name and the end of its number."""
    marks = {"bold": "*_`", "range": "(", "table": "|", "equals": "=", "wide": "\uff1a"}
    marks |= {"over": "/", "dash": "-\u2013\u2014", "decimal": ".,"}
    features = {name for name, letters in marks.items() if any(one in written for one in letters)}
    return features - {"dash"} if "range" in features else features


def _whole(number: str) -> int | None:
    if not re.fullmatch(_NUMBER, number):
        return None
    whole, _, rest = number.replace(",", ".").partition(".")
    return int(whole) if not rest.strip("0") else None


def _bare_numbers(text: str, count: int, most: int) -> Numbers | None:
    lines = [line.strip().strip("*_`") for line in text.splitlines() if line.strip()]
    if len(lines) != count or not all(re.fullmatch(r"\d{1,9}", line) for line in lines):
        return None
    values = tuple(int(line) for line in lines)
    return Numbers(values, "bare") if max(values) <= most else None


def json_object(text: str) -> tuple[dict[str, object], str] | None:
    """Returns the JSON object from the first to the last brace, and the text around it."""
    start, end = text.find("{"), text.rfind("}") + 1
    try:
        data = load_json(text[start:end]) if 0 <= start < end else None
    except ValueError:
        return None
    return (data, f"{text[:start]}\n{text[end:]}") if isinstance(data, dict) else None


def is_number(value: object) -> bool:
    """Returns whether a value of JSON is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _json_numbers(text: str, names: Sequence[str]) -> tuple[dict[str, int], str] | None:
    found = json_object(text)
    if found is None:
        return None
    data, outside = found
    wanted = {_plain(name): name for name in names}
    inner = [value for value in data.values() if isinstance(value, dict)]
    if len(inner) == 1 and not any(_plain(key) in wanted for key in data):
        data = inner[0]
    values: dict[str, int] = {}
    for key, value in data.items():
        name = wanted.get(_plain(key))
        number = _whole(str(value))
        if name is None or name in values:
            continue
        if number is None:
            return None
        values[name] = number
    return (values, outside) if values else None


def _plain(key: str) -> str:
    return re.sub(r"[\s_-]+", " ", key).strip().casefold()


def line_numbers(text: str, count: int, least: int, most: int) -> Numbers | None:
    """Returns the numbers of an answer that holds exactly `count` lines "Label: number".

    Args:
        text: the answer; a number may be bold, or followed by "/5", "points" or a remark in
            brackets. An object of JSON with exactly `count` numbers is also understood.
        count: number of the lines.
        least: the smallest number.
        most: the largest number.

    Returns:
        None for more or fewer lines, or a number that is out of range or no whole number.
    """
    said = spoken(text)
    if said is None:
        return None
    found = json_object(said)
    forms: set[str] = set()
    if found is not None:
        numbers = [str(value) for value in found[0].values() if is_number(value)]
        forms.add("json")
    else:
        matches = [_line_pattern(most).match(line) for line in said.splitlines()]
        numbers = [match["number"] for match in matches if match is not None]
        for match in matches:
            forms |= set() if match is None else _features(match["written"])
    values = [_whole(number) for number in numbers]
    whole = tuple(value for value in values if value is not None and least <= value <= most)
    if len(values) != count or len(whole) != count:
        return None
    return Numbers(whole, "+".join(sorted(forms)) or "plain")


def _line_pattern(most: int) -> re.Pattern[str]:
    return re.compile(
        r"[\s>#*_`|-]{0,40}(?:\d{1,9}[.)]\s{0,9})?[*_`]{0,4}[^\W\d_][^:=|\uff1a]{0,80}?"
        rf"(?P<written>{_MARKS}(?:\([^()]{{0,40}}\))?{_MARKS}[:=|\uff1a]{_MARKS}(?P<number>{_NUMBER})"
        rf"(?:\s*/\s*{most}|\s+out of {most}|\s+points?)?[*_`]*)[\s|]*[.;,]?\s*(?:\([^()]*\))?\s*$"
    )


# ---------------------------------------------------------------------------------------------
# Figures and remarks


def score_of(row: Row, worst: float) -> float | None:
    """Returns the score of a row: `worst` without a sample, None without a judgement."""
    if row.verdict is None or row.verdict.outcome not in ("judged", *JUDGE_FAULTS):
        return worst
    return row.verdict.score if row.verdict.outcome == "judged" else None


def mean(values: Sequence[float]) -> float | None:
    """Returns the mean, or None of nothing."""
    return sum(values) / len(values) if values else None


def outcome_counts(rows: Sequence[Row]) -> dict[str, int]:
    """Returns the number of rows of each outcome; a row without a verdict is "missing"."""
    counts = Counter("missing" if row.verdict is None else row.verdict.outcome for row in rows)
    return dict(sorted(counts.items()))


def outcome_notes(
    rows: Sequence[Row], worst: float, bounds: tuple[float | None, float | None]
) -> list[str]:
    """Returns remarks about samples and judgements that are not there.

    Args:
        rows: all rows.
        worst: score of a missing sample.
        bounds: the headline if all samples without a judgement had the worst or the best score.
    """
    counts, notes = outcome_counts(rows), []
    lost = counts.get("missing", 0) + counts.get("broken", 0)
    if lost:
        notes.append(f"{lost} of {len(rows)} samples are missing or broken: each counts {worst:g}")
    faults = {name: counts[name] for name in JUDGE_FAULTS if name in counts}
    if faults:
        listed = ", ".join(f"{name} {number}" for name, number in faults.items())
        low, high = bounds
        span = "" if low is None or high is None else f"; they can move it to {low:.4g}..{high:.4g}"
        notes.append(
            f"{sum(faults.values())} of {len(rows)} samples have no judgement ({listed}) and are "
            f"left out of the headline{span}"
        )
    return notes


def judge_notes(rows: Sequence[Row], published: Sequence[str], records: Sequence[str]) -> list[str]:
    """Returns remarks about the judge, which is part of the benchmark.

    Args:
        rows: all rows.
        published: judges of the published figures.
        records: keys of `Verdict.data` that hold the `recorded` answers.
    """
    judges: set[str] = set()
    stated: set[str] = set()
    for row in rows:
        if row.verdict is None or row.verdict.outcome not in ("judged", *JUDGE_FAULTS):
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


# ---------------------------------------------------------------------------------------------
# Folders


def source_file(folder: Path, name: object, what: str) -> Path:
    """Returns the path of an input image that a file of a benchmark names.

    Raises:
        UsageError: if there is no such file inside the folder.
    """
    if not isinstance(name, str) or not name:
        raise UsageError(f"{what} names no image: {shown(name)}")
    file = folder / name
    if ".." in Path(name).parts or Path(name).is_absolute():
        raise UsageError(f"{what} names an image outside its folder: {shown(name)}")
    if not file.is_file():
        raise UsageError(f"{what}: no such file: {file}; unpack the images of the benchmark there")
    return file


def file_sha256(file: Path) -> str:
    """Returns the hash of a file."""
    with file.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()


def write_png(file: Path, image: Image.Image) -> None:
    """Writes an image atomically; its folder is created if missing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(file) as part:
        image.save(part, format="PNG")


class FlatLayout:
    """One file `ID.png` for each item in one folder; a `Layout`."""

    def read(self, folder: Path, items: Sequence[Item]) -> Iterator[Found]:
        """Yields the samples; see `Layout`."""
        if not folder.is_dir():
            raise UsageError(f"no such folder: {folder}")
        files = {file.name: file for file in sorted(folder.iterdir()) if file.is_file()}
        known = {item.id for item in items}
        for name in files:
            stem, _, ending = name.rpartition(".")
            is_padded = stem not in known and stem.lstrip("0") in known and stem.isdigit()
            is_other = stem in known and ending.lower() in _OTHER_ENDINGS
            if (is_padded and ending == "png") or (is_other and f"{stem}.png" not in files):
                wanted = f"{stem.lstrip('0') if is_padded else stem}.png"
                raise UsageError(
                    f"{files[name]} is not read by the benchmark's own program: save it as {wanted}"
                )
        found = [item.id for item in items if f"{item.id}.png" in files]
        if not found:
            raise UsageError(f"{folder} holds no sample: they are named {items[0].id}.png ...")
        for key in found:
            yield Found(item=key, number=0, file=files[f"{key}.png"])

    def write(self, folder: Path, samples: Sequence[Sample]) -> None:
        """Writes the sample of an item; see `Layout`."""
        for sample in samples:
            if sample.image is not None and sample.number == 0:
                write_png(folder / f"{sample.item.id}.png", sample.image)


_OTHER_ENDINGS = {"jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff", "avif"}
