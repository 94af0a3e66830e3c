"""LPIPS: a distance of images by the features of AlexNet, with weights learned from people.

The weights are two published files, which users supply: AlexNet's, and those of the distance.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from blip3o.core.errors import UsageError
from blip3o.core.files import file_sha256
from blip3o.weights.pickles import read_pickle

FILES = ("alexnet-owt-7be5be79.pth", "alex.pth")
"""Names of the published files: torchvision's AlexNet, and weights/v0.1 of the package lpips."""

LEAST_PX = 31
"""Smallest side of an image; the pools leave nothing of smaller ones."""

_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_EPS = 1e-10
_LAYERS = {
    0: (64, 11, 4, 2),
    3: (192, 5, 1, 2),
    6: (384, 3, 1, 1),
    8: (256, 3, 1, 1),
    10: (256, 3, 1, 1),
}
"""Channels, kernel, stride and padding of AlexNet's convolutions by their published number."""
_POOLED = (3, 6)
"""Convolutions that follow a pool."""


class Lpips(nn.Module):
    """Pairs of images to their distances; 0 for equal images.

    Reference:
        Zhang et al. (arXiv 1801.03924), version 0.1 on AlexNet; checked
        against the package lpips 0.1.4.
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.ModuleDict()
        self.weights = nn.ParameterList()
        width = 3
        for number, (channels, kernel, stride, padding) in _LAYERS.items():
            self.features[str(number)] = nn.Conv2d(width, channels, kernel, stride, padding)
            self.weights.append(nn.Parameter(torch.zeros(channels)))
            width = channels

    def forward(self, pixels: Tensor, others: Tensor) -> Tensor:
        """Returns the distances [B] of images [B, 3, H, W] in [-1, 1]."""
        shift, scale = (pixels.new_tensor(one)[:, None, None] for one in (_SHIFT, _SCALE))
        hidden = (torch.cat([pixels, others]) - shift) / scale
        total = pixels.new_zeros(len(pixels))
        for weight, (number, layer) in zip(self.weights, self.features.items(), strict=True):
            if int(number) in _POOLED:
                hidden = functional.max_pool2d(hidden, 3, stride=2)
            hidden = functional.relu(layer(hidden))
            unit = hidden / (hidden.square().sum(1, keepdim=True).sqrt() + _EPS)
            first, second = unit.chunk(2)
            squared = (first - second).square() * weight[:, None, None]
            total = total + squared.sum(1).mean((1, 2))
        return total

    @torch.no_grad()
    def compare(self, images: Sequence[Image.Image], others: Sequence[Image.Image]) -> list[float]:
        """Returns the distance of each pair of RGB images; all have one size."""
        device = self.weights[0].device
        first, second = (
            torch.stack([_pixels(image) for image in some]).to(device) for some in (images, others)
        )
        return self(first, second).tolist()


def _pixels(image: Image.Image) -> Tensor:
    """Returns an RGB image of any shape as [3, H, W] in [-1, 1]."""
    return torch.from_numpy(np.array(image, dtype=np.float32) / 127.5 - 1).movedim(-1, 0)


def load_lpips(folder: Path) -> Lpips | None:
    """Returns the distance with the weights in a folder; None if it lacks one of `FILES`.

    Raises:
        UsageError: if a file is damaged or holds another network.
    """
    files = [folder / name for name in FILES]
    if not all(file.is_file() for file in files):
        return None
    backbone, linear = (read_pickle(file) for file in files)
    state = {name: one for name, one in backbone.items() if name.startswith("features.")}
    for number in range(len(_LAYERS)):
        name = f"lin{number}.model.1.weight"
        if name not in linear:
            raise UsageError(f"{files[1]} holds other weights: it has no {name}")
        state[f"weights.{number}"] = linear[name].flatten()
    network = Lpips().eval().requires_grad_(False)
    try:
        network.load_state_dict(state, strict=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UsageError(f"{files[0]} holds another network: {reason}") from error
    return network


def weights_name(folder: Path) -> str:
    """Returns the distance and a hash of its weights, as the name of a judge states them."""
    digest = hashlib.sha256()
    for name in FILES:
        digest.update(bytes.fromhex(file_sha256(folder / name)))
    return f"lpips-0.1-alexnet-{digest.hexdigest()[:8]}"
