"""Measurements of a model: small functions, each of a pipeline, that return scores by name.

| score | meaning |
|---|---|
| `scenes`, `scenes/CATEGORY` | share of right images of the scenes benchmark |
| `questions` | share of right answers to questions about unseen images |
| `questions_start`, `questions_change` | the same before training, and the difference |
| `captions`, `edits`, `reconstructions` | the other parts of the benchmark, if it has them |
| `feature_diversity` | distance between drawn features of one prompt, over that of real images |
| `image_diversity` | the same of the pixels of images |
| `frechet` | Frechet distance between features of drawn and real images; lower is better |
| `psnr` | peak signal-to-noise ratio of encoded and decoded images, in dB |
| `text_change` | largest change of a text logit since the start of training |

All noise comes from the seed of the benchmark, so all models draw the same prompts from the same
noise.
"""

import dataclasses
import functools
import itertools
import statistics
from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from blip3o.core.bounds import Count, Whole
from blip3o.core.rng import image_generator, numpy_rng
from blip3o.data.scenes.captions import detailed_caption
from blip3o.data.scenes.prompts import EvalPrompt, eval_prompts
from blip3o.data.scenes.render import render
from blip3o.data.scenes.scene import sample_scene
from blip3o.data.scenes.types import Scene
from blip3o.eval.measures import similarity
from blip3o.eval.measures.frechet import frechet_distance
from blip3o.eval.models import PipelineModel
from blip3o.eval.scenes import ScenesBenchmark, right_scene
from blip3o.eval.stages import measure
from blip3o.generate.outputs import ImageOutput, OutputType
from blip3o.generate.pipeline import Blip3oPipeline
from blip3o.generate.text import left_pad
from blip3o.study.grid import Evaluation
from blip3o.study.results import Measured, Scores
from blip3o.train.config import RunConfig

T = TypeVar("T")
Floats = NDArray[np.floating]

