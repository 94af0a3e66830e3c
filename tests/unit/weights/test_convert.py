"""The command `convert`: refusals, leftovers, downloads from the hub."""

import dataclasses
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch

from blip3o import cli
from blip3o.core.errors import UsageError
from blip3o.core.lock import locked
from blip3o.generate.pipeline import Blip3oPipeline
from blip3o.weights import convert as module
from blip3o.weights.convert import convert
from blip3o.weights.folder import load_model, save_model
from blip3o.weights.hub import to_local


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


@pytest.mark.parametrize("there", ["file", "full"])
def test_a_destination_that_is_not_empty_is_refused(
    tiny_folder: Path, tmp_path: Path, there: str
) -> None:
    dest = tmp_path / "dest"
    if there == "file":
        dest.write_text("mine")
    else:
        dest.mkdir()
        (dest / "mine").write_text("mine")
    with pytest.raises(UsageError, match="not an empty folder"):
        convert(tiny_folder, dest)
    assert names(tmp_path) == {"dest"}


def test_a_second_call_for_one_destination_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    with (
        locked(tmp_path / ".dest.lock"),
        pytest.raises(UsageError, match=r"process \d+ on .* converts into .*dest: wait"),
    ):
        convert(tiny_folder, tmp_path / "dest")
    assert names(tmp_path) == set()
    convert(tiny_folder, tmp_path / "dest")
    assert names(tmp_path) == {"dest"}


def test_an_empty_destination_is_filled(released_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "dest").mkdir()
    (released_folder / "README.md").write_text("licence")
    convert(released_folder, tmp_path / "dest")
    load_model(tmp_path / "dest")
    assert (tmp_path / "dest/README.md").read_text() == "licence"


def test_a_failure_leaves_nothing_behind(
    released_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError("no space left on device")

    before = names(tmp_path)
    monkeypatch.setattr(module, "write_folder", full)
    with pytest.raises(UsageError, match="dest cannot be written: no space left"):
        convert(released_folder, tmp_path / "dest")
    assert names(tmp_path) == before


def test_a_model_of_another_family_has_no_published_form(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot hold this model: .*pocket, normalized"):
        convert(tiny_folder, tmp_path / "dest", to="published")
    assert names(tmp_path) == set()


def test_a_generator_without_queries_has_no_published_form(
    released_folder: Path, tmp_path: Path
) -> None:
    loaded = load_model(released_folder)
    config = loaded.model.config
    generator = dataclasses.replace(config.generator, reads="layers", num_query_tokens=0)
    model = dataclasses.replace(config, generator=generator).build()
    save_model(model, loaded.tokenizer, tmp_path / "ours", torch.float32)
    with pytest.raises(UsageError, match=r"hold this model: a generator that reads layers$"):
        convert(tmp_path / "ours", tmp_path / "dest", to="published")


def test_the_command_converts_and_refuses_in_one_line(
    released_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dest = str(tmp_path / "dest")
    assert cli.main(["convert", str(released_folder), dest]) == 0
    assert capsys.readouterr().out == f"{dest}\n"
    for words in (
        [str(released_folder), dest],
        [str(released_folder), dest + "2", "--to", "publishd"],
        [str(released_folder), dest + "2", "--revision", "main"],
    ):
        assert cli.main(["convert", *words]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_a_hub_id_is_downloaded_without_pickles(
    released_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    downloads: list[Any] = []

    def snapshot_download(name: str, **options: Any) -> str:
        downloads.append((name, options["revision"]))
        assert not any(".bin" in one or one == "*" for one in options["allow_patterns"])
        return str(released_folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    convert("org/name", tmp_path / "dest", revision="v1")
    Blip3oPipeline.from_pretrained("org/name", device="cpu", dtype="fp32")
    assert downloads == [("org/name", "v1"), ("org/name", None)]
    load_model(tmp_path / "dest")


def test_without_a_network_a_hub_id_is_refused_in_one_line() -> None:
    with pytest.raises(UsageError, match="there is no folder org/name, and it is not in") as caught:
        to_local("org/name")
    assert "\n" not in str(caught.value)


def test_folders_and_bundled_names_are_never_searched_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    for name in ("pocket", "org/name", "/a/b", "./a", "a/b/c", "../a", tmp_path):
        assert to_local(name) == name
