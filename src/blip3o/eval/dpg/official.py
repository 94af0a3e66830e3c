"""The figures of DPG-Bench as its own program computes them, with its faults."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from blip3o.eval.dpg.table import Question
from blip3o.eval.figures import percent, percents


@dataclasses.dataclass(frozen=True)
class OfficialImage:
    """The result of the official program for one file.

    Args:
        tiles: score of each tile, from 0 to 1.
        levels: level 1, level 2 and answer of each question of the last tile, before zeroing.
    """

    tiles: Sequence[float]
    levels: Sequence[tuple[str, str, bool]]

    @property
    def score(self) -> float:
        """The mean over the tiles."""
        return sum(self.tiles) / len(self.tiles)


def official_image(
    questions: Sequence[Question], answers: Sequence[Mapping[str, str]]
) -> OfficialImage | None:
    """Returns the result of the official program; None if it fails and leaves the image out.

    In the order of the table, a question becomes a no if a parent is a no at that moment. A parent
    that the table lacks is a failure, if no earlier parent is a no.

    Args:
        questions: the questions that the official program asks, in its order.
        answers: answers of the judge for each tile, by the key of the question.
    """
    tiles: list[float] = []
    for tile in answers:
        marks = {one.proposition: tile[one.key] == "yes" for one in questions}
        for one in questions:
            for parent in one.parents:
                if parent not in marks:
                    return None
                if not marks[parent]:
                    marks[one.proposition] = False
                    break
        tiles.append(sum(marks.values()) / len(marks))
    last = answers[-1]
    return OfficialImage(tiles, [(q.level_1, q.level_2, last[q.key] == "yes") for q in questions])


def official_figures(images: Sequence[OfficialImage]) -> dict[str, Any]:
    """Returns the figures of the official program in percent; the score is None without images."""
    levels = [level for image in images for level in image.levels]
    return {
        "score": percent([image.score for image in images]),
        "level_1": percents((first, mark) for first, _, mark in levels),
        "level_2": percents((second, mark) for _, second, mark in levels),
    }
