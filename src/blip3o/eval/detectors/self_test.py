"""A test of a detector when it is loaded: an image whose objects are known.

A faulty detector gives no error. With the weights of another model it finds everything with low
scores, and a benchmark is near 0.
"""

import dataclasses
from pathlib import Path

from blip3o.core.bounds import Share
from blip3o.core.config import from_dict
from blip3o.core.errors import UsageError
from blip3o.eval.detectors import Detector
from blip3o.imaging.load import open_image
from blip3o.weights.small_files import read_json

_SHOWN = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelfTest:
    """The content of a self-test file, which is JSON.

    Args:
        image: an image file, relative to the self-test file.
        classes: classes of objects in the image, each at least once.
        min_score: least score of the best finding of each class.
    """

    image: str
    classes: tuple[str, ...]
    min_score: Share = 0.9


def run_self_test(detector: Detector, file: Path) -> None:
    """Checks that a detector finds the objects of an image.

    Args:
        detector: the detector.
        file: a self-test file.

    Raises:
        UsageError: if the file or the image cannot be read, a class is unknown, or an object is not
            found; the message names the expected and the found classes with their scores.
    """
    test = from_dict(SelfTest, read_json(file, "is not a self-test file"), str(file))
    unknown = sorted(set(test.classes) - set(detector.classes))
    if unknown or not test.classes:
        reason = f"does not know {', '.join(unknown)}" if unknown else "is asked for no class"
        raise UsageError(f"{file}: the detector {detector.name} {reason}")
    found = detector.detect([open_image(file.parent / test.image)])[0]
    best: dict[str, float] = {}
    for label, score in sorted(
        zip(found.labels, found.scores, strict=True), key=lambda one: one[1]
    ):
        best[detector.classes[label]] = float(score)
    if all(best.get(name, 0.0) >= test.min_score for name in test.classes):
        return
    first = sorted(best, key=lambda name: -best[name])[:_SHOWN]
    shown = [*first, *(name for name in test.classes if name in best and name not in first)]
    raise UsageError(
        f"the detector {detector.name} fails the self-test {file}: expected "
        f"{', '.join(test.classes)} with scores of at least {test.min_score}, found "
        f"{', '.join(f'{name} {best[name]:.3f}' for name in shown) or 'nothing'}; the weights or "
        "the arithmetic of this machine are wrong"
    )
