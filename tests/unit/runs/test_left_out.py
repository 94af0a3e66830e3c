"""A run reports at start and end how many records it leaves out, and a small run continues."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from blip3o.core.config import evolve
from blip3o.core.errors import UsageError
from blip3o.data import loader as loading
from blip3o.data.mixture import DataConfig, MixtureEntry
from blip3o.data.sources.folder import FolderConfig
from blip3o.models.unified import UnifiedModelConfig
from blip3o.runs import assemble, left_out
from blip3o.runs.start import load_recipe, train
from blip3o.text.chat import ChatConfig
from blip3o.text.tokenizer import Tokenizer
from blip3o.train.config import InitConfig, RunConfig
from blip3o.weights.folder import save_model

GOOD, BAD = 9, 3


@pytest.fixture
def config(tiny_tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """The recipe `own_data` on a tiny model; three of twelve images are unusable."""
    monkeypatch.setattr(assemble, "draw_curves", lambda run_dir: None)
    rng, data = np.random.default_rng(0), tmp_path / "data"
    data.mkdir()
    for number in range(GOOD + BAD):
        pixels = rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(data / f"{number:02}.png")
        (data / f"{number:02}.txt").write_text(f"a red cat {number}")
    (data / "03.png").write_bytes(b"no image")
    (data / "07.png").write_bytes((data / "08.png").read_bytes()[:-200])
    (data / "11.txt").unlink()
    tiny = UnifiedModelConfig.tiny()
    model = dataclasses.replace(
        tiny,
        backbone=dataclasses.replace(tiny.backbone, image_token_id=tiny_tokenizer.image_pad_id),
        chat=ChatConfig(system=None, generate="draw: {caption}"),
    )
    torch.manual_seed(0)
    save_model(model.build(), tiny_tokenizer, tmp_path / "start", torch.float32)
    recipe = load_recipe("own_data", tmp_path)
    assert isinstance(recipe, RunConfig)
    source = FolderConfig(path=str(data), name="own")
    return dataclasses.replace(
        recipe,
        model=model,
        init=(InitConfig(folder=str(tmp_path / "start")),),
        data=DataConfig(
            mixture=(MixtureEntry(source=source, task="text_to_image"),),
            feature_cache=str(tmp_path / "features"),
        ),
        train=dataclasses.replace(
            recipe.train,
            steps=12,
            global_batch_size=6,
            micro_batch_size=6,
            log_every=6,
            sample_every=12,
            precision="fp32",
            device="cpu",
        ),
    )


@pytest.mark.parametrize("is_cached", [True, False])
def test_a_few_images_train_even_if_many_of_them_are_unusable(
    config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture, is_cached: bool
) -> None:
    if not is_cached:
        config = evolve(config, {"data.feature_cache": None})
    run_dir = tmp_path / "run"
    train(config, run_dir)
    said = f"{GOOD} of 12 images of own used; {BAD} left out, see {run_dir / 'quarantine.jsonl'}"
    assert capsys.readouterr().err.count(said) == 2
    lines = [json.loads(line) for line in (run_dir / "quarantine.jsonl").read_text().splitlines()]
    assert sorted(line["key"] for line in lines) == ["03.png", "07.png", "11.png"]
    assert all(line["reason"] for line in lines)
    train(evolve(config, {"train.steps": 14}), run_dir)  # each record is listed once
    assert len((run_dir / "quarantine.jsonl").read_text().splitlines()) == BAD


def test_repaired_records_are_no_longer_counted(
    config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    train(config, tmp_path / "run")
    (tmp_path / "data" / "11.txt").write_text("a red cat")
    (tmp_path / "data" / "03.png").write_bytes((tmp_path / "data" / "04.png").read_bytes())
    capsys.readouterr()
    train(evolve(config, {"train.steps": 14}), tmp_path / "run")
    assert capsys.readouterr().err.count("11 of 12 images of own used; 1 left out") == 2


def test_the_cache_and_the_steps_report_on_large_sources(
    config: RunConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(left_out, "_MOST_CHECKED", 5)
    train(evolve(config, {"train.steps": 1, "data.bad_sample_limit": 1.0}), tmp_path / "run")
    first, *_, last = capsys.readouterr().err.splitlines()
    assert "10 of 12 images of own used; 2 left out" in first
    assert "of 12 images of own left out so far" in last


def test_more_than_the_limit_still_stops_the_run(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "_ALWAYS_ALLOWED", 2)
    with pytest.raises(UsageError, match=r"bad_sample_limit.*quarantine\.jsonl$"):
        train(config, tmp_path / "run")
    none = evolve(config, {"data.bad_sample_limit": 0.0})
    with pytest.raises(UsageError, match=r"limit of 0\.0%"):
        train(none, tmp_path / "none")


def test_a_run_without_prompts_draws_the_first_captions_of_its_data(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from blip3o.runs import samples

    drawn: list[list[str]] = []
    plain = samples._save
    monkeypatch.setattr(
        samples, "_save", lambda i, captions, p: drawn.append(captions) or plain(i, captions, p)
    )
    assert config.sample_prompts == ()
    train(config, tmp_path / "run")
    assert drawn == [[f"a red cat {number}" for number in (0, 1, 2, 4, 5, 6, 8, 9)]]
    assert (tmp_path / "run" / "samples" / "step-00000012.png").is_file()
