"""The FID benchmark: its list of prompts, its reference, its verdicts and its figures."""

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from blip3o.core.config import from_dict, override
from blip3o.core.errors import UsageError
from blip3o.eval import fid
from blip3o.eval.benchmark import Row, Sample, Verdict
from blip3o.eval.fid import FidBenchmark
from blip3o.eval.measures.frechet import frechet_distance, kernel_distance
from blip3o.eval.measures.inception import FILE, RESIZES, Inception
from blip3o.eval.measures.vectors import packed, unpacked
from blip3o.eval.prompt_lists import read_prompts

NUM_PROMPTS = 6


class SmallInception(Inception):
    """The real class with fast features: the mean colors of the four quarters of an image."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)
        self.anywhere = torch.nn.Parameter(torch.zeros(1))

    def forward(self, levels: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(levels, (2, 2)).flatten(1)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Settings with prompts, a reference of two folders, and a network."""
    rows = [{"prompt": f"image {n}", "category": "ab"[n % 2]} for n in range(NUM_PROMPTS)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rng = np.random.default_rng(0)
    for number in range(8):
        file = tmp_path / "reference" / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(file)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / FILE).write_bytes(b"weights")
    monkeypatch.setattr(fid, "load_inception", lambda folder: SmallInception())
    monkeypatch.setattr(fid, "_KNOWN", {})
    return {
        "prompts": str(tmp_path / "prompts.jsonl"),
        "reference": str(tmp_path / "reference"),
        "judge_weights": str(tmp_path / "weights"),
        "few_images": True,
    }


def samples_of(benchmark: FidBenchmark) -> list[Sample]:
    rng = np.random.default_rng(1)
    return [
        Sample(
            item=item,
            number=number,
            sha256=f"{item.id}{number}",
            image=Image.fromarray(rng.integers(0, 200, (16, 16, 3), dtype=np.uint8)),
        )
        for item in benchmark.items()
        for number in range(item.num_samples)
    ]


def rows_of(benchmark: FidBenchmark, samples: Sequence[Sample]) -> list[Row]:
    """Returns the rows, after each verdict was a line of JSON."""
    found = {}
    for batch in (samples[:4], samples[4:]):
        for one in benchmark.scorer().verdicts(batch):
            stored = Verdict(**json.loads(json.dumps(dataclasses.asdict(one))))
            found[one.item, one.number] = stored
    return [Row(one.item, one.number, found[one.item.id, one.number]) for one in samples]


def features(images: Sequence[Image.Image], mode: str) -> torch.Tensor:
    network = SmallInception()
    return torch.cat([network(RESIZES[mode](image)[None]) for image in images])  # pyrefly: ignore


@pytest.mark.parametrize("mode", RESIZES)
def test_figures_are_the_distances_of_all_images(settings: dict[str, Any], mode: str) -> None:
    benchmark = from_dict(FidBenchmark, {**settings, "mode": mode, "kid_subsets": 3})
    samples = samples_of(benchmark)
    scores = benchmark.reduce(rows_of(benchmark, samples))
    reference = {
        file: Image.open(file) for file in sorted(Path(settings["reference"]).rglob("*.png"))
    }
    generated = features([one.image for one in samples if one.image], mode)
    real = features([*reference.values()], mode)
    assert scores.overall == scores.figures["fid"]
    assert scores.overall == pytest.approx(frechet_distance(generated, real), rel=1e-5)
    kid = kernel_distance(generated, real, num_subsets=3, subset_size=6, seed=benchmark.seed)
    assert scores.figures["kid"] == pytest.approx(kid.mean, rel=1e-4)
    assert scores.figures["kid_std"] == pytest.approx(kid.std, rel=1e-4)
    assert scores.figures["kid_seed"] == benchmark.seed
    own = features([one for file, one in reference.items() if file.parent.name == "a"], mode)
    expected = frechet_distance(generated[::2], own)
    assert scores.by_category["a"] == pytest.approx(expected, rel=1e-5)
    assert scores.figures["reference"] == "reference"
    assert scores.figures["reference_size"] == 8
    assert scores.figures["num_images"] == NUM_PROMPTS
    assert scores.figures["image_px"] == [(16, 16)]
    assert "6 generated images and 8 reference images" in scores.notes[0]
    assert any("fewer than 2,049 images" in note for note in scores.notes)
    assert any("subsets of 6" in note for note in scores.notes)


