"""FID and KID: how near the generated images are, as a set, to a set of reference images.

The reference is the user's: COCO-30k at 256 px, or MJHQ-30K with its ten folders. The figures are
only comparable with the same reference, number of images, size of images and resampling.
"""

import dataclasses
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from blip3o.core.bounds import Bounds, Count
from blip3o.core.config import LocalPath
from blip3o.core.device import resolve_device
from blip3o.core.errors import UsageError, first_line, reason_of
from blip3o.core.files import atomic_file
from blip3o.core.log import progress
from blip3o.eval.benchmark import Benchmark, Item, Row, Sample, Scores, Verdict
from blip3o.eval.image_sets import ImageSet, top_folder
from blip3o.eval.measures.frechet import frechet_distance, kernel_distance
from blip3o.eval.measures.inception import (
    FILE,
    NUM_FEATURES,
    Inception,
    Resize,
    load_inception,
    weights_name,
)
from blip3o.eval.measures.vectors import packed, unpacked
from blip3o.eval.prompt_lists import read_prompts

LEAST_IMAGES = NUM_FEATURES + 1
"""Fewer images give a singular covariance and a distance that is far too large."""

_KID_SUBSETS, _KID_SUBSET_SIZE = 100, 1000
_ADVICE = "use more, or few_images=true"


