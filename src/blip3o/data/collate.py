"""Examples of one task to a batch: images decoded, text tokenized, rows padded."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from blip3o.core.errors import UsageError
from blip3o.core.types import IGNORE_LABEL, Batch, Example
from blip3o.data.tasks import IMAGES
from blip3o.imaging.fit import ImageFitConfig, aspect_pixels
from blip3o.imaging.load import open_image
from blip3o.imaging.pixels import to_pixels
from blip3o.text.chat import ChatTemplate

if TYPE_CHECKING:
    from blip3o.data.cache import FeatureCache

MAX_REGIONS = 8
"""Most ground-truth objects of an image that a batch carries."""

_IMAGE_TARGETS = ("text_to_image", "edit", "reconstruct")
_TEXT_TARGETS = ("image_to_text", "text", "plain_text")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """An example turned into arrays; still one sample.

    Args:
        example: where it came from.
        ids: token ids of the prompt or the conversation.
        labels: what to learn of them; empty where no text is learned.
        pixels: images [3, P, P] by role.
        features: cached features [N, C] of images by role.
        regions: known objects [MAX_REGIONS, 5] of a contrastive example; see `Batch.regions`.
    """

    example: Example
    ids: list[int]
    labels: list[int]
    pixels: Mapping[str, Tensor]
    features: Mapping[str, Tensor]
    regions: Tensor | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preparer:
    """Decodes and tokenizes single examples.

    Args:
        chat: the model's chat template.
        image_px: side of the images.
        max_text_tokens: longest row of tokens.
        things: name of each thing label; names outside get no region.
        colors: name of each color label.
        cache: features to use instead of decoding images; None decodes.
        keep_pixels: whether targets are decoded although their features are cached.
        question_images: how images of conversations are fitted; all others are stretched.
        token_px: side of a vision tower's token, for images in their own shape.
    """

    chat: ChatTemplate
    image_px: int
    max_text_tokens: int
    things: Sequence[str] = ()
    colors: Sequence[str] = ()
    cache: "FeatureCache | None" = None
    keep_pixels: bool = False
    question_images: ImageFitConfig = dataclasses.field(default_factory=ImageFitConfig)
    token_px: int = 1

    def prepare(self, example: Example) -> Prepared:
        """Returns an example as arrays.

        Args:
            example: what a task made.

        Raises:
            ValueError: if the example is unfit: its text is too long or means nothing, an image
                is missing or cannot be read.
            UsageError: if the feature cache is unfit.
        """
        pixels = self._question_pixels(example)
        ids, labels = self._text(example, pixels)
        features: dict[str, Tensor] = {}
        roles = {*example.prompt_images, *filter(None, [example.target_image])}
        # Of a conversation about several images the cache lacks the further ones: all are decoded.
        cache = self.cache if roles <= {*IMAGES[example.task]} else None
        for role in sorted(roles - pixels.keys()):
            if cache is not None:
                record = example.record
                features[role] = cache.get(record.source, role, record.position)
            if cache is None or (self.keep_pixels and role == example.target_image):
                pixels[role] = read_pixels(example.record.files, role, self.image_px)
        return Prepared(
            example=example,
            ids=ids,
            labels=labels,
            pixels=pixels,
            features=features,
            regions=object_rows(example.regions, self.things, self.colors)
            if example.task == "contrastive"
            else None,
        )

    def check(self, example: Example) -> None:
        """Refuses what `prepare` would, but for images that cannot be read.

        Args:
            example: what a task made.

        Raises:
            ValueError: if the example is unfit: its text is too long or means nothing.
        """
        self._text(example, self._question_pixels(example))

    def _text(self, example: Example, pixels: Mapping[str, Tensor]) -> tuple[list[int], list[int]]:
        ids, labels = self._tokens(example, self._token_counts(example, pixels))
        if len(ids) > self.max_text_tokens:
            raise ValueError(f"{len(ids)} tokens are more than {self.max_text_tokens}")
        return ids, labels

    def _question_pixels(self, example: Example) -> dict[str, Tensor]:
        """Returns the images of a conversation that are not just stretched, by role."""
        fit = self.question_images
        if example.task not in _TEXT_TARGETS or fit.mode == "stretch":
            return {}
        pixels = {}
        for role in example.prompt_images:
            image = read_image(example.record.files, role)
            try:
                pixels[role] = (
                    aspect_pixels(image, self.token_px, fit)
                    if fit.mode == "aspect"
                    else to_pixels(image, self.image_px, fit.mode)
                )
            except UsageError as error:
                raise ValueError(str(error)) from error
        return pixels

    def _token_counts(self, example: Example, pixels: Mapping[str, Tensor]) -> list[int] | None:
        """Returns the tokens of each image of a conversation, if they differ."""
        if self.question_images.mode != "aspect" or not pixels:
            return None
        return [pixels[role][0].numel() // self.token_px**2 for role in example.prompt_images]

    def _tokens(
        self, example: Example, image_tokens: list[int] | None
    ) -> tuple[list[int], list[int]]:
        chat, caption = self.chat, example.caption or ""
        try:
            match example.task:
                case "text_to_image":
                    return chat.image_prompt(chat.generate_messages(caption)), []
                case "edit":
                    return chat.image_prompt(chat.edit_messages(caption)), []
                case "reconstruct":
                    return chat.image_prompt(chat.reconstruct_messages()), []
                case "contrastive":
                    return chat.tokenizer.encode(caption, allow_special=False), []
                case "plain_text":
                    return chat.plain.conversation(example.messages)
                case _:
                    return chat.conversation(example.messages, image_tokens)
        except UsageError as error:  # here the user is a file
            raise ValueError(str(error)) from error


def object_rows(
    objects: Sequence[Mapping[str, float]], things: Sequence[str], colors: Sequence[str]
) -> Tensor:
    """Returns the known objects of an image [MAX_REGIONS, 5]; see `Batch.regions`.

    Args:
        objects: what its record says of them.
        things: name of each thing label; an object of another name gets no row.
        colors: name of each color label; likewise.

    Raises:
        ValueError: if a known object lacks its place or size.
    """
    rows = torch.full((MAX_REGIONS, 5), -1.0)
    try:
        known = [
            [
                *(float(one[k]) for k in ("x", "y", "size")),
                things.index(str(one["thing"])),
                colors.index(str(one["color"])),
            ]
            for one in objects
            if str(one["thing"]) in things and str(one["color"]) in colors
        ]
    except (KeyError, TypeError) as error:
        raise ValueError(f"an object of the record is malformed: {error}") from error
    if not all(math.isfinite(value) for row in known for value in row):
        raise ValueError("an object of the record has a place or size that is no number")
    if known:
        rows[: len(known[:MAX_REGIONS])] = torch.tensor(known[:MAX_REGIONS])
    return rows


def read_pixels(files: Mapping[str, bytes], role: str, image_px: int) -> Tensor:
    """Returns one image of a record as pixels [3, P, P], float32 in [-1, 1].

    Args:
        files: the record's images.
        role: which of them.
        image_px: side of the result; other shapes are stretched.

    Raises:
        ValueError: if the record has no such image or it cannot be read.
    """
    return to_pixels(read_image(files, role), image_px)


def read_image(files: Mapping[str, bytes], role: str) -> Image.Image:
    """Returns one image of a record as RGB.

    Args:
        files: the record's images.
        role: which of them.

    Raises:
        ValueError: if the record has no such image or it cannot be read.
    """
    if role not in files:
        raise ValueError(f"the record has no image {role!r}")
    try:
        return open_image(files[role])
    except UsageError as error:
        raise ValueError(str(error)) from error


def collate(rows: Sequence[Prepared], pad_id: int) -> Batch:
    """Returns the batch of samples of one task.

    Args:
        rows: one or more samples.
        pad_id: token id beside shorter rows.
    """
    examples = [row.example for row in rows]
    task = examples[0].task
    # A prompt for an image ends in the last column, where the query tokens go on.
    ids, mask = _pad([row.ids for row in rows], pad_id, left=task in _IMAGE_TARGETS)
    labels = None
    if task in _TEXT_TARGETS:
        labels, _ = _pad([row.labels for row in rows], IGNORE_LABEL, left=False)
    prompt = [(row, role) for row in rows for role in row.example.prompt_images]
    target = [(row, row.example.target_image) for row in rows if row.example.target_image]
    regions = [row.regions for row in rows if row.regions is not None]
    return Batch(
        task=task,
        indices=torch.tensor([example.record.index for example in examples]),
        epochs=torch.tensor([example.record.epoch for example in examples]),
        input_ids=ids,
        attention_mask=mask,
        labels=labels,
        prompt_pixels=_stack_or_tuple([row.pixels.get(role) for row, role in prompt]),
        prompt_features=_stack([row.features.get(role) for row, role in prompt]),
        target_pixels=_stack([row.pixels.get(role) for row, role in target]),
        target_features=_stack([row.features.get(role) for row, role in target]),
        reference_rows=torch.arange(len(rows)) if task == "edit" else None,
        regions=torch.stack(regions) if regions else None,
    )


def _stack_or_tuple(tensors: Sequence[Tensor | None]) -> Tensor | tuple[Tensor, ...] | None:
    present = tuple(one for one in tensors if one is not None)
    if len({one.shape for one in present}) > 1 and len(present) == len(tensors):
        return present
    return _stack(tensors)


def _stack(tensors: Sequence[Tensor | None]) -> Tensor | None:
    present = [one for one in tensors if one is not None]
    return torch.stack(present) if present and len(present) == len(tensors) else None


def _pad(rows: Sequence[Sequence[int]], value: int, *, left: bool) -> tuple[Tensor, Tensor]:
    length = max(len(row) for row in rows)
    ids = np.full((len(rows), length), value, dtype=np.int64)
    mask = np.zeros((len(rows), length), dtype=bool)
    for line, row in enumerate(rows):
        place = slice(length - len(row), length) if left else slice(0, len(row))
        ids[line, place] = row
        mask[line, place] = True
    return torch.from_numpy(ids), torch.from_numpy(mask)
