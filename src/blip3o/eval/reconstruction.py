"""The reconstruction benchmark: images that are encoded as features and decoded again.

It measures how much of an image the features and the image decoder keep. Text, the backbone and the
generator take no part.
"""

import dataclasses
import heapq
import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import torch
from PIL import Image
from torch import Tensor

from blip3o.core.bounds import Count, Guidance, Seed
from blip3o.core.config import LocalPath
from blip3o.core.errors import UsageError
from blip3o.core.log import progress, say
from blip3o.core.rng import image_generator, numpy_rng
from blip3o.data.images import read_image
from blip3o.data.scenes.render import render
from blip3o.data.scenes.scene import sample_scene
from blip3o.data.walk import source_config
from blip3o.eval import WriteRow
from blip3o.eval.frechet import frechet_distance
from blip3o.eval.inception import FILE as INCEPTION_FILE
from blip3o.eval.inception import load_inception
from blip3o.eval.lpips import FILES as LPIPS_FILES
from blip3o.eval.lpips import LEAST_PX as LPIPS_PX
from blip3o.eval.lpips import load_lpips
from blip3o.eval.similarity import psnr, ssim
from blip3o.generate.pipeline import Blip3oPipeline
from blip3o.imaging.pixels import resized
from blip3o.imaging.sheet import contact_sheet

Images: TypeAlias = Sequence[Image.Image]
"""RGB images of one size."""
Compare: TypeAlias = Callable[[Images, Images], list[float]]
"""Originals and reconstructions to a figure of each pair."""
Extract: TypeAlias = Callable[[Images], Tensor]
"""Images to a vector of each, [B, D], for a Frechet distance."""

_FEW_IMAGES = 5000
_SHOWN, _SHOWN_PX = 16, 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReconstructionBenchmark:
    """Settings of the benchmark.

    Args:
        images: images that the model was not trained on: a folder, a list of records or tar shards.
            None draws held-out scenes.
        num_images: images to reconstruct; of more images in the data, this number is drawn.
        seed: seed of the choice of images and of the decoder's noise.
        batch_size: images in a batch; affects only speed and memory.
        num_decoder_steps: steps of the image decoder; None means the default of the model.
        decoder_guidance_scale: guidance scale of the image decoder; None means its default.
        judge_weights: folder with the published files of the networks that judge: Inception for
            rFID and AlexNet for LPIPS. Figures of missing files are left out.
    """

    images: LocalPath | None = None
    num_images: Count = 200
    seed: Seed = 2025
    batch_size: Count = 16
    num_decoder_steps: Count | None = None
    decoder_guidance_scale: Guidance | None = None
    judge_weights: LocalPath | None = None

    def run(self, pipe: Blip3oPipeline, out: Path, write: WriteRow) -> dict[str, object]:
        """Returns the scores and passes the figures of each image to `write`; see `Benchmark`.

        Raises:
            UsageError: if data or weights are missing, or no image of the data can be read.
        """
        side = pipe.model.config.image_decoder.image_px
        judges = self._judges(pipe, side)
        shown = _Shown()
        unreadable: dict[str, str] = {}
        inputs = self._inputs(pipe, unreadable)
        while batch := list(itertools.islice(inputs, self.batch_size)):
            after = pipe.reconstruct(
                [one.image for one in batch],
                generator=[image_generator(self.seed, one.number, 0) for one in batch],
                num_decoder_steps=self.num_decoder_steps,
                decoder_guidance_scale=self.decoder_guidance_scale,
            ).images
            # The encoder stretches an image to its square; the decoder's square is compared.
            before = [resized(one.image, (side, side)) for one in batch]
            rows = judges.add([one.name for one in batch], before, after)
            for row, original, result in zip(rows, before, after, strict=True):
                write({"image": row.name, **{k: _finite(v) for k, v in row.figures.items()}})
                shown.add(row.figures["psnr"], original, result)
        for name, reason in unreadable.items():
            write({"image": name, "error": reason})
        if not judges.rows:
            raise UsageError(f"no image of {self.images} can be read")
        shown.save(out)
        return {**judges.scores(), "num_unreadable": len(unreadable), "image_px": side}

    def _judges(self, pipe: Blip3oPipeline, side: int) -> "_Judges":
        judges = _Judges()
        judges.compares |= {"psnr": _each(psnr), "ssim": _each(ssim)}
        judges.extracts["frechet_own_features"] = _own_features(pipe)
        if self.judge_weights is None:
            judges.notes.append("rfid and lpips are not measured: judge_weights names no folder")
            return judges
        folder = Path(self.judge_weights)
        if not folder.is_dir():
            raise UsageError(f"judge_weights: no such folder: {folder}")
        inception, lpips = load_inception(folder), load_lpips(folder)
        if inception is None:
            judges.notes.append(f"rfid is not measured: {folder} has no {INCEPTION_FILE}")
        else:
            judges.extracts["rfid"] = inception.to(pipe.device).extract
        if lpips is None:
            judges.notes.append(f"lpips is not measured: {folder} lacks {' or '.join(LPIPS_FILES)}")
        elif side < LPIPS_PX:
            judges.notes.append(f"lpips is not measured: it needs images of {LPIPS_PX} px")
        else:
            judges.compares["lpips"] = lpips.to(pipe.device).compare
        return judges

    def _inputs(self, pipe: Blip3oPipeline, unreadable: dict[str, str]) -> Iterator["_Input"]:
        """Yields the images; fills `unreadable` with the reasons of those that cannot be read."""
        if self.images is None:
            side = pipe.model.config.image_encoder.image_px
            for number in progress(range(self.num_images), what="reconstructions"):
                scene = sample_scene(self.seed, number, split="heldout")
                yield _Input(number, f"scene {number}", render(scene, side))
            return
        source = source_config(self.images).build()
        drawn = numpy_rng(self.seed, "eval images").permutation(len(source))[: self.num_images]
        for position in progress(sorted(drawn.tolist()), what="reconstructions"):
            name = f"record {position}"
            try:
                name, files, _ = source.read(position)
                image = read_image(files, "image" if "image" in files else next(iter(files), ""))
            except (ValueError, OSError) as error:
                unreadable[name] = str(error)
                continue
            yield _Input(position, name, image)


