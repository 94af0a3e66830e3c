"""Writes text with the backbone: batches of questions, streamed answers, answers side by side."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from blip3o.core.errors import UsageError
from blip3o.core.types import IMAGE_MARK, Message
from blip3o.generate.answer import Answer
from blip3o.generate.checks import check_question, texts_of
from blip3o.generate.decoding import Prompt, RowDecoder
from blip3o.generate.requests import ImageInput, as_images, check_length, question_pixels
from blip3o.generate.text_settings import TextSampling
from blip3o.models.prompts import PromptImages
from blip3o.models.unified import UnifiedModel
from blip3o.text.chat import ChatTemplate
from blip3o.text.tokenizer import Tokenizer


def left_pad(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Returns token rows padded on the left to one length, and the mask of real tokens.

    Args:
        rows: token ids of each row.
        pad_id: fills the front; masked out.

    Returns:
        input_ids [B, T] and attention_mask [B, T].
    """
    length = max(len(row) for row in rows)
    ids = torch.tensor([[pad_id] * (length - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[False] * (length - len(row)) + [True] * len(row) for row in rows])
    return ids, mask


def asked(
    image: ImageInput | Sequence[ImageInput] | None, question: str
) -> tuple[list[Message], list[ImageInput]]:
    """Returns a question and its images as a conversation and the images of its marks.

    Args:
        image: images the question is about, in order; None for text only.
        question: the question.

    Raises:
        UsageError: for a question that is no text or empty.
    """
    (question,) = texts_of([question], "question")
    check_question(question)
    images = [] if image is None else as_images(image)
    text = f"{IMAGE_MARK}\n" * len(images) + question.strip()
    return [Message(role="user", text=text)], images


def _likeliest(logits: Tensor) -> Tensor:
    return logits.argmax(-1)


@torch.no_grad()
def generate_tokens(
    model: UnifiedModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    prompt_images: PromptImages | None,
    *,
    stop_id: int,
    pad_id: int,
    max_new_tokens: int,
    choose: Callable[[Tensor], Tensor] = _likeliest,
) -> Iterator[Tensor]:
    """Yields the next token of every row [B] until all rows have stopped.

    The placeholder of images is never said.

    Args:
        model: in evaluation mode.
        input_ids: left-padded prompts, [B, T].
        attention_mask: True for real tokens, [B, T].
        prompt_images: what `UnifiedModel.prompt_images` made of the rows' images.
        stop_id: ends a row.
        pad_id: what a stopped row yields. It is the end of a text, so it ends a row, too: now and
            then released models end an answer by it and not by the turn.
        max_new_tokens: the longest answer.
        choose: logits [B, V] to tokens [B]; the likeliest ones by default.
    """
    cache = model.backbone.new_cache()
    hidden = model.text_states(input_ids, attention_mask, prompt_images, cache)
    running = torch.ones(len(input_ids), dtype=torch.bool, device=input_ids.device)
    placeholder = input_ids.new_tensor([model.config.backbone.image_token_id])
    for _ in range(max_new_tokens):
        logits = model.backbone.logits(hidden[:, -1])
        # A placeholder stands for an image that was given; an answer has none to give.
        token = choose(logits.index_fill(-1, placeholder, -torch.inf))
        token = torch.where(running, token, pad_id)
        running = running & (token != stop_id) & (token != pad_id)
        yield token
        if not bool(running.any()):
            return
        attention_mask = torch.cat([attention_mask, running.unsqueeze(1)], dim=1)
        # A stopped row goes on with masked padding, which no real token ever attends to.
        hidden = model.text_states(token.unsqueeze(1), attention_mask, None, cache)


class Writer:
    """Conversations to answers.

    Args:
        model: in evaluation mode.
        tokenizer: its tokenizer.
        chat_template: its chat format.

    Attributes:
        decoder: reads prompts and writes tokens.
    """

    def __init__(
        self, model: UnifiedModel, tokenizer: Tokenizer, chat_template: ChatTemplate
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._chat_template = chat_template
        self.decoder = RowDecoder(model)

    def prompt(
        self,
        messages: Sequence[Message],
        num_images: int,
        image_tokens: Sequence[int] | None = None,
    ) -> list[int]:
        """Returns the token ids after which the answer stands.

        Args:
            messages: the turns so far, ending with the user's.
            num_images: images that come with them.
            image_tokens: tokens that stand for each image, where they differ.

        Raises:
            UsageError: if marks and images differ in number or the conversation is too long.
        """
        marks = sum(message.text.count(IMAGE_MARK) for message in messages)
        if marks != num_images:
            raise UsageError(f"{marks} image marks in the messages for {num_images} images")
        row = self._chat_template.text_prompt(messages, image_tokens)
        check_length(self._model, row, "the conversation")
        return row

    def limit(self, sampling: TextSampling, num_prompt_tokens: int) -> int:
        """Returns the most tokens of an answer: what is asked for, while positions last.

        Args:
            sampling: its settings.
            num_prompt_tokens: tokens before it.
        """
        config = self._model.config
        most = sampling.max_new_tokens or config.sampling.max_new_tokens
        return min(most, config.backbone.max_positions - num_prompt_tokens)

    def answer(self, sampling: TextSampling, num_prompt_tokens: int, number: int = 0) -> Answer:
        """Returns an empty answer.

        Args:
            sampling: its settings, with a seed where the temperature is above 0.
            num_prompt_tokens: tokens before it.
            number: its number among the answers to one prompt.
        """
        limit = self.limit(sampling, num_prompt_tokens)
        return Answer(self._chat_template, sampling, limit, number)

    @torch.no_grad()
    def read(
        self, messages: Sequence[Message], images: Sequence[ImageInput]
    ) -> tuple[list[int], Callable[[], Prompt]]:
        """Returns the tokens of a conversation, and a function that makes the model read them.

        Args:
            messages: the turns so far, ending with the user's.
            images: one for each image mark.

        Raises:
            UsageError: see `Blip3oPipeline.stream`.
        """
        pixels, counts = question_pixels(self._model, images)
        ids = self.prompt(messages, len(images), counts)
        return ids, lambda: self.decoder.read(ids, self._images(pixels))

    def stream(
        self, messages: Sequence[Message], images: Sequence[ImageInput], sampling: TextSampling
    ) -> Iterator[str]:
        """Yields the next answer of a conversation; see `Blip3oPipeline.stream`."""
        ids, run = self.read(messages, images)
        answer = self.answer(sampling.seeded(), len(ids))
        prompt = run()
        logits = prompt.logits
        while True:
            piece = answer.add(logits, int(logits.argmax()))
            if piece:
                yield piece
            if answer.reason is not None:
                return
            (logits,) = self.decoder.advance([prompt.row], answer.tokens[-1:])

    def several(
        self,
        messages: Sequence[Message],
        images: Sequence[ImageInput],
        count: int,
        sampling: TextSampling,
    ) -> list[str]:
        """Returns several answers to one conversation, which is read once.

        Args:
            messages: the turns so far, ending with the user's.
            images: one for each image mark.
            count: answers.
            sampling: how they are written; answer k draws its tokens from seed + k.

        Raises:
            UsageError: see `Blip3oPipeline.stream`.
        """
        ids, run = self.read(messages, images)
        sampling, prompt = sampling.seeded(), run()
        answers = [self.answer(sampling, len(ids), number) for number in range(count)]
        likeliest = int(prompt.logits.argmax())
        for answer in answers:
            answer.add(prompt.logits, likeliest)
        going = [(answer, prompt.row.fork()) for answer in answers if answer.reason is None]
        together = self.decoder.num_equal_places() if len(going) > 1 else 1
        while going:
            for start in range(0, len(going), together):
                group = going[start : start + together]
                tokens = [answer.tokens[-1] for answer, _ in group]
                logits = self.decoder.advance([row for _, row in group], tokens)
                best = logits.argmax(-1).tolist()
                for (answer, _), own, token in zip(group, logits, best, strict=True):
                    answer.add(own, token)
            going = [(answer, row) for answer, row in going if answer.reason is None]
        return [answer.text.strip() for answer in answers]

    def answers(
        self, images: Sequence[ImageInput], questions: Sequence[str], sampling: TextSampling
    ) -> list[str]:
        """Returns answers in one batch; see `Blip3oPipeline.answer_batch`."""
        if len(images) != len(questions):
            raise UsageError(f"{len(images)} images for {len(questions)} questions")
        if not questions:
            return []
        pixels, counts = question_pixels(self._model, images)
        rows = []
        for number, question in enumerate(questions):
            if not question.strip():
                raise UsageError("a question is empty")
            turn = Message(role="user", text=f"{IMAGE_MARK}\n{question}")
            rows.append(self.prompt([turn], 1, counts and [counts[number]]))
        ids, mask = left_pad(rows, self._tokenizer.pad_id)
        sampling = sampling.seeded()
        answers = [self.answer(sampling, len(row)) for row in rows]
        device = self._model.device
        steps = generate_tokens(
            self._model,
            ids.to(device),
            mask.to(device),
            self._images(pixels),
            stop_id=self._chat_template.turn_end_id,
            pad_id=self._tokenizer.pad_id,
            max_new_tokens=self.limit(sampling, ids.shape[1]),
            choose=lambda logits: self._next(answers, logits),
        )
        for _ in steps:
            pass
        return [answer.text.strip() for answer in answers]

    def _next(self, answers: Sequence[Answer], logits: Tensor) -> Tensor:
        """Returns the next tokens of answers [B]; those that have ended are padded."""
        likeliest = logits.argmax(-1).tolist()
        for answer, own, token in zip(answers, logits, likeliest, strict=True):
            if answer.reason is None:
                answer.add(own, token)
        is_going = [answer.reason is None for answer in answers]
        tokens = [
            answer.tokens[-1] if going else self._tokenizer.pad_id
            for answer, going in zip(answers, is_going, strict=True)
        ]
        return torch.tensor(tokens, device=logits.device)

    @torch.no_grad()
    def _images(self, pixels: Tensor | list[Tensor] | None) -> PromptImages | None:
        return self._model.prompt_images(pixels)
