"""CLIP score: how near each image is to its prompt in the space of a CLIP model."""

import dataclasses
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from blip3o.core.bounds import Count
from blip3o.core.config import LocalPath
from blip3o.core.errors import UsageError
from blip3o.eval.benchmark import Benchmark, Item, Row, Sample, Scores, Verdict
from blip3o.eval.clip import CLIPSCORE_PREFIX, OPENAI_VIT_L_14, ClipEncoder, load_clip
from blip3o.eval.prompt_lists import read_prompts

Scale = Literal["percent", "cosine", "clipscore"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipScoreBenchmark(Benchmark):
    """CLIP score: images of your prompts, compared with the prompts by CLIP.

    Args:
        prompts: file of prompts: .txt, .jsonl, or .json as the `meta_data.json` of MJHQ-30K.
        clip: folder of OpenAI's CLIP ViT-L/14 in the form of transformers.
        clip_name: name of the CLIP in `clip` in the results, if it is another one.
        scale: scale of the headline: "percent" is 100 x max(cosine, 0), as torchmetrics has it;
            "cosine" is the cosine; "clipscore" is 2.5 x max(cosine, 0) of "A photo depicts " and
            the prompt, as in the paper of CLIPScore. All three are in the results.
        num_prompts: prompts to use; of more prompts in the file, this number is drawn. None uses
            all.
        images_per_prompt: images of each prompt.
    """

    prompts: LocalPath | None = None
    clip: LocalPath | None = None
    clip_name: str = OPENAI_VIT_L_14
    scale: Scale = "percent"
    num_prompts: Count | None = None
    images_per_prompt: Count = 1

    worst_score: ClassVar[float] = -1.0

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

    def scorer(self) -> "ClipScorer":
        """Returns the scorer.

        Raises:
            UsageError: if the folder of the CLIP model is missing or wrong.
        """
        if self.clip is None:
            raise UsageError(
                "clip_score needs clip=FOLDER, a folder of openai/clip-vit-large-patch14"
            )
        return ClipScorer(load_clip(self.clip, name=self.clip_name))

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
        is_cut = {row.item.id: _data(row)["is_cut"] for row in rows if _data(row)}
        num_cut = sum(is_cut.values())
        num_missing = sum(not _data(row) for row in rows)
        notes = [f"the headline has the scale {self.scale}"]
        if num_cut:
            notes.append(
                f"{num_cut} of {len(is_cut)} prompts are longer than CLIP reads: what follows is "
                "not measured"
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

    def remarks(self) -> list[str]:
        """Returns the scale, without which the figure has no meaning, and another CLIP."""
        remarks = [f"scale {self.scale}"]
        if self.clip_name != OPENAI_VIT_L_14:
            remarks.append(f"{self.clip_name} in place of {OPENAI_VIT_L_14}")
        return remarks


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
        seen = self._encoder.embed_images([one.image for one in whole if one.image is not None])
        prompts = [one.item.prompt for one in whole]
        prefixed = self._encoder.embed_texts([CLIPSCORE_PREFIX + prompt for prompt in prompts])
        cosines = _cosines(seen, self._encoder.embed_texts(prompts))
        found = zip(whole, cosines, _cosines(seen, prefixed), strict=True)
        for sample, cosine, cosine_prefixed in found:
            data = {
                "cosine": cosine,
                "cosine_prefixed": cosine_prefixed,
                "is_cut": self._encoder.num_cut([sample.item.prompt]) > 0,
            }
            yield self._verdict(sample, data)

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


def _cosines(first: NDArray[np.float32], second: NDArray[np.float32]) -> list[float]:
    """Returns the cosine of each pair of rows."""
    one, other = first.astype(np.float64), second.astype(np.float64)
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return ((one * other).sum(axis=1) / lengths).tolist()


_SCALES: dict[Scale, Callable[[Mapping[str, Any]], float]] = {
    "percent": lambda data: 100 * max(data["cosine"], 0.0),
    "cosine": lambda data: data["cosine"],
    "clipscore": lambda data: 2.5 * max(data["cosine_prefixed"], 0.0),
}
_LEAST = dict.fromkeys(("cosine", "cosine_prefixed"), ClipScoreBenchmark.worst_score)
"""The cosines of an image that was not judged."""


def _data(row: Row) -> Mapping[str, Any]:
    """Returns what the judge says of a row; nothing if there is no judged image."""
    return {} if row.judgement is None else row.judgement.data


def _scaled(row: Row, scale: Scale) -> float:
    return _SCALES[scale](_data(row) or _LEAST)
