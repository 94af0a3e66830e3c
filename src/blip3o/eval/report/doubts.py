"""Doubts about figures: samples without a judgement, and patterns of a faulty measurement.

`settled` guards the headline. The other functions look at rows and files for patterns that public
mis-measurements had, and return a note for each pattern; notes belong to `results.json`.
"""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from PIL import Image

from blip3o.eval.benchmark import Row, Scores
from blip3o.eval.detectors import DETECTORS
from blip3o.eval.report.evaluation import Place, outcomes_of, place_of
from blip3o.imaging.load import FORMATS

_TINY_PX = 64
_FEW = 4
"""With fewer judged samples, a pattern may be chance."""
_SHOWN = 3


def settled(reduce: Callable[[Sequence[Row]], Scores], rows: Sequence[Row]) -> Scores:
    """Returns the figures of a benchmark, with a headline only if all samples have a judgement.

    A missing or broken sample is a failure of the model and counts as the worst. A refused, empty,
    cut, unreadable or lost answer is a fault of the judge: the headline and the figures of its
    category are then None, and a note states the lower bound. Notes also state the figure of a
    program that leaves such samples out.

    Args:
        reduce: `Benchmark.reduce`.
        rows: the rows of all samples.
    """
    open_rows = [row for row in rows if row.is_unjudged]
    failures = [row for row in rows if row.is_failure]
    scores = reduce(rows)
    notes = list(scores.notes)
    judged = [row for row in rows if row.judgement is not None]
    without = reduce(judged).overall if judged and (open_rows or failures) else None
    skipped = "" if without is None else f"; a program that leaves them out says {without:.4g}"
    if failures:
        tail = "" if open_rows else skipped
        kinds = _counted(failures, " and ")
        notes.append(f"{kinds} of {len(rows):,} samples count as failures{tail}.")
    if not open_rows:
        return dataclasses.replace(scores, notes=notes)
    bound = "" if scores.overall is None else f", at least {scores.overall:.4g}"
    notes.append(
        f"{len(open_rows):,} of {len(rows):,} samples have no judgement "
        f"({_counted(open_rows, ', ')}): the headline is open{bound}{skipped}."
    )
    # A category that is no category of items, such as a kind of question, may hold open samples.
    complete = {row.item.category for row in rows} - {row.item.category for row in open_rows}
    by_category = {
        name: value if name in complete else None for name, value in scores.by_category.items()
    }
    return dataclasses.replace(scores, overall=None, by_category=by_category, notes=notes)


def _counted(rows: Sequence[Row], separator: str) -> str:
    """Returns the number of rows of each outcome: "2 missing and 1 broken"."""
    return separator.join(f"{count:,} {name}" for name, count in outcomes_of(rows).items())


def doubts(folder: Path, rows: Sequence[Row]) -> list[str]:
    """Returns notes on all suspicious patterns in an evaluation.

    Args:
        folder: folder of the evaluation, for the sizes of its images.
        rows: the rows of all samples.
    """
    images = [row for row in rows if row.item.task != "question"]
    places = {(row.item.id, row.number): place_of(folder, row) for row in images}
    return [*doubts_on_rows(rows), *doubts_on_sizes(images, places)]


def doubts_on_rows(rows: Sequence[Row]) -> list[str]:
    """Returns notes on suspicious patterns of scores and of the hashes of images."""
    notes: list[str] = []
    judged = [row.judgement for row in rows if row.judgement is not None]
    scores = [verdict.score for verdict in judged]
    if len(scores) >= _FEW and all(score == 0 for score in scores):
        judge = judged[0].judge
        cause = (
            "wrong or badly read weights of the detector give this"
            if any(judge.startswith(name) for name in DETECTORS.names())
            else "a broken judge gives this"
        )
        notes.append(f"All {len(scores):,} judged samples score 0: {cause}; look at the images.")
    by_item: dict[str, list[Row]] = defaultdict(list)
    by_image: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.item.task != "question" and row.verdict is not None and row.verdict.sha256:
            by_item[row.item.id].append(row)
            by_image[row.verdict.sha256].append(row)
    groups = [group for group in by_item.values() if len(group) > 1]
    same = [group[0] for group in groups if len({_sha256(row) for row in group}) == 1]
    if same:
        notes.append(
            f"All samples are the same image in {len(same):,} of {len(groups):,} items "
            f"({_names(same)}): the noise does not change within an item."
        )
    shared = [
        group
        for group in by_image.values()
        if len({(row.item.prompt, row.item.sources) for row in group}) > 1
    ]
    if shared:
        pair = {row.item.id: row for row in max(shared, key=len)}
        notes.append(
            f"{sum(map(len, shared)):,} samples of different prompts are the same image as another "
            f"({_names(list(pair.values()))})."
        )
    return notes


def doubts_on_sizes(
    rows: Sequence[Row], places: Mapping[tuple[str, int], Place | None]
) -> list[str]:
    """Returns notes on tiny images, and on images of another size than the others.

    Args:
        rows: rows of image samples.
        places: file of each sample, by (id of the item, number of the sample).
    """
    wanted = {(row.item.id, row.number) for row in rows}
    sizes = dict(_sizes({key: place for key, place in places.items() if key in wanted}))
    notes: list[str] = []
    tiny = [
        row for row in rows if min(sizes.get((row.item.id, row.number), (_TINY_PX,))) < _TINY_PX
    ]
    if tiny:
        notes.append(
            f"{len(tiny):,} images have a side under {_TINY_PX} pixels ({_names(tiny)}): judges "
            "are not made for such images."
        )
    # Edits and reconstructions have the sizes of their sources.
    drawn = [
        row
        for row in rows
        if row.item.task == "text_to_image" and (row.item.id, row.number) in sizes
    ]
    counts = Counter(sizes[row.item.id, row.number] for row in drawn)
    if len(counts) > 1:
        usual = counts.most_common(1)[0][0]
        odd = [row for row in drawn if sizes[row.item.id, row.number] != usual]
        width, height = sizes[odd[0].item.id, odd[0].number]
        notes.append(
            f"{len(odd):,} of {len(drawn):,} images have another size than {usual[0]} x {usual[1]} "
            f"({_names(odd)}: {width} x {height})."
        )
    return notes


def _sizes(
    places: Mapping[tuple[str, int], Place | None],
) -> Iterator[tuple[tuple[str, int], tuple[int, int]]]:
    """Yields the size of each image that has a header; the scorer counts the others as broken."""
    known: dict[Path, tuple[int, int] | None] = {}
    for key, place in places.items():
        if place is None:
            continue
        if place.file not in known:
            try:
                with Image.open(place.file, formats=FORMATS) as image:  # reads the header only
                    known[place.file] = image.size
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
                known[place.file] = None
        size = known[place.file]
        if size is not None:
            _, _, columns, lines = place.tile or (0, 0, 1, 1)
            yield key, (size[0] // columns, size[1] // lines)


def _sha256(row: Row) -> str:
    return row.verdict.sha256 if row.verdict else ""


def _names(rows: Sequence[Row]) -> str:
    """Returns the first samples as "ITEM/NUMBER"."""
    names = [f"{row.item.id}/{row.number}" for row in rows[:_SHOWN]]
    return ", ".join(names) + (", ..." if len(rows) > _SHOWN else "")
