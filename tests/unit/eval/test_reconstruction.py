"""The reconstruction benchmark: its items, its verdicts, and its figures from them alone."""

import base64
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from blip3o import Blip3oPipeline
from blip3o.core.config import from_dict, override
from blip3o.core.errors import UsageError
from blip3o.core.rng import image_generator
from blip3o.eval.benchmark import Item, Row, Sample, Scores, Verdict
from blip3o.eval.measures.frechet import frechet_distance
from blip3o.eval.measures.inception import FILE, Inception
from blip3o.eval.measures.lpips import FILES, Lpips
from blip3o.eval.reconstruction import ReconstructionBenchmark

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


def drawn(
    pipe: Blip3oPipeline, benchmark: ReconstructionBenchmark, items: Sequence[Item]
) -> list[Sample]:
    """Returns the reconstructions of items."""
    samples = []
    for item in items:
        sources = benchmark.sources(item)
        (image,) = pipe.reconstruct(
            sources, generator=[image_generator(benchmark.seed, item.number, 0)]
        ).images
        samples.append(Sample(item=item, number=0, sha256="0", image=image, sources=sources))
    return samples


def stored(verdict: Verdict) -> Verdict:
    """Returns a verdict as it comes back from its line of JSON."""
    return Verdict(**json.loads(json.dumps(dataclasses.asdict(verdict), allow_nan=False)))


def rows_of(benchmark: ReconstructionBenchmark, samples: Sequence[Sample]) -> list[Row]:
    verdicts = {one.item: stored(one) for one in benchmark.scorer().verdicts(samples)}
    return [Row(one.item, one.number, verdicts[one.item.id]) for one in samples]


def run(pipe: Blip3oPipeline, *settings: str) -> tuple[Scores, list[Row]]:
    """Returns the figures and the rows of an evaluation."""
    benchmark = override(ReconstructionBenchmark(num_images=100), list(settings))
    rows = rows_of(benchmark, drawn(pipe, benchmark, benchmark.items()))
    return benchmark.reduce(rows), rows


def data_of(row: Row) -> dict[str, Any]:
    assert row.verdict is not None
    return dict(row.verdict.data)


def test_figures_of_a_folder(tiny_pipe: Blip3oPipeline, images: Path) -> None:
    scores, rows = run(tiny_pipe, f"images={images}")
    figures, found = scores.figures, [data_of(row) for row in rows]
    assert len(rows) == figures["num_images"] == NUM_IMAGES
    assert figures["num_unreadable"] == 1
    assert [*figures["unreadable"]] == ["left/broken.png"]
    assert figures["image_px"] == [(16, 16)]
    for name in ("psnr", "ssim"):
        assert figures[name] == pytest.approx(sum(one[name] for one in found) / NUM_IMAGES)
    assert scores.overall == figures["psnr"]
    assert set(scores.by_category) == {"left", "right"}
    for folder, score in scores.by_category.items():
        own = [
            data["psnr"] for row, data in zip(rows, found, strict=True) if folder in name_of(row)
        ]
        assert score == pytest.approx(sum(own) / len(own))
    assert figures["frechet_pocket_features"] > 0
    assert not {"rfid", "lpips"} & figures.keys()
    assert any("rfid and lpips are not measured" in note for note in scores.notes)
    assert any(f"of {NUM_IMAGES} images; with fewer than 5,000" in note for note in scores.notes)
    assert any("1 images of the data cannot be read" in note for note in scores.notes)


def name_of(row: Row) -> str:
    return str(row.item.data["name"])


def test_items_are_the_same_in_each_process(images: Path) -> None:
    one, two = (ReconstructionBenchmark(images=str(images), num_images=7) for _ in range(2))
    items = one.items()
    assert items == two.items()
    assert json.loads(json.dumps([dataclasses.asdict(item) for item in items]))
    assert len({item.id for item in items}) == len({item.number for item in items}) == 7
    for item in items:
        assert len(item.sources) == 1
        assert item.task == "reconstruction"
        (image,) = one.sources(item)
        assert image.mode == "RGB"


def test_the_distance_is_that_of_the_stored_vectors(
    tiny_pipe: Blip3oPipeline, images: Path
) -> None:
    scores, rows = run(tiny_pipe, f"images={images}")
    sides = []
    for place in (0, 1):
        texts = [data_of(row)["features"]["frechet_pocket_features"][place] for row in rows]
        vectors = [np.frombuffer(base64.b64decode(text), "<f4") for text in texts]
        sides.append(torch.from_numpy(np.stack(vectors)))
    assert scores.figures["frechet_pocket_features"] == frechet_distance(*sides)


def test_the_judging_features_are_those_of_the_bundled_encoder(images: Path) -> None:
    pocket = Blip3oPipeline.from_pretrained("pocket", device="cpu", dtype="fp32")
    benchmark = ReconstructionBenchmark(images=str(images), num_images=2)
    samples = drawn(pocket, benchmark, benchmark.items())
    for sample, row in zip(samples, rows_of(benchmark, samples), strict=True):
        assert sample.image is not None
        expected = pocket.encode([sample.image]).double().mean(1)[0]
        text = data_of(row)["features"]["frechet_pocket_features"][1]
        found = torch.from_numpy(np.frombuffer(base64.b64decode(text), "<f4").copy())
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


