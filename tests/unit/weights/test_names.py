"""Names of models, accepted everywhere in the same way, without torch."""

from collections.abc import Callable
from pathlib import Path

import pytest

from blip3o.core.errors import UsageError
from blip3o.doctor.memory import config_of
from blip3o.weights.folder import load_model
from blip3o.weights.hub import to_local
from blip3o.weights.names import RELEASED, check_name, describe_models, full_name, short_name


@pytest.mark.parametrize("name", ["8b", "8B", "blip3o-8b", "BLIP3o_8B", "BLIP3o/BLIP3o-Model-8B"])
def test_a_released_model_has_short_names(name: str) -> None:
    assert short_name(name) == "8b"
    assert full_name(name) == RELEASED["8b"]
    check_name(name)
    assert config_of(name) == config_of("blip3o-8b")


def test_a_folder_with_the_name_of_a_released_model_takes_precedence(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "8b").symlink_to(tiny_folder)
    assert to_local("8b") == "8b"
    assert load_model("8b").folder == Path("8b")


def test_a_short_name_is_searched_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    downloads = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("blip3o.weights.hub._download", lambda name, *_: downloads.append(name))
    to_local("4b")
    assert downloads == ["BLIP3o/BLIP3o-Model-4B"]


def test_a_name_may_begin_with_the_home_folder(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tiny_folder.parent))
    name = f"~/{tiny_folder.name}"
    check_name(name)
    assert to_local(name) == str(tiny_folder)
    assert load_model(Path(name)).folder == tiny_folder


@pytest.mark.parametrize("name", ["pockt", "9b", "a/b/c", "x" * 300, "a\0b", ""])
def test_an_unknown_name_is_refused_with_the_known_names(name: str) -> None:
    if name:  # an empty name means the current folder
        with pytest.raises(UsageError, match="unknown model"):
            check_name(name)
    with pytest.raises(UsageError, match=r"unknown model|is not a model|is empty"):
        load_model(name)


@pytest.mark.parametrize("name", [3, None, ["pocket"]])
def test_a_value_that_is_not_a_name_is_refused(name: object) -> None:
    calls: list[Callable[..., object]] = [check_name, to_local, load_model]
    for call in calls:
        with pytest.raises(UsageError, match="a model is named by a text or a path, not"):
            call(name)


def test_models_are_listed_with_their_source() -> None:
    listed = describe_models()
    for name, hub_id in RELEASED.items():
        assert f"{name}  {hub_id}" in listed
        assert f"--model {name}" in listed
