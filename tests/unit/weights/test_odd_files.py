"""Odd configs, indexes, tokenizers and headers of model folders are refused fast, in one line."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blip3o.weights.folder import load_model
from blip3o.weights.small_files import MAX_JSON_BYTES

INDEX = "model.safetensors.index.json"
POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)
Refuse = Callable[[Path], str]


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
        ('{"a": {"b": 1, "c": 2, "b": 3}}', "the key 'b' appears twice"),
        (POINTER, "git lfs pull"),
        ('{"a": ' + "9" * 10_000 + "}", ""),
        ("\x00\x01", ""),
        ("[]", ""),
        ("null", ""),
    ],
)
@pytest.mark.parametrize(("layout", "name"), EACH_JSON)
def test_odd_json(
    layout: str, name: str, text: str, said: str, request: pytest.FixtureRequest, refusal: Refuse
) -> None:
    folder = folder_of(layout, request)
    (folder / name).write_text(text)
    message = refusal(folder)
    assert said in message
    assert Path(name).parts[0] in message


@pytest.mark.parametrize(("layout", "name"), EACH_JSON)
def test_oversized_json_is_not_read(
    layout: str, name: str, request: pytest.FixtureRequest, refusal: Refuse
) -> None:
    folder = folder_of(layout, request)
    (folder / name).unlink()
    with (folder / name).open("wb") as file:
        file.truncate(MAX_JSON_BYTES + 1)  # a sparse file
    assert "bytes, more than" in refusal(folder)


def test_a_byte_order_mark_is_accepted(either_folder: Path) -> None:
    file = either_folder / "config.json"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    load_model(either_folder)


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
def test_another_kind_of_file_is_refused(
    layout: str, name: str, kind: str, request: pytest.FixtureRequest, refusal: Refuse
) -> None:
    folder = folder_of(layout, request)
    replace_by(kind, folder / name)
    message = refusal(folder)
    assert ("git lfs pull" in message) == (kind == "pointer")
    assert name.split("/")[0].partition(".bf16")[0] in message


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
def test_wrong_headers_are_refused(
    ours: Path,
    header: str | dict[str, Any],
    refusal: Refuse,
) -> None:
    file = ours / "image_encoder/model.safetensors"
    write_header(file, header)
    assert str(ours) in refusal(ours)


def test_the_error_about_a_header_of_many_names_is_short(
    ours: Path,
    refusal: Refuse,
) -> None:
    header = {f"{'weight' * 9}.{n}": entry(0, 0, [0]) for n in range(20_000)}
    write_header(ours / "image_encoder/model.safetensors", header, b"")
    assert "and 19,9" in refusal(ours)
