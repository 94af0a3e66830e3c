"""The plain data that layers hand to each other.

Axes: B rows, T text tokens, M prompt images, P pixels a side, N image tokens, C feature channels.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

IGNORE_LABEL = -100
"""Label of a token that no text loss looks at (PyTorch's cross entropy default)."""

IMAGE_MARK = "<image>"
"""Stands in a message for one image, as in LLaVA-style conversation files."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One raw member of a data source: bytes and fields, nothing decoded.

    Args:
        key: the member's name inside its source.
        index: global sample index in the mixture; it keys all randomness of the sample.
        epoch: how often the source was gone through before.
        position: the record's place inside its source (what a feature cache is indexed by).
        source: name of the source it came from.
        files: image bytes by role: "image", or "source" and "target" of an edit.
        fields: everything else (captions, conversations, objects, instruction).
    """

    key: str
    index: int
    epoch: int
    position: int
    source: str
    files: Mapping[str, bytes]
    fields: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation.

    Args:
        role: "system", "user" or "assistant".
        text: what is said; each `IMAGE_MARK` stands for one image.
        learned: (start, stop) of the characters of an assistant's text that are learned, in order;
            None for all of it.
        context: how many characters of a conversation's first text are what the whole conversation
            is about; whichever question is asked first, they stand before it.
    """

    role: str
    text: str
    learned: tuple[tuple[int, int], ...] | None = None
    context: int = 0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A record made into something to learn by a task; images decoded, nothing tokenized.

    Args:
        task: "text_to_image", "image_to_text", "text", "plain_text", "edit", "reconstruct" or
            "contrastive".
        record: where it came from.
        messages: the conversation. For image targets, one user turn with the record's words; the
            chat template adds its own words and the image marks. In contrastive training, one user
            turn with the caption.
        prompt_images: roles (keys of `record.files`) of the images in the messages, in order.
        target_image: role of the image to generate, or None.
        regions: ground truth objects, for dense training: dicts with x, y, size in [0, 1] and
            integer labels `thing` and `color`.
    """

    task: str
    record: Record
    messages: tuple[Message, ...] = ()
    prompt_images: tuple[str, ...] = ()
    target_image: str | None = None
    regions: tuple[Mapping[str, float], ...] = ()


@dataclasses.dataclass(slots=True, kw_only=True)
class Batch:
    """Rows of one task, ready for a model.

    Args:
        task: the task of every row.
        indices: global sample index [B], int64.
        epochs: epoch of each sample [B], int64.
        input_ids: token ids [B, T], int64; image placeholders already expanded. Left-padded where
            an image is to be generated (the prompt ends in the last column), right-padded else.
        attention_mask: True for real tokens [B, T], bool.
        labels: next-token targets [B, T], aligned with `input_ids` (the model shifts),
            `IGNORE_LABEL` where nothing is learned; None for image targets.
        prompt_pixels: images of the prompts in row order [M, 3, P, P], float32 in [-1, 1]; those
            of questions may have other shapes, and where they differ this is a tuple of [3, H, W].
        prompt_features: their cached raw image features [M, N, C] instead of pixels.
        target_pixels: images to learn from or to generate [B, 3, P, P], float32 in [-1, 1].
        target_features: their cached raw image features [B, N, C] instead of, or beside, pixels.
        reference_rows: for edits: for each row the index into the prompt images of the image
            to be edited [B], int64; None where there is none.
        regions: ground truth objects [B, R, 5] as (x, y, size, thing, color), -1 where unused.
    """

    task: str
    indices: Tensor
    epochs: Tensor
    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor | None = None
    prompt_pixels: Tensor | tuple[Tensor, ...] | None = None
    prompt_features: Tensor | None = None
    target_pixels: Tensor | None = None
    target_features: Tensor | None = None
    reference_rows: Tensor | None = None
    regions: Tensor | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def to(self, device: torch.device) -> "Batch":
        """Returns the batch with every tensor on a device."""
        tensors: dict[str, Any] = {
            f.name: value.to(device)
            for f in dataclasses.fields(self)
            if isinstance(value := getattr(self, f.name), Tensor)
        }
        if isinstance(self.prompt_pixels, tuple):
            tensors["prompt_pixels"] = tuple(one.to(device) for one in self.prompt_pixels)
        return dataclasses.replace(self, **tensors)


@dataclasses.dataclass(slots=True, kw_only=True)
class LossOutput:
    """What an objective returns: a sum, so that batches of any size add up exactly.

    Args:
        loss_sum: sum of the loss over everything counted, a scalar with gradient.
        count: how much was counted; the same number as the objective's `count(batch)`.
        metrics: further sums to log, each name -> (sum, count).
    """

    loss_sum: Tensor
    count: float
    metrics: dict[str, tuple[Tensor, float]] = dataclasses.field(default_factory=dict)
