"""Writes text with the backbone: batched greedy decoding with a key/value cache."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from blip3o.core.errors import UsageError
from blip3o.core.types import IMAGE_MARK, Message
from blip3o.generate.inputs import Picture
from blip3o.generate.prompts import check_length, question_pixels
from blip3o.models.unified import PromptImages, UnifiedModel
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
) -> Iterator[Tensor]:
    """Yields the next token of every row [B], greedily, until all rows have stopped.

    The placeholder of pictures is never said.

    Args:
        model: in evaluation mode.
        input_ids: left-padded prompts, [B, T].
        attention_mask: True for real tokens, [B, T].
        prompt_images: what `UnifiedModel.prompt_images` made of the rows' pictures.
        stop_id: ends a row.
        pad_id: what a stopped row yields. It is the end of a text, so it ends a row, too: now and
            then released models end an answer by it and not by the turn.
        max_new_tokens: the longest answer.
    """
    cache = model.backbone.new_cache()
    hidden = model.text_states(input_ids, attention_mask, prompt_images, cache)
    running = torch.ones(len(input_ids), dtype=torch.bool, device=input_ids.device)
    placeholder = input_ids.new_tensor([model.config.backbone.image_token_id])
    for _ in range(max_new_tokens):
        logits = model.backbone.logits(hidden[:, -1])
        # A placeholder stands for a picture that was given; an answer has none to give.
        token = logits.index_fill(-1, placeholder, -torch.inf).argmax(-1)
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
    """

    def __init__(
        self, model: UnifiedModel, tokenizer: Tokenizer, chat_template: ChatTemplate
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._chat_template = chat_template

    def prompt(
        self,
        messages: Sequence[Message],
        num_pictures: int,
        image_tokens: Sequence[int] | None = None,
    ) -> list[int]:
        """Returns the token ids after which the answer stands.

        Args:
            messages: the turns so far, ending with the user's.
            num_pictures: pictures that come with them.
            image_tokens: tokens that stand for each picture, where they differ.

        Raises:
            UsageError: if marks and pictures differ in number or the conversation is too long.
        """
        marks = sum(message.text.count(IMAGE_MARK) for message in messages)
        if marks != num_pictures:
            raise UsageError(f"{marks} image marks in the messages for {num_pictures} pictures")
        row = self._chat_template.text_prompt(messages, image_tokens)
        check_length(self._model, row, "the conversation")
        return row

    def tokens(
        self, rows: list[list[int]], images: PromptImages | None, max_new_tokens: int | None
    ) -> Iterator[Tensor]:
        """Returns the next tokens of every row [B], as long as the model has positions for them.

        Args:
            rows: what `prompt` returned.
            images: what `UnifiedModel.prompt_images` made of the rows' pictures.
            max_new_tokens: longest answer; the model's own number if None.

        Raises:
            UsageError: if `max_new_tokens` is under 1.
        """
        config, tokenizer = self._model.config, self._tokenizer
        limit = config.sampling.max_new_tokens if max_new_tokens is None else max_new_tokens
        if limit < 1:
            raise UsageError(f"max_new_tokens must be at least 1, got {limit}")
        ids, mask = left_pad(rows, tokenizer.pad_id)
        device = self._model.query_tokens.weight.device
        return generate_tokens(
            self._model,
            ids.to(device),
            mask.to(device),
            images,
            stop_id=self._chat_template.turn_end_id,
            pad_id=tokenizer.pad_id,
            max_new_tokens=min(limit, config.backbone.max_positions - ids.shape[1]),
        )

    def text(self, tokens: Iterator[Tensor]) -> Iterator[str]:
        """Yields the text of a single row's tokens as soon as it is whole characters."""
        ids: list[int] = []
        shown = ""
        for token in tokens:
            ids.append(int(token[0]))
            text = self._tokenizer.decode(ids)
            if not text.endswith("\ufffd") and len(text) > len(shown):
                yield text[len(shown) :]
                shown = text

    def stream(
        self, messages: Sequence[Message], pictures: Sequence[Picture], max_new_tokens: int | None
    ) -> Iterator[str]:
        """Yields the next answer of a conversation; see `Blip3oPipeline.stream`."""
        pixels, counts = question_pixels(self._model, pictures)
        row = self.prompt(messages, len(pictures), counts)
        yield from self.text(self.tokens([row], self._images(pixels), max_new_tokens))

    def answers(
        self, pictures: Sequence[Picture], questions: Sequence[str], max_new_tokens: int
    ) -> list[str]:
        """Returns answers in one batch; see `Blip3oPipeline.answer_batch`."""
        if len(pictures) != len(questions):
            raise UsageError(f"{len(pictures)} pictures for {len(questions)} questions")
        if not questions:
            return []
        pixels, counts = question_pixels(self._model, pictures)
        rows = []
        for number, question in enumerate(questions):
            if not question.strip():
                raise UsageError("a question is empty")
            turn = Message(role="user", text=f"{IMAGE_MARK}\n{question}")
            rows.append(self.prompt([turn], 1, counts and [counts[number]]))
        tokens = self.tokens(rows, self._images(pixels), max_new_tokens)
        said = torch.stack(list(tokens), dim=1).tolist()
        # As in a stream: an answer that is cut in the middle of a letter ends before it.
        return [self._tokenizer.decode(ids).rstrip("\ufffd").strip() for ids in said]

    @torch.no_grad()
    def _images(self, pixels: Tensor | list[Tensor] | None) -> PromptImages | None:
        return self._model.prompt_images(pixels)
