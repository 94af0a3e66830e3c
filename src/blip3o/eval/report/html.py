"""The report of evaluations as one HTML file that requests nothing from elsewhere."""

import html
import json
from collections.abc import Sequence

from blip3o.eval.benchmark import Row
from blip3o.eval.report.compare import Comparison, compare_all, labels_of
from blip3o.eval.report.evaluation import Evaluation
from blip3o.eval.report.results import Results
from blip3o.eval.report.samples import (
    Shown,
    best_rows,
    most_different,
    show,
    unjudged_rows,
    worst_rows,
)
from blip3o.eval.report.tables import (
    Table,
    comparison_notes,
    comparison_table,
    figure,
    figure_tables,
    interval_text,
    origin_table,
    outcome_table,
    scale_of,
    score_table,
)

_NUM_WORST, _NUM_BEST, _NUM_UNJUDGED, _NUM_DIFFERENT = 12, 6, 20, 4
_NUM_FAILURES = 200
_LONGEST_PROMPT, _LONGEST_DATA, _LONGEST_LINE = 600, 4000, 32

_STYLE = """
:root{color-scheme:light dark;--back:#fff;--card:#f5f6f8;--ink:#1b1f24;--soft:#59636e;
--line:#d5d9de;--warn:#fff4d6;--warn-line:#d9a300;
--c0:#3b6ea8;--c1:#cc6a1e;--c2:#2f8a5b;--c3:#8a5bb0;--c4:#b0466b;--c5:#6b7280}
@media (prefers-color-scheme:dark){:root{--back:#14171a;--card:#1e2226;--ink:#e7eaee;--soft:#9aa4af;
--line:#363c43;--warn:#332a10;--warn-line:#a98200;
--c0:#6fa3dd;--c1:#f09a55;--c2:#62c08f;--c3:#b993dc;--c4:#e17d9f;--c5:#a3abb5}}
*{box-sizing:border-box}
body{margin:0;background:var(--back);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:1100px;margin:0 auto;padding:24px 16px 64px}
h1{font-size:1.5rem;line-height:1.25;margin:0 0 4px;overflow-wrap:anywhere}
h2{font-size:1.15rem;margin:36px 0 8px}h3{font-size:1rem;margin:20px 0 8px}
p{margin:4px 0}.soft,.caption{color:var(--soft)}.caption{font-size:.85rem;max-width:75ch}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,250px),1fr));gap:12px;
margin:16px 0}
.card{background:var(--card);border-radius:8px;padding:12px 16px;border-left:5px solid var(--c0);
overflow-wrap:anywhere}
.big{font-size:2.1rem;font-weight:650;line-height:1.2;font-variant-numeric:tabular-nums}
.notes{background:var(--warn);border-left:5px solid var(--warn-line);border-radius:8px;
padding:10px 16px;margin:16px 0;overflow-wrap:anywhere}
.notes ul{margin:4px 0;padding-left:20px}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;margin:4px 0}
th,td{padding:5px 14px 5px 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--line)}
th{font-weight:600;color:var(--soft);font-size:.9rem}tbody th{color:var(--ink)}
td{max-width:60ch;overflow-wrap:anywhere}td.short{white-space:nowrap}
.bars{display:grid;grid-template-columns:minmax(70px,max-content) 1fr max-content;gap:4px 12px;
align-items:center}
.bars .name{overflow-wrap:anywhere}.bars .value{font-variant-numeric:tabular-nums}
.bars .gap{grid-column:1/-1;height:4px}
.track{position:relative;height:14px;background:var(--card);border-radius:3px}
.fill{position:absolute;inset:0 auto 0 0;border-radius:3px}
.whisker{position:absolute;top:6px;height:2px;background:var(--ink)}
.whisker:before,.whisker:after{content:"";position:absolute;top:-3px;height:8px;width:2px;
background:var(--ink)}.whisker:before{left:0}.whisker:after{right:0}
.samples{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,160px),1fr));gap:12px}
.pairs{grid-template-columns:repeat(auto-fill,minmax(min(100%,330px),1fr))}
.pair{display:grid;grid-template-columns:1fr 1fr;gap:2px}
figure{margin:0;background:var(--card);border-radius:8px;overflow:hidden}
figure img,.none{display:block;width:100%;aspect-ratio:1;object-fit:contain;background:var(--line)}
.none{display:grid;place-items:center;color:var(--soft);font-size:.85rem;padding:8px}
figcaption{padding:8px 10px;font-size:.85rem;overflow-wrap:anywhere}
pre{white-space:pre-wrap;overflow-wrap:anywhere;font-size:.78rem;margin:6px 0;padding:8px 10px}
figcaption pre{padding:0}details{margin:8px 0}summary{cursor:pointer;color:var(--soft)}
.score{font-weight:650;font-variant-numeric:tabular-nums}
.c0{--c:var(--c0)}.c1{--c:var(--c1)}.c2{--c:var(--c2)}.c3{--c:var(--c3)}.c4{--c:var(--c4)}
.c5{--c:var(--c5)}.card{border-left-color:var(--c)}.fill{background:var(--c)}
"""


