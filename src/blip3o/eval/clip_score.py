"""CLIP score: how near each image is to its prompt in the space of a CLIP model."""

import dataclasses
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from blip3o.core.bounds import Count
from blip3o.core.config import LocalPath
from blip3o.core.errors import UsageError
from blip3o.core.registry import Registry
from blip3o.eval.benchmark import BenchmarkSettings, Item, Layout, Row, Sample, Scores, Verdict
from blip3o.eval.prompt_lists import read_prompts

Scale = Literal["percent", "cosine", "clipscore"]

MOST_TOKENS = 77
"""Tokens that CLIP reads, with the first and last mark; the rest of a prompt is not measured."""

_PREFIX = "A photo depicts "
"""Words before the prompt, in the scale "clipscore" only."""


class ClipEncoder(Protocol):
    """A CLIP model.

    Attributes:
        name: the model with the hash of its weights, as results state it.
    """

    name: str

    def embed_images(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """Returns the embeddings [B, D] of RGB images, of any length."""
        ...

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Returns the embeddings [B, D] of texts, of any length; long texts are cut."""
        ...

    def num_cut(self, texts: Sequence[str]) -> int:
        """Returns the number of texts that have more than 77 tokens with both marks."""
        ...


CLIP_ENCODERS: Registry[Callable[[Path], ClipEncoder]] = Registry(
    "CLIP encoder", {"openai": ".clip:load_clip"}, package="blip3o.eval"
)
"""Functions that load a CLIP model from a folder."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipScoreBenchmark(BenchmarkSettings):
    """Settings of the benchmark.

    Args:
        prompts: file of prompts: .txt, .jsonl, or .json as the `meta_data.json` of MJHQ-30K.
        clip: folder of OpenAI's CLIP ViT-L/14.
        scale: scale of the headline: "percent" is 100 x max(cosine, 0), as torchmetrics has it;
            "cosine" is the cosine; "clipscore" is 2.5 x max(cosine, 0) of "A photo depicts " and
            the prompt, as in the paper of CLIPScore. All three are in the results.
        num_prompts: prompts to use; of more prompts in the file, this number is drawn. None uses
            all.
        images_per_prompt: images of each prompt.
    """

    prompts: LocalPath | None = None
    clip: LocalPath | None = None
    scale: Scale = "percent"
    num_prompts: Count | None = None
    images_per_prompt: Count = 1

    def items(self) -> list[Item]:
        """Returns an item for each prompt.

        Raises:
            UsageError: if no file of prompts is named, or it cannot be read.
        """
        if self.prompts is None:
            raise UsageError("clip_score needs prompts=FILE, a list of prompts")
        listed = read_prompts(self.prompts)
        return [
            Item(
                id=f"{prompt.number:06d}",
                number=prompt.number,
                prompt=prompt.text,
                category=prompt.category,
                num_samples=self.images_per_prompt,
                data={"prompts_sha256": listed.sha256},
            )
            for prompt in listed.drawn(self.num_prompts, self.seed)
        ]

    def sources(self, item: Item) -> list[Image.Image]:
        """Returns no images: the items are prompts."""
        return []

    def scorer(self) -> "ClipScorer":
        """Returns the scorer.

        Raises:
            UsageError: if the folder of the CLIP model is missing or wrong.
        """
        if self.clip is None:
            raise UsageError(
                "clip_score needs clip=FOLDER, a folder of openai/clip-vit-large-patch14"
            )
        return ClipScorer(CLIP_ENCODERS.get("openai")(Path(self.clip)))

    def reduce(self, rows: Sequence[Row]) -> Scores:
        """Returns the means over all images; a missing image counts as the least of its scale.

        That is 0, and -1 for the cosine.
        """
        by_category: dict[str, list[float]] = defaultdict(list)
        for row in rows:
            if row.item.category:
                by_category[row.item.category].append(_scaled(row, self.scale))
        figures: dict[str, Any] = {
            scale: statistics.fmean(_scaled(row, scale) for row in rows) if rows else None
            for scale in _SCALES
        }
        are_cut = {row.item.id: _data(row)["is_cut"] for row in rows if _data(row)}
        num_cut = sum(are_cut.values())
        num_missing = sum(not _data(row) for row in rows)
        notes = [f"the headline has the scale {self.scale}"]
        if num_cut:
            notes.append(
                f"{num_cut} of {len(are_cut)} prompts have more than {MOST_TOKENS} tokens: what "
                "follows is not measured"
            )
        if num_missing:
            notes.append(
                f"{num_missing} of {len(rows)} images are missing: they have the least score"
            )
        return Scores(
            overall=figures[self.scale],
            by_category={
                name: statistics.fmean(all_) for name, all_ in sorted(by_category.items())
            },
            figures={
                **figures,
                "scale": self.scale,
                "num_images": len(rows),
                "num_missing": num_missing,
                "num_prompts_cut": num_cut,
                "prompts_sha256": sorted({row.item.data["prompts_sha256"] for row in rows}),
            },
            notes=notes,
        )

    def layout(self) -> Layout | None:
        """Returns None: there is no program with a form of its own."""
        return None

    def remarks(self) -> list[str]:
        """Returns the scale, without which the figure has no meaning."""
        return [f"scale {self.scale}"]


class ClipScorer:
    """Compares images with their prompts.

    Args:
        encoder: the CLIP model.
    """

    batch_size = 32

    def __init__(self, encoder: ClipEncoder) -> None:
        self._encoder = encoder
        self.judge = encoder.name

    def verdicts(self, samples: Sequence[Sample]) -> Iterator[Verdict]:
        """Yields the cosines of each image; a sample without an image is broken."""
        whole = [one for one in samples if one.image is not None]
        for sample in samples:
            if sample.image is None:
                yield self._verdict(sample, {})
        if not whole:
            return
        images = self._encoder.embed_images([one.image for one in whole if one.image is not None])
        prompts = [one.item.prompt for one in whole]
        plain, prefixed = (
            _cosines(images, texts)
            for texts in (
                self._encoder.embed_texts(prompts),
                self._encoder.embed_texts([_PREFIX + prompt for prompt in prompts]),
            )
        )
        are_cut = [self._encoder.num_cut([prompt]) > 0 for prompt in prompts]
        for sample, *row in zip(whole, plain, prefixed, are_cut, strict=True):
            names = ("cosine", "cosine_prefixed", "is_cut")
            yield self._verdict(sample, dict(zip(names, row, strict=True)))

    def _verdict(self, sample: Sample, data: Mapping[str, Any]) -> Verdict:
        return Verdict(
            item=sample.item.id,
            number=sample.number,
            sha256=sample.sha256,
            judge=self.judge,
            outcome="judged" if data else "broken",
            score=data.get("cosine"),
            data=data,
        )


_SCALES: dict[Scale, Callable[[Mapping[str, Any]], float]] = {
    "percent": lambda data: 100 * max(data["cosine"], 0.0),
    "cosine": lambda data: data["cosine"],
    "clipscore": lambda data: 2.5 * max(data["cosine_prefixed"], 0.0),
}
_LEAST = {"cosine": -1.0, "cosine_prefixed": -1.0}
"""The cosines of a missing image."""


def _cosines(first: NDArray[np.float32], second: NDArray[np.float32]) -> list[float]:
    """Returns the cosine of each pair of rows [B, D], in float64."""
    x, y = first.astype(np.float64), second.astype(np.float64)
    return ((x * y).sum(1) / (np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1))).tolist()


def _data(row: Row) -> Mapping[str, Any]:
    """Returns what the judge says of a row; nothing if there is no judged image."""
    is_judged = row.verdict is not None and row.verdict.outcome == "judged"
    return row.verdict.data if row.verdict is not None and is_judged else {}


def _scaled(row: Row, scale: Scale) -> float:
    return _SCALES[scale](_data(row) or _LEAST)
