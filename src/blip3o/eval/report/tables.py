"""The tables of a report; `text` and `html` show the same ones."""

import dataclasses
import json
from collections.abc import Mapping, Sequence

from blip3o.eval.report.compare import Comparison
from blip3o.eval.report.intervals import Bounds
from blip3o.eval.report.results import Results

_SCALES = (1.0, 10.0, 100.0)
_LONGEST_CELL = 300


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """A table of texts.

    Args:
        title: its heading; empty for none.
        head: names of the columns.
        rows: the cells; the first cell of a row is its name.
        caption: explanation of the table.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


def scale_of(results: Sequence[Results]) -> float:
    """Returns the upper end of the axis of all figures: 1, 10, 100, or the largest figure."""
    values = [
        value
        for one in results
        for value in (one.overall, *one.by_category.values())
        if value is not None
    ]
    values += [
        bounds[1]
        for one in results
        for bounds in (one.intervals.overall, *one.intervals.by_category.values())
        if bounds is not None
    ]
    top = max((abs(value) for value in values), default=1.0)
    return next((scale for scale in _SCALES if top <= scale), top)


def figure(value: float | None, scale: float) -> str:
    """Returns a figure with three decimals on a scale of 1, otherwise two; "open" for None."""
    if value is None:
        return "open"
    return f"{value:.{3 if scale <= 1 else 2}f}"


def interval_text(bounds: Bounds | None, scale: float) -> str:
    """Returns an interval as "[low, high]"; empty for None."""
    if bounds is None:
        return ""
    return f"[{figure(bounds[0], scale)}, {figure(bounds[1], scale)}]"


def score_table(labels: Sequence[str], results: Sequence[Results]) -> Table:
    """Returns the headline and the categories, a column for each result."""
    scale = scale_of(results)
    names = list(dict.fromkeys(name for one in results for name in one.by_category))
    rows = [["overall", *(_with_interval(one, None, scale) for one in results)]]
    rows += [
        [name or "all", *(_with_interval(one, name, scale) for one in results)] for name in names
    ]
    return Table(
        title="Scores",
        head=["", *labels],
        rows=rows,
        caption="In brackets: 95 % intervals, by resampling items with all their samples. An "
        "interval without width means that all items are alike, not that the figure is certain.",
    )


def _with_interval(results: Results, name: str | None, scale: float) -> str:
    if name is None:
        value, bounds = results.overall, results.intervals.overall
    elif name not in results.by_category:
        return "-"
    else:
        value, bounds = results.by_category[name], results.intervals.by_category.get(name)
    return f"{figure(value, scale)} {interval_text(bounds, scale)}".rstrip()


def outcome_table(labels: Sequence[str], results: Sequence[Results]) -> Table:
    """Returns the number of samples by outcome, a column for each result."""
    names = list(dict.fromkeys(name for one in results for name in one.outcomes))
    rows = [["samples asked for", *(f"{one.num_samples:,}" for one in results)]]
    rows += [[name, *(f"{one.outcomes.get(name, 0):,}" for one in results)] for name in names]
    return Table(
        title="Outcomes",
        head=["", *labels],
        rows=rows,
        caption="Missing and broken samples count as the worst score. The other outcomes besides "
        "judged are faults of the judge; they leave the headline open.",
    )


def origin_table(labels: Sequence[str], results: Sequence[Results]) -> Table:
    """Returns everything that shaped the scores, a column for each result."""
    rows = [
        ["model", *(flat_text(one.model) for one in results)],
        ["judge", *(one.judge for one in results)],
        ["sampler", *(flat_text(one.sampler) for one in results)],
        ["seed", *(str(one.seed) for one in results)],
        ["items (sha256)", *(one.items_sha256 for one in results)],
        ["blip3o", *(f"{one.version}, commit {one.commit}" for one in results)],
    ]
    return Table(title="Origin", head=["", *labels], rows=rows)


def comparison_table(comparisons: Sequence[Comparison]) -> Table:
    """Returns a row for each pair of results."""
    rows = []
    for one in comparisons:
        difference = "-" if one.difference is None else f"{one.difference:+.4f}"
        if one.interval is not None:
            difference += f" [{one.interval[0]:+.4f}, {one.interval[1]:+.4f}]"
        rows.append(
            [
                f"{one.second} against {one.first}",
                f"{one.num_items:,}",
                f"{one.better:,}",
                f"{one.worse:,}",
                f"{one.equal:,}",
                p_text(one.p_value),
                difference,
            ]
        )
    return Table(
        title="Comparison by item",
        head=["", "items", "better", "worse", "equal", "sign test p", "mean difference"],
        rows=rows,
        caption="An item counts by the mean score of its samples. The sign test is exact and "
        "two-sided, without the equal items; p is not corrected for the number of pairs. The mean "
        "difference weighs all items alike, the headline may weigh categories alike. In brackets: "
        "95 % interval by resampling items.",
    )


def comparison_notes(comparison: Comparison) -> list[str]:
    """Returns sentences on categories that fell, on items left out, and on other differences."""
    notes = [f"{name} fell by {-mean:.3f}." for name, mean in comparison.fallen.items()]
    notes += [
        f"{count:,} items are not compared: {reason}."
        for reason, count in comparison.left_out.items()
    ]
    notes += comparison.remarks
    return [f"{comparison.second} against {comparison.first}: {note}" for note in notes]


def p_text(p_value: float) -> str:
    """Returns a p-value with two significant digits; small ones as a bound."""
    return "< 0.0001" if p_value < 0.0001 else f"{p_value:.2g}"


def figure_tables(figures: Mapping[str, object], title: str = "Further figures") -> list[Table]:
    """Returns tables of nested figures.

    Mappings beside each other that share names, such as those of the official program and of the
    corrected one, become the columns of one table.

    Args:
        figures: figures by name; mappings may be nested.
        title: heading of the tables.
    """
    tables: list[Table] = []
    plain = {name: value for name, value in figures.items() if not isinstance(value, Mapping)}
    if plain:
        rows = [[str(name), cell(value)] for name, value in plain.items()]
        tables.append(Table(title=title, head=["", "value"], rows=rows))
    groups: list[dict[str, Mapping[str, object]]] = []
    for name, value in figures.items():
        if isinstance(value, Mapping):
            keys = flat(value).keys()
            group = next((one for one in groups if keys & flat(_any(one)).keys()), None)
            if group is None:
                groups.append({name: value})
            else:
                group[name] = value
    for group in groups:
        if len(group) == 1:
            ((name, inner),) = group.items()
            tables += figure_tables(inner, f"{title}: {name}")
        else:
            columns = {name: flat(value) for name, value in group.items()}
            keys = list(dict.fromkeys(key for column in columns.values() for key in column))
            rows = [
                [key, *(cell(column[key]) if key in column else "-" for column in columns.values())]
                for key in keys
            ]
            heading = f"{title}: {', '.join(columns)}"
            tables.append(Table(title=heading, head=["", *columns], rows=rows))
    return tables


def _any(group: Mapping[str, Mapping[str, object]]) -> Mapping[str, object]:
    return next(iter(group.values()))


def flat(values: Mapping[str, object], start: str = "") -> dict[str, object]:
    """Returns nested mappings as one, with names such as "levels / color"."""
    found: dict[str, object] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{start}{name} / ")
        else:
            found[f"{start}{name}"] = value
    return found


def flat_text(values: Mapping[str, object]) -> str:
    """Returns nested settings in one line."""
    return ", ".join(f"{name} {cell(value)}" for name, value in flat(values).items())


def cell(value: object) -> str:
    """Returns a value as a cell: floats with four significant digits, long lists cut."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, str):
        text = value
    elif isinstance(value, Sequence) and not any(isinstance(one, Mapping | list) for one in value):
        text = ", ".join(cell(one) for one in value)
    else:
        text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST_CELL else f"{text[:_LONGEST_CELL]}..."
