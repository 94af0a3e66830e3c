"""Looks through data sets for prompts of benchmarks: `blip3o data decontaminate`."""

import dataclasses
import functools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from blip3o.core.errors import UsageError, reason_of
from blip3o.core.files import atomic_file
from blip3o.curate.contamination import BenchmarkPrompt, Match, PromptIndex
from blip3o.data.captions import captions_of
from blip3o.data.conversations import messages_of, turns_of
from blip3o.data.sources import Source
from blip3o.data.walk import source_config, walk
from blip3o.eval import BENCHMARKS
from blip3o.eval.prompt_lists import read_prompts

BUNDLED = ("geneval", "dpg", "t2i_compbench")
"""Benchmarks whose prompts are part of the package."""
_SHOWN = 5
"""Number of records that the summary names for each benchmark and kind."""
_MAX_LINE = 200


def benchmark_prompts(names: Sequence[str]) -> list[BenchmarkPrompt]:
    """Returns the prompts of benchmarks and of lists.

    Args:
        names: each is a benchmark, "geneval"; a benchmark with the user's copy of its prompts,
            "wise=FOLDER", which is checked by its hash; or any list of prompts, "mine=FILE".

    Raises:
        UsageError: if a benchmark or a file is unknown, or is not the published one.
    """
    prompts: list[BenchmarkPrompt] = []
    for given in names:
        name, is_given, path = given.partition("=")
        if name in BENCHMARKS.names():
            benchmark = BENCHMARKS.get(name)
            settings: dict[str, Any] = {benchmark.prompts_setting: path} if is_given else {}
            texts = benchmark(**settings).prompt_texts()
        elif is_given:
            texts = [prompt.text for prompt in read_prompts(path).prompts]
        else:
            BENCHMARKS.place(name)  # raises, and names similar ones
            raise AssertionError(name)
        prompts += [BenchmarkPrompt(name, text) for text in texts if text.strip()]
    return prompts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contaminated:
    """A record that repeats a prompt of a benchmark.

    Args:
        path: the data, as the user named it.
        source: name of the data source.
        key: name of the record there.
        position: position of the record in its source.
        text: the text of the record.
        match: the prompt.
    """

    path: str
    source: str
    key: str
    position: int
    text: str
    match: Match

    @property
    def reason(self) -> str:
        """The reason to leave the record out of training."""
        return self.match.reason

    def line(self) -> str:
        """Returns the record as a line of JSON."""
        return json.dumps(
            {
                "source": self.source,
                "key": self.key,
                "position": self.position,
                "text": self.text,
                "kind": self.match.kind,
                "benchmark": self.match.prompt.benchmark,
                "prompt": self.match.prompt.text,
            }
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContaminationReport:
    """The result for some data.

    Args:
        benchmarks: names of the benchmarks and lists.
        num_prompts: number of their different prompts.
        num_records: number of records.
        num_texts: number of captions, instructions and requests in them.
        num_unreadable: records that could not be read, and so not be checked.
        found: the contaminated records, each with its first match.
    """

    benchmarks: Sequence[str]
    num_prompts: int
    num_records: int
    num_texts: int
    num_unreadable: int
    found: Sequence[Contaminated]

    @property
    def is_clean(self) -> bool:
        """Whether all records were read and none repeats a prompt."""
        return not self.found and not self.num_unreadable

    def reasons(self, path: str) -> dict[int, str]:
        """Returns the positions of contaminated records of a path, with the reasons, for `pack`."""
        return {one.position: one.reason for one in self.found if one.path == path}

    def text(self) -> str:
        """Returns the summary: numbers, and the first records of each benchmark and kind."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield (
            f"{self.num_records} records with {self.num_texts} texts, checked against "
            f"{self.num_prompts} {'prompt' if self.num_prompts == 1 else 'prompts'} of "
            f"{', '.join(self.benchmarks)}; {len(self.found)} "
            f"{'record repeats' if len(self.found) == 1 else 'records repeat'} one"
        )
        if self.num_unreadable:
            yield f"{self.num_unreadable} records cannot be read: blip3o data lint names them"
        groups = Counter((one.match.prompt.benchmark, one.match.kind) for one in self.found)
        for (benchmark, kind), count in groups.most_common():
            head = f"{count:8d}  {benchmark}, {kind}: "
            some = [
                one
                for one in self.found
                if (one.match.prompt.benchmark, one.match.kind) == (benchmark, kind)
            ]
            for number, one in enumerate(some[:_SHOWN]):
                repeats = "" if kind == "exact" else f" repeats {one.match.prompt.text!r}"
                line = f"{one.source} {one.key}: {one.text!r}{repeats}"
                yield (" " * len(head) if number else head) + line[:_MAX_LINE]
            if len(some) > _SHOWN:
                yield " " * len(head) + f"and {len(some) - _SHOWN} more"


def decontaminate(
    paths: Sequence[str],
    names: Sequence[str] = BUNDLED,
    *,
    jobs: int = 1,
    out: Path | None = None,
    image_folder: str | None = None,
) -> ContaminationReport:
    """Compares all texts of data sets with the prompts of benchmarks.

    Args:
        paths: tar patterns, JSON lists or folders.
        names: the benchmarks; see `benchmark_prompts`.
        jobs: number of processes.
        out: file for all contaminated records, one JSON object per line; None writes no file.
        image_folder: folder that the image paths of JSON lists start from.

    Raises:
        UsageError: if a path holds no data, a benchmark is unknown, or `out` cannot be written.
    """
    check = _Check(benchmark_prompts(names))
    found: list[Contaminated] = []
    num_records = num_texts = num_unreadable = 0
    for path in paths:
        config = source_config(path, salvage=True, image_folder=image_folder)
        source = config.build()
        num_records += len(source)
        of_path = functools.partial(check, path=path)
        for some, texts, bad in walk(config, of_path, jobs=jobs, what=f"reading {source.name}"):
            found += some
            num_texts += texts
            num_unreadable += bad
    if out is not None:
        try:
            with atomic_file(out) as part, part.open("w", encoding="utf-8") as lines:
                lines.writelines(one.line() + "\n" for one in found)
        except OSError as error:
            raise UsageError(f"cannot write {out}: {reason_of(error)}") from error
    return ContaminationReport(
        benchmarks=[name.partition("=")[0] for name in names],
        num_prompts=check.index.num_prompts,
        num_records=num_records,
        num_texts=num_texts,
        num_unreadable=num_unreadable,
        found=found,
    )


def texts_of(fields: Mapping[str, Any]) -> list[str]:
    """Returns the texts of a record that may be prompts: captions, instructions and requests."""
    texts = [*(captions_of(fields) or []), fields.get("instruction")]
    turns = turns_of(fields)
    if isinstance(turns, list):
        try:
            talk = messages_of(turns, draws=True)
        except ValueError:  # a run refuses the record, and lint names it
            talk = ()
        texts += [message.text for message in talk if message.role == "user"]
    return [text for text in texts if isinstance(text, str) and text.strip()]


class _Check:
    """Compares the texts of records with prompts.

    Args:
        prompts: the prompts; each process builds its own index of them.
    """

    def __init__(self, prompts: Sequence[BenchmarkPrompt]) -> None:
        self._prompts = prompts

    @functools.cached_property
    def index(self) -> PromptIndex:
        """The index of the prompts."""
        return PromptIndex(self._prompts)

    def __call__(
        self, source: Source, positions: range, *, path: str
    ) -> tuple[list[Contaminated], int, int]:
        """Returns the contaminated records, the numbers of texts and of unreadable records."""
        match = self.index.match
        found: list[Contaminated] = []
        num_texts = num_unreadable = 0
        for position in positions:
            try:
                key, _, fields = source.read(position)
            except (ValueError, OSError):
                num_unreadable += 1
                continue
            texts = texts_of(fields)
            num_texts += len(texts)
            matches = ((text, match(text)) for text in texts)
            first = next(((text, one) for text, one in matches if one), None)
            if first is not None:
                found.append(
                    Contaminated(
                        path=path,
                        source=source.name,
                        key=key,
                        position=position,
                        text=first[0],
                        match=first[1],
                    )
                )
        return found, num_texts, num_unreadable
