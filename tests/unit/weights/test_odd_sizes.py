"""Configs of absurd sizes and weights of other kinds of numbers are refused fast."""

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from blip3o import cli
from blip3o.core.config import to_dict
from blip3o.core.errors import UsageError
from blip3o.models.decoders.sana import SanaDecoderConfig
from blip3o.models.encoders.siglip2 import Siglip2EncoderConfig
from blip3o.weights.folder import load_model
from blip3o.weights.siglip2_sana import load_siglip2_sana

Refuse = Callable[[Path], str]
SECONDS = 8.0


def edit_json(file: Path, *path: str | int, value: Any) -> None:
    data = json.loads(file.read_text())
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    file.write_text(json.dumps(data))


OUR_COUNTS: list[tuple[str | int, ...]] = [
    ("backbone", "num_layers"),
    ("image_encoder", "num_layers"),
    ("generator", "num_layers"),
]
OUR_SIZES: list[tuple[str | int, ...]] = [
    ("backbone", "vocab_size"),
    ("backbone", "hidden_size"),
    ("backbone", "num_heads"),
    ("image_encoder", "image_px"),
    ("image_encoder", "hidden_size"),
    ("generator", "num_query_tokens"),
    ("generator", "hidden_size"),
    ("generator", "num_heads"),
    ("generator", "patch_size"),
    ("normalizer", "num_components"),
    ("image_decoder", "image_px"),
]
PUBLISHED_COUNTS: list[tuple[str, tuple[str | int, ...]]] = [
    ("config.json", ("num_hidden_layers",)),
    ("config.json", ("vision_config", "depth")),
    ("config.json", ("blip3o", "generator", "num_layers")),
    ("config.json", ("blip3o", "image_encoder", "num_layers")),
    ("diffusion-decoder/unet/config.json", ("layers_per_block",)),
    ("diffusion-decoder/unet/config.json", ("transformer_layers_per_block", 1)),
    ("diffusion-decoder/vae/config.json", ("layers_per_block",)),
]
MANY = [12_000, 10**7, 10**12, 10**30]


@pytest.mark.parametrize("value", MANY)
@pytest.mark.parametrize("path", OUR_COUNTS + OUR_SIZES, ids=lambda path: ".".join(map(str, path)))
def test_absurd_sizes_in_our_layout(
    ours: Path, path: tuple[str | int, ...], value: int, refusal: Refuse
) -> None:
    edit_json(ours / "config.json", *path, value=value)
    refusal(ours)


@pytest.mark.parametrize("value", MANY)
@pytest.mark.parametrize(("file", "path"), PUBLISHED_COUNTS)
def test_absurd_sizes_in_the_published_layout(
    released_folder: Path, file: str, path: tuple[str | int, ...], value: int, refusal: Refuse
) -> None:
    data = json.loads((released_folder / file).read_text())
    if path[0] == "transformer_layers_per_block":  # may be a single number
        edit_json(released_folder / file, path[0], value=[1] * len(data["down_block_types"]))
    edit_json(released_folder / file, *path, value=value)
    refusal(released_folder)


def test_absurd_sizes_that_fit_each_other(released_folder: Path, refusal: Refuse) -> None:
    """They are compared with the weights before a module is built."""
    for file, path in (
        ("config.json", ("blip3o", "image_encoder", "hidden_size")),
        ("config.json", ("blip3o", "generator", "hidden_size")),
        ("diffusion-decoder/unet/config.json", ("cross_attention_dim",)),
    ):
        edit_json(released_folder / file, *path, value=2**40)
    unet = released_folder / "diffusion-decoder/unet/config.json"
    size = json.loads(unet.read_text())["addition_time_embed_dim"]
    edit_json(unet, "projection_class_embeddings_input_dim", value=2**40 + 6 * size)
    refusal(released_folder)


@pytest.mark.parametrize("value", [10**7, 10**12, 10**30, "x", None, 1.5])
def test_schedules_of_absurd_lengths(released_folder: Path, refusal: Refuse, value: Any) -> None:
    file = released_folder / "diffusion-decoder/scheduler/scheduler_config.json"
    edit_json(file, "num_train_timesteps", value=value)
    refusal(released_folder)


def test_lists_of_absurd_lengths(
    released_folder: Path,
    refusal: Refuse,
) -> None:
    unet = released_folder / "diffusion-decoder/unet/config.json"
    edit_json(unet, "block_out_channels", value=[4] * 200_000)
    refusal(released_folder)


