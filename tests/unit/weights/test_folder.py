"""Model folders are read back bit for bit, and damaged files are named."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from blip3o.core.errors import UsageError
from blip3o.generate.pipeline import Blip3oPipeline
from blip3o.text.tokenizer import train_tokenizer
from blip3o.weights import names
from blip3o.weights.folder import load_model, resolve_model_folder, save_model
from blip3o.weights.names import BUNDLED, describe_models

FILES = {
    "config.json",
    "model.safetensors",
    "image_encoder/model.safetensors",
    "image_decoder/model.safetensors",
    "tokenizer.json",
    "README.md",
}


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def refusal(folder: Path) -> str:
    with pytest.raises(UsageError) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_contains_exactly_these_files(tiny_folder: Path) -> None:
    found = {str(p.relative_to(tiny_folder)) for p in tiny_folder.rglob("*") if p.is_file()}
    assert found == FILES


def test_a_loaded_model_equals_the_saved_one(tiny_pipe: Blip3oPipeline, tiny_folder: Path) -> None:
    loaded = load_model(tiny_folder)
    assert loaded.folder == tiny_folder
    assert loaded.model.config == tiny_pipe.model.config
    assert not loaded.model.training
    saved = tiny_pipe.model.state_dict()
    state = loaded.model.state_dict()
    assert state.keys() == saved.keys()
    assert all(torch.equal(state[name], saved[name]) for name in saved)
    text = "draw: a red cat <|im_end|>"
    assert loaded.tokenizer.encode(text) == tiny_pipe.tokenizer.encode(text)


def test_a_loaded_model_computes_the_same(tiny_pipe: Blip3oPipeline, tiny_folder: Path) -> None:
    """Also covers buffers that are not stored, such as rotary frequencies."""
    loaded = load_model(tiny_folder)
    again = Blip3oPipeline(loaded.model, loaded.tokenizer)
    image = torch.rand(1, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        expected = tiny_pipe.model.encode_images(image)
        assert torch.equal(again.model.encode_images(image), expected)
    pixels = [
        one(
            ["a red cat", "a dog"], generator=torch.Generator().manual_seed(0), output_type="pt"
        ).images
        for one in (tiny_pipe, again)
    ]
    assert torch.equal(*pixels)


def test_loading_does_not_change_the_random_state(tiny_folder: Path) -> None:
    before = torch.get_rng_state()
    load_model(tiny_folder)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_run_folder_stands_for_its_model(tiny_folder: Path) -> None:
    assert resolve_model_folder(tiny_folder.parent) == tiny_folder
    assert resolve_model_folder(str(tiny_folder)) == tiny_folder


def test_weights_are_stored_in_bf16_and_the_normalizer_in_fp32(
    tiny_pipe: Blip3oPipeline, tmp_path: Path
) -> None:
    save_model(tiny_pipe.model, tiny_pipe.tokenizer, tmp_path)
    main = load_file(tmp_path / "model.safetensors")
    assert main["generator.query_tokens.weight"].dtype == torch.bfloat16
    assert main["normalizer.forward_map"].dtype == torch.float32
    assert not (tmp_path / "README.md").exists()
    loaded = load_model(tmp_path).model
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    for name, tensor in loaded.state_dict().items():
        plain = tiny_pipe.model.state_dict()[name]
        torch.testing.assert_close(tensor, plain, rtol=2**-8, atol=1e-8)


def test_a_model_in_bf16_keeps_its_computed_tables_exact(tiny_folder: Path) -> None:
    exact = dict(load_model(tiny_folder).model.named_buffers())
    model = load_model(tiny_folder, dtype=torch.bfloat16).model
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    stored = model.state_dict()
    derived = {name: b for name, b in model.named_buffers() if name not in stored}
    assert any("inv_freq" in name for name in derived)
    for name, buffer in derived.items():
        assert torch.equal(buffer, exact[name]), name


def test_saving_again_replaces_the_folder(tiny_pipe: Blip3oPipeline, folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"old")
    save_model(tiny_pipe.model, tiny_pipe.tokenizer, folder)
    load_model(folder)
    assert not list(folder.rglob("*.tmp"))


@pytest.mark.parametrize("file", sorted(FILES - {"README.md", "config.json"}))
def test_a_missing_file_is_named(folder: Path, file: str) -> None:
    (folder / file).unlink()
    assert str(folder / file) in refusal(folder)


@pytest.mark.parametrize("file", sorted(FILES - {"README.md"}))
@pytest.mark.parametrize("keep", [0, 7, 0.5])
def test_a_truncated_file_is_named(folder: Path, file: str, keep: float) -> None:
    data = (folder / file).read_bytes()
    (folder / file).write_bytes(data[: keep if isinstance(keep, int) else int(len(data) * keep)])
    assert str(folder / file) in refusal(folder)


def test_missing_extra_and_misshapen_weights_are_all_listed(folder: Path) -> None:
    file = folder / "model.safetensors"
    state = load_file(file)
    del state["generator.query_tokens.weight"]
    state["generator.dit.layers.9.gate"] = torch.zeros(1)
    state["generator.dit.norm_out.linear_2.bias"] = torch.zeros(3)
    save_file(state, file)
    encoder = folder / "image_encoder/model.safetensors"
    save_file({**load_file(encoder), "extra": torch.zeros(1)}, encoder)
    message = refusal(folder)
    assert str(folder) in message
    assert "missing: generator.query_tokens.weight;" in message
    assert "extra: generator.dit.layers.9.gate, image_encoder.extra;" in message
    assert "wrong shape: generator.dit.norm_out.linear_2.bias [3] instead of [8]" in message


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            ("generator", "hiden_size"),
            3,
            "unknown config key 'generator.hiden_size'; did you mean generator.hidden",
        ),
        (("generator", "hidden_size"), "16", "generator.hidden_size must be int, got '16'"),
        (
            ("generator", "kind"),
            "querydit",
            "unknown generator 'querydit'; did you mean query_dit?",
        ),
        (("generator", "hidden_size"), 20, "must be a multiple of 4 * num_heads"),
        (("normalizer", "num_components"), 99, "num_components must be 1 to 16"),
        (("image_encoder", "patch_px"), 0, "image_encoder.patch_px must be at least 1"),
        (("image_encoder", "num_heads"), 3, "config.json does not describe a model"),
        (("image_decoder", "min_sigma"), None, "image_decoder.min_sigma must be float"),
        (("backbone",), [], "backbone must be a mapping"),
    ],
)
def test_a_config_that_does_not_fit_is_named(
    folder: Path, path: tuple[str, ...], value: object, message: str
) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text())
    place = config
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    file.write_text(json.dumps(config))
    assert message in refusal(folder)
    assert str(file) in refusal(folder)


def test_weights_of_other_sizes_than_the_config_are_listed(folder: Path) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config["generator"]["num_query_tokens"] = 9
    file.write_text(json.dumps(config))
    assert "generator.query_tokens.weight [4, 16] instead of [9, 16]" in refusal(folder)


def test_a_tokenizer_of_another_model_is_refused(folder: Path) -> None:
    train_tokenizer([chr(97 + n) * 9 for n in range(26)] * 3, 340).save(folder)
    assert "belongs to another model: it has" in refusal(folder)
    config = json.loads((folder / "config.json").read_text())
    config["backbone"]["image_token_id"] = 9
    (folder / "config.json").write_text(json.dumps(config))
    assert "image placeholder is token 6, config.json says 9" in refusal(folder)


@pytest.mark.parametrize("name", ["pockt", "POCKET2", "no/such/folder", "Salesforce/BLIP3o"])
def test_an_unknown_model_gives_the_nearest_names_and_downloads_nothing(name: str) -> None:
    with pytest.raises(UsageError, match=rf"^unknown model '{name}'; .*pocket"):
        load_model(name)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is not a model folder: it has no config\.json"):
        load_model(tmp_path)


def test_a_missing_bundled_model_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BUNDLED, "pocket", tmp_path / "none")
    with pytest.raises(UsageError, match="'pocket' is not in this installation"):
        load_model("pocket")
    assert "pocket  not in this installation" in describe_models()


def test_descriptions_of_models_contain_their_sizes(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names, "BUNDLED", {"tiny": tiny_folder})
    line, *_, hint = describe_models().splitlines()
    assert line.startswith("tiny  0.0 M parameters, 0.")
    assert str(tiny_folder) in line
    assert "--model" in hint


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_a_quantized_model_is_loaded_but_not_saved(
    tiny_folder: Path, tmp_path: Path, kind: Any
) -> None:
    loaded = load_model(tiny_folder, quantize=kind)
    with pytest.raises(UsageError, match="a quantized model cannot be saved"):
        save_model(loaded.model, loaded.tokenizer, tmp_path / "model")
    assert not list(tmp_path.iterdir())
