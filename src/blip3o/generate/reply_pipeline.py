"""The part of the pipeline that replies with text and images in turn."""

import abc
from collections.abc import Sequence
from typing import Any, TypedDict, Unpack

from PIL import Image

from blip3o.core.types import Message
from blip3o.generate.checks import check_prompt, check_sampling, texts_of
from blip3o.generate.interleaved import Composer, DrawImages, Reply
from blip3o.generate.requests import ImageInput, as_images, messages_of
from blip3o.generate.text_pipeline import TextPipeline
from blip3o.generate.text_settings import TextSampling, TextSettings
from blip3o.models.unified import UnifiedModel
from blip3o.text.tokenizer import Tokenizer

_MAX_IMAGES = 4
"""Largest number of images of a reply, if nothing else is asked for."""


class DrawingSettings(TypedDict, total=False):
    """Settings of the images of a reply; None, or none given, is the model's own number."""

    num_inference_steps: int | None
    guidance_scale: float | None
    num_decoder_steps: int | None
    decoder_guidance_scale: float | None


class ReplySettings(DrawingSettings, TextSettings, total=False):
    """Settings of `Blip3oPipeline.reply`: those of the images and those of `TextSampling`.

    The seed of the text is also that of the images.
    """

    max_images: int
    """Largest number of images of a reply, by default 4."""


class ReplyPipeline(TextPipeline, abc.ABC):
    """Text and images in, text and images in turn out.

    Args:
        model: the model, in evaluation mode.
        tokenizer: its tokenizer.
    """

    def __init__(self, model: UnifiedModel, tokenizer: Tokenizer) -> None:
        super().__init__(model, tokenizer)
        self._composer = Composer(model, self.chat_template, self._writer.decoder)

    @abc.abstractmethod
    def _drawing(self, **settings: Unpack[DrawingSettings]) -> DrawImages:
        """Returns a function that draws and decodes the images of a plan."""

    def edit_in_turn(
        self,
        image: ImageInput | Sequence[ImageInput],
        instructions: Sequence[str],
        *,
        seed: int | None = None,
        **settings: Unpack[DrawingSettings],
    ) -> list[Image.Image]:
        """Returns the images after each of several instructions, which build on each other.

        The model reads the whole conversation before each image: all images and instructions so
        far. A model that learned the task `interleaved` knows this form.

        Args:
            image: one image or several images that the first instruction is about.
            instructions: the instructions in order.
            seed: seed of the images; None draws one.
            settings: see `DrawingSettings`.

        Raises:
            UsageError: if an instruction is empty, the conversation becomes too long, or as `edit`
                does.
        """
        texts, images = texts_of(instructions, "instruction"), as_images(image)
        sampling = TextSampling(seed=seed).seeded()
        messages: list[Message] = []
        made: list[Image.Image] = []
        for text in texts:
            check_prompt(text)
            num_new = 0 if messages else len(images)
            messages += self.chat_template.edit_messages(text, num_new)
            draw_images = self._drawing(**settings)
            (reply,) = self._composer.compose(
                [(messages, [*images, *made])], sampling, draw_images, max_images=1, only_image=True
            )
            messages.append(reply.message)
            made += reply.images
        return made

    def reply(
        self,
        messages: Sequence[Message],
        images: Sequence[ImageInput] = (),
        **settings: Unpack[ReplySettings],
    ) -> Reply:
        """Returns the next answer of a conversation, text and images in turn.

        Where the model writes the mark of an image, an image is drawn.

        Args:
            messages: the turns so far, ending with the user's; `Reply.message` is one of the
                model's earlier turns.
            images: one for each image mark in the messages, in order.
            settings: see `ReplySettings`.

        Raises:
            UsageError: if marks and images differ in number, the conversation is too long, an
                image cannot be read, or a setting is out of range.
        """
        return self.reply_batch([(messages, images)], **settings)[0]

    def reply_batch(
        self,
        conversations: Sequence[tuple[Sequence[Message], Sequence[ImageInput]]],
        **settings: Unpack[ReplySettings],
    ) -> list[Reply]:
        """Returns the next answers of several conversations.

        All have the same seed, so each answer is the one that `reply` gives.

        Args:
            conversations: messages and images of each, as for `reply`.
            settings: see `ReplySettings`.

        Raises:
            UsageError: as `reply` does.
        """
        text: dict[str, Any] = dict(settings)
        max_images = text.pop("max_images", _MAX_IMAGES)
        check_sampling(None, None, max_images)
        drawing = {name: text.pop(name, None) for name in DrawingSettings.__annotations__}
        rows = [(messages_of(messages), as_images(images)) for messages, images in conversations]
        sampling = TextSampling.of(**text).seeded()
        return self._composer.compose(
            rows, sampling, self._drawing(**drawing), max_images=max_images
        )
