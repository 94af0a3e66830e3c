"""The half of a pipeline that writes text: answers to questions, one by one and in batches."""

from collections.abc import Iterator, Sequence
from typing import Unpack

from blip3o.core.errors import UsageError
from blip3o.core.types import Message
from blip3o.generate.checks import texts_of
from blip3o.generate.placement import PlacedPipeline
from blip3o.generate.requests import ImageInput, as_images, messages_of, question_token_counts
from blip3o.generate.text import Writer, asked
from blip3o.generate.text_settings import ChoiceSettings, TextSampling, TextSettings
from blip3o.models.unified import UnifiedModel
from blip3o.text.chat import ChatTemplate
from blip3o.text.tokenizer import Tokenizer


class TextPipeline(PlacedPipeline):
    """Text and images in, text out.

    Args:
        model: the model, in evaluation mode.
        tokenizer: its tokenizer.
    """

    def __init__(self, model: UnifiedModel, tokenizer: Tokenizer) -> None:
        super().__init__(model, tokenizer)
        self.chat_template = ChatTemplate(
            tokenizer, model.config.chat, model.config.num_prompt_image_tokens
        )
        self._writer = Writer(model, tokenizer, self.chat_template)

    def ask(
        self,
        image: ImageInput | Sequence[ImageInput] | None,
        question: str,
        **settings: Unpack[TextSettings],
    ) -> str:
        """Returns the answer to a question about one or several images, or about none.

        Args:
            image: images the question is about, in order; None for text only.
            question: the question.
            settings: those of `TextSampling`, by name; the likeliest tokens by default.

        Raises:
            UsageError: for an empty question, an image that cannot be read, or what `stream`
                refuses.
        """
        return "".join(self.stream(*asked(image, question), **settings)).strip()

    def ask_several(
        self,
        image: ImageInput | Sequence[ImageInput] | None,
        question: str,
        num_answers: int,
        **settings: Unpack[TextSettings],
    ) -> list[str]:
        """Returns several answers to one question, which the model reads once.

        Args:
            image: as for `ask`.
            question: as for `ask`.
            num_answers: answers; number k is the one that `ask` gives with seed + k.
            settings: as for `ask`.

        Raises:
            UsageError: for a number under 1, or what `ask` refuses.
        """
        if num_answers < 1:
            raise UsageError(f"num_answers must be at least 1, got {num_answers}")
        sampling = TextSampling.of(**settings)
        return self._writer.several(*asked(image, question), num_answers, sampling)

    def stream(
        self,
        messages: Sequence[Message],
        images: Sequence[ImageInput] = (),
        **settings: Unpack[TextSettings],
    ) -> Iterator[str]:
        """Yields the next answer of a conversation piece by piece.

        Args:
            messages: the turns so far, ending with the user's.
            images: one for each image mark in the messages, in order.
            settings: those of `TextSampling`, by name; the likeliest tokens by default.

        Raises:
            UsageError: if marks and images differ in number, the conversation is too long, an
                image cannot be read, or a setting is out of range.
        """
        sampling = TextSampling.of(**settings)
        yield from self._writer.stream(messages_of(messages), as_images(images), sampling)

    def answer_batch(
        self,
        images: Sequence[ImageInput],
        questions: Sequence[str],
        max_new_tokens: int = 64,
        **settings: Unpack[ChoiceSettings],
    ) -> list[str]:
        """Returns the answers to one question for each image, in one batch.

        Args:
            images: one for each question.
            questions: the questions.
            max_new_tokens: longest answer.
            settings: the others of `TextSampling`, by name; every question has the same seed, so
                its answer is the one that `ask` gives.

        Raises:
            UsageError: for another number of images than of questions, or what `ask` refuses.
        """
        sampling = TextSampling.of(max_new_tokens=max_new_tokens, **settings)
        texts = texts_of(questions, "question")
        return self._writer.answers(as_images(images), texts, sampling)

    def prompt_length(
        self, messages: Sequence[Message], image_sizes: Sequence[tuple[int, int]] = ()
    ) -> int:
        """Returns how many tokens the model reads of a conversation, without reading it.

        Args:
            messages: the turns so far, ending with the user's.
            image_sizes: width and height in pixels of each image, in the order of the marks.

        Raises:
            UsageError: if marks and images differ in number, or for an image too thin to be
                looked at.
        """
        counts = question_token_counts(self.model.config, image_sizes)
        return len(self.chat_template.text_prompt(messages, counts))
