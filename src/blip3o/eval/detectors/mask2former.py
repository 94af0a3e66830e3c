"""GenEval's detector without mmdetection: Mask2Former on Swin-S, its instance model of COCO.

The layers are those of transformers; images, names of weights and findings are mmdetection's.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from PIL import Image

from blip3o.core.bounds import Count
from blip3o.core.config import LocalPath
from blip3o.core.device import resolve_device
from blip3o.core.log import say
from blip3o.eval.detectors import Detections
from blip3o.eval.detectors.arithmetic import check_device, exact
from blip3o.eval.detectors.coco import coco_classes
from blip3o.eval.detectors.mask2former_network import (
    OFFICIAL_SIZES,
    Mask2FormerNetwork,
    Mask2FormerSizes,
)
from blip3o.eval.detectors.mask2former_weights import Checkpoint, read_checkpoint
from blip3o.eval.detectors.mmdet_findings import findings
from blip3o.eval.detectors.mmdet_image import PreparedImage, prepare
from blip3o.eval.detectors.self_test import run_self_test


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mask2FormerConfig:
    """Settings of the detector; the defaults are those of GenEval.

    Args:
        weights: the official file (`mask2former_weights.OFFICIAL_FILE`), or a folder of
            `convert_checkpoint`.
        batch_size: images of one size that run together. With more than 1, the last digits of
            scores depend on the other images.
        self_test: a self-test file (`self_test.SelfTest`), tried when the detector is loaded.
        sizes: sizes of the network.
        longest: limit of the longer side of an image in pixels.
        shortest: limit of the shorter side of an image in pixels.
        max_findings: most findings in an image.
    """

    kind: Literal["mask2former"] = "mask2former"
    weights: LocalPath
    batch_size: Count = 1
    self_test: LocalPath | None = None
    sizes: Mask2FormerSizes = OFFICIAL_SIZES
    longest: Count = 1333
    shortest: Count = 800
    max_findings: Count = 100

    @classmethod
    def tiny(cls, weights: str) -> "Mask2FormerConfig":
        """Returns settings of a tiny detector for tests.

        Args:
            weights: a file with weights of `Mask2FormerSizes.tiny`.
        """
        return cls(
            weights=weights,
            sizes=Mask2FormerSizes.tiny(),
            longest=120,
            shortest=72,
            max_findings=20,
        )

    def build(self, device: str = "auto") -> "Mask2FormerDetector":
        """Loads and returns the detector, after the check of the device and the self-test.

        Raises:
            UsageError: if weights are missing or wrong, or a check fails.
        """
        place = resolve_device(device)
        checkpoint = read_checkpoint(Path(self.weights))
        network = checkpoint.network(self.sizes)
        if place.type != "cpu":
            check_device(network, Mask2FormerNetwork.pixel_features, place)
        detector = Mask2FormerDetector(
            self, network.to(place), detector_name(checkpoint, self.sizes)
        )
        if self.self_test is not None:
            run_self_test(detector, Path(self.self_test))
        elif not checkpoint.is_official:
            say(
                f"warning: {self.weights} are not the weights that GenEval uses, and no self_test "
                "checks them"
            )
        return detector


def detector_name(checkpoint: Checkpoint, sizes: Mask2FormerSizes) -> str:
    """Returns the name of the detector in results; "@" marks weights that GenEval does not use."""
    kind = "mask2former-swin-s" if sizes == OFFICIAL_SIZES else "mask2former"
    return f"{kind}{'-' if checkpoint.is_official else '@'}{checkpoint.sha256[:8]}"


class Mask2FormerDetector:
    """Finds objects of COCO with masks; see `Detector`.

    The findings of an image of 1024 x 1024 pixels take 100 MB, so give few images at a time.

    Args:
        config: settings.
        network: the network with its weights.
        name: the detector and its weights, as results state them.
    """

    def __init__(self, config: Mask2FormerConfig, network: Mask2FormerNetwork, name: str) -> None:
        self.name = name
        self.classes: Sequence[str] = coco_classes()[: config.sizes.num_classes]
        self._config = config
        self._network = network
        self._device = next(network.parameters()).device

    def detect(self, images: Sequence[Image.Image]) -> list[Detections]:
        """Returns the findings in each image; only images of one padded size run together."""
        config = self._config
        prepared = [prepare(image, config.longest, config.shortest) for image in images]
        by_size: dict[torch.Size, list[int]] = {}
        for number, one in enumerate(prepared):
            by_size.setdefault(one.pixels.shape, []).append(number)
        found: dict[int, Detections] = {}
        for numbers in by_size.values():
            for start in range(0, len(numbers), config.batch_size):
                batch = numbers[start : start + config.batch_size]
                results = self._batch([prepared[number] for number in batch])
                found |= dict(zip(batch, results, strict=True))
        return [found[number] for number in range(len(images))]

    def _batch(self, images: Sequence[PreparedImage]) -> list[Detections]:
        with exact(self._device):
            pixels = torch.stack([image.pixels for image in images]).to(self._device)
            classes, masks = self._network(pixels)
            return [
                findings(of_classes, of_masks, image, self._config.max_findings)
                for of_classes, of_masks, image in zip(classes, masks, images, strict=True)
            ]
