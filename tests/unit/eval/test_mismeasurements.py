"""Public mis-measurements, rebuilt: each is refused or flagged, and the faulty figure is said.

Each test makes the files or answers that misled a public tool, and gives them to our own layouts,
benchmarks and stages.

1. A grid is cropped at the wrong size.
2. Scores of levels come from the last image of a grid only.
3. The first row of a table of questions is skipped.
4. Scores of levels depend on the number of processes.
5. Failed images are dropped from the mean, and only the exact answer "yes" counts.
6. Rewritten prompts are scored as those of the benchmark.
7. Wrong weights of a detector give zeros only.
8. Another training run of the detector takes the place of the official one.
9. The precision of the detector changes on newer GPUs.
10. The judge is swapped or updated.
11. The weights of the categories are wrong.
12. Another variant of the checkpoint is evaluated.
13. A checkpoint lacks its projector or decoder.
14. An unreadable answer of the judge gets a random score.
15. Fewer than four images of a prompt are drawn.
"""

import dataclasses
import hashlib
import io
import itertools
import json
import re
import shutil
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from blip3o import Blip3oPipeline
from blip3o.core.errors import UsageError
from blip3o.core.shard import Shard
from blip3o.eval.benchmark import Benchmark, Item, Sample, Verdict
from blip3o.eval.detectors import Detections, mask2former
from blip3o.eval.detectors.arithmetic import check_device
from blip3o.eval.detectors.mask2former import Mask2FormerConfig
from blip3o.eval.detectors.mask2former_network import Mask2FormerNetwork, Mask2FormerSizes
from blip3o.eval.detectors.mask2former_weights import OFFICIAL_FILE
from blip3o.eval.detectors.mmdet_keys import CLASS_WEIGHT, to_published
from blip3o.eval.dpg.benchmark import DPGBenchmark
from blip3o.eval.gedit.benchmark import GEditBenchmark
from blip3o.eval.gedit.statistics import TASK_TYPES
from blip3o.eval.geneval.benchmark import GenEvalBenchmark
from blip3o.eval.geneval.prompts import class_names
from blip3o.eval.judges.openai import OpenAIJudge
from blip3o.eval.models import PipelineModel
from blip3o.eval.report.results import Results
from blip3o.eval.report.text import report
from blip3o.eval.scenes import ScenesBenchmark
from blip3o.eval.stages import evaluate, score_folder
from blip3o.eval.wise.benchmark import WiseBenchmark
from blip3o.eval.wise.versions import LEGACY
from blip3o.remote.chat import Answer, ChatImage, ChatRequest

PX = 64


def said(text: str, model: str = "") -> Answer:
    return Answer(outcome="answered", text=text, model=model)


def scored(
    name: str, benchmark: Benchmark, folder: Path, out: Path, *, allow_missing: bool = False
) -> Results:
    results = score_folder(name, benchmark, folder, out, allow_missing=allow_missing)
    assert results is not None
    return results


def notes_of(results: Results) -> str:
    return "\n".join(results.notes)


def verdicts_of(out: Path) -> list[Verdict]:
    lines = (out / "verdicts.jsonl").read_text(encoding="utf-8").splitlines()
    return [Verdict.from_dict(json.loads(line)) for line in lines]


Judged = Callable[[Callable[[ChatRequest], Answer]], None]


@pytest.fixture
def judged_by(monkeypatch: pytest.MonkeyPatch) -> Judged:
    """Returns a function that lets a function answer in place of the server of a judge."""

    class Judge:
        def __init__(self, name: str, answer: Callable[[ChatRequest], Answer]) -> None:
            self.name, self._answer = name, answer

        def answers(self, requests: Sequence[ChatRequest]) -> Iterator[tuple[int, Answer]]:
            return ((place, self._answer(one)) for place, one in enumerate(requests))

    def put(answer: Callable[[ChatRequest], Answer]) -> None:
        monkeypatch.setattr(OpenAIJudge, "build", lambda self: Judge(self.full_name, answer))

    return put


