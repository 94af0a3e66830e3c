"""What all image encoders share: the check of their input and the pooling of their token grid."""

import math

from torch import Tensor


def check_pixels(pixels: Tensor, image_px: int) -> None:
    """Refuses images that are not [B, 3, P, P].

    Args:
        pixels: what an encoder was given.
        image_px: the side it takes (P).

    Raises:
        ValueError: if the shape is another one.
    """
    if pixels.ndim != 4 or pixels.shape[1:] != (3, image_px, image_px):
        raise ValueError(
            f"the image encoder takes pixels [B, 3, {image_px}, {image_px}], "
            f"got {list(pixels.shape)}"
        )


def pool_tokens(tokens: Tensor, kernel: int) -> Tensor:
    """Returns a square token grid averaged over kernel x kernel windows, row by row.

    Args:
        tokens: [B, G * G, C].
        kernel: side of a window; must divide G; 1 returns the tokens as they are.

    Reference:
        BLIP3-o section 3 (`early_pool2d_4` in the released code); parity family `pooling`.
    """
    if kernel == 1:
        return tokens
    side = math.isqrt(tokens.shape[1])
    grid = tokens.unflatten(1, (side // kernel, kernel, side // kernel, kernel))
    return grid.mean(dim=(2, 4)).flatten(1, 2)
