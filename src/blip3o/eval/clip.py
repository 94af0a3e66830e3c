"""CLIP as a judge: images and texts in one space, from a folder in the form of transformers.

The published scores of GenEval use OpenAI's ViT-L/14 through open_clip. The weights on the hub
(`openai/clip-vit-large-patch14`) are the same; images are prepared here as open_clip does.
"""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from blip3o.core.device import resolve_device
from blip3o.core.errors import UsageError, first_line
from blip3o.core.files import file_sha256
from blip3o.imaging.pixels import CLIP_MEAN, CLIP_STD
from blip3o.weights.shards import open_tensors
from blip3o.weights.small_files import read_json, require_mapping
from blip3o.weights.stored import build_without_weights
from blip3o.weights.strict import require_fit

if TYPE_CHECKING:
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

OPENAI_VIT_L_14 = "openai-clip-vit-l-14"
"""Name of the encoder of the published scores."""

ClipScale = Literal["cosine", "100", "2.5"]
"""Scale of a CLIP score: the cosine; 100 x max(cosine, 0), as torchmetrics prints it; or 2.5 x
max(cosine, 0), the CLIPScore of arXiv 2104.08718."""

CLIPSCORE_PREFIX = "A photo depicts "
"""Begins each text in the CLIPScore of arXiv 2104.08718."""

_VIT_L_14 = {
    "vision_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 14,
        "hidden_act": "quick_gelu",
    },
    "text_config": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "hidden_act": "quick_gelu",
    },
}
_WIDTH = 768

_MOST_ASPECT = 64
"""Of thinner images, only the middle is resampled, because the long side would need gigabytes.
Some of its pixels differ by a few levels: Pillow resamples the two sides in another order."""


class ClipScores(NamedTuple):
    """The likeness of images and texts.

    Args:
        scores: a number of each pair on the scale that was asked for.
        num_cut: texts that are longer than CLIP reads; their ends were not measured.
    """

    scores: list[float]
    num_cut: int


