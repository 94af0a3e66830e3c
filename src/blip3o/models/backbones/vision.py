"""The vision tower of Qwen2.5-VL: its sizes, images as patches and grids, 3-axis positions.

Axes: M images, S patches of all images, p side of a patch in pixels, m patches along one side
of a token, B rows, T tokens.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from blip3o.core.bounds import Count, Whole
from blip3o.imaging.pixels import normalize_for_clip
from blip3o.models.prompts import VisionInputs

if TYPE_CHECKING:
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
        Qwen2_5_VisionTransformerPretrainedModel,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionTowerConfig:
    """Sizes of a Qwen2.5-VL vision tower; the defaults are the published ones.

    Args:
        hidden_size: width.
        intermediate_size: width inside the MLPs.
        num_layers: transformer layers.
        num_heads: attention heads.
        patch_px: side of a patch in pixels.
        merge: patches along one side of a token.
        num_frames: frames of a patch; a still image fills all of them.
        window_px: side in pixels of the windows within which most layers attend.
        full_attention_layers: indices of the layers that attend to the whole image.
    """

    hidden_size: Count = 1280
    intermediate_size: Count = 3420
    num_layers: Count = 32
    num_heads: Count = 16
    patch_px: Count = 14
    merge: Count = 2
    num_frames: Count = 2
    window_px: Count = 112
    full_attention_layers: tuple[Whole, ...] = (7, 15, 23, 31)

    def build(self, out_size: int) -> "Qwen2_5_VisionTransformerPretrainedModel":
        """Returns the tower with fresh weights, for a backbone of width `out_size`."""
        from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
        from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
            Qwen2_5_VisionTransformerPretrainedModel,
        )

        return Qwen2_5_VisionTransformerPretrainedModel(
            Qwen2_5_VLVisionConfig(
                depth=self.num_layers,
                hidden_size=self.hidden_size,
                intermediate_size=self.intermediate_size,
                num_heads=self.num_heads,
                patch_size=self.patch_px,
                spatial_merge_size=self.merge,
                temporal_patch_size=self.num_frames,
                window_size=self.window_px,
                out_hidden_size=out_size,
                fullatt_block_indexes=list(self.full_attention_layers),
            )
        )


def to_vision_inputs(pixels: Tensor, patch_px: int, merge: int, num_frames: int) -> VisionInputs:
    """Returns images of one size in the form that the vision tower takes.

    Args:
        pixels: [M, 3, H, W] in [-1, 1].
        patch_px: side of a patch (p).
        merge: patches along one side of a token (m).
        num_frames: number of times a still image is repeated along the time axis.

    Raises:
        ValueError: if H or W is not a multiple of p * m.

    Reference:
        Qwen2.5-VL (arXiv 2502.13923); parity family `chat`, cases of the processor.
    """
    num_images, channels, height, width = pixels.shape
    side = patch_px * merge
    if channels != 3 or height % side or width % side:
        raise ValueError(
            f"the vision tower takes pixels [M, 3, H, W] with H and W multiples of {side}, "
            f"got {list(pixels.shape)}"
        )
    blocks = (
        normalize_for_clip(pixels)
        .unflatten(3, (-1, merge, patch_px))
        .unflatten(2, (-1, merge, patch_px))
    )
    # From [M, 3, rows, m, p, columns, m, p] to [M, rows, columns, m, m, 3, p, p].
    patches = blocks.permute(0, 2, 5, 3, 6, 1, 4, 7).unsqueeze(6)
    patches = patches.expand(*patches.shape[:6], num_frames, patch_px, patch_px)
    grid = pixels.new_tensor([1, height // patch_px, width // patch_px], dtype=torch.long)
    return VisionInputs(
        patches=patches.flatten(5).flatten(0, 4), grid_thw=grid.expand(num_images, 3)
    )


def image_positions(
    input_ids: Tensor, attention_mask: Tensor, token_grids: Tensor, image_token_id: int
) -> Tensor:
    """Returns the rotary positions of text with images on the axes time, row and column.

    A text token takes the next position on all three axes. An image token takes that position plus
    its coordinates in the image's grid. Text continues after the longest side of the grid.

    Args:
        input_ids: [B, T].
        attention_mask: True for real tokens, [B, T]; padding may be on either side.
        token_grids: frames, rows and columns of tokens of each image in prompt order, [M, 3].
        image_token_id: id of the placeholders.

    Returns:
        Positions, int64 [3, B, T]; 0 at padding.

    Raises:
        ValueError: if the runs of placeholders do not match the images' token counts.

    Reference:
        Qwen2.5-VL (arXiv 2502.13923), section 2.1.2; parity family `qwen`, cases `und_*`.
    """
    grids = iter(token_grids.tolist())
    positions = torch.zeros(3, *input_ids.shape, dtype=torch.long)
    is_image = (input_ids == image_token_id).cpu()
    mask = attention_mask.bool().cpu()
    for row, (images, real) in enumerate(zip(is_image, mask, strict=True)):
        positions[:, row, real] = _row_positions(images[real].tolist(), grids)
    if next(grids, None) is not None:
        raise ValueError("the prompt has fewer runs of image placeholders than images")
    return positions.to(input_ids.device)


def _row_positions(is_image: list[bool], grids: Iterator[list[int]]) -> Tensor:
    """Returns the positions [3, T] of one row without padding."""
    pieces: list[Tensor] = []
    column, position = 0, 0
    while column < len(is_image):
        if is_image[column]:
            grid = next(grids, None)
            run = is_image[column : column + math.prod(grid or [0])]
            if grid is None or len(run) < math.prod(grid) or not all(run):
                raise ValueError(
                    "the runs of image placeholders do not match the images' token counts"
                )
            piece = torch.cartesian_prod(*(torch.arange(size) for size in grid)).T
            step = max(grid)
        else:
            end = is_image.index(True, column) if True in is_image[column:] else len(is_image)
            piece = torch.arange(end - column).expand(3, -1)
            step = end - column
        pieces.append(piece + position)
        column += piece.shape[1]
        position += step
    return torch.cat(pieces, dim=1) if pieces else torch.zeros(3, 0, dtype=torch.long)
