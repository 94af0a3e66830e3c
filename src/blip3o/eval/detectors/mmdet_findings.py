"""From the outputs of Mask2Former to findings, as mmdetection computes them.

The post-processing of transformers gives other results: it forces masks to 384 x 384 pixels,
resizes binary masks, and merges and drops findings.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from blip3o.eval.detectors import Detections
from blip3o.eval.detectors.mmdet_image import PreparedImage

_CHUNK = 10
"""Masks that are enlarged together: 100 of them at 1024 x 1024 pixels would take gigabytes."""


def findings(
    class_logits: Tensor, mask_logits: Tensor, image: PreparedImage, max_findings: int
) -> Detections:
    """Returns the findings of one image, the most probable class of a query first.

    A query can appear with several classes, each time with the same mask. The score is the
    probability of the class times the mean probability of the pixels of the mask.

    Args:
        class_logits: [Q, C + 1]; the last class is "no object".
        mask_logits: [Q, h, w] at any size that stands for the padded image.
        image: the image that was given to the network.
        max_findings: most findings.

    Reference:
        mmdetection 2.28.2; parity family `mask2former` (`postprocess`, `tiny`).
    """
    probabilities = class_logits.softmax(-1)[:, :-1]
    num_classes = probabilities.shape[1]
    best, places = probabilities.flatten().topk(min(max_findings, probabilities.numel()))
    queries, labels = places // num_classes, places % num_classes
    used, which = queries.unique(return_inverse=True)
    masks, certainties = zip(
        *(_masks(mask_logits[some], image) for some in used.split(_CHUNK)), strict=True
    )
    mask, certainty = np.concatenate(masks), torch.cat(certainties)
    boxes = np.array([_box(one) for one in mask], np.float32)
    index = which.cpu().numpy()
    return Detections(
        labels=labels.cpu().numpy(),
        boxes=boxes[index],
        scores=(best * certainty[which]).cpu().numpy(),
        masks=mask[index],
    )


def _masks(logits: Tensor, image: PreparedImage) -> tuple[np.ndarray, Tensor]:
    """Returns masks [N, H, W] at the original size and the mean probability [N] of their pixels.

    Logits are resized twice, as the padding has to be cut off at the size of the padded image.
    """
    padded = _resized(logits, (image.pixels.shape[1], image.pixels.shape[2]))
    values = _resized(padded[:, : image.inner[0], : image.inner[1]], image.original)
    mask = values > 0
    total = (values.sigmoid() * mask).flatten(1).sum(1)
    return mask.cpu().numpy(), total / (mask.flatten(1).sum(1) + 1e-6)


def _resized(logits: Tensor, size: tuple[int, int]) -> Tensor:
    return functional.interpolate(logits[None], size, mode="bilinear", align_corners=False)[0]


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Returns x0, y0, x1, y1 of a mask, with exclusive ends; zeros if it is empty."""
    columns, rows = (np.flatnonzero(mask.any(axis)) for axis in (0, 1))
    if not len(rows):
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
