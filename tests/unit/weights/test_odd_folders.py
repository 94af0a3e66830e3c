"""Model folders that someone made to harm, or that a tool left half-way: one short line, soon."""

import json
import os
import shutil
import struct
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
from blip3o.weights.convert import convert
from blip3o.weights.folder import load_model
from blip3o.weights.shards import open_tensors
from blip3o.weights.siglip2_sana import load_siglip2_sana
from blip3o.weights.small_files import MAX_JSON_BYTES
from blip3o.weights.strict import fold

INDEX = "model.safetensors.index.json"
POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)
SECONDS = 8.0
"""Within this a folder is refused, on a busy machine too."""


@pytest.fixture
def ours(tiny_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_folder, tmp_path / "ours")


@pytest.fixture(params=["ours", "published"])
def folder(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue({"ours": "ours", "published": "released_folder"}[request.param])


def refusal(folder: Path, dest: Path | None = None) -> str:
    """Returns the short line that loading and converting refuse a folder with, soon."""
    dest = folder.parent / "dest" if dest is None else dest
    messages = []
    for read in (load_model, lambda source: convert(source, dest)):
        start = time.monotonic()
        with pytest.raises(UsageError) as caught:
            read(folder)
        assert time.monotonic() - start < SECONDS
        messages.append(str(caught.value))
        assert "\n" not in messages[-1]
        assert len(messages[-1]) < 1000
    assert not dest.exists()
    return messages[0]


def edit_json(file: Path, *path: str | int, value: Any) -> None:
    data = json.loads(file.read_text())
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    file.write_text(json.dumps(data))


# ---------------------------------------------------------------------------------------------
# Small files

JSON_FILES = {
    "ours": ["config.json"],
    "published": [
        "config.json",
        INDEX,
        "diffusion-decoder/unet/config.json",
        "diffusion-decoder/vae/config.json",
        "diffusion-decoder/scheduler/scheduler_config.json",
    ],
}
EACH_JSON = [
    pytest.param(layout, name, id=f"{layout}-{name}")
    for layout, names in JSON_FILES.items()
    for name in names
]


def folder_of(layout: str, request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue({"ours": "ours", "published": "released_folder"}[layout])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 200_000, "nested too deeply"),
        ('{"a":' * 200_000, "nested too deeply"),
        ('{"a": {"b": 1, "c": 2, "b": 3}}', "names 'b' twice"),
        (POINTER, "git lfs pull"),
        ('{"a": ' + "9" * 10_000 + "}", ""),
        ("\x00\x01", ""),
        ("[]", ""),
        ("null", ""),
    ],
)
@pytest.mark.parametrize(("layout", "name"), EACH_JSON)
def test_odd_json(
    layout: str, name: str, text: str, said: str, request: pytest.FixtureRequest
) -> None:
    folder = folder_of(layout, request)
    (folder / name).write_text(text)
    message = refusal(folder)
    assert said in message
    assert Path(name).parts[0] in message


@pytest.mark.parametrize(("layout", "name"), EACH_JSON)
def test_json_without_end_is_not_read(
    layout: str, name: str, request: pytest.FixtureRequest
) -> None:
    folder = folder_of(layout, request)
    (folder / name).unlink()
    with (folder / name).open("wb") as file:
        file.truncate(MAX_JSON_BYTES + 1)  # takes no room on the disk
    assert "bytes, more than" in refusal(folder)


def test_a_byte_order_mark_is_no_fault(folder: Path) -> None:
    file = folder / "config.json"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    load_model(folder)


ALL_FILES = {
    "ours": [
        "config.json",
        "tokenizer.json",
        "model.safetensors",
        "image_encoder/model.safetensors",
        "image_decoder/model.safetensors",
    ],
    "published": [
        *JSON_FILES["published"],
        "tokenizer.json",
        "model-00002-of-00003.safetensors",
        "diffusion-decoder/unet/diffusion_pytorch_model.bf16.safetensors",
        "diffusion-decoder/vae/diffusion_pytorch_model.bf16.safetensors",
    ],
}
EACH_FILE = [
    pytest.param(layout, name, id=f"{layout}-{name}")
    for layout, names in ALL_FILES.items()
    for name in names
]


