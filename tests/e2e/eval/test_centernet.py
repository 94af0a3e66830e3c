"""The small real detector finds real things in photographs.

`BLIP3O_PHOTOS_DIR` names the folder skimage/data of scikit-image 0.25.2, whose photographs may be
used by everyone.
"""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from blip3o.eval.detectors import Detector, DetectorConfig

PHOTOS_VARIABLE = "BLIP3O_PHOTOS_DIR"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def detector(centernet: DetectorConfig) -> Detector:
    return centernet.build("cpu")


@pytest.fixture
def photos() -> Path:
    folder = os.environ.get(PHOTOS_VARIABLE)
    if not folder:
        pytest.skip(
            f"set {PHOTOS_VARIABLE} to the folder skimage/data: run `pip download --no-deps "
            "scikit-image==0.25.2` and unzip the wheel"
        )
    return Path(folder)


@pytest.mark.parametrize(
    ("photo", "name", "score", "box"),
    [
        ("motorcycle_right.png", "motorcycle", 0.57, (67, 70, 632, 449)),
        ("coffee.png", "cup", 0.45, (166, 22, 411, 259)),
    ],
)
def test_it_finds_the_thing_of_a_photograph(
    detector: Detector,
    photos: Path,
    photo: str,
    name: str,
    score: float,
    box: tuple[int, int, int, int],
) -> None:
    with Image.open(photos / photo) as image:
        (found,) = detector.detect([image])
    best = int(found.scores.argmax())
    assert detector.classes[found.labels[best]] == name
    assert found.scores[best] == pytest.approx(score, abs=0.02)
    assert found.boxes[best] == pytest.approx(box, abs=10)


def test_boxes_follow_the_size_of_the_image(detector: Detector, photos: Path) -> None:
    with Image.open(photos / "motorcycle_right.png") as photo:
        square = photo.convert("RGB").resize((512, 512))
    # Enlarged by nearest pixels; the detector's own reduction gives nearly the same square.
    wide = square.resize((1536, 1024), Image.Resampling.NEAREST)
    first, second = detector.detect([square, wide])
    for found in (first, second):
        assert (np.diff(found.scores) <= 0).all()
    assert first.labels[0] == second.labels[0]
    assert second.boxes[0] == pytest.approx(first.boxes[0] * (3, 2, 3, 2), abs=20)


def test_it_finds_nothing_in_grey(detector: Detector) -> None:
    (found,) = detector.detect([Image.new("RGB", (96, 96), (128, 128, 128))])
    assert len(found.labels) == 100  # findings have no threshold
    assert found.scores.max() < 0.3
