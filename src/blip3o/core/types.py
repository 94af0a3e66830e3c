"""Plain data types that the layers exchange.

Axes: B rows, T text tokens, M prompt images, P image side in pixels, N image tokens, C feature
channels.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

IGNORE_LABEL = -100
"""Label of a token that text losses skip (the default of PyTorch's cross entropy)."""

IMAGE_MARK = "<image>"
"""Placeholder of one image in a message, as in LLaVA-style conversation files."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One raw member of a data source: undecoded bytes and fields.

    Args:
        key: the member's name inside its source.
        index: global sample index in the mixture; it keys all randomness of the sample.
        epoch: number of completed passes over the source.
        position: the record's position inside its source, which is also its index in a feature
            cache.
        source: name of the source.
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
        text: the words; each `IMAGE_MARK` is replaced by one image. An image in an assistant's text
            is drawn by the model.
        learned: character ranges (start, stop) of an assistant's text that the loss covers, in
            order; None for all of it. The loss covers an image if they cover its mark.
        context: number of characters at the start of a conversation's first text that concern the
            whole conversation; they precede whichever question comes first.
    """

    role: str
    text: str
    learned: tuple[tuple[int, int], ...] | None = None
    context: int = 0


class ImagePlace(NamedTuple):
    """Where an image stands in a row of text and images in turn.

    Args:
        start: index of its first placeholder in the row.
        length: number of its placeholders.
        is_drawn: whether it stands in an answer, so that the model draws it.
        is_target: whether the loss covers it; only drawn images.
        before_text: whether learned words stand after it.
    """

    start: int
    length: int
    is_drawn: bool
    is_target: bool
    before_text: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A training example that a task has built from a record; not tokenized yet.

    Args:
        task: "text_to_image", "image_to_text", "text", "edit", "reconstruct", "interleaved",
            "contrastive" or "rollout".
        record: the record it was built from.
        messages: the conversation. For a target image, one user turn with the record's words; the
            chat template adds its own words and the image marks. In contrastive training, one user
            turn with the caption.
        prompt_images: roles (keys of `record.files`) of the images in the messages, in order.
        target_image: role of the only image to generate, or None.
        regions: ground truth objects, for dense training: dicts with x, y, size in [0, 1] and
            integer labels `thing` and `color`.
    """

    task: str
    record: Record
    messages: tuple[Message, ...] = ()
    prompt_images: tuple[str, ...] = ()
    target_image: str | None = None
    regions: tuple[Mapping[str, float], ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ImageRequest:
    """A prompt to draw images for, with everything that a reward may need to judge them.

    Args:
        prompt: the words, without those of the chat template.
        fields: all fields of the record, see `Record`.
    """

    prompt: str
    fields: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Rollouts:
    """Images that an earlier policy drew for the rows of a batch, and points on their paths.

    Axes: B rows, G images of a row's prompt, D points of an image, N image tokens, K channels. The
    objective that drew the images defines the points.

    Args:
        rewards: reward of each image, [B, G].
        noisy: features at the points, [B, G, D, N, K].
        sigma: noise level of the points, [B, G, D].
        next_sigma: noise level after a step of the sampler from there, [B, G, D].
        target: where the images are after the points, [B, G, D, N, K]: the velocity of a straight
            path, or the features after the step.
        old: velocity of the policy that drew the images, [B, G, D, N, K].
        start: velocity of the start weights, [B, G, D, N, K]; None if no loss needs it.
    """

    rewards: Tensor
    noisy: Tensor
    sigma: Tensor
    next_sigma: Tensor
    target: Tensor
    old: Tensor
    start: Tensor | None = None


@dataclasses.dataclass(slots=True, kw_only=True)
class Batch:
    """Rows of one task, ready for a model.

    Args:
        task: the task of every row.
        indices: global index of each sample [B], int64.
        epochs: epoch of each sample [B], int64.
        input_ids: token ids [B, T], int64; image placeholders are already expanded. Left-padded for
            prompts of images, so that the prompt ends in the last column; right-padded otherwise.
        attention_mask: True for real tokens [B, T], bool.
        labels: next-token targets [B, T], aligned with `input_ids` (the model shifts them),
            `IGNORE_LABEL` outside the loss; None for prompts of images.
        prompt_pixels: prompt images in row order [M, 3, P, P], float32 in [-1, 1]. Images of
            questions may keep their own shapes; if these differ, a tuple of [3, H, W]. With
            `places`, all images of the rows.
        prompt_features: cached raw features of the prompt images [M, N, C], instead of pixels.
        target_pixels: images to learn from or to generate [B, 3, P, P], float32 in [-1, 1].
        decoder_pixels: the same images at the size of the image decoder [B, 3, Q, Q]; None if that
            is the size of `target_pixels`, or no loss needs them.
        target_features: their cached raw features [B, N, C], instead of or in addition to pixels.
        reference_rows: for edits, the index of each row's image to edit among the prompt images
            [B], int64; None for other tasks.
        regions: ground-truth objects [B, R, 5] as (x, y, size, thing, color), -1 where unused.
        places: for rows of text and images in turn, the places of each row's images; else None.
        requests: the request of each row, for rows whose images the model draws itself; else None.
        rollouts: the images drawn for the requests; None before they are drawn.
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
    decoder_pixels: Tensor | None = None
    target_features: Tensor | None = None
    reference_rows: Tensor | None = None
    regions: Tensor | None = None
    places: tuple[tuple[ImagePlace, ...], ...] | None = None
    requests: tuple[ImageRequest, ...] | None = None
    rollouts: Rollouts | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def to(self, device: torch.device) -> "Batch":
        """Returns the batch with every tensor on a device."""
        tensors: dict[str, Tensor | tuple[Tensor, ...]] = {
            f.name: value.to(device)
            for f in dataclasses.fields(self)
            if isinstance(value := getattr(self, f.name), Tensor)
        }
        if isinstance(self.prompt_pixels, tuple):
            tensors["prompt_pixels"] = tuple(one.to(device) for one in self.prompt_pixels)
        return dataclasses.replace(self, **tensors)


@dataclasses.dataclass(slots=True, kw_only=True)
class LossOutput:
    """Result of an objective: a sum, so that batches of any size add up exactly.

    Args:
        loss_sum: sum of the loss over all counted items, a scalar with gradient.
        count: number of items in the sum; equal to the objective's `count(batch)`.
        metrics: further sums to log, name -> (sum, count).
        text_sum: sum of a text loss of the same pass, a scalar with gradient; see `TextObjective`.
    """

    loss_sum: Tensor
    count: float
    metrics: dict[str, tuple[Tensor, float]] = dataclasses.field(default_factory=dict)
    text_sum: Tensor | None = None
