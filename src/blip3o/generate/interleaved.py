"""Writes replies of text and images in turn.

The model writes text token by token. Where it writes the mark of an image, an image is drawn from
everything before it. Then the clean image, never the noisy one, becomes part of the row, the end of
the image is added, and the text continues.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from blip3o.core.errors import UsageError
from blip3o.core.rng import image_generator
from blip3o.core.types import IGNORE_LABEL, IMAGE_MARK, ImagePlace, Message
from blip3o.generate.answer import Answer
from blip3o.generate.decoding import RowDecoder
from blip3o.generate.requests import ImageInput, check_length, square_pixels
from blip3o.generate.text_settings import TextSampling
from blip3o.models.backbones.ragged import RowCache
from blip3o.models.generators.plan import Plan, join_plans
from blip3o.models.prompts import Prompts, Rows
from blip3o.models.unified import UnifiedModel
from blip3o.text.chat import ChatTemplate, said_back

DrawImages = Callable[[Plan, list[torch.Generator]], tuple[Tensor, list[Image.Image]]]
"""Returns features [B, N, K] and images of the prompts of a plan, one generator for each."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reply:
    """An answer of text and images.

    Args:
        parts: texts and images in order, as they were written; no text is empty.
        reason: why it ended: "stop" for the model's own end or a stop text, "length" for a limit.
    """

    parts: tuple[str | Image.Image, ...]
    reason: Literal["stop", "length"]

    @property
    def text(self) -> str:
        """The texts without the images."""
        return "".join(part for part in self.parts if isinstance(part, str)).strip()

    @property
    def images(self) -> list[Image.Image]:
        """The images in order."""
        return [part for part in self.parts if isinstance(part, Image.Image)]

    @property
    def message(self) -> Message:
        """The reply as a turn of the conversation; each image is a mark."""
        texts = [said_back(part) if isinstance(part, str) else IMAGE_MARK for part in self.parts]
        return Message(role="assistant", text="".join(texts))


class _Row:
    """A conversation, and the reply that grows after it.

    Args:
        ids: token ids of the conversation, with the placeholders of all images.
        pixels: its images, [3, P, P] each.
        places: their places.
        answer: the text of the reply.
        cache: keys and values of `ids`.

    Attributes:
        ids: token ids so far; the last one may not be in the cache yet.
        num_images: number of images of the reply so far.
        num_earlier: number of images in earlier answers.
    """

    def __init__(
        self,
        ids: list[int],
        pixels: list[Tensor],
        places: Sequence[ImagePlace],
        answer: Answer,
        cache: RowCache,
    ) -> None:
        self.ids = ids
        self.pixels = pixels
        self.answer = answer
        self.cache = cache
        self.num_images = 0
        self.num_earlier = sum(place.is_drawn for place in places)
        self._parts: list[str | Image.Image] = []
        self._shown = 0

    def add_image(self, image: Image.Image) -> None:
        """Adds an image after the text so far."""
        self.num_images += 1
        self._end_text()
        self._parts.append(image)

    def reply(self) -> Reply:
        """Returns the finished reply."""
        self._end_text()
        return Reply(parts=tuple(self._parts), reason=self.answer.reason or "stop")

    def _end_text(self) -> None:
        new = self.answer.text[self._shown :]
        self._shown = len(self.answer.text)
        self._parts += [new] if new else []


