"""Converts examples to arrays and examples of one task to a batch."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from blip3o.core.errors import UsageError
from blip3o.core.types import IGNORE_LABEL, Batch, Example, ImagePlace, ImageRequest
from blip3o.data.cache_reader import FeatureCache
from blip3o.data.images import read_image
from blip3o.data.tasks import get_task
from blip3o.imaging.fit import ImageFitConfig, aspect_pixels
from blip3o.imaging.pixels import to_pixels
from blip3o.text.chat import ChatTemplate

MAX_REGIONS = 8
"""Maximum number of known objects per image in a batch."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """One example as arrays.

    Args:
        example: the example.
        ids: token ids of the prompt or the conversation.
        labels: label of each token; empty if no text is learned.
        pixels: images [3, P, P] by role.
        decoder_pixels: the target image at another size [3, Q, Q], see `Batch.decoder_pixels`.
        features: cached features [N, C] of images by role.
        regions: known objects [MAX_REGIONS, 5], see `Batch.regions`; None if the task needs none.
        places: places of the images in `ids`, for rows of text and images in turn.
    """

    example: Example
    ids: list[int]
    labels: list[int]
    pixels: Mapping[str, Tensor]
    decoder_pixels: Tensor | None
    features: Mapping[str, Tensor]
    regions: Tensor | None
    places: tuple[ImagePlace, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preparer:
    """Decodes the images and tokenizes the text of single examples.

    Args:
        chat: the model's chat template.
        image_px: side of the images in pixels.
        max_text_tokens: maximum number of tokens in a row.
        things: name of each thing label; objects with other names get no region.
        colors: name of each color label; objects with other colors get no region.
        cache: image features to use instead of decoding; None decodes all images.
        keep_pixels: whether target images are decoded even if their features are cached.
        decoder_px: side of `Batch.decoder_pixels`, prepared wherever target images are decoded;
            None prepares none.
        question_images: how images in conversations are fitted; all other images are stretched.
        token_px: side in pixels of a vision tower's token, for images that keep their shape.
    """

    chat: ChatTemplate
    image_px: int
    max_text_tokens: int
    things: Sequence[str] = ()
    colors: Sequence[str] = ()
    cache: FeatureCache | None = None
    keep_pixels: bool = False
    decoder_px: int | None = None
    question_images: ImageFitConfig = dataclasses.field(default_factory=ImageFitConfig)
    token_px: int = 1

    def prepare(self, example: Example) -> Prepared:
        """Returns an example as arrays.

        Raises:
            ValueError: if the example is unusable: its text is too long or invalid, or an image
                is missing or unreadable.
            UsageError: if the feature cache is unusable.
        """
        task = get_task(example.task)
        pixels = self._question_pixels(example)
        ids, labels = self._text(example, pixels)
        features: dict[str, Tensor] = {}
        decoder_pixels = None
        roles = image_roles(example)
        # The cache holds only the first image of a conversation, so with several all are decoded.
        cache = self.cache if roles <= {*task.roles} else None
        for role in sorted(roles - pixels.keys()):
            if cache is not None:
                record = example.record
                features[role] = cache.get(record.source, role, record.position)
            if cache is None or (self.keep_pixels and role == example.target_image):
                image = read_image(example.record.files, role)
                pixels[role] = to_pixels(image, self.image_px)
                if self.decoder_px is not None and role == example.target_image:
                    decoder_pixels = to_pixels(image, self.decoder_px)
        regions = None
        if task.needs_regions:
            regions = object_rows(example.regions, self.things, self.colors)
        return Prepared(
            example=example,
            ids=ids,
            labels=labels,
            pixels=pixels,
            decoder_pixels=decoder_pixels,
            features=features,
            regions=regions,
            places=tuple(self.chat.image_places(ids, labels)) if task.target == "both" else (),
        )

    def check(self, example: Example) -> None:
        """Refuses an example whose text `prepare` would refuse; most images are not read.

        Raises:
            ValueError: if its text is too long or invalid.
        """
        self._text(example, self._question_pixels(example))

    def _text(self, example: Example, pixels: Mapping[str, Tensor]) -> tuple[list[int], list[int]]:
        make_tokens = get_task(example.task).tokens
        counts = self._token_counts(example, pixels)
        try:
            ids, labels = make_tokens(self.chat, example.messages, counts)
        except UsageError as error:  # bad data is not the caller's mistake
            raise ValueError(str(error)) from error
        if len(ids) > self.max_text_tokens:
            raise ValueError(f"{len(ids)} tokens are more than {self.max_text_tokens}")
        return ids, labels

    def _question_pixels(self, example: Example) -> dict[str, Tensor]:
        """Returns the images of a conversation by role; none if they are just stretched."""
        fit = self.question_images
        if get_task(example.task).target != "text" or fit.mode == "stretch":
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
        """Returns the number of tokens of each image; None if all have the template's number."""
        if self.question_images.mode != "aspect" or not pixels:
            return None
        return [pixels[role][0].numel() // self.token_px**2 for role in example.prompt_images]


def image_roles(example: Example) -> set[str]:
    """Returns the roles of all images of an example."""
    return {*example.prompt_images, *filter(None, [example.target_image])}


def object_rows(
    objects: Sequence[Mapping[str, float]], things: Sequence[str], colors: Sequence[str]
) -> Tensor:
    """Returns the known objects of a record as [MAX_REGIONS, 5]; see `Batch.regions`.

    An object gets no row if its name is not in `things` or its color is not in `colors`.

    Raises:
        ValueError: if an object lacks its name, color, place or size.
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
        raise ValueError("an object of the record has a place or size that is not a finite number")
    if known:
        rows[: len(known[:MAX_REGIONS])] = torch.tensor(known[:MAX_REGIONS])
    return rows


def collate(rows: Sequence[Prepared], pad_id: int) -> Batch:
    """Returns the batch of one or more samples of one task; `pad_id` fills shorter rows."""
    examples = [row.example for row in rows]
    name = examples[0].task
    task = get_task(name)
    ids, mask = _pad([row.ids for row in rows], pad_id, left=task.pads_left)
    labels = None
    if task.target in ("text", "both"):
        labels, _ = _pad([row.labels for row in rows], IGNORE_LABEL, left=False)
    prompt = [(row, role) for row in rows for role in row.example.prompt_images]
    target = [(row, row.example.target_image) for row in rows if row.example.target_image]
    regions = [row.regions for row in rows if row.regions is not None]
    return Batch(
        task=name,
        indices=torch.tensor([example.record.index for example in examples]),
        epochs=torch.tensor([example.record.epoch for example in examples]),
        input_ids=ids,
        attention_mask=mask,
        labels=labels,
        prompt_pixels=_stack_or_tuple([row.pixels.get(role) for row, role in prompt]),
        prompt_features=_stack([row.features.get(role) for row, role in prompt]),
        target_pixels=_stack([row.pixels.get(role) for row, role in target]),
        decoder_pixels=_stack([row.decoder_pixels for row in rows]),
        target_features=_stack([row.features.get(role) for row, role in target]),
        reference_rows=torch.arange(len(rows)) if task.edits_prompt_image else None,
        regions=torch.stack(regions) if regions else None,
        places=tuple(row.places for row in rows) if task.target == "both" else None,
        requests=tuple(map(_request_of, examples)) if task.is_judged else None,
    )


def _request_of(example: Example) -> ImageRequest:
    return ImageRequest(prompt=example.messages[-1].text, fields=example.record.fields)


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
