"""Statistics of data sets: a text table, and an HTML page with plots and images."""

import base64
import dataclasses
import functools
import html
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from blip3o.core.errors import UsageError
from blip3o.data.captions import captions_of
from blip3o.data.conversations import num_drawn, turns_of
from blip3o.data.sources import Source
from blip3o.data.walk import source_config, walk
from blip3o.imaging.load import open_image, read_header

_MEASURES = {
    "width": "px",
    "height": "px",
    "aspect": "width / height",
    "image_bytes": "bytes",
    "caption_words": "words",
    "turns": "questions and answers",
    "drawn_images": "images in answers",
}
_LEAST_WIDTHS = (16, 8, 10, 8, 8, 8, 8, 10)
"""Minimum widths of the columns; longer numbers widen them."""
_NUM_BINS = 40
_THUMBNAIL_PX = 160


@dataclasses.dataclass(slots=True, kw_only=True)
class Stats:
    """Measures of one source.

    Args:
        name: name of the source.
        num_records: number of records.
        num_broken: number of records and images that cannot be read.
        formats: number of images by file format and color mode.
        measures: values of each measure, one per image, caption or conversation.
        samples: some images as JPEG, with their captions.
        passed_over: number of files or tar members that are not records, by reason.
    """

    name: str
    num_records: int
    num_broken: int
    formats: Counter[str]
    measures: Mapping[str, NDArray[np.float64]]
    samples: Sequence[tuple[bytes, str]]
    passed_over: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def text(self) -> str:
        """Returns a table with count, mean and quantiles of every measure."""
        formats = ", ".join(f"{name} {count}" for name, count in self.formats.most_common())
        rows = [["", "count", "mean", "min", "5%", "50%", "95%", "max"]]
        for name, values in self.measures.items():
            if len(values):
                numbers = (values.mean(), *np.quantile(values, [0, 0.05, 0.5, 0.95, 1]))
                rows.append([name, str(len(values)), *(f"{number:.5g}" for number in numbers)])
        widths = [
            max(least, *map(len, column))
            for least, column in zip(_LEAST_WIDTHS, zip(*rows, strict=True), strict=True)
        ]
        lines = [
            "  ".join((row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])))
            for row in rows
        ]
        passed_over = [f"passed over: {count} x {why}" for why, count in self.passed_over.items()]
        head = f"{self.name}: {self.num_records} records, {self.num_broken} broken; {formats}"
        return "\n".join([head, *lines, *passed_over])


