"""Chooses the samples that a report shows, and reads their files."""

import base64
import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Sequence

from blip3o.core.errors import UsageError
from blip3o.core.files import read_text
from blip3o.eval.benchmark import Row, Verdict
from blip3o.eval.report.compare import item_scores
from blip3o.eval.report.evaluation import Evaluation, Place
from blip3o.imaging.encode import to_jpeg
from blip3o.imaging.load import open_image

_THUMBNAIL_PX = 320


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shown:
    """A sample in a report.

    Args:
        row: the sample with its verdict.
        image: its image, scaled down, as a data URI; None if there is none.
        text: its answer; None for an image or if there is none.
        fault: why neither can be shown; empty if one can.
    """

    row: Row
    image: str | None = None
    text: str | None = None
    fault: str = ""


def worst_rows(evaluation: Evaluation, number: int) -> list[Row]:
    """Returns the judged samples with the lowest scores, one of each item.

    Equal scores are taken from all categories in turn.
    """
    return _extremes(evaluation, number, sign=1)


def best_rows(evaluation: Evaluation, number: int) -> list[Row]:
    """Returns the judged samples with the highest scores, one of each item, as `worst_rows`."""
    return _extremes(evaluation, number, sign=-1)


def unjudged_rows(evaluation: Evaluation) -> list[Row]:
    """Returns the samples on which the judge has failed."""
    return [row for row in evaluation.rows() if row.is_unjudged]


def most_different(first: Evaluation, second: Evaluation, number: int) -> list[tuple[Row, Row]]:
    """Returns a sample of both evaluations for the items whose mean scores differ most.

    Args:
        first: an evaluation.
        second: another evaluation of the same title.
        number: most items of each direction.

    Returns:
        Of each item, the sample number with the largest difference in the direction of the means;
        first the items on which `second` is better.
    """
    worst = first.results.worst_score
    before, after = item_scores(first), item_scores(second)
    changes: dict[str, float] = {}
    for item, old in before.items():
        new = after.get(item)
        if old is not None and new is not None:
            changes[item] = new - old
    better = sorted((name for name in changes if changes[name] > 0), key=lambda n: -changes[n])
    worse = sorted((name for name in changes if changes[name] < 0), key=lambda n: changes[n])
    old_rows, new_rows = (
        {(row.item.id, row.number): row for row in one.rows()} for one in (first, second)
    )
    pairs = []
    for item in (*better[:number], *worse[:number]):
        keys = [key for key in old_rows if key[0] == item and key in new_rows]
        shared = [(old_rows[key], new_rows[key]) for key in keys]
        sign = 1 if changes[item] > 0 else -1
        pairs.append(
            max(
                shared,
                key=lambda pair: sign * (_known(pair[1], worst) - _known(pair[0], worst)),
            )
        )
    return pairs


def show(evaluation: Evaluation, row: Row) -> Shown:
    """Returns a sample with its file; a file that cannot be read is a fault, not an error."""
    place = evaluation.place(row)
    if place is None:
        return Shown(row=row, fault="the file is missing")
    try:
        if place.file.suffix == ".txt":
            return Shown(row=row, text=read_text(place.file, "the answer"))
        return Shown(row=row, image=_data_uri(place))
    except UsageError:
        return Shown(row=row, fault="the file cannot be read")


def _extremes(evaluation: Evaluation, number: int, *, sign: int) -> list[Row]:
    best: dict[str, tuple[float, Row]] = {}
    for row in evaluation.rows():
        score = _score(row.verdict)
        if score is not None and (row.item.id not in best or sign * score < best[row.item.id][0]):
            best[row.item.id] = sign * score, row
    groups: dict[tuple[float, str], list[Row]] = defaultdict(list)
    for score, row in best.values():
        groups[score, row.item.category].append(row)
    chosen: list[Row] = []
    for score in sorted({score for score, _ in groups}):
        alike = [rows for (value, _), rows in groups.items() if value == score]
        turns = itertools.chain.from_iterable(itertools.zip_longest(*alike))
        chosen += [row for row in turns if row is not None]
        if len(chosen) >= number:
            break
    return chosen[:number]


def _score(verdict: Verdict | None) -> float | None:
    return verdict.score if verdict is not None and verdict.outcome == "judged" else None


def _known(row: Row, worst: float) -> float:
    score = _score(row.verdict)
    return worst if score is None else score


def _data_uri(place: Place) -> str:
    image = open_image(place.file)
    if place.tile is not None:
        image = image.crop(_tile_box(image.size, place.tile))
    image.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
    return f"data:image/jpeg;base64,{base64.b64encode(to_jpeg(image, quality=88)).decode()}"


def _tile_box(size: tuple[int, int], tile: Sequence[int]) -> tuple[int, int, int, int]:
    column, line, columns, lines = tile
    width, height = size[0] // columns, size[1] // lines
    return column * width, line * height, (column + 1) * width, (line + 1) * height
