"""The reconstruction benchmark: its figures, its data, its notes and its sheets."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from blip3o import Blip3oPipeline
from blip3o.core.errors import UsageError
from blip3o.eval import reconstruction, run_benchmark
from blip3o.eval.inception import FILE, Inception
from blip3o.eval.lpips import FILES, Lpips
from blip3o.generate.outputs import ImageOutput
from blip3o.imaging.sheet import contact_sheet

NUM_IMAGES = 21


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two folders of images of several shapes, one of which is damaged."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number in range(NUM_IMAGES):
        file = folder / ("left", "right")[number % 2] / f"{number:02d}.png"
        file.parent.mkdir(exist_ok=True)
        levels = rng.integers(0, 256, (24, 16 + number, 3), dtype=np.uint8)
        Image.fromarray(levels).save(file)
    (folder / "left" / "broken.png").write_bytes((folder / "left" / "00.png").read_bytes()[:90])
    return folder


def run(model: Path | str, out: Path, *settings: str) -> tuple[dict[str, Any], list[Any]]:
    """Returns the results and the rows of an evaluation."""
    settings = ("num_images=100", *settings)
    results = run_benchmark("reconstruction", str(model), out, settings, device="cpu", dtype="fp32")
    assert json.loads((out / "results.json").read_text()) == results
    return results, [json.loads(line) for line in (out / "samples.jsonl").open()]


def test_figures_of_a_folder(tiny_folder: Path, images: Path, tmp_path: Path) -> None:
    results, rows = run(tiny_folder, tmp_path, f"images={images}")
    (bad,) = (row for row in rows if "error" in row)
    good = [row for row in rows if "error" not in row]
    assert bad["image"] == "left/broken.png"
    assert len(good) == results["num_samples"] == NUM_IMAGES
    assert results["num_unreadable"] == 1
    assert results["image_px"] == 16
    for name in ("psnr", "ssim"):
        assert results[name] == pytest.approx(sum(row[name] for row in good) / NUM_IMAGES)
    assert results["overall"] == results["psnr"]
    for folder, score in results["by_category"].items():
        own = [row["psnr"] for row in good if row["image"].startswith(f"{folder}/")]
        assert score == pytest.approx(sum(own) / len(own))
    assert set(results["by_category"]) == {"left", "right"}
    assert results["frechet_own_features"] > 0
    assert "rfid" not in results
    assert "lpips" not in results
    assert any("rfid and lpips are not measured" in note for note in results["notes"])
    assert any(f"of {NUM_IMAGES} images; with fewer than 5,000" in n for n in results["notes"])
    assert results["sheets"] == ["reconstructions.png", "worst.png"]


def test_the_size_of_a_batch_changes_nothing(
    tiny_folder: Path, images: Path, tmp_path: Path
) -> None:
    settings = (f"images={images}", "num_images=7")
    found = [run(tiny_folder, tmp_path / n, *settings, f"batch_size={n}") for n in ("1", "4")]
    (one, one_rows), (four, four_rows) = found
    assert [row["image"] for row in one_rows] == [row["image"] for row in four_rows]
    for name in ("psnr", "ssim", "frechet_own_features"):
        assert one[name] == pytest.approx(four[name], rel=1e-3)


def test_another_seed_draws_other_images(tiny_folder: Path, images: Path, tmp_path: Path) -> None:
    settings = (f"images={images}", "num_images=7")
    names = [
        [row["image"] for row in run(tiny_folder, tmp_path / seed, *settings, f"seed={seed}")[1]]
        for seed in ("1", "2")
    ]
    assert len(names[0]) == len(set(names[0])) == 7
    assert names[0] == sorted(names[0])
    assert names[0] != names[1]


def test_equal_images_have_no_psnr(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        Blip3oPipeline, "reconstruct", lambda self, images, **_: ImageOutput(list(images))
    )
    results, rows = run(tiny_folder, tmp_path, "num_images=3")
    assert results["num_identical"] == results["num_samples"] == 3
    assert results["psnr"] is results["overall"] is None
    assert results["ssim"] == pytest.approx(1.0)
    assert abs(results["frechet_own_features"]) < 1e-6
    assert [row["psnr"] for row in rows] == [None] * 3
    assert [row["image"] for row in rows] == ["scene 0", "scene 1", "scene 2"]


def test_the_sheets_show_the_first_and_the_worst_images(
    tiny_folder: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []

    def keep(shown: Any, captions: list[str], **options: Any) -> Image.Image:
        seen.append(captions)
        assert len(shown) == len(captions) == 32
        return contact_sheet(shown, captions, **options)

    monkeypatch.setattr(reconstruction, "contact_sheet", keep)
    _, rows = run(tiny_folder, tmp_path, f"images={images}")
    figures = [row["psnr"] for row in rows if "error" not in row]
    for captions, shown in zip(seen, (figures[:16], sorted(figures)[:16]), strict=True):
        assert captions[::2] == ["original"] * 16
        assert captions[1::2] == [f"{figure:.1f} dB" for figure in shown]


def write_lpips(folder: Path) -> None:
    state = Lpips().state_dict()
    backbone = {name: one for name, one in state.items() if name.startswith("features.")}
    linear = {
        f"lin{n}.model.1.weight": torch.ones(1, len(state[f"weights.{n}"]), 1, 1) for n in range(5)
    }
    for name, content in zip(FILES, (backbone, linear), strict=True):
        torch.save(content, folder / name)


def test_networks_on_disk_judge_as_well(images: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(Inception().state_dict(), tmp_path / FILE)
    settings = (f"images={images}", "num_images=3", f"judge_weights={tmp_path}")
    results, _ = run("pocket", tmp_path / "out", *settings)
    assert results["rfid"] >= 0
    assert any("lpips is not measured" in note for note in results["notes"])
    (tmp_path / FILE).unlink()
    write_lpips(tmp_path)
    results, rows = run("pocket", tmp_path / "out", *settings)
    assert "rfid" not in results
    assert any(f"has no {FILE}" in note for note in results["notes"])
    assert all(row["lpips"] > 0 for row in rows)


def test_images_too_small_for_lpips_are_noted(tiny_folder: Path, tmp_path: Path) -> None:
    write_lpips(tmp_path)
    results, _ = run(tiny_folder, tmp_path / "out", "num_images=2", f"judge_weights={tmp_path}")
    assert any("needs images of 31 px" in note for note in results["notes"])


def test_bad_input_is_refused_in_one_line(tiny_folder: Path, tmp_path: Path) -> None:
    out, bad = tmp_path / "out", tmp_path / "bad"
    bad.mkdir()
    for settings, message in (
        ([f"images={tmp_path / 'none'}"], "none"),
        ([f"images={bad}"], "no image in"),
        ([f"judge_weights={tmp_path / 'none'}"], "judge_weights: no such folder"),
        (["num_images=0"], "num_images must be at least 1"),
        (["decoder_guidance_scale=2"], "is not guided"),
    ):
        with pytest.raises(UsageError, match=message) as caught:
            run_benchmark("reconstruction", str(tiny_folder), out, settings, device="cpu")
        assert "\n" not in str(caught.value)
    (bad / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(UsageError, match=r"no image of .* can be read"):
        run(tiny_folder, out, f"images={bad}")
