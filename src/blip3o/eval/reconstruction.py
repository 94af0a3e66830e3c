"""The reconstruction benchmark: images that are encoded as features and decoded again.

It measures how much of an image the features and the image decoder keep. Text, the backbone and the
generator take no part.
"""

import dataclasses
import functools
import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from blip3o.core.bounds import Count, Seed
from blip3o.core.config import LocalPath, from_dict
from blip3o.core.device import resolve_device
from blip3o.core.errors import UsageError
from blip3o.core.files import file_sha256
from blip3o.core.log import progress
from blip3o.core.rng import numpy_rng
from blip3o.data.scenes.render import render
from blip3o.data.scenes.scene import sample_scene
from blip3o.eval.benchmark import Benchmark, Item, Row, Sample, Scores, Verdict
from blip3o.eval.figures import grouped
from blip3o.eval.image_sets import ImageSet, top_folder
from blip3o.eval.measures.frechet import frechet_distance
from blip3o.eval.measures.inception import FILE as INCEPTION_FILE
from blip3o.eval.measures.inception import load_inception
from blip3o.eval.measures.inception import weights_name as inception_name
from blip3o.eval.measures.lpips import FILES as LPIPS_FILES
from blip3o.eval.measures.lpips import LEAST_PX as LPIPS_PX
from blip3o.eval.measures.lpips import Lpips, load_lpips
from blip3o.eval.measures.lpips import weights_name as lpips_name
from blip3o.eval.measures.similarity import LEAST_PX as SSIM_PX
from blip3o.eval.measures.similarity import psnr, ssim
from blip3o.eval.measures.vectors import packed, unpacked
from blip3o.imaging.pixels import resized, to_pixels
from blip3o.models.encoders.pocket import PocketEncoderConfig
from blip3o.weights.names import BUNDLED
from blip3o.weights.shards import open_tensors