class _Input(NamedTuple):
    """An image, its number in the data and its name."""

    number: int
    name: str
    image: Image.Image


class _Row(NamedTuple):
    """The figures of one image by name."""

    name: str
    figures: Mapping[str, float]


class _Judges:
    """Collects figures of pairs, and vectors of originals and reconstructions.

    Attributes:
        compares: figures of pairs, by name.
        extracts: vectors for Frechet distances, by the name of the distance.
        notes: remarks about the figures.
        rows: rows of the images so far.
    """

    def __init__(self) -> None:
        self.compares: dict[str, Compare] = {}
        self.extracts: dict[str, Extract] = {}
        self.notes: list[str] = []
        self.rows: list[_Row] = []
        self._vectors: dict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)

    def add(self, names: Sequence[str], before: Images, after: Images) -> list[_Row]:
        """Returns the rows of a batch of originals and their reconstructions."""
        figures = {name: compare(before, after) for name, compare in self.compares.items()}
        rows = [
            _Row(name, {key: values[row] for key, values in figures.items()})
            for row, name in enumerate(names)
        ]
        self.rows += rows
        for name, extract in self.extracts.items():
            self._vectors[name].append((extract(before), extract(after)))
        return rows

    def scores(self) -> dict[str, object]:
        """Returns the means of the figures, the distances, and notes on what they are worth."""
        by_folder: dict[str, list[_Row]] = defaultdict(list)
        for row in self.rows:
            if "/" in row.name:
                by_folder[row.name.partition("/")[0]].append(row)
        means = {name: _mean(self.rows, name) for name in self.compares}
        scores: dict[str, object] = {
            "overall": means["psnr"],
            "by_category": {name: _mean(rows, "psnr") for name, rows in sorted(by_folder.items())},
            "num_samples": len(self.rows),
            "num_identical": sum(math.isinf(row.figures["psnr"]) for row in self.rows),
            **means,
        }
        if len(self.rows) > 1:
            for name, pairs in self._vectors.items():
                first, second = (torch.cat(vectors) for vectors in zip(*pairs, strict=True))
                scores[name] = frechet_distance(first, second)
        notes = list(self.notes)
        if len(self.rows) < _FEW_IMAGES:
            notes.append(
                f"{' and '.join(self._vectors)}: of {len(self.rows)} images; with fewer than "
                f"{_FEW_IMAGES:,} a Frechet distance is far too large"
            )
        for note in notes:
            say(f"warning: {note}")
        return {**scores, "notes": notes}


class _Shown:
    """The images of the sheets: the first ones and those with the lowest PSNR."""

    def __init__(self) -> None:
        self._num_seen = 0
        self._first: list[_Pair] = []
        self._worst: list[_Pair] = []

    def add(self, decibel: float, original: Image.Image, result: Image.Image) -> None:
        """Adds an image; `decibel` is its PSNR."""
        pair = _Pair(-decibel, self._num_seen, original, result)
        self._num_seen += 1
        if len(self._first) < _SHOWN:
            self._first.append(pair)
        # The least element of a heap is its first one: here the best of the worst images.
        push = heapq.heappush if len(self._worst) < _SHOWN else heapq.heappushpop
        push(self._worst, pair)

    def save(self, out: Path) -> None:
        """Writes `reconstructions.png` and `worst.png`, each original before its reconstruction."""
        worst = sorted(self._worst, reverse=True)
        for name, pairs in (("reconstructions", self._first), ("worst", worst)):
            images = [_small(one) for pair in pairs for one in (pair.original, pair.result)]
            captions = [
                text for pair in pairs for text in ("original", f"{-pair.negative_psnr:.1f} dB")
            ]
            contact_sheet(images, captions, columns=8).save(out / f"{name}.png")


class _Pair(NamedTuple):
    """An image of a sheet, ordered by its PSNR and then by its number."""

    negative_psnr: float
    number: int
    original: Image.Image
    result: Image.Image


def _small(image: Image.Image) -> Image.Image:
    scale = min(1.0, _SHOWN_PX / max(image.size))
    return resized(image, (round(image.width * scale), round(image.height * scale)))


def _each(compare: Callable[[Image.Image, Image.Image], float]) -> Compare:
    """Returns a comparison of lists of images."""
    return lambda before, after: list(map(compare, before, after))


def _own_features(pipe: Blip3oPipeline) -> Extract:
    """Returns the mean of the model's own features over the tokens of an image."""
    return lambda images: pipe.encode(images).double().mean(1).cpu()


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _mean(rows: Sequence[_Row], name: str) -> float | None:
    """Returns the mean of a figure; equal images have an infinite PSNR and are left out of it."""
    values = [row.figures[name] for row in rows if math.isfinite(row.figures[name])]
    return sum(values) / len(values) if values else None
