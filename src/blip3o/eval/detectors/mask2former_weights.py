"""Checkpoints of Mask2Former: mmdetection's own file, and a folder without a pickle.

A folder has `model.safetensors`, with the names of mmdetection, and `source.json`, with the hashes
of the original file and of the weights.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from blip3o.core.errors import UsageError
from blip3o.core.files import atomic_folder, file_sha256, write_atomic
from blip3o.eval.detectors.mask2former_network import (
    OFFICIAL_SIZES,
    Mask2FormerNetwork,
    Mask2FormerSizes,
)
from blip3o.eval.detectors.mmdet_keys import CLASS_WEIGHT, UNUSED, to_ours, to_published
from blip3o.weights.pickles import read_pickle
from blip3o.weights.shards import open_tensors, write_tensors
from blip3o.weights.small_files import read_json
from blip3o.weights.stored import build_without_weights, sketch
from blip3o.weights.strict import require_fit

OFFICIAL_FILE = "mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco_20220504_001756-743b7d99.pth"
"""Name of the file that GenEval uses; its last part begins the sha256 of the file."""

OFFICIAL_SHA8 = OFFICIAL_FILE[-12:-4]

_NAMED_HASH = re.compile(r"-([0-9a-f]{8,64})\.pth$")
_PANOPTIC_CLASSES = 133
_WEIGHTS, _SOURCE = "model.safetensors", "source.json"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The weights of a detector.

    Args:
        path: file or folder.
        sha256: hash of the file that the weights were published in.
        tensors: the weights by the names of mmdetection.
    """

    path: Path
    sha256: str
    tensors: Mapping[str, Tensor]

    @property
    def is_official(self) -> bool:
        """Whether these are the weights that GenEval uses."""
        return self.sha256.startswith(OFFICIAL_SHA8)

    def network(self, sizes: Mask2FormerSizes) -> Mask2FormerNetwork:
        """Returns a network with these weights, on the CPU in float32.

        Raises:
            UsageError: if weights are missing, unexpected or of another shape; the message lists
                all of them. A panoptic model is named as such.
        """
        self._refuse_panoptic(sizes)
        expected = to_published(sketch(sizes, self.path), sizes)
        require_fit(expected, self.tensors, str(self.path))
        with torch.random.fork_rng(devices=[]):  # loading does not change the random state
            network = build_without_weights(sizes)
        state = {
            name: tensor.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
            for name, tensor in to_ours(self.tensors, network, sizes).items()
        }
        for name, parameter in network.named_parameters():
            if name in UNUSED:
                state[name] = torch.zeros(parameter.shape)
        network.load_state_dict(state, strict=False, assign=True)
        assert not any(one.is_meta for one in network.parameters()), "the key map is incomplete"
        return network.eval().requires_grad_(False)

    def _refuse_panoptic(self, sizes: Mask2FormerSizes) -> None:
        weight = self.tensors.get(CLASS_WEIGHT)
        classes = 0 if weight is None else len(weight) - 1
        if classes == _PANOPTIC_CLASSES != sizes.num_classes:
            raise UsageError(
                f"{self.path} is the panoptic model with {classes} classes, and GenEval uses the "
                f"instance model with {sizes.num_classes}: get {OFFICIAL_FILE}"
            )


def read_checkpoint(path: Path) -> Checkpoint:
    """Returns the weights of a file of mmdetection, or of a folder of `convert_checkpoint`.

    Pickles are read with torch's `weights_only`.

    Raises:
        UsageError: if it is missing, damaged, or not the file that its name or `source.json` says.
    """
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise UsageError(f"there are no detector weights at {path}: get {OFFICIAL_FILE}")
    tensors = read_pickle(path)
    sha256 = file_sha256(path)
    named = _NAMED_HASH.search(path.name)
    if named and not sha256.startswith(named[1]):
        raise UsageError(
            f"{path} is not the file that its name says: its sha256 begins with "
            f"{sha256[: len(named[1])]}, not with {named[1]}; get it again"
        )
    return Checkpoint(path, sha256, tensors)


def convert_checkpoint(
    source: Path, folder: Path, sizes: Mask2FormerSizes = OFFICIAL_SIZES
) -> None:
    """Writes the weights of a file of mmdetection into a folder, bit for bit.

    Args:
        source: the file.
        folder: a new or empty folder, which appears only when it is complete.
        sizes: sizes of the network, which the weights must fit.

    Raises:
        UsageError: as `read_checkpoint` and `Checkpoint.network`, or if the folder is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists and is not an empty folder; choose another one")
    checkpoint = read_checkpoint(source)
    checkpoint.network(sizes)
    with atomic_folder(folder) as scratch:
        write_tensors(scratch, {name: one.clone() for name, one in checkpoint.tensors.items()})
        about = {
            "file": source.name,
            "sha256": checkpoint.sha256,
            "weights_sha256": file_sha256(scratch / _WEIGHTS),
        }
        write_atomic(scratch / _SOURCE, json.dumps(about, indent=2) + "\n")


def _read_folder(folder: Path) -> Checkpoint:
    about = read_json(folder / _SOURCE)
    tensors = {name: stored.read() for name, stored in open_tensors(folder).items()}
    weights_sha256 = file_sha256(folder / _WEIGHTS)
    if not isinstance(about, dict) or not isinstance(about.get("sha256"), str):
        raise UsageError(f"{folder / _SOURCE} does not name the sha256 of the original file")
    if about.get("weights_sha256") != weights_sha256:
        raise UsageError(
            f"{folder / _WEIGHTS} is not the file that {_SOURCE} describes: convert the original "
            "checkpoint again"
        )
    return Checkpoint(folder, about["sha256"], tensors)