class Composer:
    """Reads conversations and writes replies to them.

    Args:
        model: the model, in evaluation mode.
        chat_template: the model's chat format.
        decoder: adds tokens to rows.
    """

    def __init__(
        self, model: UnifiedModel, chat_template: ChatTemplate, decoder: RowDecoder
    ) -> None:
        self._model = model
        self._chat = chat_template
        self._decoder = decoder
        config = model.config
        self._max_positions = config.backbone.max_positions
        self._num_tokens = config.num_prompt_image_tokens
        # Either form of an image, its mark and its end.
        self._image_room = max(self._num_tokens, config.num_reserved_positions) + 2

    @torch.no_grad()
    def compose(
        self,
        conversations: Sequence[tuple[Sequence[Message], Sequence[ImageInput]]],
        sampling: TextSampling,
        draw_images: DrawImages,
        *,
        max_images: int,
        only_image: bool = False,
    ) -> list[Reply]:
        """Returns replies to several conversations; none depends on the others.

        Rows in text mode go on together until each has ended or waits for an image; then the
        waiting images are drawn together.

        Args:
            conversations: turns, ending with the user's, and an image for each mark in them.
            sampling: settings of the text, with a seed; the seed also gives the images.
            draw_images: draws and decodes.
            max_images: largest number of images in a reply.
            only_image: the reply is one image without text.

        Raises:
            UsageError: if marks and images differ in number, a conversation is too long, or an
                image cannot be read.
        """
        self._decoder.refresh()
        rows = []
        for messages, images in conversations:
            row, logits = self._start(messages, images, sampling)
            rows.append(row)
            if only_image:
                row.ids.append(self._chat.tokenizer.image_start_id)
            else:
                self._write(row, logits, max_images)
        if only_image:
            self._draw(rows, sampling, draw_images)
            return [row.reply() for row in rows]
        while going := [row for row in rows if row.answer.reason is None]:
            writing = [row for row in going if not row.answer.awaits_image]
            if writing:
                self._advance(writing, max_images)
            else:
                drawn = self._draw(going, sampling, draw_images)
                for row, (clean, image) in zip(going, drawn, strict=True):
                    self._continue(row, clean, image, max_images)
        return [row.reply() for row in rows]

    def _start(
        self, messages: Sequence[Message], images: Sequence[ImageInput], sampling: TextSampling
    ) -> tuple[_Row, Tensor]:
        """Returns a row without an answer, and the logits of its first token."""
        model = self._model
        marks = sum(message.text.count(IMAGE_MARK) for message in messages)
        if marks != len(images):
            raise UsageError(f"{marks} image marks in the messages for {len(images)} images")
        ids = self._chat.text_prompt(messages, draws=True)
        check_length(model, ids, "the conversation")
        longest = sampling.max_new_tokens or model.config.sampling.max_new_tokens
        limit = min(longest, self._max_positions - len(ids))
        answer = Answer(self._chat, sampling, limit, draws=True)
        pixels = list(square_pixels(model, images)) if images else []
        rows = self._rows(ids, pixels)
        cache, logits = self._read(rows, pixels)
        return _Row(ids, pixels, rows.places[0], answer, cache), logits

    def _read(self, rows: Rows, pixels: list[Tensor]) -> tuple[RowCache, Tensor]:
        """Returns keys and values of a row, and the logits [V] of its next token."""
        model = self._model
        drawn = [one for one, place in zip(pixels, rows.places[0], strict=True) if place.is_drawn]
        shape = (0, *model.config.feature_shape)
        clean = torch.zeros(shape, device=model.device, dtype=model.dtype)
        if drawn and model.generator.appends_images:
            raw = model.encode_images(torch.stack(drawn))
            clean = model.normalizer(raw.to(model.dtype))
        cache, state = model.generator.start_row(model.backbone, rows, clean)
        return cache, self._decoder.logits(state)[0]

    def _rows(self, ids: list[int], pixels: list[Tensor]) -> Rows:
        input_ids = torch.tensor([ids], device=self._model.device)
        return Rows(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids, dtype=torch.bool),
            places=(tuple(self._chat.image_places(ids, [IGNORE_LABEL] * len(ids))),),
            images=self._model.prompt_images(torch.stack(pixels) if pixels else None),
        )

    def _write(self, row: _Row, logits: Tensor, max_images: int) -> None:
        """Adds the next token of a reply."""
        room = self._max_positions - row.cache.position
        if row.num_images >= max_images or room < self._image_room:
            logits[self._chat.tokenizer.image_start_id] = -torch.inf
        row.answer.add(logits, int(logits.argmax()))
        row.ids.append(row.answer.tokens[-1])

    def _advance(self, rows: Sequence[_Row], max_images: int) -> None:
        """Reads the last token of some rows and writes the next one."""
        logits = self._decoder.advance([row.cache for row in rows], [row.ids[-1] for row in rows])
        for row, own in zip(rows, logits, strict=True):
            self._write(row, own, max_images)

    def _draw(
        self, rows: Sequence[_Row], sampling: TextSampling, draw_images: DrawImages
    ) -> list[tuple[Tensor, Image.Image]]:
        """Draws the images that rows wait for; returns features [1, N, K] and image of each."""
        plan = join_plans([self._plan(row) for row in rows])
        seeds = [
            image_generator(sampling.seed or 0, 0, row.num_earlier + row.num_images) for row in rows
        ]
        features, images = draw_images(plan, seeds)
        for row, image in zip(rows, images, strict=True):
            row.add_image(image)
        return list(zip(features.split(1), images, strict=True))

    def _plan(self, row: _Row) -> Plan:
        """Returns the plan of the image after a row, whose last token is the image's mark."""
        model = self._model
        if model.generator.appends_images:
            self._decoder.advance([row.cache], row.ids[-1:])
            return model.generator.plan_row(model.backbone, row.cache)
        rows = self._rows(row.ids, row.pixels)
        prompts = Prompts(
            input_ids=rows.input_ids, attention_mask=rows.attention_mask, images=rows.images
        )
        return model.plan(prompts)

    def _continue(self, row: _Row, clean: Tensor, image: Image.Image, max_images: int) -> None:
        """Makes a clean image and its end part of a row, and writes the token after it."""
        model = self._model
        row.ids += self._chat.drawn_image(self._num_tokens)
        if model.generator.appends_images:
            row.cache = model.generator.keep_image(model.backbone, row.cache, clean)
            (logits,) = self._decoder.advance([row.cache], row.ids[-1:])
        else:
            row.pixels += square_pixels(model, [image])
            row.cache, logits = self._read(self._rows(row.ids, row.pixels), row.pixels)
        row.answer.resume(self._max_positions - row.cache.position)
        if row.answer.reason is None:
            self._write(row, logits, max_images)
