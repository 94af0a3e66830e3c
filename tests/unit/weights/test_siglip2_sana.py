"""A small copy of the published SigLIP2 + SANA folder: loading, refusal, use in runs."""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from blip3o.core.config import to_dict
from blip3o.core.errors import UsageError
from blip3o.data.mixture import DataConfig, MixtureEntry
from blip3o.data.sources.jsonl import JsonlConfig
from blip3o.models.decoders.sana import SanaDecoder, SanaDecoderConfig
from blip3o.models.encoders.siglip2 import Siglip2Encoder, Siglip2EncoderConfig
from blip3o.models.unified import UnifiedModelConfig
from blip3o.recipes import decoders as recipes
from blip3o.runs.initial import build_model
from blip3o.train.config import InitConfig, OptimizerConfig, RunConfig, TrainConfig
from blip3o.weights.folder import load_model
from blip3o.weights.layouts import is_siglip2_sana
from blip3o.weights.siglip2_sana import load_siglip2_sana

FRONTS = {  # independent of the code under test: (ours, released, training run)
    "tower.": ("encoder.model.vision_model.", "encoder.vision_model."),
    "connector.": ("transformer.connector.", "connector."),
    "transformer.": ("transformer.transformer.", "transformer."),
    "vae.": ("vae.", "vae."),
}


@pytest.fixture(scope="module")
def parts() -> tuple[Siglip2Encoder, SanaDecoder]:
    pytest.importorskip("diffusers")
    torch.manual_seed(0)
    encoder = dataclasses.replace(
        Siglip2EncoderConfig.tiny(), pool=1, num_layers=2, skip_last=1, keep_head=True
    )
    decoder = dataclasses.replace(
        SanaDecoderConfig.tiny(), feature_channels=encoder.num_channels, grid=encoder.grid
    )
    built = encoder.build().eval(), decoder.build().eval()
    for module in built:
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.2)
    return built


def published(parts: tuple[Siglip2Encoder, SanaDecoder], layout: int = 0) -> dict[str, Tensor]:
    state = {}
    for name, tensor in [*parts[0].state_dict().items(), *parts[1].state_dict().items()]:
        for front, theirs in FRONTS.items():
            if name.startswith(front):
                state[theirs[layout] + name.removeprefix(front)] = tensor.clone()
    return state


@pytest.fixture
def folder(parts: tuple[Siglip2Encoder, SanaDecoder], tmp_path: Path) -> Path:
    """A folder that tests may change."""
    folder = tmp_path / "siglip2_sana"
    folder.mkdir()
    save_file(published(parts), folder / "model.safetensors")
    write_config(folder, parts)
    return folder


def write_config(folder: Path, parts: tuple[Siglip2Encoder, SanaDecoder], **fields: Any) -> None:
    data = {
        "diffusion_model": "sana",
        "encoder_id": "google/siglip2-so400m-patch16-512",
        "input_size": parts[1].config.sample_size,
        "num_pooled_tokens": -1,
        "blip3o": {
            "image_encoder": to_dict(parts[0].config),
            "image_decoder": to_dict(parts[1].config),
        },
    }
    (folder / "config.json").write_text(json.dumps(data | fields))


def image(seed: int, side: int) -> Tensor:
    return torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_both_parts_load_with_the_black_image_as_empty_condition(
    folder: Path, parts: tuple[Siglip2Encoder, SanaDecoder]
) -> None:
    found = load_siglip2_sana(folder)
    side = parts[0].config.image_px
    with torch.no_grad():
        black = parts[0](-torch.ones(1, 3, side, side))[0]
    for module, expected in zip(found, parts, strict=True):
        assert not module.training
        assert module.config == expected.config
        theirs = expected.state_dict()
        state = module.state_dict()
        assert state.keys() == theirs.keys()
        for name, tensor in state.items():
            assert torch.equal(tensor, black if name == "empty_features" else theirs[name]), name
    with torch.no_grad():
        features = found.image_encoder(image(1, side))
        noise = torch.zeros(1, *found.image_decoder.config.noise_shape)
        drawn = found.image_decoder.decode(features, noise, 2)
    assert torch.equal(features, parts[0](image(1, side)))
    assert drawn.shape[1] == 3
    assert bool(drawn.isfinite().all())


def test_a_checkpoint_of_the_reconstruction_training_is_the_same(
    folder: Path, parts: tuple[Siglip2Encoder, SanaDecoder]
) -> None:
    expected = load_siglip2_sana(folder).state()
    save_file(published(parts, 1), folder / "model.safetensors")
    found = load_siglip2_sana(folder).state()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("layout", [0, 1])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module."])
def test_names_of_newer_versions_and_wrappers_are_the_same(
    folder: Path, parts: tuple[Siglip2Encoder, SanaDecoder], layout: int, prefix: str
) -> None:
    """Since version 5, transformers writes SigLIP without the part `vision_model`."""
    expected = load_siglip2_sana(folder).state()
    state = published(parts, layout)
    renamed = {prefix + k.replace(".vision_model.", "."): v for k, v in state.items()}
    assert renamed.keys() != state.keys()
    save_file(renamed, folder / "model.safetensors")
    found = load_siglip2_sana(folder).state()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_non_finite_numbers_are_refused(
    folder: Path, parts: tuple[Siglip2Encoder, SanaDecoder]
) -> None:
    state = published(parts)
    name = "transformer.connector.0.bias"
    for value in (torch.full_like(state[name], torch.nan), state[name].long()):
        save_file(state | {name: value}, folder / "model.safetensors")
        with pytest.raises(UsageError, match=rf"{name} (holds|int64)"):
            load_siglip2_sana(folder)


