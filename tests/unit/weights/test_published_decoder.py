"""The decoder's config from diffusers' files, at the released size."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from blip3o.core.config import from_dict
from blip3o.core.errors import UsageError
from blip3o.models.decoders.sdxl import SdxlDecoderConfig
from blip3o.weights.folder import load_model
from blip3o.weights.published_decoder import read_config

UNET = {
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.21.2",
    "act_fn": "silu",
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "class_embed_type": None,
    "cross_attention_dim": 1792,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_only_cross_attention": None,
    "norm_num_groups": 32,
    "num_attention_heads": None,
    "out_channels": 4,
    "projection_class_embeddings_input_dim": 3328,
    "sample_size": 128,
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "upcast_attention": None,
    "use_linear_projection": True,
}
VAE = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [128, 256, 512, 512],
    "force_upcast": True,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "sample_size": 1024,
    "scaling_factor": 0.13025,
}


def write(folder: Path, unet: dict[str, Any]) -> None:
    scheduler = SdxlDecoderConfig.published().scheduler
    files = {"unet/config": unet, "vae/config": VAE, "scheduler/scheduler_config": scheduler}
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps(content))


def test_names_of_an_old_vae_are_read(released_folder: Path) -> None:
    """Before version 0.14, diffusers used other names for the projections of an attention."""
    expected = load_model(released_folder).model.get_submodule("image_decoder.vae").state_dict()
    file = released_folder / "diffusion-decoder/vae/diffusion_pytorch_model.bf16.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = load_file(file)
    renamed = {}
    for name, tensor in state.items():
        for new, former in old.items():
            name = name.replace(f".{new}.", f".{former}.")
        renamed[name] = tensor
    assert renamed.keys() != state.keys()
    save_file(renamed, file)
    found = load_model(released_folder).model.get_submodule("image_decoder.vae").state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_the_released_decoder_is_recognized(tmp_path: Path) -> None:
    """Its files are older than the installed diffusers: they have null where it has false today."""
    write(tmp_path, UNET)
    found = from_dict(SdxlDecoderConfig, read_config(tmp_path))
    assert found == SdxlDecoderConfig.published()


def test_the_decoder_of_plain_sdxl_is_refused(tmp_path: Path) -> None:
    write(
        tmp_path,
        UNET | {"cross_attention_dim": 2048, "projection_class_embeddings_input_dim": 2816},
    )
    with pytest.raises(UsageError, match="input_dim 2816 instead of 3584"):
        read_config(tmp_path)
