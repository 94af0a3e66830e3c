"""Every kind of invalid folder, in our layout and the published one, for all readers of folders.

One line names all faults, the exit status is 2, no weight is read and no file is written.
"""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from blip3o import cli
from blip3o.core.errors import UsageError
from blip3o.generate.pipeline import Blip3oPipeline
from blip3o.text.tokenizer import train_tokenizer
from blip3o.weights import shards
from blip3o.weights.convert import convert
from blip3o.weights.folder import load_model, save_model
from blip3o.weights.pickles import read_pickles
from blip3o.weights.shards import StoredTensor

INDEX = "model.safetensors.index.json"


class Bomb:
    """An object whose unpickling would run code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("exploded"),))


@pytest.fixture(scope="session")
def own_shards(tiny_pipe: Blip3oPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in our layout with the main weights in shards."""
    folder = tmp_path_factory.mktemp("own") / "model"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "MAX_SHARD_BYTES", 30_000)
        save_model(tiny_pipe.model, tiny_pipe.tokenizer, folder, torch.float32)
    return folder


@pytest.fixture(params=["ours", "published"])
def folder(
    request: pytest.FixtureRequest, own_shards: Path, tmp_path: Path, monkeypatch: Any
) -> Path:
    """A valid folder that tests may damage."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "model"
    if request.param == "ours":
        shutil.copytree(own_shards, folder)
    else:
        shutil.copytree(request.getfixturevalue("released_folder"), folder)
    return folder


def shards_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("model-*.safetensors"))


def lose_two_shards(folder: Path) -> list[str]:
    lost = shards_of(folder)[:2]
    for file in lost:
        file.unlink()
    return [*(f"{file} is missing" for file in lost), "get it from the source of the model"]


def truncate_two_shards(folder: Path) -> list[str]:
    cut = shards_of(folder)[:2]
    cut[0].write_bytes(cut[0].read_bytes()[:-10])
    cut[1].write_bytes(b"")
    return [f"{file} is damaged" for file in cut]


def lie_about_a_header(folder: Path) -> list[str]:
    file = shards_of(folder)[0]
    file.write_bytes(b"\xff" * 8 + file.read_bytes()[8:])
    return [f"{file} is damaged"]


def put_a_folder_in_place_of_a_shard(folder: Path) -> list[str]:
    file = shards_of(folder)[0]
    file.unlink()
    file.mkdir()
    return [f"{file} is missing"]


def mix_up_the_index(folder: Path) -> list[str]:
    index = json.loads((folder / INDEX).read_text())
    places = index["weight_map"]
    one, two = (
        next(k for k, f in places.items() if f == file.name) for file in shards_of(folder)[:2]
    )
    places[one], places[two] = places[two], places[one]
    (folder / INDEX).write_text(json.dumps(index))
    return [f"lacks {one}", f"also holds {one}", f"lacks {two}", f"also holds {two}"]


def point_the_index_outside(folder: Path) -> list[str]:
    index = json.loads((folder / INDEX).read_text())
    first, second, *_ = index["weight_map"]
    index["weight_map"] |= {first: "../secret.safetensors", second: "model.bin"}
    (folder / INDEX).write_text(json.dumps(index))
    return [INDEX, "'../secret.safetensors'", "'model.bin'"]


def change_keys(folder: Path) -> list[str]:
    """Creates two missing, two extra and two misshapen weights."""
    file = max(shards_of(folder), key=lambda one: len(load_file(one)))
    state = load_file(file)
    names = sorted(state)
    lost, bent = names[:2], names[2:4]
    for name in lost:
        del state[name]
    state |= {name: torch.zeros(*state[name].shape, 3) for name in bent}
    state |= {"odd.one": torch.zeros(1), "odd.two": torch.zeros(1)}
    save_file(state, file)
    index = json.loads((folder / INDEX).read_text())
    places = {name: where for name, where in index["weight_map"].items() if name not in lost}
    places |= {"odd.one": file.name, "odd.two": file.name}
    (folder / INDEX).write_text(json.dumps(index | {"weight_map": places}))
    return [
        "missing: ",
        *lost,
        "extra: odd.one, odd.two",
        "wrong shape: ",
        *(f"{n} [" for n in bent),
    ]


def leave_pickles_only(folder: Path) -> list[str]:
    for file in (*shards_of(folder), folder / INDEX):
        file.unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    return ["pytorch_model.bin", "not opened", "blip3o convert --allow-pickle"]


def name_a_pickle_safetensors(folder: Path) -> list[str]:
    file = shards_of(folder)[0]
    file.write_bytes(pickle.dumps(Bomb()))
    return [f"{file} is damaged"]


def take_the_config_of_another_model(folder: Path) -> list[str]:
    other = {"architectures": ["BertModel"], "model_type": "bert", "hidden_size": 16}
    (folder / "config.json").write_text(json.dumps(other))
    return [f"{folder / 'config.json'} is of another model", "'bert'", "BertModel"]


def break_the_config(folder: Path) -> list[str]:
    (folder / "config.json").write_text('{"backbone": ')
    return [f"{folder / 'config.json'} cannot be read"]


def lose_the_config(folder: Path) -> list[str]:
    (folder / "config.json").unlink()
    return [f"{folder} is not a model folder: it has no config.json"]


def take_the_tokenizer_of_another_model(folder: Path) -> list[str]:
    train_tokenizer([chr(97 + n) * 9 for n in range(26)] * 3, 340).save(folder)
    return [f"{folder / 'tokenizer.json'} belongs to another model"]


def lose_a_shard_and_the_tokenizer(folder: Path) -> list[str]:
    file = shards_of(folder)[0]
    file.unlink()
    (folder / "tokenizer.json").unlink()
    return [f"{file} is missing", str(folder / "tokenizer.json")]


FAULTS: list[Callable[[Path], list[str]]] = [
    lose_two_shards,
    truncate_two_shards,
    lie_about_a_header,
    put_a_folder_in_place_of_a_shard,
    mix_up_the_index,
    point_the_index_outside,
    change_keys,
    leave_pickles_only,
    name_a_pickle_safetensors,
    take_the_config_of_another_model,
    break_the_config,
    lose_the_config,
    take_the_tokenizer_of_another_model,
    lose_a_shard_and_the_tokenizer,
]


@pytest.mark.parametrize("spoil", FAULTS, ids=lambda spoil: spoil.__name__)
def test_an_unfit_folder_is_refused_whole_and_in_one_line(
    folder: Path,
    spoil: Callable[[Path], list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    load_model(folder)  # it was valid
    named = spoil(folder)
    monkeypatch.setattr(StoredTensor, "read", lambda _: pytest.fail("a weight was read"))
    before = sorted(folder.parent.rglob("*"))
    dest = folder.parent / "dest"
    messages = []
    for read in (
        lambda: load_model(folder),
        lambda: convert(folder, dest, to="published"),
    ):
        with pytest.raises(UsageError) as caught:
            read()
        messages.append(str(caught.value))
    for words in (
        ["generate", "a cat", "--model", str(folder)],
        ["convert", str(folder), str(dest)],
    ):
        assert cli.main(words) == 2
        messages.append(capsys.readouterr().err.removeprefix("blip3o: error: ").removesuffix("\n"))
    assert set(messages) == {messages[0]}
    assert "\n" not in messages[0]
    for name in named:
        assert name in messages[0]
    assert sorted(folder.parent.rglob("*")) == before


# ---------------------------------------------------------------------------------------------
# Allowed pickles


def in_pickles(folder: Path, *, sharded: bool) -> dict[str, torch.Tensor]:
    """Puts the main weights of a published folder into pickles."""
    files = shards_of(folder)
    state = {name: tensor for file in files for name, tensor in load_file(file).items()}
    if sharded:
        places = {}
        for file in files:
            name = file.name.replace("model", "pytorch_model").replace(".safetensors", ".bin")
            torch.save(load_file(file), folder / name)
            places |= dict.fromkeys(load_file(file), name)
        index = folder / "pytorch_model.bin.index.json"
        index.write_text(json.dumps({"weight_map": places}))
    else:
        torch.save(state, folder / "pytorch_model.bin")
    for file in (*files, folder / INDEX):
        file.unlink()
    return state


@pytest.mark.parametrize("sharded", [False, True])
def test_allowed_pickles_are_converted_to_the_same_weights(
    released_folder: Path, tmp_path: Path, sharded: bool
) -> None:
    expected = load_model(released_folder, dtype=torch.bfloat16).model.state_dict()
    in_pickles(released_folder, sharded=sharded)
    with pytest.raises(UsageError, match=r"blip3o convert --allow-pickle|not opened"):
        load_model(released_folder)
    words = ["convert", str(released_folder), str(tmp_path / "ours"), "--allow-pickle"]
    assert cli.main(words) == 0
    found = load_model(tmp_path / "ours", dtype=torch.bfloat16).model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not list((tmp_path / "ours").rglob("*.bin"))


def test_allowed_pickles_of_an_old_torch_are_read(tmp_path: Path) -> None:
    state, file = {"weight": torch.arange(3.0)}, tmp_path / "pytorch_model.bin"
    torch.save(state, file, _use_new_zipfile_serialization=False)
    assert torch.equal(read_pickles(tmp_path)["weight"], state["weight"])
    torch.save({"weight": Bomb()}, file, _use_new_zipfile_serialization=False)
    with pytest.raises(UsageError, match="holds more than weights and is refused"):
        read_pickles(tmp_path)
    file.write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(UsageError, match="is a git-lfs pointer"):
        read_pickles(tmp_path)


def test_allowed_pickles_may_hold_weights_only(
    released_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    in_pickles(released_folder, sharded=True)
    one, two, three = sorted(released_folder.glob("pytorch_model-*.bin"))
    torch.save({"weight": Bomb()}, one)
    two.write_bytes(two.read_bytes()[:100])
    torch.save([torch.zeros(1)], three)
    with pytest.raises(UsageError) as caught:
        convert(released_folder, tmp_path / "ours", allow_pickle=True)
    assert f"{one} holds more than weights and is refused" in str(caught.value)
    assert f"{two} is damaged and cannot be read" in str(caught.value)
    assert f"{three} does not hold tensors by name" in str(caught.value)
    assert "\n" not in str(caught.value)
    one.unlink()
    with pytest.raises(UsageError, match=f"{one} is missing"):
        convert(released_folder, tmp_path / "ours", allow_pickle=True)
    assert not (tmp_path / "exploded").exists()
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": {}}', '{"weight_map": {"a": "../x"}}'])
def test_a_wrong_index_of_pickles_is_named(
    released_folder: Path, tmp_path: Path, text: str
) -> None:
    in_pickles(released_folder, sharded=True)
    (released_folder / "pytorch_model.bin.index.json").write_text(text)
    with pytest.raises(UsageError, match=r"pytorch_model\.bin\.index\.json"):
        convert(released_folder, tmp_path / "ours", allow_pickle=True)
