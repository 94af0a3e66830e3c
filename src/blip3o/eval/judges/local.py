"""A judge that is one of our own models, as a model of visual question answering."""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from blip3o.core.bounds import Count
from blip3o.core.choices import PrecisionName
from blip3o.core.errors import UsageError
from blip3o.core.files import file_sha256
from blip3o.core.types import IMAGE_MARK, Message
from blip3o.generate.pipeline import Blip3oPipeline
from blip3o.remote.chat import Answer, AnswerOutcome, ChatImage, ChatRequest
from blip3o.weights.folder import resolve_model_folder
from blip3o.weights.hub import to_local

_WITHOUT_EFFECT = ("chat_template_kwargs",)
"""Fields of a request's body that concern only the templates of servers."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LocalJudge:
    """A model folder that answers the judge's questions on this machine.

    Args:
        model: a bundled model's name, a model folder or a hub id.
        revision: branch, tag or commit of a hub model.
        device: device of the model.
        dtype: precision of the weights.
        batch_size: questions that are answered together; affects only speed and memory.
    """

    kind: str = "local"
    model: str
    revision: str | None = None
    device: str = "auto"
    dtype: PrecisionName = "auto"
    batch_size: Count = 8

    def build(self) -> "LocalModel":
        """Loads and returns the judge.

        Raises:
            UsageError: if the model is missing or damaged, or the device does not exist.
        """
        folder = resolve_model_folder(to_local(self.model, self.revision))
        pipe = Blip3oPipeline.from_pretrained(folder, device=self.device, dtype=self.dtype)
        return LocalModel(pipe, f"{Path(self.model).name}-{_hash(folder)}", self.batch_size)


def _hash(folder: Path) -> str:
    """Returns the start of a hash of the config and the weights, which names the judge."""
    digest = hashlib.sha256()
    for file in sorted([*folder.rglob("config.json"), *folder.rglob("*.safetensors")]):
        digest.update(f"{file.relative_to(folder)}\0".encode())
        digest.update(bytes.fromhex(file_sha256(file)))
    return digest.hexdigest()[:8]


class LocalModel:
    """A `ChatModel` over a pipeline.

    Args:
        pipe: the pipeline.
        name: name of the model, as results state it.
        batch_size: questions that are answered together.
    """

    def __init__(self, pipe: Blip3oPipeline, name: str, batch_size: int = 8) -> None:
        self.name = name
        self._pipe = pipe
        self._batch_size = batch_size

    def answers(self, requests: Sequence[ChatRequest]) -> Iterator[tuple[int, Answer]]:
        """Yields (position of the request, answer), batch by batch.

        Raises:
            UsageError: if a request asks for log probabilities or for fields of a server, is too
                long, or holds an image that cannot be read.
        """
        alike: dict[tuple[int, float, int], list[int]] = {}
        for number, request in enumerate(requests):
            self._check(request)
            settings = (request.max_tokens, request.temperature or 0.0, request.attempt)
            if self._is_plain(request):
                alike.setdefault(settings, []).append(number)
            else:
                yield number, self._converse(request)
        for (max_tokens, temperature, attempt), numbers in alike.items():
            for start in range(0, len(numbers), self._batch_size):
                batch = numbers[start : start + self._batch_size]
                asked = [requests[number].parts for number in batch]
                texts = self._pipe.answer_batch(
                    [part.data for parts in asked for part in parts if isinstance(part, ChatImage)],
                    ["\n".join(one for one in parts if isinstance(one, str)) for parts in asked],
                    max_tokens,
                    temperature=temperature,
                    seed=attempt,
                )
                for number, text in zip(batch, texts, strict=True):
                    yield number, self._answer(text, max_tokens)

    def _check(self, request: ChatRequest) -> None:
        if request.top_logprobs:
            raise UsageError(
                f"{self.name} gives no probabilities of tokens, and this judgement needs them: use "
                "judge.kind=openai with a server that gives log probabilities"
            )
        for name in request.extra:
            if name not in _WITHOUT_EFFECT:
                raise UsageError(f"{self.name} has no setting {name!r}: use judge.kind=openai")

    @staticmethod
    def _is_plain(request: ChatRequest) -> bool:
        """Returns whether a request is one image and one question, which batches accept."""
        images = [part for part in request.parts if isinstance(part, ChatImage)]
        return len(images) == 1 and not request.system

    def _converse(self, request: ChatRequest) -> Answer:
        turns = [Message(role="system", text=request.system)] if request.system else []
        images = [part.data for part in request.parts if isinstance(part, ChatImage)]
        parts = [part if isinstance(part, str) else IMAGE_MARK for part in request.parts]
        pieces = self._pipe.stream(
            [*turns, Message(role="user", text="\n".join(parts))],
            images,
            max_new_tokens=request.max_tokens,
            temperature=request.temperature or 0.0,
            seed=request.attempt,
        )
        return self._answer("".join(pieces).strip(), request.max_tokens)

    def _answer(self, text: str, max_tokens: int) -> Answer:
        num_tokens = len(self._pipe.tokenizer.encode(text))
        outcome: AnswerOutcome = "answered" if text else "empty"
        if num_tokens >= max_tokens:  # the pipeline does not say why an answer ends
            outcome = "cut"
        return Answer(outcome=outcome, text=text, model=self.name, completion_tokens=num_tokens)
