"""Folders that earlier versions wrote, before generators were a part of their own."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from blip3o.core.errors import UsageError
from blip3o.weights.folder import load_model
from blip3o.weights.keymaps.spellings import upgraded_config


def as_before(data: dict[str, Any]) -> dict[str, Any]:
    """Returns a config.json in the former form."""
    generator = dict(data.pop("generator"))
    queries = {name: generator.pop(name) for name in ("num_query_tokens", "query_init_std")}
    channels = 8 if generator.pop("takes_reference") else 0
    sizes = {"in_channels": 8, "condition_size": 16, "grid": 2, "reference_channels": channels}
    data["question_pictures"] = data.pop("question_images")
    return {**data, **queries, "dit": {**generator, "kind": "nextdit", **sizes}}


@pytest.fixture
def older(tiny_folder: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "older"
    shutil.copytree(tiny_folder, folder)
    data = as_before(json.loads((folder / "config.json").read_text()))
    (folder / "config.json").write_text(json.dumps(data))
    state = load_file(folder / "model.safetensors")
    names = {name: name.removeprefix("generator.") for name in state}
    save_file({names[name]: tensor for name, tensor in state.items()}, folder / "model.safetensors")
    return folder


def test_an_older_folder_is_read_bit_for_bit(older: Path, tiny_folder: Path) -> None:
    before, now = load_model(older).model, load_model(tiny_folder).model
    assert before.config == now.config
    state = now.state_dict()
    for name, tensor in before.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_a_config_in_the_present_form_is_unchanged(tiny_folder: Path) -> None:
    data = json.loads((tiny_folder / "config.json").read_text())
    assert upgraded_config(data) == data


def test_a_name_in_both_spellings_is_refused(older: Path) -> None:
    state = load_file(older / "model.safetensors")
    state["generator.query_tokens.weight"] = state["query_tokens.weight"].clone()
    save_file(state, older / "model.safetensors")
    with pytest.raises(UsageError, match="come twice, in two spellings: generator"):
        load_model(older)
