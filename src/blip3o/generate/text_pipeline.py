"""The part of the pipeline that generates text: answers to questions, alone and in batches."""

from collections.abc import Iterator, Sequence
from typing import Unpack

import torch
from torch import Tensor

from blip3o.core.errors import UsageError
from blip3o.core.types import IMAGE_MARK, Message
from blip3o.generate.answer import Answer
from blip3o.generate.checks import check_question, texts_of
from blip3o.generate.placement import PlacedPipeline
from blip3o.generate.requests import (
    ImageInput,
    as_images,
    messages_of,
    question_pixels,
    question_token_counts,
)
from blip3o.generate.text import Writer, generate_tokens, left_pad
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
        self._writer = Writer(model, self.chat_template)

    def ask(
        self,
        image: ImageInput | Sequence[ImageInput] | None,
        question: str,
        **settings: Unpack[TextSettings],
    ) -> str:
        """Returns the answer to a question about one image, several images or no image.

        Args:
            image: images that the question is about, in order; None for text only.
            question: the question.
            settings: settings of `TextSampling`, by name; greedy by default.

        Raises:
            UsageError: for an empty question, an image that cannot be read, or an error of
                `stream`.
        """
        return "".join(self.stream(*_conversation(image, question), **settings)).strip()

    def ask_several(
        self,
        image: ImageInput | Sequence[ImageInput] | None,
        question: str,
        num_answers: int,
        **settings: Unpack[TextSettings],
    ) -> list[str]:
        """Returns several answers to one question, which the model reads once.

        Answer k, from 0, is the answer of `ask` with seed + k. The other arguments are those of
        `ask`.

        Raises:
            UsageError: if `num_answers` is less than 1, or as `ask` does.
        """
        if num_answers < 1:
            raise UsageError(f"num_answers must be at least 1, got {num_answers}")
        sampling = TextSampling.of(**settings)
        ids, read = self._writer.read(*_conversation(image, question))
        sampling, prompt = sampling.seeded(), read()
        answers = [self._writer.answer(sampling, len(ids), k) for k in range(num_answers)]
        likeliest = int(prompt.logits.argmax())
        for answer in answers:
            answer.add(prompt.logits, likeliest)
        going = [(answer, prompt.row.fork()) for answer in answers if answer.reason is None]
        while going:
            tokens = [answer.tokens[-1] for answer, _ in going]
            logits = self._writer.decoder.advance([row for _, row in going], tokens)
            best = logits.argmax(-1).tolist()
            for (answer, _), own, token in zip(going, logits, best, strict=True):
                answer.add(own, token)
            going = [(answer, row) for answer, row in going if answer.reason is None]
        return [answer.text.strip() for answer in answers]

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
            settings: settings of `TextSampling`, by name; greedy by default.

        Raises:
            UsageError: if marks and images differ in number, the conversation is too long, an
                image cannot be read, or a setting is out of range.
        """
        sampling = TextSampling.of(**settings)
        ids, read = self._writer.read(messages_of(messages), as_images(images))
        answer = self._writer.answer(sampling.seeded(), len(ids))
        prompt = read()
        logits = prompt.logits
        while True:
            piece = answer.add(logits, int(logits.argmax()))
            if piece:
                yield piece
            if answer.reason is not None:
                return
            (logits,) = self._writer.decoder.advance([prompt.row], answer.tokens[-1:])

    def answer_batch(
        self,
        images: Sequence[ImageInput],
        questions: Sequence[str],
        max_new_tokens: int = 64,
        **settings: Unpack[ChoiceSettings],
    ) -> list[str]:
        """Returns the answers to several questions, each about its own image, in one batch.

        Args:
            images: one image for each question.
            questions: the questions.
            max_new_tokens: longest answer in tokens.
            settings: other settings of `TextSampling`, by name. All questions have the same seed,
                so each answer is the one that `ask` gives.

        Raises:
            UsageError: if images and questions differ in number, or as `ask` does.
        """
        sampling = TextSampling.of(max_new_tokens=max_new_tokens, **settings)
        texts, writer = texts_of(questions, "question"), self._writer
        given = as_images(images)
        if len(given) != len(texts):
            raise UsageError(f"{len(given)} images for {len(texts)} questions")
        if not texts:
            return []
        pixels, counts = question_pixels(self.model, given)
        rows = []
        for number, question in enumerate(texts):
            if not question.strip():
                raise UsageError("a question is empty")
            turn = Message(role="user", text=f"{IMAGE_MARK}\n{question}")
            rows.append(writer.prompt([turn], 1, counts and [counts[number]]))
        pad_id = self.tokenizer.pad_id
        ids, mask = left_pad(rows, pad_id)
        sampling = sampling.seeded()
        answers = [writer.answer(sampling, len(row)) for row in rows]
        steps = generate_tokens(
            writer.decoder,
            ids.to(self.device),
            mask.to(self.device),
            writer.images(pixels),
            stop_id=self.chat_template.turn_end_id,
            pad_id=pad_id,
            max_new_tokens=writer.limit(sampling, ids.shape[1]),
            choose=lambda logits: _next_tokens(answers, logits, pad_id),
        )
        for _ in steps:
            pass
        return [answer.text.strip() for answer in answers]

    def prompt_length(
        self, messages: Sequence[Message], image_sizes: Sequence[tuple[int, int]] = ()
    ) -> int:
        """Returns the number of tokens of a conversation, without reading it.

        Args:
            messages: the turns so far, ending with the user's.
            image_sizes: width and height in pixels of each image, in the order of the marks.

        Raises:
            UsageError: if marks and images differ in number, or an image is too thin.
        """
        counts = question_token_counts(self.model.config, image_sizes)
        return len(self.chat_template.text_prompt(messages, counts))


def _conversation(
    image: ImageInput | Sequence[ImageInput] | None, question: str
) -> tuple[list[Message], list[ImageInput]]:
    """Returns a question as a conversation, and the images of its marks."""
    (question,) = texts_of([question], "question")
    check_question(question)
    images: list[ImageInput] = [] if image is None else as_images(image)
    text = f"{IMAGE_MARK}\n" * len(images) + question.strip()
    return [Message(role="user", text=text)], images


def _next_tokens(answers: Sequence[Answer], logits: Tensor, pad_id: int) -> Tensor:
    """Adds a token to each unfinished answer; returns the tokens, `pad_id` for finished ones."""
    likeliest = logits.argmax(-1).tolist()
    for answer, own, token in zip(answers, logits, likeliest, strict=True):
        if answer.reason is None:
            answer.add(own, token)
    tokens = [answer.tokens[-1] if answer.reason is None else pad_id for answer in answers]
    return torch.tensor(tokens, device=logits.device)
