"""The engine's text side: continuous batching of the answers of several chats.

Each round adds one token to every answer; answers of different lengths share a forward pass. An
answer joins after its prompt has been read and leaves when it ends, so a short answer never waits
for a long one. An answer depends only on its own request, see `generate.decoding`.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from blip3o.generate.answer import Answer
from blip3o.generate.decoding import ROWS, Prompt
from blip3o.generate.pipeline import Blip3oPipeline
from blip3o.generate.text import Writer
from blip3o.generate.text_settings import TextSampling
from blip3o.models.backbones.ragged import RowCache
from blip3o.serve.failures import DEVICE_ERRORS, failure
from blip3o.serve.jobs import Answered, ChatRequest, Job, Text


@dataclasses.dataclass(slots=True, eq=False)
class _Chat:
    """A job whose answers are being started; `read` runs the prompt through the model.

    The prompt has `num_tokens`; an answer may have `limit` tokens.
    """

    job: Job
    count: int
    sampling: TextSampling
    num_tokens: int
    limit: int
    read: Callable[[], Prompt]
    prompt: Prompt | None = None
    num_started: int = 0


@dataclasses.dataclass(slots=True, eq=False)
class _Row:
    """An unfinished answer of a job; `most_tokens` limits its tokens and those of its prompt.

    It does not refer to its `_Chat`, whose prompt and images would then stay in memory.
    """

    job: Job
    index: int
    num_prompt_tokens: int
    most_tokens: int
    answer: Answer
    cache: RowCache


class AnswerDesk:
    """Writes the answers of chats.

    Args:
        pipe: the pipeline.
        take: returns the next job with a `ChatRequest`, or None.
        on_start: called with the seconds that a job has waited.
        max_answers: largest number of unfinished answers.
        max_tokens: largest total of their tokens, prompts included; a single answer is always
            accepted.
        together: number of answers that share a forward pass, at most `ROWS`.
    """

    def __init__(
        self,
        pipe: Blip3oPipeline,
        take: Callable[[], Job | None],
        on_start: Callable[[float], None],
        *,
        max_answers: int,
        max_tokens: int,
        together: int = ROWS,
    ) -> None:
        self._writer = Writer(pipe.model, pipe.chat_template)
        self._take = take
        self._on_start = on_start
        self._max_answers = max_answers
        self._max_tokens = max_tokens
        self._together = together
        self._taken: Job | None = None
        self._next: _Chat | None = None
        self._rows: list[_Row] = []

    @property
    def jobs(self) -> list[Job]:
        """The unfinished jobs that were taken from the queue."""
        jobs = [row.job for row in self._rows]
        jobs += [self._next.job] if self._next else []
        jobs += [self._taken] if self._taken else []
        return list(dict.fromkeys(jobs))

    @property
    def is_busy(self) -> bool:
        """Whether there are unfinished answers."""
        return bool(self._rows) or self._next is not None

    def work(self, seconds: float) -> None:
        """Continues all answers for 0 or more seconds, and by at least one token each."""
        end = time.monotonic() + seconds
        while True:
            self._rows = [row for row in self._rows if not row.job.is_cancelled]
            self._admit()
            rows = list(self._rows)
            for start in range(0, len(rows), self._together):
                self._advance(rows[start : start + self._together])
            if not self.is_busy or time.monotonic() >= end:
                return

    def _admit(self) -> None:
        """Starts answers while there is room; reads at most one prompt, because the others wait."""
        has_read = False
        while len(self._rows) < self._max_answers:
            if self._next is None and (has_read or not self._open()):
                return
            chat = self._next
            if chat is None or chat.job.is_cancelled:
                self._next = None
                continue
            if not self._has_room(chat) or (chat.prompt is None and has_read):
                return
            has_read = has_read or chat.prompt is None
            with self._failing(chat.job):
                self._start(chat)
            if chat.num_started >= chat.count:
                self._next = None

    def _open(self) -> bool:
        """Takes the next job; returns False if the queue holds none."""
        job = self._taken = self._take()
        if job is None:
            return False
        request = job.request
        assert isinstance(request, ChatRequest), "the queue keeps images separate"
        self._on_start(time.monotonic() - job.arrived)
        with self._failing(job):
            ids, read = self._writer.read(request.messages, request.images)
            limit = self._writer.limit(request.sampling, len(ids))
            sampling = request.sampling.seeded()
            self._next = _Chat(job, request.count, sampling, len(ids), limit, read)
        self._taken = None
        return True

    def _has_room(self, chat: _Chat) -> bool:
        taken = sum(row.most_tokens for row in self._rows)
        return not self._rows or taken + chat.num_tokens + chat.limit <= self._max_tokens

    def _start(self, chat: _Chat) -> None:
        """Writes the first token of the next answer of a chat."""
        if chat.prompt is None:
            chat.prompt = chat.read()
        prompt, index = chat.prompt, chat.num_started
        chat.num_started += 1
        answer = self._writer.answer(chat.sampling, chat.num_tokens, index)
        most = chat.num_tokens + chat.limit
        row = _Row(chat.job, index, chat.num_tokens, most, answer, prompt.row.fork())
        self._rows.append(row)
        self._write(row, prompt.logits, int(prompt.logits.argmax()))

    def _advance(self, rows: Sequence[_Row]) -> None:
        """Writes a token for each row; if that fails, for each row separately."""
        try:
            tokens = [row.answer.tokens[-1] for row in rows]
            logits = self._writer.decoder.advance([row.cache for row in rows], tokens)
            likeliest = logits.argmax(-1).tolist()
        except DEVICE_ERRORS:
            raise
        except Exception as error:  # noqa: BLE001  (a model may raise any error)
            if len(rows) == 1:
                self._fail(rows[0].job, error)
                return
        else:
            for row, own, token in zip(rows, logits, likeliest, strict=True):
                if row in self._rows:  # another answer of its request may have failed
                    with self._failing(row.job):
                        self._write(row, own, token)
            return
        # Outside the except block, the error and the memory that its frames held are released.
        for row in rows:
            if row in self._rows:
                self._advance([row])

    def _write(self, row: _Row, logits: Tensor, likeliest: int) -> None:
        answer = row.answer
        piece = answer.add(logits, likeliest)
        if piece:
            row.job.deliver(Text(piece, row.index))
        if answer.reason is not None:
            self._rows.remove(row)
            counts = row.num_prompt_tokens, len(answer.tokens)
            row.job.deliver(Answered(answer.reason, *counts, row.index))

    @contextmanager
    def _failing(self, job: Job) -> Iterator[None]:
        """Ends only this job if the work inside fails."""
        try:
            yield
        except DEVICE_ERRORS:
            raise
        except Exception as error:  # noqa: BLE001  (a model may raise any error)
            self._fail(job, error)

    def _fail(self, job: Job, error: Exception) -> None:
        self._rows = [row for row in self._rows if row.job is not job]
        if self._next is not None and self._next.job is job:
            self._next = None
        job.deliver(failure(error))