@dataclasses.dataclass(frozen=True, kw_only=True)
class FidBenchmark(Benchmark):
    """FID and KID: images of your prompts against a set of reference images.

    Args:
        prompts: file of prompts: .txt, .jsonl, or .json as the `meta_data.json` of MJHQ-30K.
        reference: the reference images: a folder, a list of records or tar shards.
        judge_weights: folder with the published Inception, `blip3o.eval.measures.inception.FILE`.
        mode: resampling to 299 x 299: "clean" (clean-fid), "legacy_pytorch" (pytorch-fid) or
            "tensorflow1" (torch-fidelity).
        num_prompts: prompts to use; of more prompts in the file, this number is drawn. None uses
            all.
        images_per_prompt: images of each prompt.
        kid_subsets: random subsets of KID.
        kid_subset_size: images of a subset.
        few_images: accepts fewer than 2,049 images; the results then say so.
        cache: folder that keeps the features of the reference; None computes them in each process.
    """

    prompts: LocalPath | None = None
    reference: LocalPath | None = None
    judge_weights: LocalPath | None = None
    mode: Resize = "clean"
    num_prompts: Count | None = None
    images_per_prompt: Count = 1
    kid_subsets: Count = _KID_SUBSETS
    kid_subset_size: Annotated[int, Bounds(2)] = _KID_SUBSET_SIZE
    few_images: bool = False
    cache: LocalPath | None = None

    def items(self) -> list[Item]:
        """Returns an item for each prompt.

        Raises:
            UsageError: if no file of prompts is named, it cannot be read, or there are too few
                images.
        """
        if self.prompts is None:
            raise UsageError("fid needs prompts=FILE, a list of prompts")
        listed = read_prompts(self.prompts)
        chosen = listed.drawn(self.num_prompts, self.seed)
        self._require_enough(len(chosen) * self.images_per_prompt, "generated images")
        return [
            Item(
                id=f"{prompt.number:06d}",
                number=prompt.number,
                prompt=prompt.text,
                category=prompt.category,
                num_samples=self.images_per_prompt,
                data={"prompts_sha256": listed.sha256},
            )
            for prompt in chosen
        ]

    def scorer(self) -> "FidScorer":
        """Returns the scorer, after the features of the reference are known.

        Raises:
            UsageError: if the reference or the weights are missing, damaged or too few.
        """
        folder, images = self._weights(), self._images()
        self._require_enough(len(images), f"images in {images.path}")
        network = _network(folder)
        key = self._key(images, folder)
        reference = self._known(key) or self._computed(images, key, network)
        return FidScorer(network, weights_name(folder), self.mode, reference)

    def reduce(self, rows: Sequence[Row]) -> Scores:
        """Returns the distances between all generated images and the reference.

        The rows name the reference by its hash. Its features come from memory or from `cache`, or
        are computed again from the same images.

        Raises:
            UsageError: if the reference of the rows is not there, or the rows have several.
        """
        in_order = sorted(rows, key=lambda row: (row.item.number, row.number))  # sums round
        judged = [(row.item, row.judgement.data) for row in in_order if row.judgement is not None]
        figures: dict[str, Any] = {
            "mode": self.mode,
            "num_images": len(judged),
            "num_missing": len(rows) - len(judged),
            "prompts_sha256": sorted({row.item.data["prompts_sha256"] for row in rows}),
            "image_px": sorted({tuple(data["image_px"]) for _, data in judged}),
        }
        if len(judged) < 2:
            notes = ["a distance needs two or more images"]
            return Scores(overall=None, by_category={}, figures=figures, notes=notes)
        reference = self._reference_of([data["reference"] for _, data in judged])
        features = unpacked(data["features"] for _, data in judged)
        places: dict[str, list[int]] = defaultdict(list)
        for place, (item, _) in enumerate(judged):
            if item.category:
                places[item.category].append(place)
        fid = frechet_distance(features, reference.features)
        by_category = {
            category: reference.distance(category, features[chosen])
            for category, chosen in sorted(places.items())
        }
        figures |= {
            "fid": fid,
            **self._kernel_figures(features, reference.features),
            "reference": reference.name,
            "reference_size": len(reference.features),
            "reference_key": reference.key,
        }
        notes = self._notes(figures, {name: len(chosen) for name, chosen in places.items()})
        # A part of the images has another distance than all of them, so it is no headline.
        overall = None if figures["num_missing"] else fid
        return Scores(overall=overall, by_category=by_category, figures=figures, notes=notes)

    def remarks(self) -> list[str]:
        """Returns the reference, the resampling, and the settings that are not the usual ones."""
        remarks = [f"lower is better; {self.mode} resampling; reference {self.reference}"]
        if self.few_images:
            remarks.append(f"fewer than {LEAST_IMAGES:,} images were allowed")
        if (self.kid_subsets, self.kid_subset_size) != (_KID_SUBSETS, _KID_SUBSET_SIZE):
            remarks.append(f"KID of {self.kid_subsets} subsets of {self.kid_subset_size}")
        return remarks

    def _require_enough(self, count: int, what: str) -> None:
        if count < LEAST_IMAGES and not self.few_images:
            raise UsageError(
                f"{count:,} {what} are too few for FID, which needs {LEAST_IMAGES:,}: {_ADVICE}"
            )

    def _weights(self) -> Path:
        if self.judge_weights is None:
            raise UsageError(f"fid needs judge_weights=FOLDER, a folder with {FILE}")
        return Path(self.judge_weights)

    def _images(self) -> ImageSet:
        if self.reference is None:
            raise UsageError("fid needs reference=FOLDER, the reference images")
        return ImageSet(self.reference)

    def _kernel_figures(self, features: Tensor, reference: Tensor) -> dict[str, Any]:
        size = min(self.kid_subset_size, len(features), len(reference))
        found = kernel_distance(
            features, reference, num_subsets=self.kid_subsets, subset_size=size, seed=self.seed
        )
        return {
            "kid": found.mean,
            "kid_std": found.std,
            "kid_subsets": self.kid_subsets,
            "kid_subset_size": size,
            "kid_seed": self.seed,
        }

    def _notes(self, figures: dict[str, Any], counts: dict[str, int]) -> list[str]:
        generated, reference = figures["num_images"], figures["reference_size"]
        notes = [f"FID of {generated:,} generated images and {reference:,} reference images"]
        if min(generated, reference) < LEAST_IMAGES:
            notes.append(f"fewer than {LEAST_IMAGES:,} images: FID is far too large")
        few = [name for name, count in sorted(counts.items()) if count < LEAST_IMAGES]
        if few:
            notes.append(f"fewer than {LEAST_IMAGES:,} images in {', '.join(few)}")
        if figures["kid_subset_size"] < self.kid_subset_size:
            notes.append(
                f"KID has subsets of {figures['kid_subset_size']} images: there are no more"
            )
        if figures["num_missing"]:
            notes.append(
                f"{figures['num_missing']} generated images are missing: fid and kid are of the "
                "rest, and there is no headline"
            )
        if len(figures["image_px"]) > 1:
            notes.append("the generated images differ in size before the resampling (image_px)")
        return notes

    def _reference_of(self, named: Sequence[Mapping[str, Any]]) -> "Reference":
        """Returns the reference that the rows name."""
        keys = sorted({one["key"] for one in named})
        if len(keys) > 1:
            raise UsageError(
                f"the verdicts have {len(keys)} references: score all samples again with one"
            )
        known = self._known(keys[0])
        if known is not None:
            return known
        images, folder = self._images(), self._weights()
        if self._key(images, folder) != keys[0]:
            raise UsageError(
                f"reference={images.path} with this mode and these weights is not the reference of "
                "the verdicts: give that one or its cache, or score again"
            )
        return self._computed(images, keys[0], _network(folder))

    def _key(self, images: ImageSet, folder: Path) -> str:
        """Returns a name of all that determines the features of a reference."""
        return f"{images.sha256()[:32]}.{weights_name(folder)}.{self.mode}"

    def _known(self, key: str) -> "Reference | None":
        """Returns a reference that is in memory or in the cache."""
        if key not in _KNOWN and self.cache is not None:
            file = _cache_file(self.cache, key)
            if file.is_file():
                _KNOWN[key] = _read_reference(file, key)
        return _KNOWN.get(key)

    def _computed(self, images: ImageSet, key: str, network: Inception) -> "Reference":
        folders: list[str] = []
        batches: list[Tensor] = []
        for start in progress(range(0, len(images), FidScorer.batch_size), what="reference"):
            positions = range(start, min(start + FidScorer.batch_size, len(images)))
            folders += [top_folder(images.checked_file(position)[0]) for position in positions]
            batch = [images.checked_image(position) for position in positions]
            batches.append(network.extract(batch, self.mode))
        reference = Reference(
            name=images.name, key=key, folders=tuple(folders), features=torch.cat(batches)
        )
        if self.cache is not None:
            _write_reference(_cache_file(self.cache, key), reference)
        _KNOWN[key] = reference
        return reference


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reference:
    """The features of a set of reference images.

    Args:
        name: name of the set.
        key: hash of the images, the network and the resampling.
        folders: first folder of each image; empty for images outside any.
        features: features [M, 2048].
    """

    name: str
    key: str
    folders: tuple[str, ...]
    features: Tensor

    def distance(self, folder: str, features: Tensor) -> float | None:
        """Returns the FID of images against those of a folder; None if either has less than two."""
        own = self.features[torch.tensor([one == folder for one in self.folders])]
        return None if min(len(own), len(features)) < 2 else frechet_distance(features, own)


