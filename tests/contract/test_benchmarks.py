"""Contract of every benchmark in the table, with small files in place of those that users supply.

Judges are the real configs; only the answers of their servers are scripted.
"""

import dataclasses
import hashlib
import json
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image

from blip3o.core.config import from_dict, override, to_dict
from blip3o.core.errors import UsageError
from blip3o.eval import BENCHMARKS, describe_benchmark, fid, imgedit
from blip3o.eval.benchmark import Benchmark, Item, Outcome, Row, Sample, Scores, Verdict
from blip3o.eval.clip_score import ClipScoreBenchmark
from blip3o.eval.detectors import Detections
from blip3o.eval.dpg.benchmark import DPGBenchmark
from blip3o.eval.fid import FidBenchmark
from blip3o.eval.gedit.benchmark import GEditBenchmark
from blip3o.eval.gedit.statistics import TASK_TYPES
from blip3o.eval.geneval.benchmark import GenEvalBenchmark
from blip3o.eval.geneval.prompts import class_names
from blip3o.eval.geneval2 import GenEval2Benchmark
from blip3o.eval.imgedit import ImgEditBenchmark, ImgEditUgeBenchmark
from blip3o.eval.judges.openai import OpenAIJudge
from blip3o.eval.measures.inception import FILE as INCEPTION
from blip3o.eval.measures.inception import Inception
from blip3o.eval.plan import Job, Plan, read_plan, write_plan
from blip3o.eval.reconstruction import ReconstructionBenchmark
from blip3o.eval.report.intervals import bootstrap_intervals
from blip3o.eval.scenes import ScenesBenchmark
from blip3o.eval.score import load
from blip3o.eval.t2i_compbench import T2ICompBenchmark
from blip3o.eval.understanding import UnderstandingBenchmark
from blip3o.eval.wise.benchmark import WiseBenchmark, WiseVerifiedBenchmark
from blip3o.eval.wise.versions import LEGACY, VERIFIED, Version
from blip3o.remote.chat import Answer, ChatImage, ChatRequest

PX = 64
JUDGE = OpenAIJudge(model="judge-1", url="http://127.0.0.1:9/v1", key_variable="")
"""Never asked: `ScriptedJudge` takes the place of its client."""

Answering = Callable[[ChatRequest], Answer]


def said(text: str, **tokens: float) -> Answer:
    """Returns an answer, with the probabilities of its first token."""
    first = tuple((token, math.log(share)) for token, share in tokens.items())
    return Answer(outcome="answered", text=text, model="judge-1-0613", first_token=first)


def text_of(request: ChatRequest) -> str:
    return " ".join(part for part in request.parts if isinstance(part, str))