def judge(name: str = "judge-1") -> OpenAIJudge:
    return OpenAIJudge(model=name, url="http://127.0.0.1:9/v1", key_variable="")


def color_of(request: ChatRequest) -> str:
    """Returns the color of the middle of the image of a request."""
    (image,) = (part for part in request.parts if isinstance(part, ChatImage))
    read = Image.open(io.BytesIO(image.data)).convert("RGB")
    names = {(255, 0, 0): "red", (0, 0, 255): "blue", (0, 0, 0): "black"}
    pixel = read.getpixel((read.width // 2, read.height // 2))
    assert isinstance(pixel, tuple)
    return names[pixel[0], pixel[1], pixel[2]]


# ---------------------------------------------------------------------------------------------
# DPG-Bench

NAMES = ("a1", "b2", "c3", "d4")


@pytest.fixture
def dpg(tmp_path: Path) -> DPGBenchmark:
    """DPG-Bench with four prompts of three questions; the second depends on the first."""
    columns = "item_id,text,keywords,proposition_id,dependency,category_broad,"
    rows = [f"{columns}category_detailed,tuple,question_natural_language"]
    for name in NAMES:
        rows += [
            f'{name},,,1,0,,,"entity - whole (cat)",A cat?',
            f'{name},,,2,1,,,"attribute - color (cat, red)",Red?',
            f'{name},,,3,"1,2",,,"relation - spatial (cat, left)",Left?',
        ]
    (tmp_path / "questions.csv").write_text("\n".join(rows) + "\n")
    prompts = [{"item_id": name, "prompt": f"prompt of {name}"} for name in NAMES]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(one) + "\n" for one in prompts))
    return DPGBenchmark(
        questions=str(tmp_path / "questions.csv"),
        prompts=str(tmp_path / "prompts.jsonl"),
        changed_prompts=True,
        resolution=PX,
        judge=judge(),
    )


