"""Examples of one task to a batch: pictures decoded, text tokenized, rows padded."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from blip3o.core.types import IGNORE_LABEL, Batch, Example
from blip3o.imaging.load import open_image
from blip3o.imaging.pixels import to_pixels
from blip3o.text.chat import ChatTemplate

if TYPE_CHECKING:
    from blip3o.data.cache import FeatureCache

MAX_REGIONS = 8
"""Most ground-truth objects of a picture that a batch carries."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """An example turned into arrays; still one sample.

    Args:
        example: where it came from.
        ids: token ids of the prompt or the conversation.
        labels: what to learn of them; empty for picture targets.
        pictures: pixels [3, P, P] or cached features [N, C] by role.
    """

    example: Example
    ids: list[int]
    labels: list[int]
    pictures: Mapping[str, Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preparer:
    """Decodes and tokenizes single examples.

    Args:
        chat: the model's chat template.
        image_px: side of the pictures.
        max_text_tokens: longest row of tokens.
        things: name of each thing label; names outside get no region.
        colors: name of each color label.
        cache: features to use instead of decoding pictures; None decodes.
        keep_pixels: whether targets are decoded although their features are cached.
    """

    chat: ChatTemplate
    image_px: int
    max_text_tokens: int
    things: Sequence[str] = ()
    colors: Sequence[str] = ()
    cache: "FeatureCache | None" = None
    keep_pixels: bool = False

    def prepare(self, example: Example) -> Prepared:
        """Returns an example as arrays.

        Args:
            example: what a task made.

        Raises:
            ValueError: if the text is too long or a picture is missing.
            UsageError: if a picture cannot be read.
        """
        ids, labels = self._tokens(example)
        if len(ids) > self.max_text_tokens:
            raise ValueError(f"{len(ids)} tokens are more than {self.max_text_tokens}")
        pictures: dict[str, Tensor] = {}
        roles = {*example.prompt_images, *filter(None, [example.target_image])}
        for role in sorted(roles):
            if self.cache is not None:
                record = example.record
                pictures[f"{role}:features"] = self.cache.get(record.source, role, record.position)
            if self.cache is None or (self.keep_pixels and role == example.target_image):
                pictures[f"{role}:pixels"] = self._pixels(example, role)
        return Prepared(example=example, ids=ids, labels=labels, pictures=pictures)

    def _pixels(self, example: Example, role: str) -> Tensor:
        if role not in example.record.files:
            raise ValueError(f"the record has no picture {role!r}")
        return to_pixels(open_image(example.record.files[role]), self.image_px)

    def _tokens(self, example: Example) -> tuple[list[int], list[int]]:
        match example.task:
            case "text_to_image":
                messages = self.chat.generate_messages(example.caption or "")
                return self.chat.image_prompt(messages), []
            case "edit":
                messages = self.chat.edit_messages(example.caption or "")
                return self.chat.image_prompt(messages), []
            case "reconstruct":
                return self.chat.image_prompt(self.chat.reconstruct_messages()), []
            case "contrastive":
                return self.chat.tokenizer.encode(example.caption or "", allow_special=False), []
            case _:
                return self.chat.conversation(example.messages)

    def regions(self, example: Example) -> Tensor:
        """Returns the objects of an example, [MAX_REGIONS, 5]; see `Batch.regions`."""
        rows = torch.full((MAX_REGIONS, 5), -1.0)
        known = [
            (one["x"], one["y"], one["size"], self.things.index(thing), self.colors.index(color))
            for one in example.regions
            if (thing := str(one["thing"])) in self.things
            and (color := str(one["color"])) in self.colors
        ][:MAX_REGIONS]
        if known:
            rows[: len(known)] = torch.tensor(known)
        return rows


def collate(rows: Sequence[Prepared], preparer: Preparer) -> Batch:
    """Returns the batch of samples of one task.

    Args:
        rows: one or more samples.
        preparer: what made them.
    """
    examples = [row.example for row in rows]
    task = examples[0].task
    to_picture = task in ("text_to_image", "edit", "reconstruct")
    pad_id = preparer.chat.tokenizer.pad_id
    ids, mask = _pad([row.ids for row in rows], pad_id, left=to_picture)
    has_labels = task in ("image_to_text", "text")
    labels = _pad([row.labels for row in rows], IGNORE_LABEL, left=False)[0] if has_labels else None
    prompt = [(row, role) for row in rows for role in row.example.prompt_images]
    target = [(row, row.example.target_image) for row in rows if row.example.target_image]
    return Batch(
        task=task,
        indices=torch.tensor([example.record.index for example in examples]),
        epochs=torch.tensor([example.record.epoch for example in examples]),
        input_ids=ids,
        attention_mask=mask,
        labels=labels,
        prompt_pixels=_stack(prompt, "pixels"),
        prompt_features=_stack(prompt, "features"),
        target_pixels=_stack(target, "pixels"),
        target_features=_stack(target, "features"),
        reference_rows=torch.arange(len(rows)) if task == "edit" else None,
        regions=torch.stack([preparer.regions(example) for example in examples])
        if task == "contrastive"
        else None,
    )


def _stack(pictures: Sequence[tuple[Prepared, str]], what: str) -> Tensor | None:
    found = [row.pictures.get(f"{role}:{what}") for row, role in pictures]
    present = [one for one in found if one is not None]
    return torch.stack(present) if present and len(present) == len(found) else None


def _pad(rows: Sequence[Sequence[int]], value: int, *, left: bool) -> tuple[Tensor, Tensor]:
    length = max(len(row) for row in rows)
    ids = np.full((len(rows), length), value, dtype=np.int64)
    mask = np.zeros((len(rows), length), dtype=bool)
    for line, row in enumerate(rows):
        place = slice(length - len(row), length) if left else slice(0, len(row))
        ids[line, place] = row
        mask[line, place] = True
    return torch.from_numpy(ids), torch.from_numpy(mask)