def collect(
    path: str, *, jobs: int = 1, num_samples: int = 24, image_folder: str | None = None
) -> Stats:
    """Returns the measures of a source from the text and image headers of every record.

    Args:
        path: a tar pattern, a JSON list or a folder.
        jobs: number of processes.
        num_samples: number of images kept, spread evenly over the source.
        image_folder: folder that the image paths of a list start from; None is the list's folder.

    Raises:
        UsageError: if there is no data at the path.
    """
    config = source_config(path, salvage=True, image_folder=image_folder)
    source = config.build()
    step = max(1, len(source) // max(1, num_samples))
    chosen = frozenset(range(0, step * num_samples, step))
    formats: Counter[str] = Counter()
    values: dict[str, list[float]] = {name: [] for name in _MEASURES}
    samples: list[tuple[bytes, str]] = []
    num_broken = 0
    measure = functools.partial(_measure, chosen=chosen)
    for part in walk(config, measure, jobs=jobs, what=f"measuring {source.name}"):
        num_broken += part.num_broken
        formats += part.formats
        samples += part.samples
        for name, some in part.values.items():
            values[name] += some
    return Stats(
        name=source.name,
        num_records=len(source),
        num_broken=num_broken,
        formats=formats,
        measures={name: np.array(some, dtype=np.float64) for name, some in values.items()},
        samples=samples,
        passed_over=source.passed_over,
    )


@dataclasses.dataclass(slots=True)
class _Part:
    num_broken: int
    formats: Counter[str]
    values: dict[str, list[float]]
    samples: list[tuple[bytes, str]]


def _measure(source: Source, positions: range, *, chosen: frozenset[int]) -> _Part:
    part = _Part(0, Counter(), {name: [] for name in _MEASURES}, [])
    for position in positions:
        try:
            _, files, fields = source.read(position)
        except (ValueError, OSError):
            part.num_broken += 1
            continue
        captions = captions_of(fields) or [fields.get("instruction")]
        texts = [one for one in captions if isinstance(one, str)]
        part.values["caption_words"] += [len(one.split()) for one in texts]
        for turns in (turns_of(fields), fields.get("text_conversations")):
            if isinstance(turns, list):
                part.values["turns"].append(len(turns) // 2)
        drawn = num_drawn(turns_of(fields))
        part.values["drawn_images"] += [drawn] if drawn else []
        for data in files.values():
            try:
                header = read_header(data)
                (width, height), kind = header.size, f"{header.format} {header.mode}"
                if position in chosen:
                    part.samples.append((_thumbnail(data), texts[0] if texts else ""))
            except UsageError:
                part.num_broken += 1
                continue
            part.formats[kind] += 1
            part.values["width"].append(width)
            part.values["height"].append(height)
            part.values["aspect"].append(width / height)
            part.values["image_bytes"].append(len(data))
    return part


def _thumbnail(data: bytes) -> bytes:
    image = open_image(data)
    image.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def write_page(all_stats: Sequence[Stats], file: Path) -> None:
    """Writes the measures of all sources to one self-contained HTML page.

    Raises:
        UsageError: if it cannot be written.
    """
    parts = [
        '<!doctype html><meta charset="utf-8"><title>blip3o data stats</title><style>'
        "body{font:14px sans-serif;margin:2em;max-width:1100px}figure{display:inline-block;"
        "margin:8px;vertical-align:top}figcaption{max-width:160px;font-size:12px}"
        "rect{fill:#4477aa}.plot figcaption{max-width:340px}</style>"
    ]
    for stats in all_stats:
        parts.append(f"<h1>{html.escape(stats.name)}</h1><pre>{html.escape(stats.text())}</pre>")
        for name, values in stats.measures.items():
            if len(values):
                parts.append(_plot(name, _MEASURES[name], values))
        parts.append("<h2>Samples</h2>")
        for image, caption in stats.samples:
            data = base64.b64encode(image).decode()
            parts.append(
                f'<figure><img src="data:image/jpeg;base64,{data}">'
                f"<figcaption>{html.escape(caption[:300])}</figcaption></figure>"
            )
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        # JSON may hold halves of surrogate pairs, which cannot be encoded.
        file.write_text("\n".join(parts) + "\n", encoding="utf-8", errors="replace")
    except OSError as error:
        raise UsageError(f"cannot write {file}: {error.strerror}") from error


def _plot(name: str, unit: str, values: NDArray[np.float64]) -> str:
    """Returns a histogram as SVG; the last bar also counts the largest 1 % of the values."""
    top = np.quantile(values, 0.99)
    counts, edges = np.histogram(np.minimum(values, top), bins=_NUM_BINS)
    width, height = 8, 120
    bars = "".join(
        f'<rect x="{k * width}" y="{height - height * count / counts.max():.1f}" '
        f'width="{width - 1}" height="{height * count / counts.max():.1f}"/>'
        for k, count in enumerate(counts.tolist())
    )
    return (
        f'<figure class="plot"><svg width="{_NUM_BINS * width}" height="{height}">{bars}</svg>'
        f"<figcaption>{name} ({unit}), {edges[0]:.4g} to {edges[-1]:.4g}</figcaption></figure>"
    )


def describe(
    paths: Sequence[str],
    *,
    jobs: int = 1,
    out: Path | None = None,
    image_folder: str | None = None,
) -> str:
    """Returns the measures of several sources as text, and writes the page if a file is given.

    Args:
        paths: tar patterns, JSON lists or folders.
        jobs: number of processes.
        out: HTML file to write; None writes no page.
        image_folder: folder that the image paths of lists start from.

    Raises:
        UsageError: if there is no data at a path, or the page cannot be written.
    """
    all_stats = [collect(path, jobs=jobs, image_folder=image_folder) for path in paths]
    if out is not None:
        write_page(all_stats, out)
    return "\n\n".join(stats.text() for stats in all_stats)