def test_pooled_tokens_and_latents_are_those_of_the_config(
    folder: Path, parts: tuple[Siglip2Encoder, SanaDecoder]
) -> None:
    write_config(folder, parts, num_pooled_tokens=4, input_size=6)
    own = {"image_encoder": to_dict(parts[0].config)}
    own["image_decoder"] = to_dict(dataclasses.replace(parts[1].config, grid=2))
    write_config(folder, parts, num_pooled_tokens=4, input_size=6, blip3o=own)
    found = load_siglip2_sana(folder, torch.bfloat16)
    assert (found.image_encoder.config.pool, found.image_encoder.config.num_tokens) == (2, 4)
    assert found.image_decoder.config.sample_size == 6
    assert found.image_decoder.empty_features.shape == (4, 16)
    assert found.image_decoder.connector[0].weight.dtype == torch.bfloat16


def test_the_released_sizes_are_those_of_the_published_names(tmp_path: Path) -> None:
    """Without our key the released sizes apply, so the shapes of a small file do not fit."""
    pytest.importorskip("diffusers")
    (tmp_path / "config.json").write_text(json.dumps({"diffusion_model": "sana", "input_size": 16}))
    weight = "transformer.transformer.proj_out.weight"
    save_file({weight: torch.zeros(1, 1)}, tmp_path / "model.safetensors")
    with pytest.raises(UsageError, match=rf"{weight} \[1, 1\] instead of \[32, 2240\]") as caught:
        load_siglip2_sana(tmp_path)
    assert "encoder.model.vision_model." in str(caught.value)
    assert re.search(r"and 1,2\d\d more", str(caught.value))


def lose_and_bend(folder: Path) -> list[str]:
    file = folder / "model.safetensors"
    state = load_file(file)
    lost = ["vae.decoder.conv_out.bias", "transformer.connector.3.weight"]
    for name in lost:
        del state[name]
    state |= {"odd": torch.zeros(1), "transformer.connector.0.bias": torch.zeros(3)}
    save_file(state, file)
    return [*lost, "extra: odd", "transformer.connector.0.bias [3] instead of [16]"]


def truncate(folder: Path) -> list[str]:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    return [f"{file} is damaged"]


def leave_a_pickle(folder: Path) -> list[str]:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    return ["pytorch_model.bin", "not opened"]


def change(**fields: Any) -> Callable[[Path], list[str]]:
    def spoil(folder: Path) -> list[str]:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | fields))
        return [str(file), *fields]

    return spoil


@pytest.mark.parametrize(
    "spoil",
    [
        lose_and_bend,
        truncate,
        leave_a_pickle,
        change(diffusion_model="unet"),
        change(num_pooled_tokens=9),
        change(num_pooled_tokens="some"),
        change(pooler_output=True),
        change(input_size="large"),
        change(input_size=0),
    ],
)
def test_an_unfit_folder_is_refused_in_one_line(
    folder: Path, spoil: Callable[[Path], list[str]]
) -> None:
    named = spoil(folder)
    with pytest.raises(UsageError) as caught:
        load_siglip2_sana(folder)
    assert "\n" not in str(caught.value)
    for name in named:
        assert name in str(caught.value)


def test_it_is_recognized_by_its_config_and_refused_as_a_model(
    folder: Path, tmp_path: Path
) -> None:
    assert is_siglip2_sana(folder)
    assert not is_siglip2_sana(tmp_path)
    with pytest.raises(UsageError, match="no language model: load_siglip2_sana reads both"):
        load_model(folder)


def test_a_run_starts_from_its_parts(
    folder: Path, parts: tuple[Siglip2Encoder, SanaDecoder]
) -> None:
    tiny = UnifiedModelConfig.tiny()
    channels = parts[0].config.num_channels
    model = dataclasses.replace(
        tiny,
        backbone=dataclasses.replace(tiny.backbone, image_channels=channels),
        image_encoder=parts[0].config,
        normalizer=type(tiny.normalizer)(),
        generator=dataclasses.replace(tiny.generator, takes_reference=False),
        image_decoder=parts[1].config,
    )
    entry = MixtureEntry(source=JsonlConfig(path="toy.jsonl", name="toy"), task="text_to_image")
    init = InitConfig(folder=str(folder), parts=("image_encoder", "image_decoder"))
    config = RunConfig(
        model=model,
        init=(init,),
        data=DataConfig(mixture=(entry,)),
        objectives=(),
        train=TrainConfig(
            steps=1,
            global_batch_size=1,
            micro_batch_size=1,
            trainable=("generator",),
            optimizer=OptimizerConfig(lr=1e-3),
        ),
    )
    tokenizer, built = build_model(config)
    assert tokenizer is None
    state = built.state_dict()
    for name, tensor in load_siglip2_sana(folder).state().items():
        assert torch.equal(state[name], tensor), name
    with pytest.raises(UsageError, match="do not fit: backbone"):
        build_model(dataclasses.replace(config, init=(dataclasses.replace(init, parts=()),)))
    # A decoder recipe pools the features: it takes all parts but the stored empty condition.
    encoder = dataclasses.replace(parts[0].config, pool=parts[0].config.grid)
    decoder = dataclasses.replace(parts[1].config, grid=1)
    model = dataclasses.replace(model, image_encoder=encoder, image_decoder=decoder)
    pooled = dataclasses.replace(config, model=model, init=(init,))
    with pytest.raises(UsageError, match=r"do not fit: image_decoder\.empty_features"):
        build_model(pooled)
    init = dataclasses.replace(init, parts=recipes.sana().init[0].parts)
    state = build_model(dataclasses.replace(pooled, init=(init,)))[1].state_dict()
    for name, tensor in load_siglip2_sana(folder).state().items():
        assert torch.equal(state[name], tensor) or name.endswith("empty_features"), name
