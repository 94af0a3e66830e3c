"""Files outside a folder are not copied, and long lists of names are shortened."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from blip3o.core.errors import UsageError
from blip3o.weights.convert import convert
from blip3o.weights.folder import load_model
from blip3o.weights.shards import open_tensors
from blip3o.weights.strict import fold

INDEX = "model.safetensors.index.json"
Refuse = Callable[[Path], str]


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
def test_a_card_outside_the_folder_is_skipped_with_a_message(
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


def test_a_link_within_the_folder_counts_as_the_card(ours: Path, tmp_path: Path) -> None:
    (ours / "README.md").rename(ours / "card.md")
    (ours / "README.md").symlink_to("card.md")
    convert(ours, tmp_path / "dest")
    card = tmp_path / "dest/README.md"
    assert not card.is_symlink()
    assert card.read_text() == "# Tiny\n"


def test_links_of_the_hub_cache_count_as_files_of_the_folder(ours: Path, tmp_path: Path) -> None:
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


def test_a_tokenizer_outside_the_folder_is_not_copied(ours: Path, tmp_path: Path) -> None:
    shutil.move(ours / "tokenizer.json", tmp_path / "tokenizer.json")
    (ours / "tokenizer.json").symlink_to(tmp_path / "tokenizer.json")
    load_model(ours)  # loading alone accepts the link
    with pytest.raises(UsageError, match=r"tokenizer\.json is a link out of the folder"):
        convert(ours, tmp_path / "dest")
    assert not (tmp_path / "dest").exists()


def test_long_lists_are_shortened() -> None:
    names = [f"name{n}" for n in range(1000)]
    assert fold(names[:3], 100) == "name0, name1, name2"
    assert fold(names, 30) == "name0, name1, name2, name3, and 996 more"
    assert fold(["n" * 1000, "m"], 30) == f"{'n' * 30}..., and 1 more"
    assert fold([], 30) == ""


def test_the_error_about_a_folder_of_another_model_is_short(
    released_folder: Path,
    refusal: Refuse,
) -> None:
    """The folder has a thousand unknown names and lacks all expected ones."""
    (released_folder / INDEX).unlink()
    for file in released_folder.glob("model-*.safetensors"):
        file.unlink()
    strange = {f"transformer.h.{n}.attention.query_key_value.weight": 1 for n in range(1000)}
    save_file({name: torch.zeros(1) for name in strange}, released_folder / "model.safetensors")
    message = refusal(released_folder)
    assert "and 99" in message
    assert len(message.replace(str(released_folder), "")) < 600


def test_the_error_about_many_missing_shards_is_short(
    released_folder: Path,
    refusal: Refuse,
) -> None:
    places = {f"w{n}": f"model-{n:05d}-of-00900.safetensors" for n in range(900)}
    (released_folder / INDEX).write_text(json.dumps({"weight_map": places}))
    message = refusal(released_folder)
    assert " more: get it from" in message
    assert open_tensors(released_folder / "diffusion-decoder/vae", "diffusion_pytorch_model.bf16")
