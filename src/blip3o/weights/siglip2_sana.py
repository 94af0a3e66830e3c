"""The published SigLIP2 + SANA folder: images to features, and those features to images.

    config.json                        fields of the original's class
    model.safetensors, or shards       names as in `NAMES`, or in `TRAINING_NAMES`

It holds no language model, so it is no model of ours by itself but two parts of one. Of config.json
only `diffusion_model`, `input_size`, `num_pooled_tokens` and `pooler_output` are read; the sizes of
SigLIP2, SANA and DC-AE are constants of the release. Where they differ, a key `blip3o` holds the
configs of both parts. The hub's file was never opened, and the scheduler that it names by an id is
not in the folder: `dpm_scheduler` stands in for it.

Reference:
    Names, shapes and numbers are checked by the parity family `siglip2_sana`.
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from blip3o.core.config import from_dict, to_dict
from blip3o.core.errors import UsageError
from blip3o.models.decoders.sana import SanaDecoder, SanaDecoderConfig
from blip3o.models.encoders.siglip2 import Siglip2Encoder, Siglip2EncoderConfig
from blip3o.weights.keymaps.prefixes import PrefixMap
from blip3o.weights.keymaps.spellings import SIGLIP2_SANA
from blip3o.weights.shards import open_tensors, read
from blip3o.weights.small_files import read_json
from blip3o.weights.stored import build_without_weights, sketch
from blip3o.weights.strict import require_fit
from blip3o.weights.wrappers import unwrapped

NAMES = PrefixMap(
    (
        ("encoder.model.vision_model.", "image_encoder.tower."),
        ("transformer.connector.", "image_decoder.connector."),
        ("transformer.transformer.", "image_decoder.transformer."),
        ("vae.", "image_decoder.vae."),
    )
)
"""Names in the released folder, and ours."""

TRAINING_NAMES = PrefixMap(
    (
        ("encoder.vision_model.", "image_encoder.tower."),
        ("connector.", "image_decoder.connector."),
        ("transformer.", "image_decoder.transformer."),
        ("vae.", "image_decoder.vae."),
    )
)
"""Names in a checkpoint of the original's reconstruction training, and ours."""

_OWN = "blip3o"
_INPUT_SIZE = 32  # of the latents, where config.json is silent: the default of its class


class Siglip2Sana(NamedTuple):
    """An image encoder and the decoder of its features, in evaluation mode.

    Args:
        image_encoder: pixels [B, 3, P, P] in [-1, 1] to features [B, N, C].
        image_decoder: features [B, N, C] to pixels.
    """

    image_encoder: Siglip2Encoder
    image_decoder: SanaDecoder

    def state(self) -> dict[str, Tensor]:
        """Returns the weights of both, by the names that they have in a unified model."""
        return {
            f"{part}.{name}": tensor
            for part, module in zip(self._fields, self, strict=True)
            for name, tensor in module.state_dict().items()
        }


def is_siglip2_sana(folder: str | Path) -> bool:
    """Returns whether a folder is one of this layout, by its config.json."""
    try:
        data = read_json(Path(folder) / "config.json")
    except UsageError:
        return False
    return isinstance(data, dict) and data.get("diffusion_model") == "sana"


def load_siglip2_sana(folder: Path, dtype: torch.dtype = torch.float32) -> Siglip2Sana:
    """Returns both parts of a folder, on the CPU.

    The empty condition is the features of a black image, as in the original.

    Args:
        folder: the folder.
        dtype: type of the weights in memory.

    Raises:
        UsageError: if it is of another model, incomplete or damaged; one line that names every
            file or weight.
    """
    encoder, decoder = _configs(folder / "config.json")
    found = SIGLIP2_SANA.respelled(unwrapped(open_tensors(folder), folder), str(folder))
    file = folder / "config.json"
    for config in (encoder, decoder):
        sketch(config, file, len(found))
    is_released = any(name.startswith("transformer.transformer.") for name in found)
    names = NAMES if is_released else TRAINING_NAMES
    parts = Siglip2Sana(build_without_weights(encoder), build_without_weights(decoder))
    expected = {
        published: tensor
        for name, tensor in parts.state().items()
        if (published := names.published(name)) is not None  # the empty condition is ours
    }
    require_fit(expected, found, str(folder))
    for part, module in zip(parts._fields, parts, strict=True):
        state = {
            name.removeprefix(f"{part}."): read(found[published]).to(dtype, copy=True)
            for published in found
            if (name := names.ours(published) or "").startswith(f"{part}.")
        }
        if module is parts.image_decoder:
            state["empty_features"] = _black(parts.image_encoder)
        module.load_state_dict(state, strict=True, assign=True)
        module.eval()
    return parts


@torch.no_grad()
def _black(encoder: Siglip2Encoder) -> Tensor:
    side = encoder.config.image_px
    weight = next(encoder.parameters())
    return encoder(torch.full((1, 3, side, side), -1.0, dtype=weight.dtype))[0]


def _configs(file: Path) -> tuple[Siglip2EncoderConfig, SanaDecoderConfig]:
    """Returns the configs of both parts."""
    data = read_json(file)
    try:
        return _read_configs(data)
    except (UsageError, ValueError, TypeError, KeyError) as error:
        raise UsageError(f"{file}: {error}") from error


def _read_configs(data: Any) -> tuple[Siglip2EncoderConfig, SanaDecoderConfig]:  # noqa: ANN401
    if not isinstance(data, Mapping) or data.get("diffusion_model") != "sana":
        raise UsageError("diffusion_model must be 'sana': it is of another model")
    if data.get("pooler_output"):
        raise UsageError("pooler_output must be false: features are tokens, not one vector")
    own = data.get(_OWN, {"image_encoder": {}, "image_decoder": {}})
    released = Siglip2EncoderConfig.so400m(image_px=512, patch_px=16, keep_head=True)
    fields = {**to_dict(released), "skip_last": 1, **own["image_encoder"]}
    encoder = from_dict(Siglip2EncoderConfig, fields, "image_encoder")
    pooled = _whole_number(data, "num_pooled_tokens", -1)
    if pooled != -1:
        side = math.isqrt(pooled)
        if side**2 != pooled or encoder.grid % side:
            raise UsageError(
                f"num_pooled_tokens must be a square that divides the {encoder.num_tokens} tokens, "
                f"got {pooled}"
            )
        encoder = dataclasses.replace(encoder, pool=encoder.grid // side)
    fields = to_dict(SanaDecoderConfig.published(encoder.grid)) | own["image_decoder"]
    fields |= {"sample_size": _whole_number(data, "input_size", _INPUT_SIZE)}
    decoder = from_dict(SanaDecoderConfig, fields, "image_decoder")
    if (decoder.feature_channels, decoder.grid) != (encoder.num_channels, encoder.grid):
        raise UsageError("image_decoder does not take the features of image_encoder")
    return encoder, decoder


def _whole_number(data: Mapping[str, Any], name: str, default: int) -> int:
    value = data.get(name, default)
    if not isinstance(value, int) or (value < 1 and value != default):
        raise UsageError(f"{name} must be a whole number above 0, got {value!r}")
    return value