@pytest.mark.parametrize("value", MANY)
def test_absurd_overrides(tiny_folder: Path, value: int) -> None:
    start = time.monotonic()
    with pytest.raises(UsageError) as caught:
        load_model(tiny_folder, overrides=[f"generator.num_layers={value}"])
    assert time.monotonic() - start < SECONDS
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", MANY)
@pytest.mark.parametrize("part", ["image_encoder", "image_decoder"])
def test_absurd_sizes_of_siglip2_and_sana(tmp_path: Path, part: str, value: int) -> None:
    pytest.importorskip("diffusers")
    own = {
        "image_encoder": to_dict(Siglip2EncoderConfig.tiny()),
        "image_decoder": to_dict(SanaDecoderConfig.tiny()),
    }
    own[part]["num_layers"] = value
    (tmp_path / "config.json").write_text(json.dumps({"diffusion_model": "sana", "blip3o": own}))
    save_file({"vae.x": torch.zeros(1)}, tmp_path / "model.safetensors")
    start = time.monotonic()
    with pytest.raises(UsageError):
        load_siglip2_sana(tmp_path)
    assert time.monotonic() - start < SECONDS


def each_file(folder: Path) -> Iterator[Path]:
    yield from sorted(folder.rglob("*.safetensors"))


def spoil(file: Path, change: Callable[[Tensor], Tensor]) -> str:
    """Changes the last weight of a file; returns its name."""
    state = load_file(file)
    name = sorted(state)[-1]
    save_file(state | {name: change(state[name])}, file)
    return name


KINDS = [torch.int64, torch.int8, torch.uint8, torch.bool, torch.complex64]


@pytest.mark.parametrize("dtype", KINDS, ids=str)
def test_numbers_of_another_kind(
    either_folder: Path,
    dtype: torch.dtype,
    refusal: Refuse,
) -> None:
    for file in each_file(either_folder):
        kept = file.read_bytes()
        name = spoil(file, lambda tensor: tensor.abs().to(dtype))
        message = refusal(either_folder)
        assert "wrong kind of numbers: " in message
        assert f"{name} {str(dtype).removeprefix('torch.')}" in message
        file.write_bytes(kept)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_any_floating_dtype_is_accepted(either_folder: Path, dtype: torch.dtype) -> None:
    for file in each_file(either_folder):
        spoil(file, lambda tensor: tensor.to(dtype))
    load_model(either_folder)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_numbers(
    either_folder: Path,
    number: float,
    refusal: Refuse,
) -> None:
    def change(tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        tensor.view(-1)[-1] = number
        return tensor

    for file in each_file(either_folder):
        kept = file.read_bytes()
        name = spoil(file, change)
        message = refusal(either_folder)
        assert f"{file} is damaged: " in message
        assert f"{name} holds 1 number" in message
        file.write_bytes(kept)


def test_numbers_too_large_for_the_dtype_in_memory(ours: Path) -> None:
    name = spoil(ours / "model.safetensors", lambda tensor: torch.full_like(tensor, 7e4))
    load_model(ours)
    with pytest.raises(UsageError, match=f"{name} holds numbers that are too large for float16"):
        load_model(ours, dtype=torch.float16)
    spoil(ours / "model.safetensors", lambda tensor: tensor.double() * 1e300)
    with pytest.raises(UsageError, match="too large for float32"):
        load_model(ours)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_non_finite_numbers_in_a_config(ours: Path, refusal: Refuse, number: str) -> None:
    file = ours / "config.json"
    text = re.sub(r'("norm_eps": )[^,\n]+', rf"\g<1>{number}", file.read_text(), count=1)
    file.write_text(text)
    assert "norm_eps must be a finite number" in refusal(ours)


def test_a_name_with_line_breaks_is_shown_in_one_line(ours: Path, refusal: Refuse) -> None:
    file = ours / "model.safetensors"
    save_file(load_file(file) | {"a\nb\x1b[31m": torch.zeros(1)}, file)
    assert r"extra: a\nb\x1b[31m" in refusal(ours)


def test_large_numbers_are_accepted(ours: Path) -> None:
    """They are finite although their sum overflows."""
    spoil(ours / "model.safetensors", lambda tensor: torch.full_like(tensor, 3e38))
    load_model(ours)


@pytest.mark.parametrize("kind", ["nan", "int64"])
def test_the_command_reports_it_in_one_line(
    ours: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change: Callable[[Tensor], Tensor] = torch.Tensor.long
    if kind == "nan":
        change = lambda tensor: torch.full_like(tensor, torch.nan)  # noqa: E731
    name = spoil(ours / "model.safetensors", change)
    for words in (["generate", "a cat", "--model"], ["ask", "x.png", "what?", "--model"]):
        assert cli.main([*words, str(ours)]) == 2
        said = capsys.readouterr().err
        assert name in said or "x.png" in said
        assert said.count("\n") == 1