_KNOWN: dict[str, Reference] = {}
"""References of this process, so that the figures need not compute them again after scoring."""


class FidScorer:
    """Takes the features of generated images; the distances need all of them.

    Args:
        network: the network of FID.
        weights: its name, with the hash of its weights.
        mode: the resampling.
        reference: the reference, which is part of the name of the judge.
    """

    batch_size = 32

    def __init__(
        self, network: Inception, weights: str, mode: Resize, reference: Reference
    ) -> None:
        self._network, self._mode = network, mode
        self._reference = {"name": reference.name, "key": reference.key}
        self.judge = f"{weights}+{mode}+{reference.name}-{reference.key[:8]}"

    def verdicts(self, samples: Sequence[Sample]) -> Iterator[Verdict]:
        """Yields the features of each image; a sample without an image is broken."""
        images = {place: one.image for place, one in enumerate(samples) if one.image is not None}
        vectors = self._network.extract([*images.values()], self._mode) if images else []
        found = dict(zip(images, vectors, strict=True))
        for place, sample in enumerate(samples):
            data: dict[str, Any] = {}
            if place in found:
                data = {
                    "features": packed(found[place]),
                    "image_px": list(images[place].size),
                    "reference": self._reference,
                }
            yield Verdict(
                item=sample.item.id,
                number=sample.number,
                sha256=sample.sha256,
                judge=self.judge,
                outcome="judged" if data else "broken",
                data=data,
            )


def _network(folder: Path) -> Inception:
    network = load_inception(folder)
    if network is None:
        raise UsageError(f"judge_weights: {folder} has no {FILE}: put the published file there")
    return network.to(resolve_device())


def _cache_file(cache: str, key: str) -> Path:
    return Path(cache) / f"{key}.safetensors"


def _write_reference(file: Path, reference: Reference) -> None:
    described = {"name": reference.name, "folders": json.dumps(reference.folders)}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(file, is_shared=True) as part:
            save_file({"features": reference.features}, part, metadata=described)
    except OSError as error:
        raise UsageError(f"cache: cannot write {file}: {reason_of(error)}") from error


def _read_reference(file: Path, key: str) -> Reference:
    try:
        with safe_open(file, framework="pt") as stored:
            described, features = stored.metadata() or {}, stored.get_tensor("features")
        folders = tuple(json.loads(described["folders"]))
        if len(folders) != len(features):
            raise ValueError("it has other numbers of images and folders")
        return Reference(name=described["name"], key=key, folders=folders, features=features)
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise UsageError(f"cache: {file} is damaged ({first_line(error)}): remove it") from error
