"""The input of backbones and generators: token ids and images of prompts.

Axes: P prompts, T tokens, M images, N feature tokens of an image, C raw and K normalized channels.
"""

import dataclasses

from torch import Tensor


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TowerInputs:
    """Prompt images for an understanding tower that takes squares of one size.

    Args:
        pixels: [M, 3, P, P] in [-1, 1], where P is the tower's image size.
    """

    pixels: Tensor


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class VisionInputs:
    """Prompt images of any sizes, cut into patches for the vision tower of Qwen2.5-VL.

    Args:
        patches: normalized pixels of the S patches of all images, [S, frames * 3 * p * p] for
            patches of p pixels a side, in the published order: image by image; within an image,
            the patches of one token are adjacent; within a patch, channels, frames, rows, columns.
        grid_thw: frames, rows and columns of patches of each image, int64 [M, 3].
    """

    patches: Tensor
    grid_thw: Tensor


PromptImages = Tensor | TowerInputs | VisionInputs
"""Images of prompts: raw features [M, N, C] of the image encoder for a backbone that projects
them; pixels or patches for a backbone with its own vision tower."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompts:
    """Tokenized prompts of images.

    Args:
        input_ids: prompts that end in the last column (left-padded), [P, T].
        attention_mask: True for real tokens, [P, T].
        images: images of the prompts, as `UnifiedModel.prompt_images` returns them.
        reference: normalized features of the images to edit, [P, N, K]; None if the prompts edit no
            images, or the generator does not read them.

    Raises:
        ValueError: if a row is padded at its end.
    """

    input_ids: Tensor
    attention_mask: Tensor
    images: PromptImages | None = None
    reference: Tensor | None = None

    def __post_init__(self) -> None:
        if not (self.attention_mask.is_meta or bool(self.attention_mask[:, -1].all())):
            raise ValueError("prompts of images must be padded on the left")

    def __len__(self) -> int:
        return len(self.input_ids)
