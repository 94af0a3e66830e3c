"""The input of backbones and generators: token ids and images of prompts and of whole rows.

Axes: P prompts, B rows, T tokens, M images, N feature tokens of an image, C raw and K normalized
channels.
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from blip3o.core.types import ImagePlace


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


def select_images(images: PromptImages | None, chosen: Sequence[int]) -> PromptImages | None:
    """Returns some of the images, in a new order, possibly repeated; None for none."""
    if images is None or not chosen:
        return None
    if isinstance(images, Tensor):
        return images[list(chosen)]
    if isinstance(images, TowerInputs):
        return TowerInputs(pixels=images.pixels[list(chosen)])
    parts = images.patches.split(images.grid_thw.prod(1).tolist())
    return VisionInputs(
        patches=torch.cat([parts[one] for one in chosen]), grid_thw=images.grid_thw[list(chosen)]
    )


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows of text and images in turn; some of the images are drawn by the model.

    Args:
        input_ids: whole rows, padded on the right, [B, T]; placeholders stand for all images.
        attention_mask: True for real tokens, [B, T].
        places: places of each row's images.
        images: all images of the rows in order, as `UnifiedModel.prompt_images` returns them.
    """

    input_ids: Tensor
    attention_mask: Tensor
    places: tuple[tuple[ImagePlace, ...], ...]
    images: PromptImages | None

    @property
    def drawn(self) -> list[tuple[int, ImagePlace]]:
        """The row and the place of each drawn image, in order."""
        return [one for one in self._all() if one[1].is_drawn]

    @property
    def targets(self) -> list[int]:
        """The numbers, among the drawn images, of those that the loss covers."""
        return [number for number, (_, place) in enumerate(self.drawn) if place.is_target]

    def read_images(self) -> PromptImages | None:
        """Returns the images that the model does not draw."""
        chosen = [number for number, (_, place) in enumerate(self._all()) if not place.is_drawn]
        return select_images(self.images, chosen)

    def prompts(self, pad_id: int) -> Prompts:
        """Returns a prompt for each target: all text and images of its row before it."""
        targets = [one for one in self._all() if one[1].is_target]
        longest = max(place.start for _, place in targets)
        ids = self.input_ids.new_full((len(targets), longest), pad_id)
        mask = torch.zeros_like(ids, dtype=torch.bool)
        before: list[int] = []
        for line, (row, place) in enumerate(targets):
            ids[line, longest - place.start :] = self.input_ids[row, : place.start]
            mask[line, longest - place.start :] = True
            before += [
                number
                for number, (other, earlier) in enumerate(self._all())
                if other == row and earlier.start < place.start
            ]
        return Prompts(
            input_ids=ids, attention_mask=mask, images=select_images(self.images, before)
        )

    def _all(self) -> list[tuple[int, ImagePlace]]:
        return [(row, place) for row, places in enumerate(self.places) for place in places]
