"""The models that a benchmark scores: a pipeline, or a server that speaks OpenAI's protocol."""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from PIL import Image

from blip3o.core.config import to_dict
from blip3o.core.errors import UsageError
from blip3o.core.rng import image_generator
from blip3o.eval.benchmark import Benchmark, Task
from blip3o.eval.plan import Job
from blip3o.generate.pipeline import Blip3oPipeline
from blip3o.imaging.encode import to_png
from blip3o.remote.chat import ChatImage, ChatModel, ChatRequest
from blip3o.remote.images import ImageClient, ImageRequest


class Refused(NamedTuple):
    """The reason why a model gave no output."""

    reason: str


Output: TypeAlias = Image.Image | str | Refused


class Asked(NamedTuple):
    """A sample that a model is asked for, with the input images of its item."""

    job: Job
    sources: Sequence[Image.Image]


class EvaluatedModel(Protocol):
    """A model that a benchmark scores.

    Attributes:
        identity: everything that identifies the model, for `results.json`.
        sampler: everything that shapes its outputs besides the seed.
    """

    identity: dict[str, Any]
    sampler: dict[str, Any]

    def outputs(self, task: Task, asked: Sequence[Asked]) -> list[Output]:
        """Returns the output for each sample of one task.

        Raises:
            UsageError: if the model lacks the ability, or its server cannot be reached.
        """
        ...


class PipelineModel:
    """A model of this package.

    Args:
        pipe: the pipeline.
        name: name, folder or hub id of the model.
        settings: seed and sampling settings of the benchmark.
        facts: further facts that identify the model: revision, overrides, quantization.
    """

    def __init__(
        self,
        pipe: Blip3oPipeline,
        name: str,
        settings: Benchmark,
        facts: dict[str, Any] | None = None,
    ) -> None:
        self._pipe = pipe
        self._settings = settings
        config = pipe.model.config
        self.identity = {
            "name": name,
            "backbone": config.backbone.kind,
            "generator": config.generator.kind,
            "image_decoder": config.image_decoder.kind,
            "num_parameters": sum(one.numel() for one in pipe.model.parameters()),
            "weights": weights_fingerprint(pipe.model),
            "dtype": str(pipe.dtype),
            **(facts or {}),
        }
        given = {
            name: value for name in _SAMPLING if (value := getattr(settings, name)) is not None
        }
        self.sampler = to_dict(config.sampling) | given | {"batch_size": settings.batch_size}

    def outputs(self, task: Task, asked: Sequence[Asked]) -> list[Output]:
        """Returns the output for each sample; see `EvaluatedModel`."""
        prompts = [one.job.item.prompt for one in asked]
        noise = [
            image_generator(self._settings.seed, one.job.item.number, one.job.number)
            for one in asked
        ]
        drawing = {name: getattr(self._settings, name) for name in _SAMPLING}
        if task == "text_to_image":
            return [*self._pipe(prompts, generator=noise, **drawing).images]
        if task == "edit":
            sources = [list(one.sources) for one in asked]
            return [*self._pipe.edit(sources, prompts, generator=noise, **drawing).images]
        sources = [_only(one) for one in asked]
        if task == "reconstruction":
            decoding = {name: drawing[name] for name in _DECODING}
            return [*self._pipe.reconstruct(sources, generator=noise, **decoding).images]
        limit = asked[0].job.item.max_new_tokens
        if limit is None:
            return [*self._pipe.answer_batch(sources, prompts)]
        return [*self._pipe.answer_batch(sources, prompts, max_new_tokens=limit)]


_DECODING = ("num_decoder_steps", "decoder_guidance_scale")
_SAMPLING = ("num_inference_steps", "guidance_scale", *_DECODING)


class RemoteModel:
    """A model behind an OpenAI-compatible server.

    Args:
        images: client of its image endpoints.
        chat: client of its chat endpoint.
        settings: seed of the benchmark.
    """

    def __init__(self, images: ImageClient, chat: ChatModel, settings: Benchmark) -> None:
        self._images, self._chat, self._settings = images, chat, settings
        self.identity = {"name": images.model, "url": images.url}
        self.sampler = {"server": "its own", "size": images.size}

    def outputs(self, task: Task, asked: Sequence[Asked]) -> list[Output]:
        """Returns the output for each sample; see `EvaluatedModel`."""
        if task == "reconstruction":
            raise UsageError("a server does not reconstruct images: score a model folder instead")
        if task == "question":
            return self._answers(asked)
        requests = [
            ImageRequest(
                prompt=one.job.item.prompt,
                seed=_seed(self._settings.seed, one.job),
                images=tuple(map(to_png, one.sources)),
            )
            for one in asked
        ]
        return [
            Refused(one) if isinstance(one, str) else one for one in self._images.images(requests)
        ]

    def _answers(self, asked: Sequence[Asked]) -> list[Output]:
        requests = [
            ChatRequest(
                parts=(*(ChatImage(to_png(one)) for one in row.sources), row.job.item.prompt),
                max_tokens=row.job.item.max_new_tokens or 128,
            )
            for row in asked
        ]
        found = dict(self._chat.answers(requests))
        lost = [one.text for one in found.values() if one.outcome == "transport"]
        if lost:
            raise UsageError(f"the server did not answer {len(lost)} questions: {lost[0]}")
        refused = {"refusal", "empty"}
        answers = [found[place] for place in range(len(requests))]
        return [
            Refused(f"{one.outcome}: {one.text}") if one.outcome in refused else one.text
            for one in answers
        ]


def _seed(seed: int, job: Job) -> int:
    """Returns the seed of one image for a server, which accepts 32 bits."""
    return image_generator(seed, job.item.number, job.number).initial_seed() % 2**31


def _only(asked: Asked) -> Image.Image:
    if len(asked.sources) != 1:
        raise ValueError(f"item {asked.job.item.id} needs exactly one input image")
    return asked.sources[0]


def weights_fingerprint(model: torch.nn.Module) -> str:
    """Returns a hash of the names, shapes and first values of all weights.

    It tells checkpoints apart in seconds, also those of 8 billion weights; it does not prove that
    every value is equal.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        head = tensor.detach().flatten()[:_HEAD].cpu().contiguous()
        digest.update(head.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


_HEAD = 1024
