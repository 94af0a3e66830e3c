"""GenEval with the bundled model and a small real detector, all stages and the official layout.

The figures are near 0 and say nothing about the benchmark: the bundled model draws the things of
its own world, and the detector knows photographs.
"""

import dataclasses
import json
import os
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from blip3o import Blip3oPipeline
from blip3o.core.errors import UsageError
from blip3o.eval.benchmark import Sample
from blip3o.eval.detectors import DetectorConfig
from blip3o.eval.geneval.benchmark import GenEvalBenchmark
from blip3o.eval.models import PipelineModel
from blip3o.eval.plan import read_plan
from blip3o.eval.report.results import Results
from blip3o.eval.report.text import report
from blip3o.eval.stages import evaluate, score_folder

pytestmark = pytest.mark.slow

TAGS = ("single_object", "two_object", "counting", "position")
"""The tags without colors: the weights of CLIP are not here."""


def shared_of(results: Results) -> dict[str, object]:
    """Returns everything that images alone determine."""
    names = ("title", "judge", "overall", "by_category", "outcomes", "figures", "items_sha256")
    return {name: getattr(results, name) for name in (*names, "intervals", "num_samples")}


def verdicts_of(out: Path) -> list[dict[str, object]]:
    """Returns the verdicts without the places of the files."""
    lines = (out / "verdicts.jsonl").read_text().splitlines()
    return [{**json.loads(line), "sha256": "", "file": None} for line in lines]


def test_twelve_prompts_end_to_end(centernet: DetectorConfig, tmp_path: Path) -> None:
    benchmark = GenEvalBenchmark(
        prompts_per_tag=3,
        images_per_prompt=2,
        tags=TAGS,
        detector=centernet,
        num_inference_steps=10,
        batch_size=12,
    )
    assert Counter(item.category for item in benchmark.items()) == dict.fromkeys(TAGS, 3)
    pipe = Blip3oPipeline.from_pretrained("pocket", device="cpu", dtype="fp32")
    out = tmp_path / "drawn"
    results = evaluate("geneval", benchmark, PipelineModel(pipe, "pocket", benchmark), out)
    assert results is not None
    assert results.num_samples == 24
    assert results.outcomes == {"judged": 24}
    assert results.judge == "centernet-1b635a15"
    assert results.overall is not None
    assert 0 <= results.overall < 0.5
    assert set(results.by_category) == set(TAGS)
    for words in ("centernet in place of", "only the first 3 of each tag", "images: 2"):
        assert words in results.title
    assert (out / "report.html").stat().st_size > 10_000
    assert "geneval(centernet-1b635a15)" in report([out], None)

    # The same images in the folders of GenEval's own program give the same figures.
    official = tmp_path / "official"
    official.mkdir()
    for item in read_plan(out).items:
        samples = [
            Sample(
                item=item,
                number=number,
                sha256="",
                image=Image.open(out / "samples" / item.id / f"{number}.png"),
            )
            for number in range(item.num_samples)
        ]
        benchmark.layout().write(official, samples)
    again = score_folder("geneval", benchmark, official, tmp_path / "scored")
    assert again is not None
    assert shared_of(again) == shared_of(results)
    assert verdicts_of(tmp_path / "scored") == verdicts_of(out)

    # A second call draws and judges nothing; a smaller folder is refused.
    assert evaluate("geneval", benchmark, PipelineModel(pipe, "pocket", benchmark), out) == results
    more = dataclasses.replace(benchmark, images_per_prompt=4)
    with pytest.raises(UsageError, match="lacks 24 of 48 samples"):
        score_folder("geneval", more, official, tmp_path / "more")


def test_the_detector_sees_a_thing_that_is_pasted(
    centernet: DetectorConfig, tmp_path: Path
) -> None:
    """A figure that is not 0: the chain can also say yes, for a photograph of a motorcycle."""
    folder = os.environ.get("BLIP3O_PHOTOS_DIR")
    if not folder:
        pytest.skip("set BLIP3O_PHOTOS_DIR to the folder skimage/data of scikit-image 0.25.2")
    benchmark = GenEvalBenchmark(images_per_prompt=1, tags=("single_object",), detector=centernet)
    wanted = next(item for item in benchmark.items() if "motorcycle" in item.prompt)
    official = tmp_path / "official"
    official.mkdir()
    photo = Image.open(Path(folder) / "motorcycle_right.png").convert("RGB")
    benchmark.layout().write(official, [Sample(item=wanted, number=0, sha256="", image=photo)])
    results = score_folder("geneval", benchmark, official, tmp_path / "out", allow_missing=True)
    assert results is not None
    assert results.outcomes["judged"] == 1
    assert results.figures["official"]["overall"] == 1
    assert results.overall == pytest.approx(1 / 80)