def page(evaluations: Sequence[Evaluation]) -> str:
    """Returns the report of one or several evaluations.

    Args:
        evaluations: the evaluations; those of one title are compared by item.

    Returns:
        One HTML document. Its only images are data URIs, it has no scripts, and a content policy
        forbids requests.

    Raises:
        UsageError: if one folder is named twice.
    """
    labels = labels_of(evaluations)
    results = [one.results for one in evaluations]
    titles = list(dict.fromkeys(one.title for one in results))
    is_one_benchmark = len(titles) == 1
    comparisons = compare_all(evaluations) if is_one_benchmark and len(evaluations) > 1 else []
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "img-src data:; style-src 'unsafe-inline'\">",
        f"<title>{_escape(' / '.join(titles))}</title><style>{_STYLE}</style></head><body><main>",
        *(f"<h1>{_escape(title)}</h1>" for title in titles),
    ]
    if not is_one_benchmark:
        parts.append(
            '<p class="notes">These are different benchmarks: their figures cannot be compared.</p>'
        )
    scale = scale_of(results)
    parts += ['<div class="cards">', *_cards(labels, results, scale), "</div>"]
    parts += _notes(labels, evaluations)
    if is_one_benchmark:
        parts += ["<h2>By category</h2>", *_bars(labels, results, scale)]
    parts.append(_table(score_table(labels, results)))
    if comparisons:
        parts += _comparison(comparisons)
    if len(evaluations) == 2 and comparisons:
        parts += _differences(labels, evaluations[0], evaluations[1])
    parts.append(_table(outcome_table(labels, results)))
    for label, one in zip(labels, evaluations, strict=True):
        end = f" of {label}" if len(evaluations) > 1 else ""
        parts += [
            _table(table) for table in figure_tables(one.results.figures, f"Further figures{end}")
        ]
        parts += _failures(f"Missing and broken samples{end}", one)
        parts += _samples(f"Samples without a judgement{end}", one, unjudged_rows(one))
        parts += _samples(f"Worst samples{end}", one, worst_rows(one, _NUM_WORST))
        parts += _samples(f"Best samples{end}", one, best_rows(one, _NUM_BEST))
    parts.append(_table(origin_table(labels, results)))
    for label, one in zip(labels, results, strict=True):
        data = json.dumps({"settings": one.settings, **one.other}, indent=2, ensure_ascii=False)
        parts.append(
            f"<details><summary>Settings of {_escape(label)}</summary>"
            f"<pre>{_escape(data)}</pre></details>"
        )
    return "\n".join([*parts, "</main></body></html>", ""])


def _escape(text: str) -> str:
    """Returns a text for any place in the page, with halves of surrogate pairs replaced."""
    return html.escape(text.encode("utf-8", "replace").decode(), quote=True)


def _cards(labels: Sequence[str], results: Sequence[Results], scale: float) -> list[str]:
    cards = []
    for number, (label, one) in enumerate(zip(labels, results, strict=True)):
        name = next((str(value) for value in one.model.values() if value is not None), "")
        judged = one.outcomes.get("judged", 0)
        cards.append(
            f'<section class="card c{number % 6}"><p>{_escape(label)}</p>'
            f'<p class="big">{figure(one.overall, scale)}</p>'
            f'<p class="soft">{interval_text(one.intervals.overall, scale)}</p>'
            f'<p class="soft">{_escape(name)}</p>'
            f'<p class="soft">{judged:,} of {one.num_samples:,} samples judged</p></section>'
        )
    return cards


def _notes(labels: Sequence[str], evaluations: Sequence[Evaluation]) -> list[str]:
    notes = []
    for label, one in zip(labels, evaluations, strict=True):
        start = f"{label}: " if len(evaluations) > 1 else ""
        notes += [f"{start}{note}" for note in (*one.remarks, *one.results.notes)]
    return _list(notes)


def _list(notes: Sequence[str]) -> list[str]:
    if not notes:
        return []
    items = "".join(f"<li>{_escape(note)}</li>" for note in notes)
    return [f'<div class="notes"><ul>{items}</ul></div>']


