"""The folder `diffusion-decoder/` of the released models, as diffusers writes it.

    unet/config.json, unet/diffusion_pytorch_model[.VARIANT].safetensors
    vae/config.json, vae/diffusion_pytorch_model[.VARIANT].safetensors
    scheduler/scheduler_config.json
    empty_features.safetensors         the stored empty condition; an optional addition of ours

The tokenizer, the feature extractor and the code in the released folder are not needed.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch

from blip3o.core.config import from_dict, to_dict
from blip3o.core.errors import UsageError
from blip3o.models.autoencoders import KlAutoencoderConfig
from blip3o.models.decoders.sdxl import SdxlDecoder, SdxlDecoderConfig
from blip3o.weights.autoencoder import STEM, open_component
from blip3o.weights.keymaps.spellings import DIFFUSERS_VAE
from blip3o.weights.shards import Weight, has_tensors, open_tensors, read, under, write_tensors
from blip3o.weights.small_files import read_json, require_mapping
from blip3o.weights.stored import sketch
from blip3o.weights.strict import fold

_EMPTY = "empty_features"
_CONFIGS = ("unet/config.json", "vae/config.json", "scheduler/scheduler_config.json")
_IGNORED = ("sample_size", "force_upcast")  # fields of a VAE that do not change its results here
_UNET_FIELDS = {
    "cross_attention_dim": "feature_channels",
    "sample_size": "sample_size",
    "block_out_channels": "block_out_channels",
    "layers_per_block": "layers_per_block",
    "transformer_layers_per_block": "transformer_layers_per_block",
    "attention_head_dim": "num_heads",
    "addition_time_embed_dim": "time_id_size",
    "norm_num_groups": "norm_num_groups",
}
_VAE_FIELDS = (
    "latent_channels",
    "block_out_channels",
    "layers_per_block",
    "norm_num_groups",
    "use_quant_conv",
    "scaling_factor",
    "shift_factor",
)


def released() -> dict[str, object]:
    """Returns the released decoder's config as plain data."""
    return to_dict(SdxlDecoderConfig.published())


def read_config(folder: Path) -> dict[str, object]:
    """Returns the decoder's config as plain data.

    Args:
        folder: `diffusion-decoder`.

    Raises:
        UsageError: if files are missing or unreadable, or describe another network than ours; the
            message names all of them.
    """
    missing = [str(folder / name) for name in _CONFIGS if not (folder / name).is_file()]
    if missing:
        raise UsageError(f"the released decoder is incomplete; missing: {fold(missing)}")
    unet, vae, scheduler = (
        require_mapping(read_json(folder / name), str(folder / name)) for name in _CONFIGS
    )
    try:
        num_weights = len(_stored_weights(folder))
    except UsageError:  # reported when the weights are opened
        num_weights = 0
    try:
        ours = fields(unet, vae, scheduler)
        built = parts(sketch(from_dict(SdxlDecoderConfig, ours), folder, num_weights))
    except (ValueError, ArithmeticError, TypeError, KeyError, UsageError) as error:
        raise UsageError(f"{folder} does not describe a decoder of the family: {error}") from error
    others = [
        *_differences("unet", unet, built[0]),
        *_differences("vae", {k: v for k, v in vae.items() if k not in _IGNORED}, built[1]),
    ]
    if others:
        raise UsageError(f"{folder} holds another decoder: {fold(others)}")
    return ours


def fields(
    unet: Mapping[str, object], vae: Mapping[str, object], scheduler: Mapping[str, object]
) -> dict[str, object]:
    """Returns our config as plain data, from the three configs of diffusers.

    Raises:
        KeyError: if a size is missing.
    """
    known = {ours: unet[name] for name, ours in _UNET_FIELDS.items()}
    autoencoder = {name: vae[name] for name in _VAE_FIELDS if vae.get(name) is not None}
    own = to_dict(from_dict(KlAutoencoderConfig, autoencoder))
    return released() | known | {"autoencoder": own, "scheduler": dict(scheduler)}


def parts(decoder: SdxlDecoder) -> tuple[dict[str, object], dict[str, object], dict[str, object]]:
    """Returns diffusers' configs of the UNet, the VAE and the scheduler, as it writes them."""
    unet, vae = (json.loads(part.to_json_string()) for part in (decoder.unet, decoder.vae))
    return unet, vae, dict(decoder.config.scheduler)


def open_weights(folder: Path, config: SdxlDecoderConfig) -> dict[str, Weight]:
    """Returns the decoder's tensors by their names in `SdxlDecoder`.

    Args:
        folder: `diffusion-decoder`.
        config: the decoder's config, for the empty condition; zeros are used if none is stored.

    Raises:
        UsageError: if files are missing or damaged.
    """
    tensors = _stored_weights(folder)
    if has_tensors(folder, _EMPTY):
        return tensors | open_tensors(folder, _EMPTY)
    # The sizes are not checked against the weights yet, and expanded zeros need no memory.
    return tensors | {_EMPTY: torch.zeros(()).expand(config.grid**2, config.feature_channels)}


def _stored_weights(folder: Path) -> dict[str, Weight]:
    tensors: dict[str, Weight] = {}
    for part in ("unet", "vae"):
        own = open_component(folder / part)
        if part == "vae":
            own = DIFFUSERS_VAE.respelled(own, str(folder / part))
        tensors |= {f"{part}.{key}": tensor for key, tensor in own.items()}
    return tensors


def write(folder: Path, decoder: SdxlDecoder, tensors: Mapping[str, Weight]) -> None:
    """Writes the folder.

    Args:
        folder: created if missing.
        decoder: the decoder, for its configs; its weights are not read.
        tensors: state dict of the decoder.
    """
    for part in ("unet", "vae"):
        own = under(f"{part}.", tensors)
        is_bf16 = next(iter(own.values())).dtype == torch.bfloat16
        write_tensors(folder / part, own, STEM + (".bf16" if is_bf16 else ""))
    for name, content in zip(_CONFIGS, parts(decoder), strict=True):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    empty = read(tensors[_EMPTY])
    if bool(empty.any()):
        write_tensors(folder, {_EMPTY: empty}, _EMPTY)


def _differences(part: str, given: Mapping[str, object], built: Mapping[str, object]) -> list[str]:
    """Returns the fields in which a config differs from ours; null, false and 0 are equal."""
    return [
        f"{part}.{name} {value!r} instead of {built[name]!r}"
        for name, value in given.items()
        if name in built and not name.startswith("_") and value != built[name]
        if value or built[name]
    ]
