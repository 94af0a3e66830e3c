"""The report of evaluations as Markdown, which a terminal shows as well."""

from collections.abc import Sequence
from pathlib import Path

from blip3o.core.errors import UsageError, reason_of
from blip3o.core.files import write_atomic
from blip3o.eval.report.compare import check_titles, compare_all, labels_of
from blip3o.eval.report.evaluation import Evaluation
from blip3o.eval.report.html import page
from blip3o.eval.report.tables import (
    Table,
    comparison_notes,
    comparison_table,
    figure_tables,
    origin_table,
    outcome_table,
    score_table,
)

PAGE = "report.html"
_WIDEST = 40
"""Longer cells are not aligned."""


def report(folders: Sequence[Path], out: Path | None, *, side_by_side: bool = False) -> str:
    """Returns the report of evaluations as Markdown, and writes it as one HTML file.

    Args:
        folders: folders of finished evaluations; several of one title are compared by item.
        out: HTML file to write, or an existing folder for `report.html`; None writes none.
        side_by_side: shows results of different titles together, without a comparison.

    Raises:
        UsageError: if a folder is not a complete evaluation, the titles differ, or the file cannot
            be written.
    """
    evaluations = [Evaluation.read(folder) for folder in folders]
    labels_of(evaluations)
    if not side_by_side:
        check_titles(evaluations)
    text = markdown(evaluations)
    if out is not None:
        file = out / PAGE if out.is_dir() else out
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(file, page(evaluations))
        except OSError as error:
            raise UsageError(f"cannot write {file}: {reason_of(error)}") from error
    return text


def markdown(evaluations: Sequence[Evaluation]) -> str:
    """Returns the report of evaluations without images.

    Args:
        evaluations: the evaluations; those of one title are compared by item.
    """
    labels = labels_of(evaluations)
    results = [one.results for one in evaluations]
    titles = dict.fromkeys(one.title for one in results)
    lines = [f"# {_plain(title)}" for title in titles]
    if len(titles) > 1:
        lines += ["", "These are different benchmarks: their figures cannot be compared."]
        lines += [
            f"- {_plain(label)}: {_plain(one.title)}"
            for label, one in zip(labels, results, strict=True)
        ]
    lines += _table(score_table(labels, results))
    notes = [
        f"- {_plain(label)}: {_plain(note)}"
        for label, one in zip(labels, evaluations, strict=True)
        for note in (*one.remarks, *one.results.notes)
    ]
    lines += ["", "## Notes", "", *notes] if notes else []
    if len(evaluations) > 1 and len(titles) == 1:
        comparisons = compare_all(evaluations)
        lines += _table(comparison_table(comparisons))
        lines += ["", *(f"- {_plain(n)}" for one in comparisons for n in comparison_notes(one))]
    lines += _table(outcome_table(labels, results))
    for label, one in zip(labels, results, strict=True):
        for table in figure_tables(one.figures, f"Further figures of {label}"):
            lines += _table(table)
    lines += _table(origin_table(labels, results))
    return "\n".join(lines).rstrip() + "\n"


def _table(table: Table) -> list[str]:
    """Returns a table with aligned columns."""
    cells = [[_plain(cell) for cell in row] for row in (table.head, *table.rows)]
    longest = (max(map(len, column)) for column in zip(*cells, strict=True))
    widths = [min(max(3, width), _WIDEST) for width in longest]
    head, *rows = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in cells
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    caption = ["", table.caption] if table.caption else []
    return ["", f"## {_plain(table.title)}", "", head, rule, *rows, *caption]


def _plain(text: str) -> str:
    """Returns a text on one line that cannot end a cell or steer a terminal."""
    whole = text.encode("utf-8", "replace").decode()  # JSON may hold halves of surrogate pairs
    line = "".join(letter if letter.isprintable() else " " for letter in whole)
    return " ".join(line.split()).replace("|", "\\|")
