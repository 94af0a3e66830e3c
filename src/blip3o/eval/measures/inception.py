"""The network of FID: Inception V3 of 2015-12-05, with 1008 classes and without its classifier.

It differs from the Inception V3 of other libraries: average pools do not count the padding, and the
last block pools by maximum. The weights are a published file that no package contains, so users
supply it.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from blip3o.core.errors import UsageError
from blip3o.core.files import file_sha256
from blip3o.weights.pickles import read_pickle

FILE = "weights-inception-2015-12-05-6726825d.pth"
"""Name of the published file, as torch-fidelity downloads it."""

Resize = Literal["clean", "legacy_pytorch", "tensorflow1"]
"""How images become 299 x 299; the same images get another FID with each. See `RESIZES`."""

NUM_FEATURES = 2048
"""Width of the feature vectors; fewer images than this give a singular covariance."""

_SIDE_PX = 299
_MIDDLE = 128.0
_BN_EPS = 1e-3
_UNUSED = ("fc.weight", "fc.bias")


class _Step(NamedTuple):
    """A convolution of a branch; it keeps the sides, or halves them without padding."""

    channels: int
    kernel: tuple[int, int] = (1, 1)
    halves: bool = False


_Branch = tuple[_Step | tuple[_Step, _Step], ...]
"""Steps in order; a pair of steps reads the same input and is joined."""

_THREE, _FIVE, _WIDE, _HIGH = (3, 3), (5, 5), (1, 7), (7, 1)


def _fork(channels: int) -> tuple[_Step, _Step]:
    return _Step(channels, (1, 3)), _Step(channels, (3, 1))


_DOUBLE: _Branch = (_Step(64), _Step(96, _THREE), _Step(96, _THREE))
_BLOCK_5 = {"branch1x1": (_Step(64),), "branch5x5": (_Step(48), _Step(64, _FIVE))}
_BLOCK_6A: dict[str, _Branch] = {
    "branch3x3": (_Step(384, _THREE, halves=True),),
    "branch3x3dbl": (*_DOUBLE[:2], _Step(96, _THREE, halves=True)),
}
_BLOCK_7A: dict[str, _Branch] = {
    "branch3x3": (_Step(192), _Step(320, _THREE, halves=True)),
    "branch7x7x3": (
        *(_Step(192), _Step(192, _WIDE), _Step(192, _HIGH)),
        _Step(192, _THREE, halves=True),
    ),
}
_BLOCK_7: dict[str, _Branch] = {
    "branch1x1": (_Step(320),),
    "branch3x3": (_Step(384), _fork(384)),
    "branch3x3dbl": (_Step(448), _Step(384, _THREE), _fork(384)),
}


def _block_5(pooled: int) -> dict[str, _Branch]:
    return {**_BLOCK_5, "branch3x3dbl": _DOUBLE, "branch_pool": (_Step(pooled),)}


def _block_6(inner: int) -> dict[str, _Branch]:
    wide, high = _Step(inner, _WIDE), _Step(inner, _HIGH)
    return {
        "branch1x1": (_Step(192),),
        "branch7x7": (_Step(inner), wide, _Step(192, _HIGH)),
        "branch7x7dbl": (_Step(inner), high, wide, high, _Step(192, _WIDE)),
        "branch_pool": (_Step(192),),
    }


_MIXED: dict[str, dict[str, _Branch]] = {
    "Mixed_5b": _block_5(32),
    "Mixed_5c": _block_5(64),
    "Mixed_5d": _block_5(64),
    "Mixed_6a": _BLOCK_6A,
    "Mixed_6b": _block_6(128),
    "Mixed_6c": _block_6(160),
    "Mixed_6d": _block_6(160),
    "Mixed_6e": _block_6(192),
    "Mixed_7a": _BLOCK_7A,
    "Mixed_7b": {**_BLOCK_7, "branch_pool": (_Step(192),)},
    "Mixed_7c": {**_BLOCK_7, "branch_pool": (_Step(192),)},
}
"""Branches of each block, in the order in which they are joined, by their published names."""


class Inception(nn.Module):
    """Images to the 2048 features of FID; weights have the published names.

    Reference:
        Szegedy et al. (arXiv 1512.00567); checked against torch-fidelity 0.4.0.
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Conv(3, 32, _THREE, stride=2)
        self.Conv2d_2a_3x3 = _Conv(32, 32, _THREE)
        self.Conv2d_2b_3x3 = _Conv(32, 64, _THREE, padding=(1, 1))
        self.Conv2d_3b_1x1 = _Conv(64, 80, (1, 1))
        self.Conv2d_4a_3x3 = _Conv(80, 192, _THREE)
        width = 192
        for name, branches in _MIXED.items():
            block = _Mixed(width, branches, takes_maximum=name == "Mixed_7c")
            self.add_module(name, block)
            width = block.width

    def forward(self, levels: Tensor) -> Tensor:
        """Returns the features [B, 2048] of images.

        Args:
            levels: [B, 3, 299, 299], 0 to 255.
        """
        hidden = (levels - _MIDDLE) / _MIDDLE
        hidden = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(hidden)))
        hidden = functional.max_pool2d(hidden, 3, stride=2)
        hidden = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(hidden))
        hidden = functional.max_pool2d(hidden, 3, stride=2)
        for name in _MIXED:
            hidden = self.get_submodule(name)(hidden)
        return hidden.mean((2, 3))

    @torch.no_grad()
    def extract(self, images: Sequence[Image.Image], resize: Resize = "clean") -> Tensor:
        """Returns the features [B, 2048] of RGB images of any size, on the CPU."""
        levels = torch.stack([RESIZES[resize](image) for image in images])
        return self(levels.to(next(self.parameters()).device)).cpu()