def test_another_seed_draws_other_images(images: Path) -> None:
    names = [
        [str(item.data["name"]) for item in benchmark.items()]
        for seed in (1, 2)
        for benchmark in [ReconstructionBenchmark(images=str(images), num_images=7, seed=seed)]
    ]
    assert len(names[0]) == len(set(names[0])) == 7
    assert names[0] == sorted(names[0])
    assert names[0] != names[1]


def test_equal_images_have_no_psnr() -> None:
    benchmark = ReconstructionBenchmark(num_images=3, scene_px=24)
    items = benchmark.items()
    originals = [benchmark.sources(item) for item in items]
    samples = [
        Sample(item=item, number=0, sha256="0", image=one[0], sources=one)
        for item, one in zip(items, originals, strict=True)
    ]
    scores = benchmark.reduce(rows_of(benchmark, samples))
    assert scores.figures["num_identical"] == scores.figures["num_images"] == 3
    assert scores.overall is None
    assert "psnr" not in scores.figures
    assert scores.figures["ssim"] == pytest.approx(1.0)
    assert abs(scores.figures["frechet_pocket_features"]) < 1e-4  # roots of rounding errors
    assert [item.data["name"] for item in items] == ["scene 0", "scene 1", "scene 2"]
    assert originals[0][0].size == (24, 24)


def test_a_missing_reconstruction_has_the_worst_psnr(tiny_pipe: Blip3oPipeline) -> None:
    benchmark = ReconstructionBenchmark(num_images=4)
    samples = drawn(tiny_pipe, benchmark, benchmark.items())
    samples[1] = dataclasses.replace(samples[1], image=None)
    rows = rows_of(benchmark, samples)
    rows[2] = dataclasses.replace(rows[2], verdict=None)
    scores = benchmark.reduce(rows)
    present = [data_of(rows[place])["psnr"] for place in (0, 3)]
    assert scores.overall == pytest.approx(sum(present) / 4)
    assert scores.figures["num_missing"] == 2
    assert any("2 of 4 reconstructions are missing" in note for note in scores.notes)
    assert benchmark.reduce([]).overall is None


def test_an_original_is_stretched_to_the_size_of_the_result() -> None:
    benchmark = ReconstructionBenchmark(num_images=1)
    (item,) = benchmark.items()
    original = Image.new("RGB", (50, 30), "red")
    for size in ((16, 16), (40, 20), (8, 8)):
        sample = Sample(
            item=item, number=0, sha256="0", image=original.resize(size), sources=[original]
        )
        (row,) = rows_of(benchmark, [sample])
        assert data_of(row)["is_identical"]
        assert data_of(row)["image_px"] == [*size]
        assert ("ssim" in data_of(row)) == (min(size) >= 11)


def write_lpips(folder: Path) -> None:
    state = Lpips().state_dict()
    backbone = {name: one for name, one in state.items() if name.startswith("features.")}
    linear = {
        f"lin{n}.model.1.weight": torch.ones(1, len(state[f"weights.{n}"]), 1, 1) for n in range(5)
    }
    for name, content in zip(FILES, (backbone, linear), strict=True):
        torch.save(content, folder / name)


def halved(benchmark: ReconstructionBenchmark) -> list[Sample]:
    """Returns the originals at half of their size as reconstructions."""
    samples = []
    for item in benchmark.items():
        (source,) = benchmark.sources(item)
        image = source.resize((source.width // 2, source.height // 2)).rotate(3)
        samples.append(Sample(item=item, number=0, sha256="0", image=image, sources=[source]))
    return samples


def test_networks_on_disk_judge_as_well(tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(Inception().state_dict(), tmp_path / FILE)
    benchmark = ReconstructionBenchmark(num_images=2, judge_weights=str(tmp_path))
    rows = rows_of(benchmark, halved(benchmark))
    scores = benchmark.reduce(rows)
    assert scores.figures["rfid"] >= 0
    assert rows[0].verdict is not None
    assert "inception-2015-12-05-" in rows[0].verdict.judge
    assert "lpips" not in rows[0].verdict.judge
    assert any("lpips is not measured" in note for note in scores.notes)
    (tmp_path / FILE).unlink()
    write_lpips(tmp_path)
    rows = rows_of(benchmark, halved(benchmark))
    scores = benchmark.reduce(rows)
    assert "rfid" not in scores.figures
    assert any(f"has no {FILE}" in note for note in scores.notes)
    found = [data_of(row)["lpips"] for row in rows]
    assert all(one > 0 for one in found)
    assert scores.figures["lpips"] == pytest.approx(sum(found) / len(found))


def test_images_too_small_for_lpips_are_noted(tiny_pipe: Blip3oPipeline, tmp_path: Path) -> None:
    write_lpips(tmp_path)
    scores, _ = run(tiny_pipe, "num_images=2", f"judge_weights={tmp_path}")
    assert any("needs images of 31 px" in note for note in scores.notes)


def prepare(settings: dict[str, Any]) -> None:
    benchmark = from_dict(ReconstructionBenchmark, settings)
    benchmark.items()
    benchmark.scorer()


def test_bad_input_is_refused_in_one_line(tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.mkdir()
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"images": str(tmp_path / "none")}, "none"),
        ({"images": str(bad)}, "no image in"),
        ({"judge_weights": str(tmp_path / "none")}, "judge_weights: no such folder"),
        ({"num_images": 0}, "num_images must be at least 1"),
    )
    for settings, message in cases:
        with pytest.raises(UsageError, match=message) as caught:
            prepare(settings)
        assert "\n" not in str(caught.value)
    (bad / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(UsageError, match=r"no image of .* can be read"):
        ReconstructionBenchmark(images=str(bad)).items()
