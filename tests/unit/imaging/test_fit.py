"""Images in their own shape: sizes in whole tokens, limits, refusals."""

import pytest
from PIL import Image

from blip3o.core.errors import UsageError
from blip3o.imaging.fit import ImageFitConfig, aspect_pixels, keep_aspect
from blip3o.imaging.pixels import to_pixels


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((56, 84), (56, 84)),  # unchanged
        ((57, 83), (56, 84)),  # rounded to whole tokens
        ((42, 70), (56, 56)),  # halves go to the even number of tokens, as the published code does
        ((10, 10), (56, 56)),  # enlarged to the least area
        ((10, 40), (28, 112)),
        ((400, 400), (112, 112)),  # reduced to the largest area
        ((1600, 100), (448, 28)),
        ((2000, 10), (1568, 28)),  # never less than one token a side
    ],
)
def test_sizes_are_whole_tokens_near_the_shape(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert keep_aspect(size, 28, min_pixels=3136, max_pixels=12_544) == expected


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (640, 480), (4000, 3000), (9000, 100)])
def test_published_limits_hold_for_any_image(size: tuple[int, int]) -> None:
    config = ImageFitConfig()
    width, height = keep_aspect(size, 28, config.min_pixels, config.max_pixels)
    assert config.min_pixels <= width * height <= config.max_pixels
    assert width % 28 == height % 28 == 0


def test_pixels_of_a_fitting_image_are_untouched() -> None:
    image = Image.linear_gradient("L").convert("RGB")
    config = ImageFitConfig(mode="aspect", min_pixels=1, max_pixels=65_536)
    assert aspect_pixels(image, 8, config).equal(to_pixels(image, 256))
    small = ImageFitConfig(mode="aspect", min_pixels=1, max_pixels=1024)
    assert aspect_pixels(image.resize((256, 64)), 8, small).shape == (3, 16, 64)


def test_images_that_are_too_thin_are_refused() -> None:
    with pytest.raises(UsageError, match="an image of 3 x 601 is too thin"):
        keep_aspect((3, 601), 28, 3136, 12_544)
    with pytest.raises(ValueError, match="min_pixels 9 must be 1 to max_pixels"):
        ImageFitConfig(min_pixels=9, max_pixels=8)