def test_missing_images_leave_no_headline(settings: dict[str, Any]) -> None:
    benchmark = from_dict(FidBenchmark, settings)
    samples = samples_of(benchmark)
    samples[0] = dataclasses.replace(samples[0], image=None)
    rows = rows_of(benchmark, samples)
    rows[1] = dataclasses.replace(rows[1], verdict=None)
    scores = benchmark.reduce(rows)
    assert scores.overall is None
    assert scores.figures["fid"] > 0
    assert scores.figures["num_missing"] == 2
    assert any("2 generated images are missing" in note for note in scores.notes)
    assert benchmark.reduce([]).overall is None


def test_the_cache_serves_without_the_reference(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmark = from_dict(FidBenchmark, {**settings, "cache": str(tmp_path / "cache")})
    rows = rows_of(benchmark, samples_of(benchmark))
    scores = benchmark.reduce(rows)
    (file,) = (tmp_path / "cache").iterdir()
    monkeypatch.setattr(fid, "_KNOWN", {})
    shutil.rmtree(settings["reference"])
    shutil.rmtree(settings["judge_weights"])
    assert benchmark.reduce(rows) == scores
    monkeypatch.setattr(fid, "_KNOWN", {})
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UsageError, match=r"cache: .* is damaged .*: remove it$"):
        benchmark.reduce(rows)


