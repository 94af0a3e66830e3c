"""The findings of `blip3o data lint`, and their summary on one screen."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

ODD = "odd image"
"""Problem name of unusual images; a run reads them nevertheless."""
REPEATED = "repeated id"
"""Problem name of two lines of a list with the same id; a run reads both."""
_HARMLESS = (ODD, REPEATED)

_SHOWN = 5
"""Number of records that the summary names for each problem."""
_MAX_LINE = 200
_LONG_TEXT = 500
"""A longer text, in characters, may have more tokens than a run accepts."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong or unusual.

    Args:
        source: name of the data source.
        key: name of the record there; "?" if even the name could not be read.
        position: position of the record in its source; -1 for a whole shard.
        problem: kind of the problem; the same words for all findings of this kind.
        detail: description in one line.
    """

    source: str
    key: str
    position: int
    problem: str
    detail: str

    @property
    def record(self) -> str:
        """Name of the record in messages."""
        if self.key == "?":
            return f"record {self.position}"
        return self.key if self.key.isprintable() else ascii(self.key)[1:-1]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LintReport:
    """All findings about some data.

    Args:
        num_records: number of records read.
        findings: all findings, including unusual images.
        passed_over: for each source, number of files or tar members that are not records, by
            reason.
        uncounted_text: characters of the longest text whose tokens were not counted.
        file: file that holds all findings; None if they were not written.
    """

    num_records: int
    findings: Sequence[Finding]
    passed_over: Mapping[str, Mapping[str, int]] = dataclasses.field(default_factory=dict)
    uncounted_text: int = 0
    file: Path | None = None

    @property
    def is_clean(self) -> bool:
        """Whether a run can use every record."""
        return all(finding.problem in _HARMLESS for finding in self.findings)

    @property
    def num_bad(self) -> int:
        """Number of records that a run cannot use; damaged shards are not counted."""
        bad = (one for one in self.findings if one.problem not in _HARMLESS and one.position >= 0)
        return len({(one.source, one.position, one.key) for one in bad})

    def text(self) -> str:
        """Returns the summary: count and first records of each problem, and skipped files."""
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
                f"the longest text has {self.uncounted_text} characters: --max-tokens N shows "
                "which texts are too long for a run (data.max_text_tokens)"
            )
        if self.file is not None:
            yield f"all findings: {self.file}"
        elif is_cut:
            yield "--out FILE writes all of them"