_JUDGE = "pocket"
"""The bundled model, whose frozen image encoder compares images of all arms."""
_DIVERSE = ("two_object", "position", "color_attr")
"""Categories whose prompts name two things and leave places, sizes and the background open."""
_PARTS = {
    "vqa_accuracy": "questions",
    "caption_attribute_accuracy": "captions",
    "edit_accuracy": "edits",
    "reconstruct_kept": "reconstructions",
    "wording_prompts": "wording/prompts",
    "wording_questions": "wording/questions",
    "wording_edits": "wording/edits",
}
"""Scores by their name in the results of the benchmark."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MethodEvaluation(Evaluation):
    """Everything that tells methods of generation apart.

    Args:
        curve_prompts: prompts of each category at the points before the end.
        curve_images: images of each prompt there.
        curve_questions: questions there.
        num_diverse_prompts: prompts whose images are drawn several times for the diversity.
        num_repeats: images of each of them, at least 2.
        num_frechet_images: generated and real images whose features are compared.
        num_psnr_images: unseen images that are encoded and decoded.
        num_texts: texts on which the logits before and after training are compared.
    """

    kind: str = "methods"
    num_points: Count = 4
    benchmark: ScenesBenchmark = dataclasses.field(
        default_factory=lambda: ScenesBenchmark(
            num_captions=0,
            num_edits=0,
            num_reconstructions=0,
            wording_prompts_per_category=0,
            num_wording_questions=0,
            num_wording_edits=0,
        )
    )
    curve_prompts: Whole = 10
    curve_images: Count = 1
    curve_questions: Whole = 100
    num_diverse_prompts: Count = 12
    num_repeats: Count = 4
    num_frechet_images: Count = 256
    num_psnr_images: Count = 64
    num_texts: Count = 32

    def __post_init__(self) -> None:
        for name in ("num_repeats", "num_frechet_images"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name} must be at least 2, got {getattr(self, name)}")

    @property
    def question_benchmark(self) -> ScenesBenchmark:
        """The benchmark of the start: the same questions as at the end, and nothing else."""
        return dataclasses.replace(
            self.benchmark,
            prompts_per_category=0,
            num_captions=0,
            num_edits=0,
            num_reconstructions=0,
            wording_prompts_per_category=0,
            num_wording_questions=0,
            num_wording_edits=0,
        )

    @property
    def curve_benchmark(self) -> ScenesBenchmark:
        """The benchmark at the points before the end."""
        return dataclasses.replace(
            self.question_benchmark,
            prompts_per_category=self.curve_prompts,
            images_per_prompt=self.curve_images,
            num_questions=self.curve_questions,
        )

    def start(self, pipe: Blip3oPipeline, arm: str, config: RunConfig) -> "_Comparison":
        """Measures a model before its training; see `Evaluation`."""
        del arm, config
        return _Comparison(self, pipe)


class _Comparison:
    """Measures a run with the scores and text logits before its training.

    Args:
        settings: the measurements.
        pipe: the model before its training.
    """

    def __init__(self, settings: MethodEvaluation, pipe: Blip3oPipeline) -> None:
        self._settings = settings
        self._scores = scene_scores(pipe, settings.question_benchmark)
        self._logits = text_logits(pipe, settings)

    def point(self, pipe: Blip3oPipeline, *, is_last: bool) -> Measured:
        settings = self._settings
        benchmark = settings.benchmark if is_last else settings.curve_benchmark
        return Measured(scene_scores(pipe, benchmark))

    def end(self, pipe: Blip3oPipeline, last: Measured) -> Measured:
        changed = changes(self._scores, last.scores)
        return Measured(last.scores | changed | at_the_end(pipe, self._settings, self._logits))


def scene_scores(pipe: Blip3oPipeline, benchmark: ScenesBenchmark) -> Scores:
    """Returns the scores of the scenes benchmark."""
    found = measure(benchmark, PipelineModel(pipe, "", benchmark))
    scores = {name: found.figures[part] for part, name in _PARTS.items() if part in found.figures}
    if found.overall is None:
        return scores
    categories = {f"scenes/{name}": share or 0.0 for name, share in found.by_category.items()}
    return {"scenes": found.overall, **categories, **scores}


@torch.no_grad()
def text_logits(pipe: Blip3oPipeline, settings: MethodEvaluation) -> Tensor:
    """Returns the logits [B, T, V] of texts without images: captions of unseen scenes."""
    scenes = _unseen(settings.benchmark, settings.num_texts)
    rows = [pipe.tokenizer.encode(detailed_caption(scene)) for scene in scenes]
    ids, mask = (one.to(pipe.device) for one in left_pad(rows, pipe.tokenizer.pad_id))
    logits = pipe.model.backbone.logits(pipe.model.text_states(ids, mask))
    return logits.float().masked_fill(~mask[..., None], 0.0).cpu()


def changes(start: Scores, end: Scores) -> Scores:
    """Returns the scores of the start, and by how much training has changed them."""
    before = {f"{name}_start": score for name, score in start.items()}
    return before | {f"{name}_change": end[name] - score for name, score in start.items()}


def at_the_end(pipe: Blip3oPipeline, settings: MethodEvaluation, logits: Tensor) -> Scores:
    """Returns everything that is measured once, of the trained model.

    Args:
        pipe: the trained model.
        settings: the measurements.
        logits: text logits of the start.
    """
    return {
        **text_change(logits, text_logits(pipe, settings)),
        **diversity(pipe, settings),
        **frechet(pipe, settings),
        **psnr(pipe, settings),
    }


def text_change(before: Tensor, after: Tensor) -> Scores:
    """Returns the largest change of a logit."""
    return {"text_change": float((after - before).abs().max())}


def diversity(pipe: Blip3oPipeline, settings: MethodEvaluation) -> Scores:
    """Returns the diversity of repeated images of a prompt, relative to that of real images.

    The distance of two images is the root mean square difference of their normalized features, or
    of their pixels. The mean over all pairs of a prompt and over all prompts is divided by the same
    mean of as many real images of each prompt: 0 for equal images, about 1 for a perfect model.
    """
    benchmark, repeats = settings.benchmark, settings.num_repeats
    prompts = _diverse_prompts(benchmark, settings.num_diverse_prompts)
    texts = [prompt.prompt for prompt in prompts for _ in range(repeats)]
    side = pipe.model.config.image_encoder.image_px
    real = [
        render(scene, side)
        for number, prompt in enumerate(prompts)
        for scene in _scenes_of(prompt, benchmark, number, repeats)
    ]
    drawn = _drawn_images(pipe, benchmark, texts, repeats)
    outputs = _drawn(pipe, benchmark, texts, repeats, "features")
    drawn_features = torch.cat([output.images for output in outputs]).flatten(1)
    real_features = _features(pipe, real, benchmark).flatten(1)
    pairs = {
        "feature_diversity": (_floats(drawn_features), _floats(real_features)),
        "image_diversity": (_pixels(drawn), _pixels(real)),
    }
    return {name: _spread(a, repeats) / _spread(b, repeats) for name, (a, b) in pairs.items()}


def frechet(pipe: Blip3oPipeline, settings: MethodEvaluation) -> Scores:
    """Returns the Frechet distance between the images of captions and the real images.

    The features are those of the bundled model: its normalized features, averaged over the places
    of an image. Both sets have `num_frechet_images` images of the same unseen scenes. Few images
    raise the distance, so only distances with equally many images can be compared.
    """
    benchmark = settings.benchmark
    scenes = _unseen(benchmark, settings.num_frechet_images)
    drawn = _drawn_images(pipe, benchmark, [detailed_caption(scene) for scene in scenes])
    real = [render(scene, pipe.model.config.image_encoder.image_px) for scene in scenes]
    distance = frechet_distance(_judged(drawn, benchmark), _judged(real, benchmark))
    return {"frechet": distance}


def psnr(pipe: Blip3oPipeline, settings: MethodEvaluation) -> Scores:
    """Returns the mean peak signal-to-noise ratio of unseen images, encoded and decoded, in dB."""
    benchmark = settings.benchmark
    side = pipe.model.config.image_encoder.image_px
    before = [render(one, side) for one in _unseen(benchmark, settings.num_psnr_images)]
    after = [
        image
        for batch, noises in _batches(before, benchmark)
        for image in pipe.reconstruct(batch, generator=noises).images
    ]
    return {"psnr": statistics.fmean(map(similarity.psnr, before, after))}


def sample_images(pipe: Blip3oPipeline, settings: Evaluation) -> list[Image.Image]:
    """Returns an image of each sample prompt."""
    return _drawn_images(pipe, settings.benchmark, settings.sample_prompts)


def _spread(rows: Floats, repeats: int) -> float:
    """Returns the mean distance of rows [P * K, D] within each group of K neighbors."""
    groups = rows.reshape(-1, repeats, rows.shape[1])
    pairs = itertools.combinations(range(repeats), 2)
    distances = [np.sqrt(((groups[:, a] - groups[:, b]) ** 2).mean(axis=1)) for a, b in pairs]
    return float(np.mean(distances))


def _diverse_prompts(benchmark: ScenesBenchmark, number: int) -> list[EvalPrompt]:
    each = -(-number // len(_DIVERSE))
    tables = [eval_prompts(name, each, benchmark.seed, benchmark.world) for name in _DIVERSE]
    return [prompt for row in zip(*tables, strict=True) for prompt in row][:number]


def _scenes_of(
    prompt: EvalPrompt, benchmark: ScenesBenchmark, number: int, count: int
) -> list[Scene]:
    """Returns scenes that show only the objects of a prompt, otherwise as in the data."""
    rng = numpy_rng(benchmark.seed, "study/scenes of a prompt", number)
    return [right_scene(prompt, rng, benchmark.world) for _ in range(count)]


def _unseen(benchmark: ScenesBenchmark, number: int) -> list[Scene]:
    """Returns scenes with held-out compositions."""
    return [
        sample_scene(benchmark.seed, index, "heldout", benchmark.world) for index in range(number)
    ]


def _drawn(
    pipe: Blip3oPipeline,
    benchmark: ScenesBenchmark,
    texts: Sequence[str],
    repeats: int,
    output_type: OutputType,
) -> Iterator[ImageOutput]:
    for batch, noises in _batches(texts, benchmark, repeats):
        yield pipe(
            batch,
            generator=noises,
            num_inference_steps=benchmark.num_inference_steps,
            guidance_scale=benchmark.guidance_scale,
            output_type=output_type,
        )


def _drawn_images(
    pipe: Blip3oPipeline, benchmark: ScenesBenchmark, texts: Sequence[str], repeats: int = 1
) -> list[Image.Image]:
    outputs = _drawn(pipe, benchmark, texts, repeats, "pil")
    return [image for output in outputs for image in output.images]


def _features(
    pipe: Blip3oPipeline, images: Sequence[Image.Image], benchmark: ScenesBenchmark
) -> Tensor:
    """Returns the normalized features [M, N, K] of images."""
    batches = [pipe.encode(batch).to(pipe.dtype) for batch, _ in _batches(images, benchmark)]
    return pipe.model.normalizer(torch.cat(batches))


def _judged(images: Sequence[Image.Image], benchmark: ScenesBenchmark) -> Tensor:
    """Returns the features [M, K] of images in the bundled model, averaged over the places."""
    return _features(_judge(), images, benchmark).mean(dim=1)


@functools.cache
def _judge() -> Blip3oPipeline:
    return Blip3oPipeline.from_pretrained(_JUDGE, device="cpu", dtype="fp32")


def _floats(rows: Tensor) -> Floats:
    return rows.detach().double().cpu().numpy()


def _pixels(images: Sequence[Image.Image]) -> Floats:
    """Returns the pixels [M, D] of images of one size, in [0, 1]."""
    return np.stack([np.asarray(one, dtype=np.float32).ravel() / 255 for one in images])


def _batches(
    items: Sequence[T], benchmark: ScenesBenchmark, repeats: int = 1
) -> Iterator[tuple[Sequence[T], list[torch.Generator]]]:
    """Yields items and the noise of each; item n is repetition n mod K of prompt n // K."""
    for start in range(0, len(items), benchmark.batch_size):
        batch = items[start : start + benchmark.batch_size]
        numbers = (divmod(start + k, repeats) for k in range(len(batch)))
        yield batch, [image_generator(benchmark.seed, p, k) for p, k in numbers]