def replace_by(kind: str, file: Path) -> None:
    file.unlink()
    if kind == "pointer":
        file.write_text(POINTER)
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "device":
        file.symlink_to("/dev/zero")
    elif kind == "folder":
        file.mkdir()
    elif kind == "loop":
        file.symlink_to(file)
    else:
        file.write_bytes(b"")


@pytest.mark.parametrize("kind", ["pointer", "pipe", "device", "folder", "loop", "empty"])
@pytest.mark.parametrize(("layout", "name"), EACH_FILE)
def test_something_else_in_place_of_a_file(
    layout: str, name: str, kind: str, request: pytest.FixtureRequest
) -> None:
    folder = folder_of(layout, request)
    replace_by(kind, folder / name)
    message = refusal(folder)
    assert ("git lfs pull" in message) == (kind == "pointer")
    assert name.split("/")[0].partition(".bf16")[0] in message


# ---------------------------------------------------------------------------------------------
# Sizes

OUR_COUNTS: list[tuple[str | int, ...]] = [
    ("backbone", "num_layers"),
    ("image_encoder", "num_layers"),
    ("dit", "num_layers"),
]
OUR_SIZES: list[tuple[str | int, ...]] = [
    ("backbone", "vocab_size"),
    ("backbone", "hidden_size"),
    ("backbone", "num_heads"),
    ("image_encoder", "image_px"),
    ("image_encoder", "hidden_size"),
    ("num_query_tokens",),
    ("dit", "hidden_size"),
    ("dit", "num_heads"),
    ("dit", "grid"),
    ("normalizer", "num_components"),
    ("image_decoder", "image_px"),
]
PUBLISHED_COUNTS: list[tuple[str, tuple[str | int, ...]]] = [
    ("config.json", ("num_hidden_layers",)),
    ("config.json", ("vision_config", "depth")),
    ("config.json", ("blip3o", "dit", "num_layers")),
    ("config.json", ("blip3o", "image_encoder", "num_layers")),
    ("diffusion-decoder/unet/config.json", ("layers_per_block",)),
    ("diffusion-decoder/unet/config.json", ("transformer_layers_per_block", 1)),
    ("diffusion-decoder/vae/config.json", ("layers_per_block",)),
]
MANY = [12_000, 10**7, 10**12, 10**30]


@pytest.mark.parametrize("value", MANY)
@pytest.mark.parametrize("path", OUR_COUNTS + OUR_SIZES, ids=lambda path: ".".join(map(str, path)))
def test_absurd_sizes_in_our_layout(ours: Path, path: tuple[str | int, ...], value: int) -> None:
    edit_json(ours / "config.json", *path, value=value)
    refusal(ours)


@pytest.mark.parametrize("value", MANY)
@pytest.mark.parametrize(("file", "path"), PUBLISHED_COUNTS)
def test_absurd_sizes_in_the_published_layout(
    released_folder: Path, file: str, path: tuple[str | int, ...], value: int
) -> None:
    data = json.loads((released_folder / file).read_text())
    if path[0] == "transformer_layers_per_block":  # may be written as one number
        edit_json(released_folder / file, path[0], value=[1] * len(data["down_block_types"]))
    edit_json(released_folder / file, *path, value=value)
    refusal(released_folder)


def test_lists_without_end(released_folder: Path) -> None:
    unet = released_folder / "diffusion-decoder/unet/config.json"
    edit_json(unet, "block_out_channels", value=[4] * 200_000)
    refusal(released_folder)


@pytest.mark.parametrize("value", MANY)
def test_absurd_overrides(tiny_folder: Path, value: int) -> None:
    start = time.monotonic()
    with pytest.raises(UsageError) as caught:
        load_model(tiny_folder, overrides=[f"dit.num_layers={value}"])
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


