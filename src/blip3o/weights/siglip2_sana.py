"""The published SigLIP2 + SANA folder: an image encoder, and a decoder of its features.

    config.json                        fields of the original class
    model.safetensors, or shards       names as in `NAMES`

The folder has no language model, so it is two parts of a model and not a whole one. Only
`diffusion_model`, `input_size`, `num_pooled_tokens` and `pooler_output` are read from config.json;
the sizes of SigLIP2, SANA and DC-AE are constants of the release. If they differ, a key `blip3o`
contains the configs of both parts. We have not seen the config.json on the hub. The scheduler,
which it names by an id, is not in the folder; that of `SanaDecoderConfig` replaces it.

Reference:
    Names, shapes and numbers are checked by the parity family `siglip2_sana`.
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from blip3o.core.config import from_dict, to_dict
from blip3o.core.errors import UsageError
from blip3o.models.decoders.sana import SanaDecoder, SanaDecoderConfig
from blip3o.models.encoders.siglip2 import Siglip2Encoder, Siglip2EncoderConfig
from blip3o.weights.keymaps.published import PrefixMap
from blip3o.weights.keymaps.spellings import SIGLIP2_SANA
from blip3o.weights.shards import open_tensors, read, under
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
"""Prefixes of names in the released folder, and ours; `SIGLIP2_SANA` translates other names."""

_OWN = "blip3o"
_INPUT_SIZE = 32  # side of the latents if config.json omits it: the default of the original class


class Siglip2Sana(NamedTuple):
    """An image encoder and the decoder of its features, in evaluation mode.

    Args:
        image_encoder: pixels [B, 3, P, P] in [-1, 1] to features [B, N, C].
        image_decoder: features [B, N, C] to pixels.
    """

    image_encoder: Siglip2Encoder
    image_decoder: SanaDecoder

    def state(self) -> dict[str, Tensor]:
        """Returns the weights of both parts, by their names in a unified model."""
        return {
            f"{part}.{name}": tensor
            for part, module in zip(self._fields, self, strict=True)
            for name, tensor in module.state_dict().items()
        }


def load_siglip2_sana(folder: Path, dtype: torch.dtype = torch.float32) -> Siglip2Sana:
    """Returns both parts of a folder, on the CPU.

    The empty condition is the features of a black image, as in the original.

    Args:
        folder: the folder.
        dtype: dtype of the weights in memory.

    Raises:
        UsageError: if the folder contains another model, or is incomplete or damaged; one line
            names every file or weight.
    """
    file = folder / "config.json"
    data = read_json(file)
    try:
        encoder, decoder = _configs(data)
    except (UsageError, ValueError, TypeError, KeyError) as error:
        raise UsageError(f"{file}: {error}") from error
    found = SIGLIP2_SANA.respelled(unwrapped(open_tensors(folder), folder), str(folder))
    for config in (encoder, decoder):
        sketch(config, file, len(found))
    parts = Siglip2Sana(build_without_weights(encoder), build_without_weights(decoder))
    require_fit(NAMES.to_published(parts.state()), found, str(folder))
    ours = NAMES.to_ours(found)
    for part, module in zip(parts._fields, parts, strict=True):
        stored = under(f"{part}.", ours)
        state = {name: read(tensor).to(dtype, copy=True) for name, tensor in stored.items()}
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


def _configs(data: object) -> tuple[Siglip2EncoderConfig, SanaDecoderConfig]:
    """Returns the configs of both parts, from the content of config.json."""
    if not isinstance(data, Mapping) or data.get("diffusion_model") != "sana":
        raise UsageError("diffusion_model must be 'sana'; this is another model")
    if data.get("pooler_output"):
        raise UsageError(
            "pooler_output must be false, because the features are tokens, not one vector"
        )
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
        raise UsageError("image_decoder does not fit the features of image_encoder")
    return encoder, decoder


def _whole_number(data: Mapping[str, object], name: str, default: int) -> int:
    value = data.get(name, default)
    if not isinstance(value, int) or (value < 1 and value != default):
        raise UsageError(f"{name} must be a whole number above 0, got {value!r}")
    return value
