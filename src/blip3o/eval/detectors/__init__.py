"""Object detectors that judge images. Each has one file and one line in a table."""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from PIL import Image

from blip3o.core.registry import Registry

DETECTORS: Registry[type["DetectorConfig"]] = Registry(
    "detector", {"mask2former": ".mask2former:Mask2FormerConfig"}, package=__name__
)


@dataclasses.dataclass(frozen=True)
class Detections:
    """The findings of a detector in one image, in its own order, without any threshold.

    Args:
        labels: class of each finding, int64 [N]; an index into `Detector.classes`.
        boxes: x0, y0, x1, y1 of each finding in pixels, float32 [N, 4].
        scores: confidence of each finding, float32 [N].
        masks: mask of each finding, bool [N, H, W]; None if the detector finds boxes only.
    """

    labels: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    masks: np.ndarray | None = None


class Detector(Protocol):
    """Finds objects in images.

    Attributes:
        name: the detector and its weights, as results state them.
        classes: names of the classes.
    """

    name: str
    classes: Sequence[str]

    def detect(self, images: Sequence[Image.Image]) -> list[Detections]:
        """Returns the findings in each RGB image; an image never changes those of another."""
        ...


class DetectorConfig(Protocol):
    """Settings of a detector, a frozen dataclass."""

    @property
    def kind(self) -> str:
        """Name of the detector in `DETECTORS`."""
        ...

    def build(self, device: str = "auto") -> Detector:
        """Loads and returns the detector.

        Raises:
            UsageError: if its weights are missing or wrong.
        """
        ...