# ---------------------------------------------------------------------------------------------
# Numbers


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
def test_numbers_of_another_kind(folder: Path, dtype: torch.dtype) -> None:
    for file in each_file(folder):
        kept = file.read_bytes()
        name = spoil(file, lambda tensor: tensor.abs().to(dtype))
        message = refusal(folder)
        assert "wrong kind of numbers: " in message
        assert f"{name} {str(dtype).removeprefix('torch.')}" in message
        file.write_bytes(kept)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_any_floating_type_is_taken(folder: Path, dtype: torch.dtype) -> None:
    for file in each_file(folder):
        spoil(file, lambda tensor: tensor.to(dtype))
    load_model(folder)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_none(folder: Path, number: float) -> None:
    def change(tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        tensor.view(-1)[-1] = number
        return tensor

    for file in each_file(folder):
        kept = file.read_bytes()
        name = spoil(file, change)
        message = refusal(folder)
        assert f"{file} is damaged: " in message
        assert f"{name} holds 1 number" in message
        file.write_bytes(kept)


def test_large_numbers_are_numbers(ours: Path) -> None:
    """Their sum overflows, and they are none the less finite."""
    spoil(ours / "model.safetensors", lambda tensor: torch.full_like(tensor, 3e38))
    load_model(ours)


@pytest.mark.parametrize("kind", ["nan", "int64"])
def test_the_command_says_it_in_one_line(
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


# ---------------------------------------------------------------------------------------------
# Headers of safetensors files


def write_header(file: Path, header: str | dict[str, Any], data: bytes = b"\0" * 64) -> None:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)


def entry(start: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


HEADERS: dict[str, str | dict[str, Any]] = {
    "overlapping": {"a": entry(0, 64, [16]), "b": entry(0, 64, [16])},
    "half overlapping": {"a": entry(0, 40, [10]), "b": entry(24, 64, [10])},
    "out of range": {"a": entry(0, 128, [32])},
    "far out of range": {"a": entry(2**62, 2**62 + 64, [16])},
    "backwards": {"a": entry(64, 0, [16])},
    "negative": {"a": entry(-64, 0, [16])},
    "with holes": {"a": entry(0, 16, [4]), "b": entry(32, 64, [8])},
    "of another size": {"a": entry(0, 64, [17])},
    "of an overflowing shape": {"a": entry(0, 64, [2**62, 4, 2**62])},
    "of a negative shape": {"a": entry(0, 64, [-16])},
    "of a strange type": {"a": entry(0, 64, [16], "F4096")},
    "of a small type": {"a": entry(0, 64, [128], "F4")},
    "twice": '{"a": {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]}, '
    '"a": {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]}}',
    "nested": '{"a": ' + "[" * 100_000 + "}",
    "of another form": "[1, 2]",
    "empty": "",
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS.keys())
def test_headers_that_lie(ours: Path, header: str | dict[str, Any]) -> None:
    file = ours / "image_encoder/model.safetensors"
    write_header(file, header)
    assert str(ours) in refusal(ours)


def test_a_header_of_many_names_is_told_in_short(ours: Path) -> None:
    header = {f"{'weight' * 9}.{n}": entry(0, 0, [0]) for n in range(20_000)}
    write_header(ours / "image_encoder/model.safetensors", header, b"")
    assert "and 19,9" in refusal(ours)


# ---------------------------------------------------------------------------------------------
# What is copied


def link_twice(secret: Path, card: Path) -> None:
    (card.parent / "x").symlink_to(secret)
    card.symlink_to("x")


def link_through_a_folder(secret: Path, card: Path) -> None:
    (card.parent / "docs").symlink_to(secret.parent)
    card.symlink_to("docs/secret")


def write_much(secret: Path, card: Path) -> None:
    del secret
    with card.open("wb") as file:
        file.truncate(2**30)


CARDS: dict[str, Callable[[Path, Path], Any]] = {
    "a link out": lambda secret, card: card.symlink_to(secret),
    "a relative link": lambda secret, card: card.symlink_to(os.path.relpath(secret, card.parent)),
    "a link to a link": link_twice,
    "a link through a folder": link_through_a_folder,
    "a link to nothing": lambda _, card: card.symlink_to("nothing"),
    "a loop": lambda _, card: card.symlink_to(card.name),
    "a folder": lambda _, card: card.mkdir(),
    "a pipe": lambda _, card: os.mkfifo(card),
    "a device": lambda _, card: card.symlink_to("/dev/zero"),
    "a large file": write_much,
}


@pytest.mark.parametrize("put", CARDS.values(), ids=CARDS.keys())
def test_a_card_from_elsewhere_is_left_out_aloud(
    ours: Path,
    tmp_path: Path,
    put: Callable[[Path, Path], Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    secret, card = tmp_path / "secret", ours / "README.md"
    secret.write_text("my key")
    card.unlink()
    put(secret, card)
    convert(ours, tmp_path / "dest")
    assert not (tmp_path / "dest/README.md").exists()
    assert not any("my key" in f.read_text(errors="ignore") for f in tmp_path.glob("dest/*.*"))
    assert f"{card} is left out" in capsys.readouterr().err
    load_model(tmp_path / "dest")


def test_a_link_inside_the_folder_is_the_card(ours: Path, tmp_path: Path) -> None:
    (ours / "README.md").rename(ours / "card.md")
    (ours / "README.md").symlink_to("card.md")
    convert(ours, tmp_path / "dest")
    card = tmp_path / "dest/README.md"
    assert not card.is_symlink()
    assert card.read_text() == "# Tiny\n"


def test_links_of_the_hub_s_cache_are_its_own_files(ours: Path, tmp_path: Path) -> None:
    cache = tmp_path / "models--org--name"
    snapshot, blobs = cache / "snapshots" / "abc", cache / "blobs"
    shutil.copytree(ours, snapshot)
    blobs.mkdir()
    for file in [f for f in snapshot.rglob("*") if f.is_file()]:
        blob = blobs / str(abs(hash(file)))
        file.rename(blob)
        file.symlink_to(os.path.relpath(blob, file.parent))
    convert(snapshot, tmp_path / "dest")
    assert (tmp_path / "dest/README.md").read_text() == "# Tiny\n"


def test_a_tokenizer_from_elsewhere_is_not_copied(ours: Path, tmp_path: Path) -> None:
    shutil.move(ours / "tokenizer.json", tmp_path / "tokenizer.json")
    (ours / "tokenizer.json").symlink_to(tmp_path / "tokenizer.json")
    load_model(ours)  # whoever only loads may keep it elsewhere
    with pytest.raises(UsageError, match=r"tokenizer\.json is a link out of the folder"):
        convert(ours, tmp_path / "dest")
    assert not (tmp_path / "dest").exists()


# ---------------------------------------------------------------------------------------------
# Messages


def test_long_lists_are_folded() -> None:
    names = [f"name{n}" for n in range(1000)]
    assert fold(names[:3], 100) == "name0, name1, name2"
    assert fold(names, 30) == "name0, name1, name2, name3, and 996 more"
    assert fold(["n" * 1000, "m"], 30) == f"{'n' * 30}..., and 1 more"
    assert fold([], 30) == ""


def test_a_folder_of_another_model_is_told_in_short(released_folder: Path) -> None:
    """A thousand names neither fit nor are there."""
    (released_folder / INDEX).unlink()
    for file in released_folder.glob("model-*.safetensors"):
        file.unlink()
    strange = {f"transformer.h.{n}.attention.query_key_value.weight": 1 for n in range(1000)}
    save_file({name: torch.zeros(1) for name in strange}, released_folder / "model.safetensors")
    message = refusal(released_folder)
    assert "and 99" in message
    assert len(message.replace(str(released_folder), "")) < 600


def test_many_missing_shards_are_told_in_short(released_folder: Path) -> None:
    places = {f"w{n}": f"model-{n:05d}-of-00900.safetensors" for n in range(900)}
    (released_folder / INDEX).write_text(json.dumps({"weight_map": places}))
    message = refusal(released_folder)
    assert " more: get it from" in message
    assert open_tensors(released_folder / "diffusion-decoder/vae", "diffusion_pytorch_model.bf16")
