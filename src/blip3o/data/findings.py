"""The findings of `blip3o data lint`, and their summary on one screen."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

ODD = "odd image"
"""A run reads such images all the same."""
REPEATED = "repeated id"
"""Two lines of a list have the same id. A run reads both."""
_HARMLESS = (ODD, REPEATED)

_SHOWN = 5
"""How many records the summary names for each problem."""
_MAX_LINE = 200
_LONG_TEXT = 500
"""A text of more characters may have more tokens than a run takes."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong or odd.

    Args:
        source: name of the data.
        key: the record's name there; "?" if not even that could be read.
        position: the record's place in its source, -1 for a whole shard.
        problem: what kind of problem, a few words that are the same for all of a kind.
        detail: one line.
    """

    source: str
    key: str
    position: int
    problem: str
    detail: str

    @property
    def record(self) -> str:
        """The name of the record in messages."""
        if self.key == "?":
            return f"record {self.position}"
        return self.key if self.key.isprintable() else ascii(self.key)[1:-1]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LintReport:
    """All findings about some data.

    Args:
        num_records: how many records were read.
        findings: everything that is wrong, odd images included.
        passed_over: for each source, files or members that are no records, counted by reason.
        uncounted_text: characters of the longest text whose tokens were not counted.
        file: where all findings are written; None if nowhere.
    """

    num_records: int
    findings: Sequence[Finding]
    passed_over: Mapping[str, Mapping[str, int]] = dataclasses.field(default_factory=dict)
    uncounted_text: int = 0
    file: Path | None = None

    @property
    def is_clean(self) -> bool:
        """Whether every record can be learned from."""
        return all(finding.problem in _HARMLESS for finding in self.findings)

    @property
    def num_bad(self) -> int:
        """How many records cannot be learned from; damaged shards are not counted."""
        bad = (one for one in self.findings if one.problem not in _HARMLESS and one.position >= 0)
        return len({(one.source, one.position, one.key) for one in bad})

    def text(self) -> str:
        """Returns the summary: number and first records of each problem, what was passed over."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        findings = f"{len(self.findings)} findings" if self.findings else "nothing found"
        yield f"{self.num_records} records, {self.num_bad} bad; {findings}"
        by_problem: dict[str, list[Finding]] = {}
        for one in self.findings:
            by_problem.setdefault(one.problem, []).append(one)
        is_cut = False
        for problem, some in sorted(by_problem.items(), key=lambda item: -len(item[1])):
            head = f"{len(some):8d}  {problem}: "
            for number, one in enumerate(some[:_SHOWN]):
                line = f"{one.source} {one.record}: {one.detail}"
                yield (" " * len(head) if number else head) + line[:_MAX_LINE]
            if len(some) > _SHOWN:
                is_cut = True
                yield " " * len(head) + f"and {len(some) - _SHOWN} more"
        for name, counts in self.passed_over.items():
            for reason, count in counts.items():
                yield f"{count:8d}  passed over: {name}: {reason}"
        if self.uncounted_text > _LONG_TEXT:
            yield (
                f"the longest text has {self.uncounted_text} characters: --max-tokens N tells "
                "which texts are too long for a run (data.max_text_tokens)"
            )
        if self.file is not None:
            yield f"all findings: {self.file}"
        elif is_cut:
            yield "--out FILE names every one"