_FEW_IMAGES = 5000
_FIGURES = ("psnr", "ssim", "lpips")
_Extract = Callable[[Sequence[Image.Image]], Tensor]
"""RGB images to a vector of each, [B, D], for a Frechet distance."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReconstructionBenchmark(Benchmark):
    """Reconstruction: images encoded and decoded again, by PSNR, SSIM, rFID and LPIPS.

    Args:
        images: images that the model was not trained on: a folder, a list of records or tar shards.
            None draws held-out scenes.
        num_images: images to reconstruct; of more images in the data, this number is drawn.
        seed: seed of the choice of images and of the decoder's noise.
        batch_size: images in a batch; affects only speed and memory.
        scene_px: side of held-out scenes in pixels.
        judge_weights: folder with the published files of the networks that judge: Inception for
            rFID and AlexNet for LPIPS. Figures of missing files are left out.
    """

    images: LocalPath | None = None
    num_images: Count = 200
    seed: Seed = 2025
    batch_size: Count = 16
    scene_px: Count = 96
    judge_weights: LocalPath | None = None

    def items(self) -> list[Item]:
        """Returns an item for each image; the first one also lists the unreadable images.

        Raises:
            UsageError: if the data are missing, or no image of them can be read.
        """
        if self.images is None:
            scenes = ((number, self._scene(number)) for number in range(self.num_images))
            return [
                _item(number, f"scene {number}", hashlib.sha256(image.tobytes()).hexdigest())
                for number, image in scenes
            ]
        drawn = numpy_rng(self.seed, "eval images").permutation(len(self._set))[: self.num_images]
        items: list[Item] = []
        unreadable: dict[str, str] = {}
        for position in progress(sorted(drawn.tolist()), what="reading images"):
            name = f"record {position}"
            try:
                name, data = self._set.file(position)
                self._set.image(position)
            except (ValueError, OSError) as error:
                unreadable[name] = str(error)
                continue
            items.append(_item(position, name, hashlib.sha256(data).hexdigest()))
        if not items:
            raise UsageError(f"no image of {self.images} can be read: give other images")
        first = items[0]
        items[0] = dataclasses.replace(first, data={**first.data, "unreadable": unreadable})
        return items

    def sources(self, item: Item) -> list[Image.Image]:
        """Returns the original of an item in RGB.

        Raises:
            UsageError: if it can no longer be read.
        """
        if self.images is None:
            return [self._scene(item.number)]
        return [self._set.checked_image(item.number)]

    def scorer(self) -> "ReconstructionScorer":
        """Returns the scorer, with the networks whose weights are there.

        Raises:
            UsageError: if `judge_weights` is no folder, or holds files of other networks.
        """
        return ReconstructionScorer(
            None if self.judge_weights is None else Path(self.judge_weights)
        )

    def reduce(self, rows: Sequence[Row]) -> Scores:
        """Returns the means of the figures, the distances, and notes on what they are worth.

        A missing reconstruction has a PSNR of 0 dB, the least of two images. The other figures have
        no worst value; they are those of the reconstructions that exist, and a note says so.
        """
        means = self.resampled(rows)
        in_order = sorted(rows, key=lambda row: (row.item.number, row.number))  # distances round
        present = [row.judgement.data for row in in_order if row.judgement is not None]
        figures: dict[str, Any] = {
            "psnr": means.overall,
            **{name: _mean([data.get(name) for data in present]) for name in _FIGURES[1:]},
            **_distances(present),
            "num_images": len(rows),
            "num_missing": len(rows) - len(present),
            "num_identical": sum(data["is_identical"] for data in present),
            "num_unreadable": len(_unreadable(rows)),
            "unreadable": _unreadable(rows),
            "image_px": sorted({tuple(data["image_px"]) for data in present}),
        }
        return dataclasses.replace(
            means,
            figures={name: value for name, value in figures.items() if value is not None},
            notes=_notes(figures, present),
        )

    def resampled(self, rows: Sequence[Row]) -> Scores:
        """Returns the means of the PSNR; images that are drawn twice bias a Frechet distance."""
        by_folder = grouped((row.item.category, _decibel(row)) for row in rows if row.item.category)
        return Scores(
            overall=_mean([_decibel(row) for row in rows]),
            by_category={name: _mean(values) for name, values in sorted(by_folder.items())},
        )

    @functools.cached_property
    def _set(self) -> ImageSet:
        assert self.images is not None, "scenes have no set"
        return ImageSet(self.images)

    def _scene(self, number: int) -> Image.Image:
        return render(sample_scene(self.seed, number, split="heldout"), self.scene_px)


class ReconstructionScorer:
    """Compares reconstructions with their originals.

    An original is stretched to the size of its reconstruction, because the image encoder stretches
    it to a square.

    Args:
        folder: folder of the judging networks; None for none.

    Raises:
        UsageError: if the folder is missing, or holds files of other networks.
    """

    batch_size = 16

    def __init__(self, folder: Path | None) -> None:
        device = resolve_device()
        encoder, name = _pocket_encoder(device)
        names = ["psnr", "ssim", name]
        self._extracts: dict[str, _Extract] = {"frechet_pocket_features": encoder}
        self._lpips: Lpips | None = None
        self._not_measured: list[str] = []
        if folder is None:
            self._not_measured.append(
                "rfid and lpips are not measured: judge_weights names no folder"
            )
        elif not folder.is_dir():
            raise UsageError(f"judge_weights: no such folder: {folder}")
        else:
            inception, lpips = load_inception(folder), load_lpips(folder)
            if inception is None:
                self._not_measured.append(f"rfid is not measured: {folder} has no {INCEPTION_FILE}")
            else:
                self._extracts["rfid"] = inception.to(device).extract
                names.append(inception_name(folder))
            if lpips is None:
                files = " or ".join(LPIPS_FILES)
                self._not_measured.append(f"lpips is not measured: {folder} lacks {files}")
            else:
                self._lpips = lpips.to(device)
                names.append(lpips_name(folder))
        self.judge = "+".join(names)

    def verdicts(self, samples: Sequence[Sample]) -> Iterator[Verdict]:
        """Yields the verdict of each sample; a sample without an image or original is broken."""
        whole = [one for one in samples if one.image is not None and one.sources]
        for sample in samples:
            if sample.image is None or not sample.sources:
                yield self._verdict(sample, None)
        pairs = [self._pair(sample) for sample in whole]
        vectors = {
            name: (extract([a for a, _ in pairs]), extract([b for _, b in pairs]))
            for name, extract in self._extracts.items()
            if pairs
        }
        for number, (sample, (before, after)) in enumerate(zip(whole, pairs, strict=True)):
            features = {
                name: [packed(first[number]), packed(second[number])]
                for name, (first, second) in vectors.items()
            }
            yield self._verdict(sample, {**self._figures(before, after), "features": features})

    @staticmethod
    def _pair(sample: Sample) -> tuple[Image.Image, Image.Image]:
        assert sample.image is not None
        return resized(sample.sources[0], sample.image.size), sample.image

    def _figures(self, before: Image.Image, after: Image.Image) -> dict[str, Any]:
        not_measured = list(self._not_measured)
        decibel, side = psnr(before, after), min(after.size)
        figures: dict[str, Any] = {
            "psnr": decibel if math.isfinite(decibel) else None,
            "is_identical": math.isinf(decibel),
            "image_px": list(after.size),
        }
        if side >= SSIM_PX:
            figures["ssim"] = ssim(before, after)
        else:
            not_measured.append(f"ssim is not measured: it needs images of {SSIM_PX} px")
        if self._lpips is not None and side >= LPIPS_PX:
            (figures["lpips"],) = self._lpips.compare([before], [after])
        elif self._lpips is not None:
            not_measured.append(f"lpips is not measured: it needs images of {LPIPS_PX} px")
        return {**figures, "not_measured": not_measured}

    def _verdict(self, sample: Sample, data: Mapping[str, Any] | None) -> Verdict:
        return Verdict(
            item=sample.item.id,
            number=sample.number,
            sha256=sample.sha256,
            judge=self.judge,
            outcome="broken" if data is None else "judged",
            score=None if data is None else data["psnr"],
            data=data or {},
        )


def _item(number: int, name: str, sha256: str) -> Item:
    return Item(
        id=f"{number:06d}",
        number=number,
        task="reconstruction",
        category=top_folder(name),
        sources=(sha256,),
        data={"name": name},
    )


def _pocket_encoder(device: torch.device) -> tuple[_Extract, str]:
    """Returns the bundled encoder as a judge, and its name with the hash of its weights.

    Its features of an image are averaged over the tokens. It is the same judge for all models,
    while the features of the model's own encoder cannot compare models with different encoders.
    """
    folder = BUNDLED["pocket"]
    described = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = from_dict(PocketEncoderConfig, described["image_encoder"])
    encoder = config.build()
    tensors = open_tensors(folder / "image_encoder")
    encoder.load_state_dict({name: one.read().float() for name, one in tensors.items()})
    encoder.to(device).eval().requires_grad_(False)

    @torch.no_grad()
    def extract(images: Sequence[Image.Image]) -> Tensor:
        pixels = torch.stack([to_pixels(image, config.image_px) for image in images])
        return encoder(pixels.to(device)).double().mean(1).float().cpu()

    file = folder / "image_encoder" / "model.safetensors"
    return extract, f"pocket-encoder-{file_sha256(file)[:8]}"


def _decibel(row: Row) -> float | None:
    """Returns the PSNR; None for equal images, the least value for a missing reconstruction."""
    if row.judgement is None:
        return ReconstructionBenchmark.worst_score
    return row.judgement.data["psnr"]


def _mean(values: Sequence[float | None]) -> float | None:
    """Returns the mean without None, such as the PSNR of equal images; None if nothing is left."""
    some = [value for value in values if value is not None]
    return math.fsum(some) / len(some) if some else None


def _distances(present: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Returns the Frechet distances between all originals and their reconstructions."""
    if len(present) < 2:
        return {}
    names = present[0]["features"]
    return {
        name: frechet_distance(
            *(unpacked(data["features"][name][place] for data in present) for place in (0, 1))
        )
        for name in names
    }


def _unreadable(rows: Sequence[Row]) -> dict[str, str]:
    """Returns the reason for each image of the data that cannot be read, by its name."""
    return {
        name: reason for row in rows for name, reason in row.item.data.get("unreadable", {}).items()
    }


def _notes(figures: Mapping[str, Any], present: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns what a reader of the figures needs to know."""
    notes = [*Counter(note for data in present for note in data["not_measured"])]
    if figures["num_missing"]:
        notes.append(
            f"{figures['num_missing']} of {figures['num_images']} reconstructions are missing: "
            "their PSNR counts as 0 dB, and the other figures are of the rest"
        )
    if figures["num_unreadable"]:
        notes.append(
            f"{figures['num_unreadable']} images of the data cannot be read: see unreadable"
        )
    if len(figures["image_px"]) > 1:
        notes.append("the reconstructions differ in size (image_px): their figures do not compare")
    if present and len(present) < _FEW_IMAGES:
        notes.append(
            f"{' and '.join(present[0]['features'])}: of {len(present)} images; with fewer than "
            f"{_FEW_IMAGES:,} a Frechet distance is far too large"
        )
    return notes
