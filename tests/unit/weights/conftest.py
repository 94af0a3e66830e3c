"""A tiny model as the original program saves it: shards of transformers, folders of diffusers."""

import dataclasses
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from blip3o.core.config import to_dict
from blip3o.core.errors import UsageError
from blip3o.imaging.fit import ImageFitConfig
from blip3o.models.backbones.qwen2_5_vl import Qwen2_5VLBackboneConfig
from blip3o.models.decoders.latent_diffusion import build_scheduler
from blip3o.models.decoders.sdxl import SdxlDecoderConfig
from blip3o.models.encoders.eva_clip import EvaClipEncoderConfig
from blip3o.models.generators.query_dit import QueryDiTConfig
from blip3o.models.unified import SamplingConfig, UnifiedModel, UnifiedModelConfig
from blip3o.text.tokenizer import Tokenizer
from blip3o.weights.convert import convert
from blip3o.weights.folder import load_model
from blip3o.weights.keymaps.blip3o_qwen import to_published

_SECONDS = 8.0
"""Time limit for the refusal of an invalid folder; long enough for a busy machine."""


def released_config(tokenizer: Tokenizer) -> UnifiedModelConfig:
    return UnifiedModelConfig(
        backbone=dataclasses.replace(
            Qwen2_5VLBackboneConfig.tiny(), image_token_id=tokenizer.image_pad_id
        ),
        image_encoder=EvaClipEncoderConfig.tiny(),
        generator=dataclasses.replace(QueryDiTConfig.tiny(), takes_reference=False),
        image_decoder=dataclasses.replace(
            SdxlDecoderConfig.tiny(), feature_channels=16, empty_prompt=" "
        ),
        sampling=SamplingConfig(
            num_inference_steps=2, num_decoder_steps=2, truncate_timestep=True, max_new_tokens=4
        ),
        question_images=ImageFitConfig(mode="aspect", min_pixels=64, max_pixels=1024),
    )


def released_json(config: UnifiedModelConfig) -> dict[str, Any]:
    """Returns config.json; written here, independently of the code under test."""
    assert isinstance(config.backbone, Qwen2_5VLBackboneConfig)
    assert isinstance(config.image_encoder, EvaClipEncoderConfig)
    llm, vision, plain = config.backbone, config.backbone.vision, to_dict(config)
    return {
        "architectures": ["blip3oQwenForCausalLM"],
        "model_type": "blip3o_qwen",
        "hidden_size": llm.hidden_size,
        "intermediate_size": llm.intermediate_size,
        "num_hidden_layers": llm.num_layers,
        "num_attention_heads": llm.num_heads,
        "num_key_value_heads": llm.num_kv_heads,
        "vocab_size": llm.vocab_size,
        "image_token_id": llm.image_token_id,
        "tie_word_embeddings": llm.tie_word_embeddings,
        "rms_norm_eps": llm.norm_eps,
        "max_position_embeddings": llm.max_positions,
        "rope_theta": llm.rope_theta,
        "rope_scaling": {"type": "mrope", "mrope_section": list(llm.rotary_sections)},
        "vision_config": {
            "depth": vision.num_layers,
            "hidden_size": vision.hidden_size,
            "intermediate_size": vision.intermediate_size,
            "num_heads": vision.num_heads,
            "patch_size": vision.patch_px,
            "spatial_merge_size": vision.merge,
            "temporal_patch_size": vision.num_frames,
            "window_size": vision.window_px,
            "fullatt_block_indexes": list(vision.full_attention_layers),
            "out_hidden_size": llm.hidden_size,
            "in_chans": 3,
        },
        "gen_vision_tower": "eva-clip-E-14-plus",
        "gen_pooling": f"early_pool2d_{config.image_encoder.pool}",
        "gen_hidden_size": config.image_encoder.num_channels,
        "n_query": config.num_reserved_positions,
        "mm_projector_type": "mlp2x_gelu",
        "blip3o": {
            key: plain[key]
            for key in (
                "image_encoder",
                "generator",
                "image_decoder",
                "sampling",
                "question_images",
            )
        },
    }


def save_shards(folder: Path, state: dict[str, Tensor], count: int = 3) -> None:
    names = list(state)
    places = {}
    for number in range(count):
        file = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
        shard = {name: state[name].contiguous() for name in names[number::count]}
        save_file(shard, folder / file, {"format": "pt"})
        places |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": 0}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def save_released(model: UnifiedModel, tokenizer: Tokenizer, folder: Path) -> None:
    folder.mkdir()
    save_shards(folder, to_published(model.state_dict()))
    (folder / "config.json").write_text(json.dumps(released_json(model.config)))
    (folder / "training_args.bin").write_bytes(b"a pickle that is never opened")
    tokenizer.save(folder)
    decoder: Any = model.image_decoder
    for name in ("unet", "vae"):
        part = getattr(decoder, name)
        part.save_pretrained(folder / "diffusion-decoder" / name, variant="bf16")
    scheduler: Any = build_scheduler(decoder.config.scheduler)
    scheduler.save_pretrained(folder / "diffusion-decoder" / "scheduler")


@pytest.fixture(scope="session")
def released_model(tiny_tokenizer: Tokenizer) -> UnifiedModel:
    torch.manual_seed(0)
    model = released_config(tiny_tokenizer).build().to(torch.bfloat16).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture(scope="session")
def stored_release(
    released_model: UnifiedModel,
    tiny_tokenizer: Tokenizer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The tiny model as a published folder with tower and decoder; copy it before changing it."""
    folder = tmp_path_factory.mktemp("release") / "released"
    save_released(released_model, tiny_tokenizer, folder)
    return folder


@pytest.fixture
def released_folder(stored_release: Path, tmp_path: Path) -> Path:
    """A copy of the published folder; tests may change it."""
    return shutil.copytree(stored_release, tmp_path / "released")


@pytest.fixture
def ours(tiny_folder: Path, tmp_path: Path) -> Path:
    """The tiny model in our layout; tests may change it."""
    return shutil.copytree(tiny_folder, tmp_path / "ours")


@pytest.fixture(params=["ours", "published"])
def either_folder(request: pytest.FixtureRequest) -> Path:
    """A folder of each layout; tests may change it."""
    return request.getfixturevalue({"ours": "ours", "published": "released_folder"}[request.param])


@pytest.fixture
def refusal(tmp_path: Path) -> Callable[[Path], str]:
    """Returns a function that checks that a folder is refused, and returns the one-line message."""

    def refuse(folder: Path) -> str:
        dest = tmp_path / "dest"
        messages = []
        for read in (load_model, lambda source: convert(source, dest)):
            start = time.monotonic()
            with pytest.raises(UsageError) as caught:
                read(folder)
            assert time.monotonic() - start < _SECONDS
            messages.append(str(caught.value))
            assert "\n" not in messages[-1]
            assert len(messages[-1]) < 1000
        assert not dest.exists()
        return messages[0]

    return refuse
