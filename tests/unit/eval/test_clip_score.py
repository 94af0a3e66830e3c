"""The CLIP score benchmark: its three scales, cut prompts and missing images."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from blip3o.core.errors import UsageError
from blip3o.eval import clip_score
from blip3o.eval.benchmark import Row, Sample, Verdict
from blip3o.eval.clip_score import ClipScoreBenchmark

PROMPTS = ("red", "green", "red " + "and so on " * 40)


class ColorClip:
    """A CLIP of two colors: an image of a color is near to the word."""

    name = "color-clip"

    def embed_images(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        return np.stack([np.asarray(image)[0, 0] for image in images]).astype(np.float32)

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        rows = [
            [3.0 * ("red" in text), 3.0 * ("green" in text), text.startswith("A photo depicts ")]
            for text in texts
        ]
        return np.array(rows, np.float32)

    def num_cut(self, texts: Sequence[str]) -> int:
        return sum(len(text.split()) > 75 for text in texts)


@pytest.fixture
def benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ClipScoreBenchmark:
    lines = [json.dumps({"prompt": one, "category": one[:3]}) + "\n" for one in PROMPTS]
    (tmp_path / "prompts.jsonl").write_text("".join(lines))
    monkeypatch.setattr(clip_score.CLIP_ENCODERS, "get", lambda name: lambda folder: ColorClip())
    return ClipScoreBenchmark(prompts=str(tmp_path / "prompts.jsonl"), clip=str(tmp_path))


def rows_of(benchmark: ClipScoreBenchmark, images: Sequence[Image.Image | None]) -> list[Row]:
    samples = [
        Sample(item=item, number=0, sha256="0", image=image)
        for item, image in zip(benchmark.items(), images, strict=True)
    ]
    verdicts = {
        one.item: Verdict(**json.loads(json.dumps(dataclasses.asdict(one))))
        for one in benchmark.scorer().verdicts(samples)
    }
    return [Row(one.item, 0, verdicts[one.item.id]) for one in samples]


RED, GREEN = (Image.new("RGB", (4, 4), color) for color in ("red", (0, 255, 0)))


def test_the_three_scales(benchmark: ClipScoreBenchmark) -> None:
    scores = benchmark.reduce(rows_of(benchmark, [RED, RED, RED]))
    near = 3 / 10**0.5  # the cosine of (1, 0, 0) and (3, 0, 1)
    assert scores.figures["cosine"] == pytest.approx(2 / 3)
    assert scores.overall == scores.figures["percent"] == pytest.approx(200 / 3)
    assert scores.figures["clipscore"] == pytest.approx(2.5 * 2 * near / 3)
    assert scores.by_category == {"gre": 0.0, "red": pytest.approx(100)}
    for scale in ("cosine", "clipscore"):
        other = dataclasses.replace(benchmark, scale=scale)
        rows = rows_of(other, [RED, RED, RED])
        assert other.reduce(rows).overall == pytest.approx(scores.figures[scale])
        assert other.remarks() == [f"scale {scale}"]


def test_a_negative_cosine_is_zero_in_two_scales(benchmark: ClipScoreBenchmark) -> None:
    rows = [
        dataclasses.replace(
            row,
            verdict=dataclasses.replace(
                row.verdict, data={"cosine": -0.5, "cosine_prefixed": -0.25, "is_cut": False}
            ),
        )
        for row in rows_of(benchmark, [RED, RED, RED])
        if row.verdict is not None
    ]
    figures = benchmark.reduce(rows).figures
    assert (figures["percent"], figures["cosine"], figures["clipscore"]) == (0.0, -0.5, 0.0)


def test_cut_prompts_are_counted(benchmark: ClipScoreBenchmark) -> None:
    scores = benchmark.reduce(rows_of(benchmark, [RED, GREEN, RED]))
    assert scores.figures["num_prompts_cut"] == 1
    assert any("1 of 3 prompts have more than 77 tokens" in note for note in scores.notes)


def test_missing_images_have_the_least_score(benchmark: ClipScoreBenchmark) -> None:
    rows = rows_of(benchmark, [RED, None, RED])
    rows[2] = dataclasses.replace(rows[2], verdict=None)
    scores = benchmark.reduce(rows)
    assert scores.overall == pytest.approx(100 / 3)
    assert scores.figures["cosine"] == pytest.approx(-1 / 3)
    assert scores.figures["num_missing"] == 2
    assert any("2 of 3 images are missing" in note for note in scores.notes)
    assert benchmark.reduce([]).overall is None


def test_bad_input_is_refused_in_one_line(benchmark: ClipScoreBenchmark) -> None:
    with pytest.raises(UsageError, match="clip_score needs prompts=FILE"):
        dataclasses.replace(benchmark, prompts=None).items()
    with pytest.raises(UsageError, match="clip_score needs clip=FOLDER"):
        dataclasses.replace(benchmark, clip=None).scorer()