class ClipEncoder:
    """Encodes images and texts in float32.

    Args:
        name: the encoder and its weights, as results state them.
        model: the network.
        tokenizer: its tokenizer.
        device: the device that computes.
    """

    def __init__(
        self, name: str, model: "CLIPModel", tokenizer: "CLIPTokenizer", device: torch.device
    ) -> None:
        self.name = name
        module: nn.Module = model
        module.to(device).eval().requires_grad_(False)
        self._model = model
        self._tokenizer = tokenizer
        self._device = device
        config = model.config.to_dict()
        self._image_px: int = config["vision_config"]["image_size"]
        self._max_tokens: int = config["text_config"]["max_position_embeddings"]

    def embed_images(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """Returns the embeddings of RGB images of any size, [N, D], of any length."""
        pixels = torch.stack([clip_pixels(image, self._image_px) for image in images])
        # A GPU may round the factors of convolutions to 10 bits, which moves close verdicts.
        with torch.inference_mode(), torch.backends.cudnn.flags(allow_tf32=False):
            states = self._model.vision_model(pixel_values=pixels.to(self._device))
            return _array(self._model.visual_projection(states.pooler_output))

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Returns the embeddings of texts, [N, D], of any length; long texts are cut."""
        tokens = self._tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=self._max_tokens,
            return_tensors="pt",
        )
        with torch.inference_mode():
            states = self._model.text_model(
                input_ids=tokens["input_ids"].to(self._device),
                attention_mask=tokens["attention_mask"].to(self._device),
            )
            return _array(self._model.text_projection(states.pooler_output))

    def num_cut(self, texts: Sequence[str]) -> int:
        """Returns the number of texts that are longer than CLIP reads (77 tokens)."""
        rows = self._tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]
        return sum(len(row) > self._max_tokens for row in rows)


def clip_scores(
    encoder: ClipEncoder,
    images: Sequence[Image.Image],
    texts: Sequence[str],
    *,
    scale: ClipScale = "cosine",
    prefix: str = "",
    batch_size: int = 16,
) -> ClipScores:
    """Returns the CLIP score of each pair of an image and a text.

    Args:
        encoder: the encoder, from `load_clip`; its name and the scale belong to each figure.
        images: RGB images.
        texts: the text of each image.
        scale: see `ClipScale`.
        prefix: begins each text; `CLIPSCORE_PREFIX` in the paper.
        batch_size: pairs that are encoded together.

    Raises:
        ValueError: if the numbers of images and texts differ.
    """
    if len(images) != len(texts):
        raise ValueError(f"{len(images)} images, but {len(texts)} texts")
    read = [prefix + text for text in texts]
    scores: list[float] = []
    for start in range(0, len(read), batch_size):
        some = slice(start, start + batch_size)
        seen = encoder.embed_images(images[some])
        said = encoder.embed_texts(read[some])
        lengths = np.linalg.norm(seen, axis=1) * np.linalg.norm(said, axis=1)
        scores += ((seen * said).sum(axis=1) / lengths).tolist()
    return ClipScores(
        scores=[scaled(score, scale) for score in scores], num_cut=encoder.num_cut(read)
    )


def scaled(cosine: float, scale: ClipScale) -> float:
    """Returns a cosine on the scale of a CLIP score; see `ClipScale`."""
    return cosine if scale == "cosine" else float(scale) * max(cosine, 0.0)


def load_clip(
    folder: str | Path, *, name: str = OPENAI_VIT_L_14, device: str = "auto"
) -> ClipEncoder:
    """Returns the encoder of a folder in the form of transformers; nothing is downloaded.

    Args:
        folder: holds `config.json`, `model.safetensors` and the tokenizer.
        name: name of the encoder in results. Under the name of OpenAI's ViT-L/14, only a model of
            its sizes is accepted.
        device: "auto" or a torch device.

    Returns:
        The encoder; its name ends with the first digits of the sha256 of its weights.

    Raises:
        UsageError: if files are missing, weights do not fit, or it is another CLIP.
    """
    from transformers import CLIPTokenizer

    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise UsageError(
            f"{folder / 'config.json'} is missing: the folder must hold the files of "
            "openai/clip-vit-large-patch14"
        )
    config = _read_config(folder / "config.json", name)
    # Old files also hold the numbers of the positions.
    stored = {
        key: tensor
        for key, tensor in open_tensors(folder).items()
        if not key.endswith(".position_ids")
    }
    model = build_without_weights(_Network(config))
    require_fit(model.state_dict(), stored, str(folder))
    weights = {key: tensor.read().float() for key, tensor in stored.items()}
    model.load_state_dict(weights, assign=True)
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(
            f"{folder} has no tokenizer of CLIP: {first_line(error)}; copy its files again"
        ) from error
    # Without its files, a tokenizer of three tokens is made.
    num_tokens: int = config.to_dict()["text_config"]["vocab_size"]
    if len(tokenizer) != num_tokens:
        raise UsageError(
            f"the tokenizer in {folder} has {len(tokenizer)} tokens and the model {num_tokens}: "
            "copy tokenizer.json again"
        )
    digest = hashlib.sha256()
    for path in sorted({tensor.path for tensor in stored.values()}):
        digest.update(bytes.fromhex(file_sha256(path)))
    return ClipEncoder(f"{name}-{digest.hexdigest()[:8]}", model, tokenizer, resolve_device(device))


@dataclasses.dataclass(frozen=True)
class _Network:
    config: "CLIPConfig"

    def build(self) -> "CLIPModel":
        from transformers import CLIPModel

        return CLIPModel(self.config)


def _read_config(file: Path, name: str) -> "CLIPConfig":
    """Returns the config of a CLIP model, which is ViT-L/14 if the name says so."""
    from transformers import CLIPConfig

    data = require_mapping(read_json(file), str(file))
    if data.get("model_type") != "clip":
        raise UsageError(
            f"{file} is not the config of a CLIP model (model_type clip): use the files of "
            "openai/clip-vit-large-patch14"
        )
    try:
        config = CLIPConfig.from_dict(dict(data))
    except (TypeError, ValueError) as error:
        raise UsageError(f"{file}: {first_line(error)}; copy it again") from error
    if name != OPENAI_VIT_L_14:
        return config
    found: Mapping[str, Mapping[str, object]] = config.to_dict()
    faults = [
        f"{part}.{key} is {found[part].get(key)}, not {value}"
        for part, values in _VIT_L_14.items()
        for key, value in values.items()
        if found[part].get(key) != value
    ]
    if config.projection_dim != _WIDTH:
        faults.append(f"projection_dim is {config.projection_dim}, not {_WIDTH}")
    if faults:
        raise UsageError(
            f"{file} is not OpenAI's CLIP ViT-L/14: {', '.join(faults)}; use the files of "
            "openai/clip-vit-large-patch14, or state the name of this one as clip_name=NAME"
        )
    return config


def clip_pixels(image: Image.Image, px: int = 224) -> Tensor:
    """Returns an image as CLIP reads it, float32 [3, px, px], normalized.

    The short side is resized to `px` (bicubic, antialiased), and the middle is cut out: the ends of
    a long image are lost.

    Args:
        image: an RGB image of any size.
        px: side of the result.

    Raises:
        ValueError: if the image is not RGB.

    Reference:
        The evaluation transform of open_clip 2.20.
    """
    if image.mode != "RGB":
        raise ValueError(f"an RGB image is needed, got {image.mode}; see imaging.load.to_rgb")
    short = min(image.size)
    width, height = (px * side // short for side in image.size)
    left, top = round((width - px) / 2), round((height - px) / 2)
    if max(image.size) <= _MOST_ASPECT * short:
        whole = image.resize((width, height), Image.Resampling.BICUBIC)
        square = whole.crop((left, top, left + px, top + px))
    else:
        x_scale, y_scale = image.width / width, image.height / height
        box = (left * x_scale, top * y_scale, (left + px) * x_scale, (top + px) * y_scale)
        square = image.resize((px, px), Image.Resampling.BICUBIC, box=box)
    levels = torch.from_numpy(np.array(square, dtype=np.float32)).movedim(-1, 0) / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    return (levels - mean) / std


def _array(values: Tensor) -> NDArray[np.float32]:
    return values.float().cpu().numpy()