@dataclasses.dataclass
class ScriptedJudge:
    """A chat model that answers by a function."""

    answer: Answering
    name: str = "judge-1"

    def answers(self, requests: Sequence[ChatRequest]) -> Iterator[tuple[int, Answer]]:
        for place in reversed(range(len(requests))):
            yield place, self.answer(requests[place])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A benchmark with everything that its tests need.

    Args:
        benchmark: the benchmark at small size.
        right: the answer of the judge about a perfect sample; None if no chat model judges.
        varied: an answer that depends on the request.
        perfect: makes a perfect sample of an item; None if `finish` or the judge decides alone.
        finish: makes a perfect verdict of one on any sample.
        lower_is_better: whether the headline is a distance.
    """

    benchmark: Benchmark
    right: Answering | None = None
    varied: Answering | None = None
    perfect: Callable[[Item, int], Image.Image | str] | None = None
    finish: Callable[[Verdict], Verdict] = lambda verdict: verdict
    lower_is_better: bool = False


Make = Callable[[Path, pytest.MonkeyPatch], Case]
BUILDERS: dict[str, Make] = {}
"""Builder of a small benchmark by its name in `BENCHMARKS`."""


def builds(name: str) -> Callable[[Make], Make]:
    def keep(make: Make) -> Make:
        BUILDERS[name] = make
        return make

    return keep


def noise(*key: object, px: int = PX) -> Image.Image:
    """Returns an image that depends on its key only."""
    seed = int(hashlib.sha256(repr(key).encode()).hexdigest()[:8], 16)
    levels = np.random.default_rng(seed).integers(0, 256, (px // 8, px // 8, 3), dtype=np.uint8)
    return Image.fromarray(levels).resize((px, px), Image.Resampling.NEAREST)


def digit(request: ChatRequest, most: int) -> int:
    """Returns a number 0..most that depends on all of a request."""
    parts = [one.sha256 if isinstance(one, ChatImage) else one for one in request.parts]
    return int(hashlib.sha256(repr(parts).encode()).hexdigest()[:8], 16) % (most + 1)


def scored_best(verdict: Verdict) -> Verdict:
    return dataclasses.replace(verdict, score=1.0)


@builds("scenes")
def scenes(folder: Path, patch: pytest.MonkeyPatch) -> Case:
    few = ScenesBenchmark(
        prompts_per_category=1,
        images_per_prompt=2,
        num_questions=3,
        num_captions=2,
        num_edits=2,
        num_reconstructions=2,
        wording_prompts_per_category=1,
        num_wording_questions=2,
        num_wording_edits=2,
    )
    return Case(benchmark=few, finish=scored_best)


class NoiseDetector:
    """Finds one thing that depends on the image."""

    name = "noise"
    classes = class_names()

    def detect(self, images: Sequence[Image.Image]) -> list[Detections]:
        labels = [int(np.asarray(image).astype(int).sum()) % 80 for image in images]
        return [
            Detections(
                labels=np.array([label], np.int64),
                boxes=np.array([[1, 1, 30, 30]], np.float32),
                scores=np.array([0.95], np.float32),
            )
            for label in labels
        ]


@builds("geneval")
def geneval(folder: Path, patch: pytest.MonkeyPatch) -> Case:
    few = GenEvalBenchmark(
        prompts_per_tag=2,
        images_per_prompt=2,
        tags=("single_object", "two_object", "counting", "position"),
    )
    patch.setattr(type(few.detector), "build", lambda self, device="auto": NoiseDetector())
    return Case(benchmark=few, finish=scored_best)


@builds("geneval2")
def geneval2(folder: Path, patch: pytest.MonkeyPatch) -> Case:
    lines = [
        {
            "prompt": f"two red cats {n}",
            "atom_count": 3 + n % 2,
            "vqa_list": [["How many cats are there?", "two"], ["Are the cats red?", "Yes"]],
            "skills": ["count", "attribute"],
        }
        for n in range(3)
    ]
    file = folder / "data.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Case(
        benchmark=GenEval2Benchmark(data=str(file), changed_prompts=True, judge=JUDGE),
        right=_right_token,
        varied=lambda request: said("x", two=0.1 + digit(request, 8) / 10, Yes=0.01),
    )


def _right_token(request: ChatRequest) -> Answer:
    return said("two", two=1.0) if "How many" in text_of(request) else said("Yes", Yes=1.0)


@builds("dpg")
def dpg(folder: Path, patch: pytest.MonkeyPatch) -> Case:
    columns = "item_id,text,keywords,proposition_id,dependency,category_broad,"
    rows = [f"{columns}category_detailed,tuple,question_natural_language"]
    for name in ("a1", "a2", "b3"):
        rows += [
            f'{name},,,1,0,,,"entity - whole (cat)",A cat?',
            f'{name},,,2,1,,,"attribute - color (cat, red)",Red?',
            f'{name},,,3,"1,2",,,"relation - spatial (cat, left)",Left?',
        ]
    (folder / "questions.csv").write_text("\n".join(rows) + "\n")
    prompts = [{"item_id": name, "prompt": f"prompt of {name}"} for name in ("a1", "a2", "b3")]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(one) + "\n" for one in prompts))
    return Case(
        benchmark=DPGBenchmark(
            questions=str(folder / "questions.csv"),
            prompts=str(folder / "prompts.jsonl"),
            changed_prompts=True,
            resolution=PX,
            judge=JUDGE,
        ),
        right=lambda request: said("yes"),
        varied=lambda request: said(("yes", "no", "Yes.")[digit(request, 2)]),
    )


@builds("t2i_compbench")
def t2i_compbench(folder: Path, patch: pytest.MonkeyPatch) -> Case:
    few = T2ICompBenchmark(
        categories=("color", "shape"), simple_prompts=True, images_per_prompt=2, judge=JUDGE
    )
    items = few.items()
    some = [items[0], items[1], items[-1]]
    patch.setattr(T2ICompBenchmark, "items", lambda self: some)
    return Case(
        benchmark=few,
        right=lambda request: said("Yes", Yes=1.0),
        varied=lambda request: said("No", No=0.1, Yes=0.05 + digit(request, 8) / 10),
    )


def _wise(folder: Path, version: Version, patch: pytest.MonkeyPatch, kind: type) -> str:
    files = []
    for file, part in zip(version.files, ("culture", "space-time", "science"), strict=True):
        inside = [one for one in version.categories.values() if one.part == part]
        ids = [number for one in inside for number in (one.first, one.last)]
        keys = ("Prompt", "Explanation", "Category", "Subcategory")
        rows = [{"prompt_id": n, **{key: f"{key} {n}" for key in keys}} for n in ids]
        data = json.dumps(rows).encode()
        (folder / f"{part}.json").write_bytes(data)
        files.append(dataclasses.replace(file, sha256=hashlib.sha256(data).hexdigest()))
    patch.setattr(kind, "version", dataclasses.replace(version, files=tuple(files)))
    return str(folder)


@builds("wise")
def wise(folder: Path, patch: pytest.MonkeyPatch) -> Case:
    def graded(first: int) -> Answer:
        return said(f"Consistency: {first}\nRealism: 2\nAesthetic Quality: 2")

    return Case(
        benchmark=WiseBenchmark(prompts=_wise(folder, LEGACY, patch, WiseBenchmark), judge=JUDGE),
        right=lambda request: graded(2),
        varied=lambda request: graded(digit(request, 2)),
    )


@builds("wise_verified")
def wise_verified(folder: Path, patch: pytest.MonkeyPatch) -> Case:
    prompts = _wise(folder, VERIFIED, patch, WiseVerifiedBenchmark)
    return Case(
        benchmark=WiseVerifiedBenchmark(prompts=prompts, judge=JUDGE),
        right=lambda request: said("Score: 1"),
        varied=lambda request: said(f"Score: {digit(request, 1)}"),
    )


def _imgedit(folder: Path, patch: pytest.MonkeyPatch, kind: type[ImgEditBenchmark]) -> Case:
    rows = {
        str(n): {"id": f"{n}.png", "prompt": f"Do {name}", "edit_type": name}
        for n, name in enumerate(imgedit.TYPES)
    }
    for n in range(len(rows)):
        noise("source", n).save(folder / f"{n}.png")
    (folder / "edits.json").write_text(json.dumps(rows))
    sha256 = hashlib.sha256((folder / "edits.json").read_bytes()).hexdigest()
    patch.setattr(kind, "file", dataclasses.replace(kind.file, sha256=sha256))

    def graded(first: int) -> Answer:
        return said(f"Fine.\nInstruction: {first}\nNaturalness: 5\nDetail: 5")

    return Case(
        benchmark=kind(prompts=str(folder / "edits.json"), images=str(folder), judge=JUDGE),
        right=lambda request: graded(5),
        varied=lambda request: graded(1 + digit(request, 4)),
    )


@builds("imgedit")
def imgedit_basic(folder: Path, patch: pytest.MonkeyPatch) -> Case:
    return _imgedit(folder, patch, ImgEditBenchmark)


@builds("imgedit_uge")
def imgedit_hard(folder: Path, patch: pytest.MonkeyPatch) -> Case:
    return _imgedit(folder, patch, ImgEditUgeBenchmark)


@builds("gedit")
def gedit(folder: Path, patch: pytest.MonkeyPatch) -> Case:
    lines = []
    for n, kind in enumerate(TASK_TYPES):
        noise("source", n).save(folder / f"{n}.png")
        for language in ("en", "cn"):
            row = {
                "key": f"{n:02}ab",
                "task_type": kind,
                "instruction": f"Do {n}",
                "instruction_language": language,
                "input_image": f"{n}.png",
                "Intersection_exist": n % 2 == 0,
            }
            lines.append(json.dumps(row) + "\n")
    (folder / "items.jsonl").write_text("".join(lines))
    return Case(
        benchmark=GEditBenchmark(data=str(folder), judge=JUDGE),
        right=lambda request: said('{"score": [10, 10]}'),
        varied=lambda request: said(f'{{"score": [{digit(request, 10)}, 9]}}'),
    )


@builds("reconstruction")
def reconstruction(folder: Path, patch: pytest.MonkeyPatch) -> Case:
    few = ReconstructionBenchmark(num_images=4, scene_px=PX)

    def nearly_equal(item: Item, number: int) -> Image.Image:
        (image,) = few.sources(item)
        image.putpixel((0, 0), (0, 0, 1))  # equal images have no PSNR
        return image

    return Case(benchmark=few, perfect=nearly_equal)


class SmallInception(Inception):
    """The real class with fast features: the mean colors of the quarters of an image."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)
        self.anywhere = torch.nn.Parameter(torch.zeros(1))

    def forward(self, levels: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(levels, (2, 2)).flatten(1)


@builds("fid")
def fid_of_few(folder: Path, patch: pytest.MonkeyPatch) -> Case:
    rows = [{"prompt": f"image {n}", "category": "ab"[n % 2]} for n in range(6)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for n in range(6):
        file = folder / "reference" / "ab"[n % 2] / f"{n}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        noise("reference", n).save(file)
    (folder / INCEPTION).write_bytes(b"weights")
    patch.setattr(fid, "load_inception", lambda place: SmallInception())
    patch.setattr(fid, "_KNOWN", {})
    few = FidBenchmark(
        prompts=str(folder / "prompts.jsonl"),
        reference=str(folder / "reference"),
        judge_weights=str(folder),
        few_images=True,
        kid_subsets=3,
        kid_subset_size=4,
    )
    return Case(
        benchmark=few,
        perfect=lambda item, number: noise("reference", item.number),
        lower_is_better=True,
    )


def _tiny_clip(folder: Path) -> None:
    """Writes a tiny random CLIP, as transformers does."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    pieces = [letter + end for letter in "image0123456789" for end in ("", "</w>")]
    names = list(dict.fromkeys([*pieces, "<|startoftext|>", "<|endoftext|>"]))
    vocab = {name: number for number, name in enumerate(names)}
    end = vocab["<|endoftext|>"]
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    ends = {"eos_token_id": end, "bos_token_id": end - 1, "pad_token_id": end}
    text = {"hidden_size": 8, "vocab_size": len(vocab), "max_position_embeddings": 16}
    config = CLIPConfig(
        vision_config={"hidden_size": 8, "image_size": 28, "patch_size": 14, **sizes},
        text_config={**text, **ends, **sizes},
        projection_dim=6,
    )
    torch.manual_seed(0)
    model = CLIPModel(config)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    model.save_pretrained(folder)
    CLIPTokenizer(vocab=vocab, merges=[]).save_pretrained(folder)


@builds("clip_score")
def clip_score(folder: Path, patch: pytest.MonkeyPatch) -> Case:
    rows = [{"prompt": f"image {n}", "category": "ab"[n % 2]} for n in range(5)]
    rows.append({"prompt": "image " * 9, "category": "b"})
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _tiny_clip(folder / "clip")
    few = ClipScoreBenchmark(
        prompts=str(folder / "prompts.jsonl"), clip=str(folder / "clip"), clip_name="tiny"
    )

    def best(verdict: Verdict) -> Verdict:
        data = {**verdict.data, "cosine": 1.0, "cosine_prefixed": 1.0}
        return dataclasses.replace(verdict, score=1.0, data=data)

    return Case(benchmark=few, finish=best)


@builds("understanding")
def understanding(folder: Path, patch: pytest.MonkeyPatch) -> Case:
    lines = []
    for n in range(4):
        noise(n).save(folder / f"{n}.png")
        row = {"image": f"{n}.png", "question": f"What {n}?", "answers": [f"cat {n}"]}
        lines.append(json.dumps({**row, "category": "ab"[n % 2]}) + "\n")
    (folder / "questions.jsonl").write_text("".join(lines))
    return Case(
        benchmark=UnderstandingBenchmark(questions=str(folder / "questions.jsonl")),
        perfect=lambda item, number: item.data["answers"][0],
    )


# ---------------------------------------------------------------------------------------------


NAMES = BENCHMARKS.names()
each_name = pytest.mark.parametrize("name", NAMES)


def each_case(names: Sequence[str] = NAMES) -> pytest.MarkDecorator:
    """Runs a test for each name with a case that the tests of the name share."""
    return pytest.mark.parametrize("name", names, scope="module")


@pytest.fixture(scope="module")
def case(name: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    assert name in BUILDERS, f"write a builder of a small {name} in this file"
    with pytest.MonkeyPatch.context() as patch:
        made = BUILDERS[name](tmp_path_factory.mktemp(name), patch)
        assert type(made.benchmark) is BENCHMARKS.get(name)
        yield made


def judged(case: Case, samples: Sequence[Sample], answer: Answering | None = None) -> list[Verdict]:
    """Scores samples with the real scorer and a scripted judge."""
    with pytest.MonkeyPatch.context() as patch:
        if answer is not None:
            patch.setattr(OpenAIJudge, "build", lambda self: ScriptedJudge(answer))
        scorer = case.benchmark.scorer()
        found: list[Verdict] = []
        for start in range(0, len(samples), scorer.batch_size):
            found += scorer.verdicts(samples[start : start + scorer.batch_size])
    assert {one.judge for one in found} == {scorer.judge}
    return found


def samples_of(case: Case, *, perfect: bool = False) -> list[Sample]:
    """Returns a sample of each job of a plan; perfect ones where the case can make them."""
    found = []
    for item, number in Plan(tuple(case.benchmark.items())).jobs():
        output: Image.Image | str
        if perfect and case.perfect is not None:
            output = case.perfect(item, number)
        elif item.task == "question":
            output = f"cat {number}"
        else:
            output = noise(item.id, number)
        found.append(
            Sample(
                item=item,
                number=number,
                sha256=hashlib.sha256(repr((item.id, number)).encode()).hexdigest(),
                image=output if isinstance(output, Image.Image) else None,
                text=output if isinstance(output, str) else None,
                sources=case.benchmark.sources(item),
            )
        )
    return found


def rows_of(samples: Sequence[Sample], verdicts: Sequence[Verdict]) -> list[Row]:
    """Returns the rows of a benchmark, after each verdict was a line of JSON."""
    lines = [json.dumps(dataclasses.asdict(one), allow_nan=False) for one in verdicts]
    read = {(one.item, one.number): one for one in map(Verdict.from_dict, map(json.loads, lines))}
    return [Row(one.item, one.number, read.get((one.item.id, one.number))) for one in samples]


@pytest.fixture(scope="module")
def perfect_rows(case: Case) -> Sequence[Row]:
    samples = samples_of(case, perfect=True)
    verdicts = [case.finish(one) for one in judged(case, samples, case.right)]
    assert {one.outcome for one in verdicts} == {"judged"}
    assert len(verdicts) == len(samples)
    return rows_of(samples, verdicts)


@pytest.fixture(scope="module")
def usual_rows(case: Case) -> Sequence[Row]:
    samples = samples_of(case)
    return rows_of(samples, judged(case, samples, case.varied))


def check_finite(scores: Scores) -> None:
    text = json.dumps(dataclasses.asdict(scores), allow_nan=False)
    assert "NaN" not in text
    for value in (scores.overall, *scores.by_category.values()):
        assert value is None or math.isfinite(value)
    assert all(isinstance(note, str) and note.strip() for note in scores.notes)


def is_better(case: Case, value: float | None, best: float | None) -> bool:
    """Returns whether a figure is better than another one; None is not better."""
    if value is None or best is None:
        return False
    slack = 1e-6 * max(1.0, abs(best))
    return value < best - slack if case.lower_is_better else value > best + slack


# ---------------------------------------------------------------------------------------------


def test_the_table_of_small_benchmarks_is_complete() -> None:
    assert sorted(BUILDERS) == sorted(BENCHMARKS.names())


@each_name
def test_it_is_a_frozen_dataclass_with_defaults(name: str) -> None:
    cls = BENCHMARKS.get(name)
    assert issubclass(cls, Benchmark)
    assert dataclasses.is_dataclass(cls)
    plain = cls()
    with pytest.raises(dataclasses.FrozenInstanceError):
        plain.seed = 1  # pyrefly: ignore
    assert from_dict(cls, json.loads(json.dumps(to_dict(plain)))) == plain
    changed = override(plain, ["seed=7", "batch_size=3", "guidance_scale=2.5"])
    assert (changed.seed, changed.batch_size, changed.guidance_scale) == (7, 3, 2.5)
    assert override(changed, []) == changed != plain
    with pytest.raises(UsageError, match="num_inference_steps"):
        override(plain, ["num_inference_steps=0"])


@each_name
def test_its_first_line_names_it_and_its_settings_have_meanings(name: str) -> None:
    cls = BENCHMARKS.get(name)
    first = (cls.__doc__ or "").split("\n")[0]
    assert first.endswith(".")
    letters = "".join(letter for letter in first.lower() if letter.isalnum())
    assert all(part in letters for part in name.split("_")), first
    lines = describe_benchmark(name).splitlines()
    described = {line.strip().partition("=")[0].removesuffix(".*") for line in lines}
    for field in dataclasses.fields(cls):
        if field.name != "world":
            assert field.name in described, f"blip3o eval {name} does not show {field.name}"
        assert f"{field.name}:" in "".join(base.__doc__ or "" for base in cls.__mro__)


@each_name
def test_without_its_files_it_says_so_in_one_line(name: str) -> None:
    plain = BENCHMARKS.get(name)()

    def start() -> None:
        plain.items()
        plain.scorer()

    if BUILDERS[name] in (scenes, reconstruction):
        return  # they need nothing
    with pytest.raises(UsageError) as error:
        start()
    assert "\n" not in str(error.value)


@each_case()
def test_items_make_a_plan_that_files_keep(case: Case, tmp_path: Path) -> None:
    items = case.benchmark.items()
    plan = Plan(tuple(items))
    assert case.benchmark.items() == items
    by_task: dict[str, list[int]] = {}
    for item in items:
        by_task.setdefault(item.task, []).append(item.number)
    if "question" not in by_task:
        assert all(len(set(numbers)) == len(numbers) for numbers in by_task.values())
    write_plan(plan, tmp_path)
    read = read_plan(tmp_path)
    assert read.text == plan.text
    assert read.sha256 == plan.sha256
    write_plan(Plan(tuple(case.benchmark.items())), tmp_path)  # the same plan is no other one
    for one, other in zip(items, read.items, strict=True):
        assert dataclasses.replace(one, data={}) == dataclasses.replace(other, data={})
        sources = case.benchmark.sources(one)
        assert all(source.mode == "RGB" for source in sources)
        assert bool(sources) == (one.task != "text_to_image")


@each_case()
def test_perfect_samples_have_a_headline_and_plain_figures(
    case: Case, perfect_rows: Sequence[Row]
) -> None:
    scores = case.benchmark.reduce(perfect_rows)
    check_finite(scores)
    assert scores.overall is not None
    worst = case.benchmark.reduce([Row(row.item, row.number, None) for row in perfect_rows])
    assert is_better(case, scores.overall, worst.overall) or worst.overall is None


@each_case()
def test_rows_without_a_judgement_are_never_better(
    case: Case, perfect_rows: Sequence[Row], usual_rows: Sequence[Row]
) -> None:
    best = case.benchmark.reduce(perfect_rows)
    every: list[Sequence[Row]] = [[Row(row.item, row.number, None) for row in perfect_rows]]
    for outcome in get_args(Outcome):
        if outcome != "judged":
            every.append([_with(row, outcome) for row in perfect_rows])
            some = [row if n % 2 else _with(row, outcome) for n, row in enumerate(perfect_rows)]
            every.append(some)
    every += [usual_rows, [], perfect_rows[:1]]
    for rows in every:
        scores = case.benchmark.reduce(rows)
        check_finite(scores)
        if len(rows) == len(perfect_rows):
            assert not is_better(case, scores.overall, best.overall)
            for name, value in scores.by_category.items():
                assert not is_better(case, value, best.by_category.get(name)), name


def _with(row: Row, outcome: Outcome) -> Row:
    """Returns a row whose sample has a fault, as the stage of scoring notes it."""
    assert row.verdict is not None
    data = {"reason": "a fault"}
    return Row(
        row.item,
        row.number,
        dataclasses.replace(row.verdict, outcome=outcome, score=None, data=data),
    )


FAULTS: Mapping[str, Answer] = {
    "refusal": Answer(outcome="refusal", text="I cannot judge this"),
    "empty": Answer(outcome="empty", text=""),
    "cut": Answer(outcome="cut", text="The image"),
    "unreadable": said("The image is nice."),
    "transport": Answer(outcome="transport", text="HTTP 500 (7 attempts)"),
}


@each_case([n for n in NAMES if hasattr(BENCHMARKS.get(n)(), "judge")])
def test_faults_of_the_judge_are_counted_and_never_better(
    case: Case, perfect_rows: Sequence[Row]
) -> None:
    assert case.right is not None
    right = case.right
    samples = samples_of(case)
    best = case.benchmark.reduce(perfect_rows)
    needs_probabilities = bool(right(ChatRequest(parts=("x",))).first_token)
    for outcome, fault in FAULTS.items():

        def answer(request: ChatRequest, fault: Answer = fault) -> Answer:
            return fault if digit(request, 2) else right(request)

        if needs_probabilities and outcome in ("cut", "unreadable"):
            with pytest.raises(UsageError, match="probabilities"):
                judged(case, samples, answer)
            continue
        verdicts = judged(case, samples, answer)
        outcomes = {one.outcome for one in verdicts}
        assert outcome in outcomes <= {outcome, "judged"}
        assert all(one.score is None for one in verdicts if one.outcome != "judged")
        scores = case.benchmark.reduce(rows_of(samples, verdicts))
        check_finite(scores)
        assert not is_better(case, scores.overall, best.overall)


@each_case()
def test_the_order_of_rows_does_not_matter(case: Case, usual_rows: Sequence[Row]) -> None:
    mixed = [row if n % 5 else _with(row, "broken") for n, row in enumerate(usual_rows)]
    for rows in (usual_rows, mixed):
        expected = dataclasses.asdict(case.benchmark.reduce(rows))
        for seed in range(3):
            shuffled = random.Random(seed).sample(rows, len(rows))
            assert dataclasses.asdict(case.benchmark.reduce(shuffled)) == expected


@each_case()
def test_figures_have_intervals_by_resampled_items(case: Case, usual_rows: Sequence[Row]) -> None:
    scores = case.benchmark.reduce(usual_rows)
    found = bootstrap_intervals(case.benchmark.reduce, usual_rows, scores, num_resamples=5)
    assert found.by_category.keys() == scores.by_category.keys()
    figures = {"": scores.overall, **scores.by_category}
    for name, bounds in {"": found.overall, **found.by_category}.items():
        if bounds is not None:
            assert figures[name] is not None
            assert math.isfinite(bounds[0])
            assert bounds[0] <= bounds[1] < math.inf


@each_case([n for n in NAMES if BENCHMARKS.get(n).layout is not Benchmark.layout])
def test_the_official_layout_gives_back_every_image(case: Case, tmp_path: Path) -> None:
    layout = case.benchmark.layout()
    assert layout is not None
    folder = tmp_path / "official"
    folder.mkdir()
    samples = samples_of(case)
    for item in case.benchmark.items():
        layout.write(folder, [one for one in samples if one.item.id == item.id])
    items = case.benchmark.items()
    found = {(one.item, one.number): one for one in layout.read(folder, items)}
    assert len(found) == len(samples)
    for sample in samples:
        own = found[sample.item.id, sample.number]
        read = load(Job(sample.item, sample.number), case.benchmark, "judge", own)
        assert read.fault is None
        assert read.sample is not None
        assert read.sample.image is not None
        assert sample.image is not None
        assert read.sample.image.size == sample.image.size
        assert read.sample.image.tobytes() == sample.image.tobytes()


@each_case()
def test_remarks_are_short_sentences_without_line_breaks(case: Case) -> None:
    remarks = case.benchmark.remarks()
    assert case.benchmark.remarks() == remarks
    assert all(one and "\n" not in one and len(one) < 300 for one in remarks)
