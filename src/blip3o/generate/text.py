"""Text generation with the backbone: tokens of padded batches, and answers of conversations."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from blip3o.core.errors import UsageError
from blip3o.core.types import IMAGE_MARK, Message
from blip3o.generate.answer import Answer
from blip3o.generate.decoding import Prompt, RowDecoder
from blip3o.generate.requests import ImageInput, check_length, question_pixels
from blip3o.generate.text_settings import TextSampling
from blip3o.models.prompts import PromptImages
from blip3o.models.unified import UnifiedModel
from blip3o.text.chat import ChatTemplate


def left_pad(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Returns token rows padded on the left to one length, and the mask of real tokens.

    Args:
        rows: token ids of each row.
        pad_id: token id of the padding, which is masked.

    Returns:
        input_ids [B, T] and attention_mask [B, T].
    """
    length = max(len(row) for row in rows)
    ids = torch.tensor([[pad_id] * (length - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[False] * (length - len(row)) + [True] * len(row) for row in rows])
    return ids, mask


def _likeliest(logits: Tensor) -> Tensor:
    return logits.argmax(-1)


@torch.no_grad()
def generate_tokens(
    decoder: RowDecoder,
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

    The prompts are read in one pass. The placeholder of images is never chosen.

    Args:
        decoder: reads the prompts and adds tokens.
        input_ids: left-padded prompts, [B, T].
        attention_mask: True for real tokens, [B, T].
        prompt_images: images of the rows, from `UnifiedModel.prompt_images`.
        stop_id: token id that ends a row.
        pad_id: token id that a stopped row yields. It also ends a row, because released models
            sometimes end an answer with the end of the text instead of the turn.
        max_new_tokens: largest number of tokens per row.
        choose: function from logits [B, V] to tokens [B]; greedy by default. Those of a stopped row
            are arbitrary.
    """
    prompts = decoder.read_batch(input_ids, attention_mask, prompt_images)
    logits = torch.stack([prompt.logits for prompt in prompts])
    running = list(range(len(prompts)))
    for left in reversed(range(max_new_tokens)):
        chosen = choose(logits).tolist()
        tokens = {row: chosen[row] for row in running}
        yield input_ids.new_tensor([tokens.get(row, pad_id) for row in range(len(prompts))])
        running = [row for row, token in tokens.items() if token not in (stop_id, pad_id)]
        if not (running and left):
            return
        rows = [prompts[row].row for row in running]
        logits[running] = decoder.advance(rows, [tokens[row] for row in running])


class Writer:
    """Reads conversations and starts answers; its callers decide which answers share a pass.

    Args:
        model: the model, in evaluation mode.
        chat_template: the model's chat format.

    Attributes:
        decoder: reads prompts and computes the logits of the next tokens.
    """

    def __init__(self, model: UnifiedModel, chat_template: ChatTemplate) -> None:
        self._model = model
        self._chat_template = chat_template
        self.decoder = RowDecoder(model)

    def prompt(
        self,
        messages: Sequence[Message],
        num_images: int,
        image_tokens: Sequence[int] | None = None,
    ) -> list[int]:
        """Returns the token ids of a conversation, up to the start of the answer.

        Args:
            messages: the turns so far, ending with the user's.
            num_images: number of images that belong to the turns.
            image_tokens: number of tokens of each image; None for the chat template's number.

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
        """Returns the largest number of tokens of an answer, at most the positions that are left.

        Args:
            sampling: settings of the answer.
            num_prompt_tokens: number of tokens before the answer.
        """
        config = self._model.config
        most = sampling.max_new_tokens or config.sampling.max_new_tokens
        return min(most, config.backbone.max_positions - num_prompt_tokens)

    def answer(self, sampling: TextSampling, num_prompt_tokens: int, number: int = 0) -> Answer:
        """Returns an answer without tokens.

        Args:
            sampling: settings of the answer, with a seed if the temperature is above 0.
            num_prompt_tokens: number of tokens before the answer.
            number: number of this answer among the answers to one prompt, from 0.
        """
        limit = self.limit(sampling, num_prompt_tokens)
        return Answer(self._chat_template, sampling, limit, number)

    @torch.no_grad()
    def read(
        self, messages: Sequence[Message], images: Sequence[ImageInput]
    ) -> tuple[list[int], Callable[[], Prompt]]:
        """Returns the token ids of a conversation, and a function that lets the model read them.

        Args:
            messages: the turns so far, ending with the user's.
            images: one for each image mark.

        Raises:
            UsageError: see `Blip3oPipeline.stream`.
        """
        pixels, counts = question_pixels(self._model, images)
        ids = self.prompt(messages, len(images), counts)
        return ids, lambda: self.decoder.read(ids, self.images(pixels))

    @torch.no_grad()
    def images(self, pixels: Tensor | list[Tensor] | None) -> PromptImages | None:
        """Returns images of prompts as the model reads them; see `UnifiedModel.prompt_images`."""
        return self._model.prompt_images(pixels)