def test_other_weights_or_resampling_do_not_use_the_cache(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    cached = {**settings, "cache": str(tmp_path / "cache")}
    for mode in RESIZES:
        from_dict(FidBenchmark, {**cached, "mode": mode}).scorer()
    (Path(settings["judge_weights"]) / FILE).write_bytes(b"other weights")
    for _ in range(2):
        from_dict(FidBenchmark, cached).scorer()
    assert len(list((tmp_path / "cache").iterdir())) == len(RESIZES) + 1


def test_without_a_cache_the_same_reference_is_read_again(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmark = from_dict(FidBenchmark, settings)
    rows = rows_of(benchmark, samples_of(benchmark))
    scores = benchmark.reduce(rows)
    monkeypatch.setattr(fid, "_KNOWN", {})
    assert benchmark.reduce(rows) == scores
    monkeypatch.setattr(fid, "_KNOWN", {})
    Image.new("RGB", (9, 9)).save(Path(settings["reference"]) / "a" / "new.png")
    with pytest.raises(UsageError, match="is not the reference of the verdicts"):
        benchmark.reduce(rows)


def test_the_judge_names_network_resampling_and_reference(settings: dict[str, Any]) -> None:
    judges = set()
    for mode in RESIZES:
        judges.add(from_dict(FidBenchmark, {**settings, "mode": mode}).scorer().judge)
    Image.new("RGB", (9, 9)).save(Path(settings["reference"]) / "a" / "new.png")
    judges.add(from_dict(FidBenchmark, settings).scorer().judge)
    (Path(settings["judge_weights"]) / FILE).write_bytes(b"other weights")
    judges.add(from_dict(FidBenchmark, settings).scorer().judge)
    assert len(judges) == len(RESIZES) + 2
    assert all("inception-2015-12-05-" in judge for judge in judges)


def test_several_images_of_a_prompt_all_count(settings: dict[str, Any]) -> None:
    benchmark = from_dict(FidBenchmark, {**settings, "images_per_prompt": 2, "num_prompts": 3})
    samples = samples_of(benchmark)
    assert len(samples) == 6
    assert benchmark.reduce(rows_of(benchmark, samples)).figures["num_images"] == 6


def prepare(settings: dict[str, Any]) -> None:
    benchmark = from_dict(FidBenchmark, settings)
    benchmark.items()
    benchmark.scorer()


def test_bad_input_is_refused_in_one_line(settings: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    for changes, message in (
        ({"few_images": False}, "6 generated images are too few for FID, which needs 2,049"),
        ({"few_images": False, "images_per_prompt": 400}, "8 images in .* are too few"),
        ({"prompts": None}, "fid needs prompts=FILE"),
        ({"prompts": "prompts.csv"}, "is no list of prompts"),
        ({"reference": None}, "fid needs reference=FOLDER"),
        ({"reference": str(damaged)}, "a.png"),
        ({"judge_weights": None}, "fid needs judge_weights=FOLDER"),
        ({"kid_subset_size": 1}, "kid_subset_size must be at least 2"),
        ({"mode": "other"}, "mode"),
    ):
        with pytest.raises(UsageError, match=message) as caught:
            prepare({**settings, **changes})
        assert "\n" not in str(caught.value)


def test_missing_weights_are_named(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    (Path(settings["judge_weights"]) / FILE).unlink()
    with pytest.raises(UsageError, match=f"has no {FILE}: put the published file there"):
        from_dict(FidBenchmark, settings).scorer()


def test_remarks_state_what_is_not_usual(settings: dict[str, Any]) -> None:
    usual = from_dict(FidBenchmark, {**settings, "few_images": False})
    assert len(usual.remarks()) == 1
    other = override(usual, ["few_images=true", "kid_subsets=7"])
    assert "fewer than 2,049 images were allowed" in other.remarks()
    assert "KID of 7 subsets of 1000" in other.remarks()


def test_kid_is_the_unbiased_sum_over_pairs() -> None:
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(2, 5, 4))
    found = kernel_distance(
        torch.from_numpy(x), torch.from_numpy(y), num_subsets=2, subset_size=5, seed=0
    )

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float((a @ b / 4 + 1) ** 3)

    within = [
        sum(kernel(one[i], one[j]) for i in range(5) for j in range(5) if i != j) / 20
        for one in (x, y)
    ]
    between = sum(kernel(a, b) for a in x for b in y) / 25
    # A subset of all vectors is the same whatever its order.
    assert found.mean == pytest.approx(sum(within) - 2 * between)
    assert found.std == pytest.approx(0, abs=1e-12)


def test_kid_subsets_depend_on_the_seed_only() -> None:
    vectors = torch.from_numpy(np.random.default_rng(3).normal(size=(2, 30, 4)))
    found = [
        kernel_distance(vectors[0], vectors[1], num_subsets=4, subset_size=8, seed=seed)
        for seed in (0, 0, 1)
    ]
    assert found[0] == found[1] != found[2]
    with pytest.raises(ValueError, match="subsets of 31"):
        kernel_distance(vectors[0], vectors[1], num_subsets=1, subset_size=31, seed=0)


def test_vectors_survive_as_text() -> None:
    vectors = torch.randn(3, 7)
    assert torch.equal(unpacked(packed(one) for one in vectors), vectors)
    for texts in ([], ["AAAA"], ["AAAAAA==", "AAAAAAAAAAA="], ["no base64"]):
        with pytest.raises(ValueError, match=r"vector|buffer"):
            unpacked(texts)


def test_lists_of_prompts(tmp_path: Path) -> None:
    texts = {
        "a.txt": "one\n\n two \n",
        "a.jsonl": '{"prompt": "one"}\n\n{"prompt": "two"}\n',
        "a.json": '{"x": {"prompt": "one"}, "y": {"prompt": "two", "score": 3}}',
        "b.json": '["one", "two"]',
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
        found = read_prompts(str(tmp_path / name))
        assert [one.text for one in found.prompts] == ["one", "two"], name
        assert [one.number for one in found.prompts] == [0, 1]
        assert [one.number for one in found.drawn(1, 0)] in ([0], [1])
        assert found.drawn(2, 0) == found.drawn(None, 0) == found.prompts
    (tmp_path / "many.txt").write_text("\n".join(map(str, range(40))))
    many = read_prompts(str(tmp_path / "many.txt"))
    few = [one.number for one in many.drawn(9, 0)]
    assert few == sorted(set(few))
    assert len(few) == 9
    assert few != [one.number for one in many.drawn(9, 1)]
    for name, text, message in (
        ("a.txt", "\n\n", "has no prompt"),
        ("a.jsonl", '{"prompt": "one"}\n{"prompt": 2}\n', "line 2: a prompt is a text"),
        ("a.jsonl", '{"prompt": " "}\n', "line 1: the prompt is empty"),
        ("a.jsonl", '{"prompt": \n', "line 1"),
        ("a.json", "3", "is no list of prompts"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(UsageError, match=message) as caught:
            read_prompts(str(tmp_path / name))
        assert "\n" not in str(caught.value)