class _Conv(nn.Module):
    """A convolution, batch norm and ReLU."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: tuple[int, int],
        stride: int = 1,
        padding: tuple[int, int] = (0, 0),
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(channels_out, eps=_BN_EPS)

    def forward(self, hidden: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv(hidden)))


class _Mixed(nn.Module):
    """Branches of convolutions whose results are joined.

    A branch named `branch_pool` follows a 3 x 3 pool that keeps the sides; a block without one
    halves the sides, and joins the maxima of its input.
    """

    def __init__(self, width: int, branches: Mapping[str, _Branch], *, takes_maximum: bool) -> None:
        super().__init__()
        self._takes_maximum = takes_maximum
        self._halves = "branch_pool" not in branches
        self._names: dict[str, list[list[str]]] = {}
        self.width = width if self._halves else 0
        for branch, steps in branches.items():
            channels, names = width, []
            for number, step in enumerate(steps, 1):
                start = f"{branch}_{number}" if len(steps) > 1 else branch
                is_fork = not isinstance(step, _Step)
                forked = step if is_fork else (step,)
                names.append([f"{start}{end}" for end in ("ab" if is_fork else ("",))])
                for name, one in zip(names[-1], forked, strict=True):
                    padding = (0, 0) if one.halves else (one.kernel[0] // 2, one.kernel[1] // 2)
                    stride = 2 if one.halves else 1
                    self.add_module(
                        name, _Conv(channels, one.channels, one.kernel, stride, padding)
                    )
                channels = sum(one.channels for one in forked)
            self._names[branch] = names
            self.width += channels

    def forward(self, hidden: Tensor) -> Tensor:
        parts = []
        for branch, steps in self._names.items():
            part = self._pooled(hidden) if branch == "branch_pool" else hidden
            for names in steps:
                part = torch.cat([self.get_submodule(name)(part) for name in names], dim=1)
            parts.append(part)
        if self._halves:
            parts.append(functional.max_pool2d(hidden, 3, stride=2))
        return torch.cat(parts, dim=1)

    def _pooled(self, hidden: Tensor) -> Tensor:
        if self._takes_maximum:
            return functional.max_pool2d(hidden, 3, stride=1, padding=1)
        return functional.avg_pool2d(hidden, 3, stride=1, padding=1, count_include_pad=False)


def clean_levels(image: Image.Image) -> Tensor:
    """Returns an RGB image as levels [3, 299, 299], 0 to 255 and not rounded.

    Each channel is resampled bicubically as 32-bit numbers, with a filter that widens with the
    reduction.

    Reference:
        clean-fid (arXiv 2104.11222), its mode `clean`; parity family `fid` (`resize`).
    """
    size = (_SIDE_PX, _SIDE_PX)
    channels = [
        np.asarray(channel.convert("F").resize(size, Image.Resampling.BICUBIC))
        for channel in image.split()
    ]
    return torch.from_numpy(np.stack(channels)).clamp(0, 255)


def _torch_levels(image: Image.Image) -> Tensor:
    """Returns levels [3, 299, 299]: bilinear with half-pixel centers, without a wider filter.

    Reference:
        pytorch-fid, and clean-fid's mode `legacy_pytorch`; parity family `fid` (`resize`).
    """
    size = (_SIDE_PX, _SIDE_PX)
    return functional.interpolate(_levels(image)[None], size, mode="bilinear")[0]


def _tensorflow_levels(image: Image.Image) -> Tensor:
    """Returns levels [3, 299, 299]: bilinear between the pixels at i x (old side / new side).

    The places have no half-pixel shift, so the image moves to the upper left.

    Reference:
        TensorFlow 1 as used by torch-fidelity, and clean-fid's mode `legacy_tensorflow`; parity
        family `fid` (`resize`).
    """
    levels = _levels(image)
    for dimension in (1, 2):
        side = levels.shape[dimension]
        places = torch.arange(_SIDE_PX, dtype=torch.float32) * (side / _SIDE_PX)
        before = places.floor().long().clamp_max(side - 1)
        share = (places - before).reshape(-1, *[1] * (2 - dimension))
        first = levels.index_select(dimension, before)
        second = levels.index_select(dimension, (before + 1).clamp_max(side - 1))
        levels = first + (second - first) * share
    return levels


def _levels(image: Image.Image) -> Tensor:
    """Returns the levels of an RGB image, float32 [3, H, W]."""
    return torch.from_numpy(np.array(image, dtype=np.float32)).movedim(-1, 0).contiguous()


RESIZES: dict[Resize, Callable[[Image.Image], Tensor]] = {
    "clean": clean_levels,
    "legacy_pytorch": _torch_levels,
    "tensorflow1": _tensorflow_levels,
}
"""The resampling of each mode, as levels [3, 299, 299] that are not rounded."""


def load_inception(folder: Path) -> Inception | None:
    """Returns the network with the weights in a folder; None if the folder lacks `FILE`.

    Raises:
        UsageError: if the file is damaged or holds another network.
    """
    file = folder / FILE
    if not file.is_file():
        return None
    stored = {name: one for name, one in read_pickle(file).items() if name not in _UNUSED}
    network = Inception().eval().requires_grad_(False)
    try:
        network.load_state_dict(stored, strict=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UsageError(f"{file} holds another network: {reason}") from error
    return network


def weights_name(folder: Path) -> str:
    """Returns the network and the hash of its weights, as the name of a judge states them."""
    return f"inception-2015-12-05-{file_sha256(folder / FILE)[:8]}"