def _bars(labels: Sequence[str], results: Sequence[Results], scale: float) -> list[str]:
    """Returns a bar for each figure, with its interval; several results lie below each other."""
    names = list(dict.fromkeys(name for one in results for name in one.by_category))
    lines = ['<div class="bars">']
    for name in (None, *names):
        for number, one in enumerate(results):
            value = one.overall if name is None else one.by_category.get(name)
            bounds = one.intervals.overall if name is None else one.intervals.by_category.get(name)
            marks = ""
            if value is not None:
                marks += f'<span class="fill" style="width:{_percent(value, scale)}%"></span>'
            if bounds is not None:
                low, high = (_percent(bound, scale) for bound in bounds)
                place = f"left:{low}%;width:{round(high - low, 2)}%"
                marks += f'<span class="whisker" style="{place}"></span>'
            shown = ("overall" if name is None else name or "all") if number == 0 else ""
            lines.append(
                f'<span class="name">{_escape(shown)}</span>'
                f'<span class="track c{number % 6}" title="{_escape(labels[number])}">{marks}'
                f'</span><span class="value">{figure(value, scale)}</span>'
            )
        lines.append('<span class="gap"></span>')
    caption = f"Bars from 0 to {scale:g}; lines are 95 % intervals."
    return [*lines, "</div>", f'<p class="caption">{caption}</p>']


def _percent(value: float, scale: float) -> float:
    return round(100 * min(max(value / scale, 0.0), 1.0), 2)


def _table(table: Table) -> str:
    head = "".join(f"<th>{_escape(cell)}</th>" for cell in table.head)
    rows = "".join(
        f"<tr><th>{_escape(row[0])}</th>" + "".join(_cell(cell) for cell in row[1:]) + "</tr>"
        for row in table.rows
    )
    caption = f'<p class="caption">{_escape(table.caption)}</p>' if table.caption else ""
    return (
        f'<h2>{_escape(table.title)}</h2><div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>{caption}"
    )


def _cell(text: str) -> str:
    kind = ' class="short"' if len(text) <= _LONGEST_LINE else ""
    return f"<td{kind}>{_escape(text)}</td>"


def _comparison(comparisons: Sequence[Comparison]) -> list[str]:
    notes = [note for one in comparisons for note in comparison_notes(one)]
    return [_table(comparison_table(comparisons)), *_list(notes)]


def _differences(labels: Sequence[str], first: Evaluation, second: Evaluation) -> list[str]:
    """Returns a sample of both evaluations for each of the items that differ most."""
    labelled = list(zip(labels, (first, second), strict=True))
    pairs = [
        "".join(
            _figure(show(one, row), f"{label}: ")
            for (label, one), row in zip(labelled, rows, strict=True)
        )
        for rows in most_different(first, second, _NUM_DIFFERENT)
    ]
    if not pairs:
        return []
    figures = (f'<div class="pair">{pair}</div>' for pair in pairs)
    return ["<h2>Largest differences</h2>", '<div class="samples pairs">', *figures, "</div>"]


def _failures(title: str, evaluation: Evaluation) -> list[str]:
    names = [f"{row.item.id}/{row.number}" for row in evaluation.rows() if row.is_failure]
    if not names:
        return []
    shown = ", ".join(names[:_NUM_FAILURES])
    more = f" and {len(names) - _NUM_FAILURES:,} more" if len(names) > _NUM_FAILURES else ""
    return [
        f"<details><summary>{_escape(title)} ({len(names):,})</summary>"
        f"<p>{_escape(shown)}{more}</p></details>"
    ]


def _samples(title: str, evaluation: Evaluation, rows: Sequence[Row]) -> list[str]:
    if not rows:
        return []
    shown = [_figure(show(evaluation, row)) for row in rows[:_NUM_UNJUDGED]]
    more = len(rows) - len(shown)
    tail = f'<p class="caption">and {more:,} more</p>' if more else ""
    return [f"<h2>{_escape(title)}</h2>", '<div class="samples">', *shown, "</div>", tail]


def _figure(shown: Shown, start: str = "") -> str:
    item, verdict = shown.row.item, shown.row.verdict
    name = f"{start}{item.id}/{shown.row.number}"
    if shown.image is not None:
        body = f'<img alt="{_escape(name)}" src="{shown.image}">'
    elif shown.text is not None:
        body = f"<pre>{_escape(_cut(shown.text, _LONGEST_DATA))}</pre>"
    else:
        body = f'<div class="none">{_escape(shown.fault)}</div>'
    if verdict is None:
        score = "missing"
    elif verdict.outcome == "judged" and verdict.score is not None:
        score = f"{verdict.score:.4g}"
    else:
        score = verdict.outcome
    lines = [
        f'<p><span class="score">{_escape(score)}</span> '
        f'<span class="soft">{_escape(name)} {_escape(item.category)}</span></p>',
        f"<p>{_escape(_cut(item.prompt, _LONGEST_PROMPT))}</p>",
    ]
    if verdict is not None:
        reason = verdict.data.get("reason")
        if isinstance(reason, str) and reason:
            lines.append(f'<p class="soft">{_escape(_cut(reason, _LONGEST_PROMPT))}</p>')
        if verdict.data:
            data = json.dumps(verdict.data, indent=1, ensure_ascii=False)
            lines.append(
                "<details><summary>verdict</summary>"
                f"<pre>{_escape(_cut(data, _LONGEST_DATA))}</pre></details>"
            )
    return f"<figure>{body}<figcaption>{''.join(lines)}</figcaption></figure>"


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}..."
