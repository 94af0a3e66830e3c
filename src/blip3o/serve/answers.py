"""The engine's text side: an answer that is written a little at a time, between other work."""

from collections.abc import Iterator

import torch
from torch import Tensor

from blip3o.generate.pipeline import Blip3oPipeline
from blip3o.generate.prompts import question_pixels
from blip3o.generate.text import Writer
from blip3o.serve.jobs import Answered, ChatRequest, Job, Text


class AnswerWriter:
    """Writes the answer of one chat; alone in its batch, so no other request changes it.

    Args:
        pipe: the pipeline.
        job: the job, with a `ChatRequest`.

    Raises:
        UsageError: if the conversation does not fit the model.
    """

    @torch.no_grad()
    def __init__(self, pipe: Blip3oPipeline, job: Job) -> None:
        request = job.request
        assert isinstance(request, ChatRequest), "pictures are made by PictureMaker"
        self.job = job
        self._stop_ids = (pipe.chat_template.turn_end_id, pipe.tokenizer.pad_id)
        self._ids: list[int] = []
        writer = Writer(pipe.model, pipe.tokenizer, pipe.chat_template)
        pixels, counts = question_pixels(pipe.model, request.pictures)
        prompt = writer.prompt(request.messages, len(request.pictures), counts)
        self._num_prompt_tokens = len(prompt)
        images = pipe.model.prompt_images(pixels)
        tokens = writer.tokens([prompt], images, request.sampling.max_new_tokens)
        self._pieces = writer.text(self._noted(tokens))

    def advance(self) -> bool:
        """Writes and delivers the next piece; returns False when the answer is whole."""
        piece = next(self._pieces, None)
        if piece is not None:
            self.job.deliver(Text(piece))
            return True
        is_stopped = bool(self._ids) and self._ids[-1] in self._stop_ids
        self.job.deliver(
            Answered("stop" if is_stopped else "length", self._num_prompt_tokens, len(self._ids))
        )
        return False

    def _noted(self, tokens: Iterator[Tensor]) -> Iterator[Tensor]:
        for token in tokens:
            self._ids.append(int(token[0]))
            yield token
