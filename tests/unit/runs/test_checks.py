"""A run is refused before anything is written if its config alone shows that it must fail."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from blip3o.core.config import evolve
from blip3o.core.errors import UsageError
from blip3o.core.files import require_room, size_text
from blip3o.models.unified import UnifiedModel
from blip3o.recipes import own_data, pocket
from blip3o.runs.checks import check_room, check_run
from blip3o.runs.start import train


@pytest.fixture(autouse=True)
def _empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data.mixture.0.task": "text"}, "no objective learns from the task 'text'"),
    ],
)
def test_settings_that_contradict_each_other_are_named(
    changes: dict[str, object], said: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=said):
        train(evolve(pocket.smoke(), changes), tmp_path / "runs/x")
    assert not list(tmp_path.iterdir())
    check_run(pocket.smoke())


@pytest.fixture(scope="module")
def model() -> UnifiedModel:
    return own_data.pocket().model.build()


def need_of(free: int, changes: dict[str, object], model: UnifiedModel, run_dir: Path) -> bool:
    """Returns whether a run is refused with so many bytes free."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
        try:
            check_room(evolve(own_data.pocket(), changes), model, run_dir)
        except UsageError as error:
            assert "are free on the disk" in str(error)  # noqa: PT017
            return True
    return False


def test_room_for_checkpoints_and_model_is_checked_first(
    model: UnifiedModel, tmp_path: Path
) -> None:
    sizes = {name: one.numel() for name, one in model.named_parameters()}
    trained = sum(n for name, n in sizes.items() if name.startswith("generator."))
    whole = 4 * sum(sizes.values())
    cases: list[tuple[dict[str, object], Path, int]] = [
        ({}, tmp_path, 3 * 16 * trained + whole),  # two are kept, and a third exists for a moment
        ({"train.steps": 50}, tmp_path, 16 * trained + whole),
        ({"train.keep_last": 1}, tmp_path, 2 * 16 * trained + whole),
        ({"train.adapter": {"rank": 2}}, tmp_path, whole),
    ]
    finished = tmp_path / "finished"
    for step in (200, 300):
        (finished / f"checkpoints/step-{step:08d}").mkdir(parents=True)
    (finished / "latest").write_text("step-00000300\n")
    (finished / "model").mkdir()
    cases.append(({}, finished, 0))
    cases.append(({"train.steps": 400}, finished, 16 * trained))
    for changes, run_dir, need in cases:
        assert not need_of(need, changes, model, run_dir), changes
        assert need == 0 or need_of(need - 1, changes, model, run_dir), changes


def test_room_is_checked_where_the_folder_will_be(tmp_path: Path) -> None:
    require_room(tmp_path / "not/there/yet", 1, "files", "wait")
    with pytest.raises(UsageError, match=r"files need about 1000\.0 TB, and .* or wait$"):
        require_room(tmp_path / "not/there/yet", 10**15, "files", "wait")


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (2.5e9, "2.5 GB")]
)
def test_sizes_have_readable_units(size: float, text: str) -> None:
    assert size_text(size) == text