def grids(folder: Path, *colors: str) -> Path:
    """Writes a grid of 2 x 2 tiles for each item, with the colors from left to right, then down."""
    folder.mkdir()
    for name in NAMES:
        grid = Image.new("RGB", (2 * PX, 2 * PX))
        for number, color in enumerate(colors):
            tile = Image.new("RGB", (PX, PX), color)
            grid.paste(tile, (number % 2 * PX, number // 2 * PX))
        grid.save(folder / f"{name}.png")
    return folder


def yes_if_red(request: ChatRequest) -> Answer:
    return said("yes" if color_of(request) == "red" else "no")


def test_1_a_grid_that_is_cut_at_the_wrong_size_is_refused(
    dpg: DPGBenchmark, judged_by: Judged, tmp_path: Path
) -> None:
    judged_by(yes_if_red)
    folder = grids(tmp_path / "grids", "red", "blue", "blue", "blue")
    half = dataclasses.replace(dpg, resolution=PX // 2)
    # The faulty tool cuts four tiles of half the size: all of them are parts of the first image.
    with Image.open(folder / "a1.png") as grid:
        half_px = PX // 2
        corners = [(x, y) for y in (0, half_px) for x in (0, half_px)]
        cut = [grid.crop((x, y, x + half_px, y + half_px)) for x, y in corners]
        assert {tile.getpixel((9, 9)) for tile in cut} == {(255, 0, 0)}  # it says 100
    with pytest.raises(UsageError) as error:
        score_folder("dpg", half, folder, tmp_path / "half")
    assert "judges parts of the first image as all images: set resolution=64" in str(error.value)
    assert "4 files do not have the size of their grid: a1.png is 128 x 128" in str(error.value)
    double = dataclasses.replace(dpg, resolution=2 * PX)
    with pytest.raises(UsageError, match="judges black areas in place of images"):
        score_folder("dpg", double, folder, tmp_path / "double")
    unknown = dataclasses.replace(dpg, resolution=None)
    with pytest.raises(UsageError, match="resolution=PIXELS must state the side of one image"):
        score_folder("dpg", unknown, folder, tmp_path / "unknown")
    assert scored("dpg", dpg, folder, tmp_path / "right").overall == pytest.approx(25)


def test_2_levels_of_the_last_image_have_another_name_than_those_of_all(
    dpg: DPGBenchmark, judged_by: Judged, tmp_path: Path
) -> None:
    judged_by(yes_if_red)
    folder = grids(tmp_path / "grids", "blue", "blue", "blue", "red")
    results = scored("dpg", dpg, folder, tmp_path / "out")
    assert results.figures["level_1_all_tiles_zeroed"]["entity"] == pytest.approx(25)
    assert results.by_category["entity"] == pytest.approx(25)
    assert results.figures["compat_ella"]["level_1"]["entity"] == pytest.approx(100)
    assert re.search(
        r"levels of the last image only, such as \w+ 100 in place of 25", notes_of(results)
    )
    assert "in place of 25" in report([tmp_path / "out"], None)


def test_3_a_skipped_first_row_is_said(
    dpg: DPGBenchmark, judged_by: Judged, tmp_path: Path
) -> None:
    judged_by(yes_if_red)
    results = scored("dpg", dpg, grids(tmp_path / "grids", *["red"] * 4), tmp_path / "out")
    compat = results.figures["compat_ella"]
    # Without its first question, the second one of a1 has no parent, and the program fails on it.
    assert compat["left_out"] == ["a1"]
    assert compat["num_items"] == 3
    assert (results.overall, results.num_samples) == (pytest.approx(100), 16)
    assert "leaves 1 of 4 items out, such as a1" in notes_of(results)
    asked = {len(one.data["answers"]) for one in verdicts_of(tmp_path / "out")}
    assert asked == {3}


def test_4_levels_do_not_depend_on_processes_or_the_order(
    dpg: DPGBenchmark, judged_by: Judged, tmp_path: Path
) -> None:
    def answer(request: ChatRequest) -> Answer:
        text = str(request.parts[1])
        return said("yes" if text.startswith("A cat") or color_of(request) == "red" else "no")

    judged_by(answer)
    folder = grids(tmp_path / "grids", "red", "blue", "blue", "blue")
    whole = scored("dpg", dpg, folder, tmp_path / "whole")
    levels = dict(whole.by_category)
    # The faulty program joins the levels of its processes by their place in unordered sets.
    first, *rest = levels.values()
    places = [[first, *rest], [*rest, first]]
    mixed = [statistics.fmean(pair) for pair in zip(*places, strict=True)]
    assert mixed != pytest.approx(list(levels.values()))
    small = dataclasses.replace(dpg, batch_size=3)
    for count in (2, 3):
        out = tmp_path / f"shards-{count}"
        found = [
            score_folder("dpg", small, folder, out, shard=Shard(number, count))
            for number in range(count, 0, -1)
        ][-1]
        assert found is not None
        assert found.by_category == levels
        assert found.figures == whole.figures
        assert (out / "verdicts.jsonl").read_bytes() == (
            tmp_path / "whole" / "verdicts.jsonl"
        ).read_bytes()


def test_5_failed_images_count_and_all_forms_of_yes(
    dpg: DPGBenchmark, judged_by: Judged, tmp_path: Path
) -> None:
    judged_by(lambda request: said("Yes." if color_of(request) == "red" else "no"))
    folder = grids(tmp_path / "grids", *["red"] * 4)
    (folder / "b2.png").write_bytes((folder / "b2.png").read_bytes()[:60])
    with pytest.raises(UsageError, match=r"4 of 16 samples are missing or broken, such as b2"):
        score_folder("dpg", dpg, folder, tmp_path / "out")
    results = scored("dpg", dpg, folder, tmp_path / "out", allow_missing=True)
    assert results.overall == pytest.approx(75)
    assert results.outcomes == {"judged": 12, "broken": 4}
    text = notes_of(results)
    assert "4 broken of 16 samples count as failures; a program that leaves them out says 1" in text
    assert "36 answers mean yes but are not the exact text yes" in text
    assert results.figures["compat_ella"]["score"] == 0


# ---------------------------------------------------------------------------------------------
# GenEval


class TableDetector:
    """Finds the thing whose number is the red level of an image, or nothing for 255."""

    def __init__(self, name: str, score: float) -> None:
        self.name, self.classes, self._score = name, class_names(), score

    def detect(self, images: Sequence[Image.Image]) -> list[Detections]:
        levels = [int(np.asarray(image)[0, 0, 0]) for image in images]
        return [
            Detections(
                labels=np.array([level % 80], np.int64),
                boxes=np.array([[4, 4, 40, 40]], np.float32),
                scores=np.array([self._score if level < 80 else 0.01], np.float32),
            )
            for level in levels
        ]


GenEval = Callable[..., GenEvalBenchmark]


@pytest.fixture
def geneval(monkeypatch: pytest.MonkeyPatch) -> GenEval:
    """Returns a function that makes GenEval with single things and a detector of a table."""

    def make(
        name: str = "mask2former-swin-s-743b7d99", score: float = 0.95, **settings: Any
    ) -> GenEvalBenchmark:
        monkeypatch.setattr(
            Mask2FormerConfig, "build", lambda self, device="auto": TableDetector(name, score)
        )
        few = GenEvalBenchmark(tags=("single_object",), prompts_per_tag=3)
        return dataclasses.replace(few, **settings)

    return make


def thing_of(item: Item) -> int:
    return class_names().index(item.data["include"][0]["class"])


def drawn(benchmark: GenEvalBenchmark, folder: Path, level: Callable[[Item, int], int]) -> Path:
    """Writes images into the folders of GenEval's own program."""
    folder.mkdir()
    for item in benchmark.items():
        images = [
            Image.new("RGB", (PX, PX), (level(item, number), number, item.number))
            for number in range(item.num_samples)
        ]
        samples = [
            Sample(item=item, number=number, sha256="", image=image)
            for number, image in enumerate(images)
        ]
        benchmark.layout().write(folder, samples)
    return folder


def test_6_rewritten_prompts_are_refused_or_make_another_title(
    geneval: GenEval, tmp_path: Path
) -> None:
    official = geneval()
    folder = drawn(official, tmp_path / "images", lambda item, number: thing_of(item))
    plain = tmp_path / "plain"
    results = scored("geneval", official, folder, plain)
    assert results.overall == 1
    # The folder of a program that drew from longer prompts.
    file = next(folder.glob("*/metadata.jsonl"))
    line = json.loads(file.read_text())
    longer = f"{line['prompt']}, in sharp focus, in the middle of an empty room"
    file.write_text(json.dumps({**line, "prompt": longer}))
    with pytest.raises(UsageError, match=r"rewritten prompts need .* make another benchmark"):
        score_folder("geneval", official, folder, tmp_path / "a")
    # A prompt file with the same change.
    rows = [dict(item.data) for item in official.items()]
    rows[0]["prompt"] = longer
    changed = tmp_path / "changed.jsonl"
    changed.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UsageError, match=r"is not the published geneval/evaluation_metadata"):
        score_folder("geneval", geneval(prompts=str(changed)), folder, tmp_path / "b")
    rewritten = geneval(prompts=str(changed), changed_prompts=True)
    other = drawn(rewritten, tmp_path / "rewritten", lambda item, number: thing_of(item))
    results = scored("geneval", rewritten, other, tmp_path / "c")
    assert results.overall == 1  # the faulty tool says 1 under the name of GenEval
    assert "1 of its 3 prompts are not GenEval's 553" in results.title
    with pytest.raises(UsageError, match="are different benchmarks"):
        report([plain, tmp_path / "c"], None)


TINY = Mask2FormerSizes.tiny()


def detector_network(seed: int) -> Mask2FormerNetwork:
    """Returns a tiny network with random weights that find something."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        built = TINY.build().eval().requires_grad_(False)
        for parameter in built.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return built


@pytest.fixture(scope="module")
def published() -> dict[int, dict[str, Tensor]]:
    """The weights of two training runs of a tiny detector, in the form of mmdetection."""
    return {
        seed: {
            name: torch.zeros(one.shape, dtype=one.dtype) if one.is_meta else one.clone()
            for name, one in to_published(detector_network(seed), TINY).items()
        }
        for seed in (3, 4)
    }


def checkpoint(path: Path, tensors: Mapping[str, Tensor]) -> Mask2FormerConfig:
    torch.save({"meta": {}, "state_dict": dict(tensors)}, path)
    return Mask2FormerConfig.tiny(str(path))


def test_7_wrong_weights_of_the_detector_are_refused_or_flagged(
    geneval: GenEval, published: dict[int, dict[str, Tensor]], tmp_path: Path
) -> None:
    right = published[3]
    panoptic = {
        CLASS_WEIGHT: torch.zeros(134, 32),
        "panoptic_head.cls_embed.bias": torch.zeros(134),
    }
    build = Mask2FormerConfig.build
    with pytest.raises(UsageError, match=r"is the panoptic model with 133 classes.*instance"):
        build(checkpoint(tmp_path / "panoptic.pth", {**right, **panoptic}), "cpu")
    few = {name: one for name, one in right.items() if not name.startswith("backbone.norm")}
    with pytest.raises(
        UsageError, match=r"missing: backbone\.norm0\.bias, backbone\.norm0\.weight"
    ):
        build(checkpoint(tmp_path / "few.pth", few), "cpu")
    renamed = {name.replace("panoptic_head", "head"): one for name, one in right.items()}
    with pytest.raises(UsageError, match=r"panoptic_head\.cls_embed\.bias"):
        build(checkpoint(tmp_path / "renamed.pth", renamed), "cpu")
    # Weights that load and find nothing: the faulty tool says 0 for every model.
    benchmark = geneval(prompts_per_tag=6)
    folder = drawn(benchmark, tmp_path / "images", lambda item, number: 255)
    results = scored("geneval", benchmark, folder, tmp_path / "out")
    assert results.overall == 0
    assert "found nothing with a score above 0.3 in any of 24 images: wrong weights?" in notes_of(
        results
    )
    text = report([tmp_path / "out"], None)
    assert "All 24 judged samples score 0: wrong or badly read weights of the detector" in text


def test_8_another_training_run_of_the_detector_is_another_benchmark(
    published: dict[int, dict[str, Tensor]], tmp_path: Path
) -> None:
    runs = [
        GenEvalBenchmark(
            tags=("single_object",),
            prompts_per_tag=2,
            images_per_prompt=1,
            detector=checkpoint(tmp_path / f"{seed}.pth", tensors),
        )
        for seed, tensors in published.items()
    ]
    folder = drawn(runs[0], tmp_path / "images", lambda item, number: item.number)
    outs = [tmp_path / "first", tmp_path / "second"]
    results = [scored("geneval", run, folder, out) for run, out in zip(runs, outs, strict=True)]
    names = [one.judge for one in results]
    # "@" marks weights that are not those of GenEval, and the hash tells the runs apart.
    assert all(name.startswith("mask2former@") for name in names)
    assert len(set(names)) == 2
    with pytest.raises(UsageError, match=r"'geneval\(mask2former@.* are different benchmarks"):
        report(outs, None)
    with pytest.raises(UsageError, match="holds verdicts of mask2former@"):
        score_folder("geneval", runs[1], folder, outs[0])
    # A file that only has the name of the official one is refused.
    with pytest.raises(UsageError, match=r"is not the file that its name says.*743b7d99"):
        checkpoint(tmp_path / OFFICIAL_FILE, published[4]).build("cpu")


def test_9_a_device_with_less_precision_is_refused_when_the_detector_is_loaded(
    published: dict[int, dict[str, Tensor]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = itertools.count()

    def features(network: Mask2FormerNetwork, pixels: Tensor) -> Tensor:
        if next(runs):  # the first run is the one on the CPU
            for parameter in network.parameters():
                parameter.copy_(with_10_bits(parameter))
            pixels = with_10_bits(pixels)
        return network.pixel_features(pixels)

    network = detector_network(3)
    with pytest.raises(UsageError, match=r"does not compute float32 like the CPU.*errors of the"):
        check_device(network, features, torch.device("cpu"))
    check_device(network, Mask2FormerNetwork.pixel_features, torch.device("cpu"))

    # Loading asks this of each device that is not the CPU.
    def refuse(network: object, features: object, device: torch.device) -> None:
        raise UsageError(f"{device} does not compute float32 like the CPU")

    monkeypatch.setattr(mask2former, "check_device", refuse)
    monkeypatch.setattr(mask2former, "resolve_device", torch.device)
    config = checkpoint(tmp_path / "detector.pth", published[3])
    with pytest.raises(UsageError, match="meta does not compute"):
        config.build("meta")
    config.build("cpu")


def with_10_bits(values: Tensor) -> Tensor:
    """Returns numbers with 10 bits of fraction, as TF32 multiplies them."""
    bits = values.detach().contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


def test_15_fewer_images_are_refused_or_make_another_title(
    geneval: GenEval, tmp_path: Path
) -> None:
    one = geneval(images_per_prompt=1)
    folder = drawn(one, tmp_path / "images", lambda item, number: thing_of(item))
    with pytest.raises(UsageError, match=r"lacks 9 of 12 samples, such as 00000 number 1"):
        score_folder("geneval", geneval(), folder, tmp_path / "a")
    results = scored("geneval", geneval(), folder, tmp_path / "b", allow_missing=True)
    assert results.overall == pytest.approx(0.25)
    assert "9 missing of 12 samples count as failures" in notes_of(results)
    assert "a program that leaves them out says 1." in notes_of(results)
    assert results.figures["official"]["overall"] == 1
    alone = scored("geneval", one, folder, tmp_path / "c")
    assert alone.overall == 1
    assert "images: 1 for each prompt in place of 4" in alone.title
    with pytest.raises(UsageError, match="are different benchmarks"):
        report([tmp_path / "b", tmp_path / "c"], None)


# ---------------------------------------------------------------------------------------------
# WISE and GEdit


@pytest.fixture
def wise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WiseBenchmark:
    """WISE with two prompts of each category."""
    folder, files = tmp_path / "prompts", []
    folder.mkdir()
    numbers = [one.first + place for one in LEGACY.categories.values() for place in (0, 1)]
    for file, part in zip(LEGACY.files, ("culture", "space-time", "science"), strict=True):
        keys = ("Prompt", "Explanation", "Subcategory")
        own = [number for number in numbers if number in LEGACY.ids(part)]
        rows = [{"prompt_id": n, **{key: f"{key} {n}" for key in keys}} for n in own]
        data = json.dumps(rows).encode()
        (folder / f"{part}.json").write_bytes(data)
        files.append(dataclasses.replace(file, sha256=hashlib.sha256(data).hexdigest()))
    monkeypatch.setattr(WiseBenchmark, "version", dataclasses.replace(LEGACY, files=tuple(files)))
    return WiseBenchmark(prompts=str(folder), judge=judge("gpt-4o-2024-05-13"), attempts=1)


def wise_images(benchmark: WiseBenchmark, folder: Path) -> Path:
    folder.mkdir()
    for item in benchmark.items():
        image = Image.new("RGB", (PX, PX), (item.number % 256, item.number // 256, 7))
        image.save(folder / f"{item.id}.png")
    return folder


def graded(first: int, second: int = 2, third: int = 2, model: str = "") -> Answer:
    text = f"Consistency: {first}\nRealism: {second}\nAesthetic Quality: {third}"
    return said(text, model)


def test_10_another_or_an_updated_judge_is_said(
    wise: WiseBenchmark, judged_by: Judged, tmp_path: Path
) -> None:
    folder = wise_images(wise, tmp_path / "images")
    old, new = tmp_path / "old", tmp_path / "new"
    judged_by(lambda request: graded(2))
    assert scored("wise", wise, folder, old).overall == pytest.approx(1)
    judged_by(lambda request: graded(1, 1, 1))
    other = dataclasses.replace(wise, judge=judge("gpt-4o-2024-11-20"))
    results = scored("wise", other, folder, new)
    assert results.overall == pytest.approx(0.5)
    assert "published figures are of gpt-4o-2024-05-13: another judge makes another" in notes_of(
        results
    )
    with pytest.raises(UsageError, match=r"wise\(gpt-4o-2024-05-13.*wise\(gpt-4o-2024-11-20"):
        report([old, new], None)
    with pytest.raises(UsageError, match="holds verdicts of gpt-4o-2024-05-13"):
        score_folder("wise", other, folder, old)
    # The faulty tool would have said 1 against 0.5; side by side each has its judge.
    text = report([old, new], None, side_by_side=True)
    assert "- old: wise(gpt-4o-2024-05-13" in text
    assert "cannot be compared" in text
    # A new label on old results is found out.
    file = new / "results.json"
    file.write_text(file.read_text().replace("2024-11-20", "2024-05-13"))
    with pytest.raises(UsageError, match="has no verdict of gpt-4o-2024-05-13"):
        report([old, new], None)
    # A server that answers with another model than it is asked for.
    judged_by(lambda request: graded(2, model="gpt-4o-mini"))
    results = scored("wise", wise, folder, tmp_path / "moved")
    assert "the server states that gpt-4o-mini answered" in notes_of(results)


def test_11_the_weights_of_wise_are_those_of_its_prompts(
    wise: WiseBenchmark, judged_by: Judged, tmp_path: Path
) -> None:
    def answer(request: ChatRequest) -> Answer:
        is_culture = any(f'"Prompt {number}"' in _text(request) for number in (1, 2))
        return graded(2) if is_culture else graded(0, 0, 0)

    # The images of culture are perfect, and all others worthless.
    judged_by(answer)
    folder = wise_images(wise, tmp_path / "images")
    results = scored("wise", wise, folder, tmp_path / "out")
    assert results.by_category == pytest.approx(
        {name: float(name == "culture") for name in LEGACY.categories}
    )
    assert results.overall == pytest.approx(0.4)
    faulty = statistics.fmean(value or 0.0 for value in results.by_category.values())
    assert faulty == pytest.approx(1 / 6)  # equal weights, as if each had as many prompts
    # The same figures from the official program's own table, next to ours.
    assert results.figures["compat"]["by_category"]["culture"]["mean"] == pytest.approx(1)
    judged_by(lambda request: graded(2, 0, 0))
    results = scored("wise", wise, folder, tmp_path / "grades")
    assert results.overall == pytest.approx(0.7)  # equal weights of the three grades say 0.33


def _text(request: ChatRequest) -> str:
    return "".join(part for part in request.parts if isinstance(part, str))


def test_14_an_unreadable_answer_is_never_scored(judged_by: Judged, tmp_path: Path) -> None:
    lines = []
    for n, kind in enumerate(TASK_TYPES):
        Image.new("RGB", (PX, PX), (n, 0, 200)).save(tmp_path / f"{n}.png")
        row = {
            "key": f"{n:02}",
            "task_type": kind,
            "instruction": f"Do {n}",
            "instruction_language": "en",
            "input_image": f"{n}.png",
            "Intersection_exist": True,
        }
        lines.append(json.dumps(row) + "\n")
    (tmp_path / "items.jsonl").write_text("".join(lines))
    gedit = GEditBenchmark(data=str(tmp_path), language="en", judge=judge("gpt-4.1"))
    # Without braces the official program draws a number from 0 to 10 on the second try.
    judged_by(
        lambda request: said("I like it." if "Do 3" in _text(request) else '{"score": [8, 8]}')
    )
    folder = tmp_path / "images"
    folder.mkdir()
    for item in gedit.items():
        image = Image.new("RGB", (PX, PX), (item.number, 9, 9))
        sample = Sample(item=item, number=0, sha256="", image=image, sources=gedit.sources(item))
        gedit.layout().write(folder, [sample])
    results = scored("gedit", gedit, folder, tmp_path / "out")
    assert results.overall is None
    assert results.intervals.overall is None
    assert results.outcomes == {"judged": 10, "unreadable": 1}
    text = notes_of(results)
    assert "the official program would have invented the grades of 1 samples" in text
    assert "1 of 11 samples have no judgement (1 unreadable): the headline is open" in text
    assert results.figures["compat"]["num_random"] == 1
    (lost,) = (one for one in verdicts_of(tmp_path / "out") if one.outcome == "unreadable")
    assert lost.score is None


# ---------------------------------------------------------------------------------------------
# Checkpoints

SCENES = ScenesBenchmark(
    prompts_per_category=1,
    images_per_prompt=1,
    num_questions=0,
    num_captions=0,
    num_edits=0,
    num_reconstructions=0,
    wording_prompts_per_category=0,
    num_wording_questions=0,
    num_wording_edits=0,
    num_inference_steps=1,
)


def test_12_another_variant_of_a_checkpoint_is_told_apart(
    tiny_pipe: Blip3oPipeline, tiny_folder: Path, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    evaluate("scenes", SCENES, PipelineModel(tiny_pipe, "model-4b", SCENES), first)
    variant = Blip3oPipeline.from_pretrained(str(tiny_folder), device="cpu", dtype="fp32")
    with torch.no_grad():
        next(iter(variant.model.generator.parameters())).add_(0.5)
    other = PipelineModel(variant, "model-4b", SCENES)
    with pytest.raises(UsageError, match=r"holds another evaluation \(another model\)"):
        evaluate("scenes", SCENES, other, first)
    evaluate("scenes", SCENES, other, second)
    text = report([first, second], None)
    assert "second against first: the models have one name but differ: weights=" in text
    file = second / "results.json"
    for model in ({}, {"name": None}, None):
        file.write_text(json.dumps({**json.loads(file.read_text()), "model": model}))
        with pytest.raises(UsageError, match="it lacks model"):
            report([second], None)


@pytest.mark.parametrize("part", ["projector", "decoder", "generator"])
def test_13_a_checkpoint_without_a_part_is_refused(
    tiny_folder: Path, tmp_path: Path, part: str
) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    file = folder / ("image_decoder" if part == "decoder" else "") / "model.safetensors"
    tensors = load_file(file)
    marks = {"projector": "generator.", "decoder": "", "generator": "generator.dit"}
    lost = sorted(name for name in tensors if name.startswith(marks[part]))
    if part == "projector":
        lost = [name for name in lost if not name.startswith("generator.dit")]
    assert lost
    save_file({name: one for name, one in tensors.items() if name not in lost}, file)
    # The faulty tool fills the gap with random weights: it said 58 in place of 81.
    with pytest.raises(UsageError, match=r"missing") as error:
        Blip3oPipeline.from_pretrained(str(folder), device="cpu", dtype="fp32")
    assert lost[0] in str(error.value)
    assert "\n" not in str(error.value)
    if part == "decoder":
        shutil.rmtree(folder / "image_decoder")
        with pytest.raises(UsageError, match="image_decoder"):
            Blip3oPipeline.from_pretrained(str(folder), device="cpu", dtype="fp32")
