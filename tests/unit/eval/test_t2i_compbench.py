"""T2I-CompBench: noun phrases, the product of probabilities, folders, and the spatial rule."""

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from blip3o.core.errors import UsageError
from blip3o.eval.benchmark import Item, Row, Sample
from blip3o.eval.detectors import Detections, Detector
from blip3o.eval.t2i_compbench import CompLayout, PhraseScorer, T2ICompBenchmark, simple_phrases
from blip3o.eval.t2i_compbench_spatial import (
    FoundThing,
    Side,
    first_found,
    position_score,
    read_relation,
    spatial_score,
)
from blip3o.remote.chat import Answer, ChatRequest

SIMPLE = T2ICompBenchmark(simple_prompts=True)


class Judge:
    """States the probability of a yes of each phrase."""

    name = "a-judge"

    def __init__(self, yes: dict[str, float]) -> None:
        self._yes = yes
        self.requests: list[ChatRequest] = []

    def answers(self, requests: Sequence[ChatRequest]) -> Iterator[tuple[int, Answer]]:
        for place, request in enumerate(requests):
            self.requests.append(request)
            phrase = str(request.parts[1]).partition("?")[0]
            tokens: tuple[tuple[str, float], ...] = ()
            if phrase in self._yes:
                yes = self._yes[phrase]
                tokens = (("Yes", math.log(yes / 2)), ("yes", math.log(yes / 2)), ("No", -3.0))
            yield place, Answer(outcome="cut", text="Yes", first_token=tokens)


@pytest.mark.parametrize(
    ("prompt", "phrases"),
    [
        ("a green bench and a blue bowl", ["a green bench", "a blue bowl"]),
        ("an oval sink and a rectangular mirror.", ["an oval sink", "a rectangular mirror"]),
        ("rubber sole shoes and fluffy clouds", ["rubber sole shoes", "fluffy clouds"]),
        (
            "a round pizza and a rectangular piece of lasagna",
            ["a round pizza", "a rectangular piece", "lasagna"],
        ),
        ("A kitchen with white tile floor and blue sloped ceiling.", None),
        ("The tall tree and the short shrub created a contrast in the garden.", None),
        ("a black and white cat and a dog", None),
        ("a cat", None),
    ],
)
def test_the_grammar_reads_joined_phrases_only(prompt: str, phrases: list[str] | None) -> None:
    assert simple_phrases(prompt) == phrases


def test_the_grammar_reads_240_prompts_of_each_category() -> None:
    items = SIMPLE.items()
    counts = {name: sum(i.category == name for i in items) for name in SIMPLE.categories}
    assert counts == {"color": 240, "shape": 240, "texture": 240}
    assert len({item.number for item in items}) == len(items)
    assert not [item.prompt for item in items if "\r" in item.prompt]
    assert "only the 720 prompts" in SIMPLE.remarks()[0]


def test_sentences_need_phrases_or_leave_to_skip_them() -> None:
    with pytest.raises(UsageError, match="180 prompts are sentences"):
        T2ICompBenchmark().items()
    with pytest.raises(ValueError, match="each category once"):
        T2ICompBenchmark(categories=("color", "color"))


def test_the_numbers_of_items_do_not_depend_on_the_chosen_categories() -> None:
    shapes = dataclasses.replace(SIMPLE, categories=("shape",)).items()
    everything = {item.id: item for item in SIMPLE.items()}
    assert all(everything[item.id] == item for item in shapes)


def test_phrases_of_the_user_cover_sentences(tmp_path: Path) -> None:
    file = tmp_path / "phrases.json"
    prompts = {item.prompt: ["a thing"] for item in SIMPLE.items() if item.category == "color"}
    file.write_text(json.dumps(prompts))
    settings = T2ICompBenchmark(categories=("color",), phrases=str(file))
    with pytest.raises(UsageError, match="no phrases for 60 prompts"):
        settings.items()
    line = "A bathroom with white tile and a beige toilet."
    some = ["A bathroom", "the left", "white tile", *(f"thing {k}" for k in range(9))]
    file.write_text(json.dumps({line: some}))
    with pytest.raises(UsageError, match="no phrases for 299 prompts"):
        settings.items()
    file.write_text(json.dumps({line: "A bathroom"}))
    with pytest.raises(UsageError, match="must be a list"):
        settings.items()


def item(prompt: str, *phrases: str, place: int = 0, num: int = 2) -> Item:
    return Item(
        id=f"color-{place:03}",
        number=place,
        prompt=prompt,
        category="color",
        num_samples=num,
        data={"phrases": list(phrases), "place": place},
    )


def sample(of: Item, number: int = 0) -> Sample:
    color = (of.number, number, 0)
    return Sample(item=of, number=number, sha256="", image=Image.new("RGB", (3, 3), color))


def test_the_score_is_the_product_of_the_probabilities_of_yes() -> None:
    judge = Judge({"a red cat": 0.5, "a dog": 0.333})
    scorer = PhraseScorer(judge, instruction="Yes or no?", attempts=1)
    (one,) = scorer.verdicts([sample(item("a red cat and a dog", "a red cat", "a dog"))])
    assert one.score == 0.1665  # four decimals
    assert [request.parts[1] for request in judge.requests] == [
        "a red cat? Yes or no?",
        "a dog? Yes or no?",
    ]
    assert {request.top_logprobs for request in judge.requests} == {20}
    json.dumps(dataclasses.asdict(one))


def test_an_image_without_phrases_scores_1() -> None:
    (one,) = PhraseScorer(Judge({}), instruction="", attempts=1).verdicts([sample(item("x"))])
    assert (one.outcome, one.score) == ("judged", 1)


def test_a_judge_without_probabilities_is_refused() -> None:
    scorer = PhraseScorer(Judge({}), instruction="", attempts=1)
    with pytest.raises(UsageError, match="use a server with logprobs"):
        list(scorer.verdicts([sample(item("a cat", "a cat"))]))


def test_an_image_without_a_score_counts_as_0() -> None:
    cat = item("a cat", "a cat")
    (one,) = PhraseScorer(Judge({"a cat": 0.5}), instruction="", attempts=1).verdicts([sample(cat)])
    scores = SIMPLE.reduce([Row(cat, 0, one), Row(cat, 1, None)])
    assert scores.overall == scores.by_category["color"] == 0.25
    assert scores.figures["num_images_without_score"] == 1


def test_the_official_folders_are_read_as_written(tmp_path: Path) -> None:
    items = [item("a cat", place=0), item("a dog.", place=1)]
    layout = CompLayout(("color",))
    for one in items:
        layout.write(tmp_path, [sample(one, 1), sample(one, 0)])
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == [
        "a cat_000000.png",
        "a cat_000001.png",
        "a dog._000002.png",
        "a dog._000003.png",
    ]
    found = list(layout.read(tmp_path, items))
    assert [(one.item, one.number) for one in found] == [
        ("color-000", 0),
        ("color-000", 1),
        ("color-001", 0),
        ("color-001", 1),
    ]
    colors = [Image.open(one.file).getpixel((0, 0)) for one in found]
    assert colors == [(0, 0, 0), (0, 1, 0), (1, 0, 0), (1, 1, 0)]


def test_several_categories_have_a_folder_each(tmp_path: Path) -> None:
    layout = CompLayout(("color", "shape"))
    cat = item("a cat", num=1)
    cube = dataclasses.replace(item("a cube", num=1), category="shape", id="shape-000")
    for one in (cat, cube):
        layout.write(tmp_path, [sample(one)])
    assert (tmp_path / "shape" / "samples" / "a cube_000000.png").is_file()
    assert [one.item for one in layout.read(tmp_path, [cat, cube])] == ["color-000", "shape-000"]


def test_missing_images_are_said_and_surplus_images_are_refused(
    tmp_path: Path,
) -> None:
    cat, layout = item("a cat", num=1), CompLayout(("color",))
    layout.write(tmp_path, [sample(cat)])
    (tmp_path / "samples" / "vqa_result.json").write_text("[]")
    items = [cat, item("a dog", place=1)]
    assert len(list(layout.read(tmp_path, items))) == 1
    passed_over, missing = layout.notes(tmp_path, items)
    assert "vqa_result.json" in passed_over
    assert "1 of 3 images" in missing
    Image.new("RGB", (3, 3)).save(tmp_path / "samples" / "a cat_000007.png")
    with pytest.raises(UsageError, match="'a cat' has 2 images"):
        list(layout.read(tmp_path, [cat]))


LEFT, FAR_RIGHT = (0.0, 0.0, 10.0, 10.0), (300.0, 0.0, 310.0, 10.0)


@pytest.mark.parametrize(
    ("side", "score"),
    [("left", 1), ("right", 0), ("top", 0), ("bottom", 0), ("near", 1)],
)
def test_a_direction_needs_its_axis(side: Side, score: float) -> None:
    assert position_score(side, LEFT, FAR_RIGHT) == score


def test_y_grows_downward() -> None:
    below = (0.0, 300.0, 10.0, 310.0)
    assert position_score("top", LEFT, below) == 1
    assert position_score("bottom", below, LEFT) == 1
    assert position_score("bottom", LEFT, below) == 0


def test_overlap_lowers_the_score_of_a_position() -> None:
    # Two squares of side 10 that share half: IoU 50 / 150.
    assert position_score("left", LEFT, (5, 0, 15, 10)) == pytest.approx(0.1 / (50 / 150))


def test_equal_offsets_are_no_direction() -> None:
    assert position_score("left", LEFT, (20, 20, 30, 30)) == 0


def test_things_that_are_far_apart_on_both_axes_are_less_near() -> None:
    assert position_score("near", LEFT, (200, 300, 210, 310)) == 150 / 300
    assert position_score("near", LEFT, (149, 900, 159, 910)) == 1


def test_scores_below_one_half_become_0() -> None:
    cat, dog = FoundThing(LEFT, 0.8), FoundThing(FAR_RIGHT, 0.6)
    assert spatial_score("left", cat, dog) == pytest.approx(0.2 + 0.15 + 0.5)
    assert spatial_score("right", cat, dog) == 0
    assert spatial_score("left", FoundThing(LEFT, 1.0), None) == 0
    assert spatial_score("left", None, None) == 0


class BoxDetector:
    """Finds a person, a stronger person and a car."""

    name = "boxes"
    classes: Sequence[str] = ("person", "car")

    def detect(self, images: Sequence[Image.Image]) -> list[Detections]:
        found = Detections(
            labels=np.array([0, 0, 1]),
            boxes=np.array([LEFT, FAR_RIGHT, (100, 0, 110, 10)], dtype=np.float32),
            scores=np.array([0.4, 0.9, 0.7], dtype=np.float32),
        )
        return [found for _ in images]


def test_the_first_finding_of_a_noun_counts_and_a_girl_is_a_person() -> None:
    detector: Detector = BoxDetector()
    (found,) = detector.detect([Image.new("RGB", (4, 4))])
    relation = read_relation("a girl on the left of a car")
    assert relation is not None
    assert relation == ("girl", "left", "car")
    subject, side, reference = relation
    score = spatial_score(
        side,
        first_found(subject, found, detector.classes),
        first_found(reference, found, detector.classes),
    )
    assert score == pytest.approx(0.25 * 0.4 + 0.25 * 0.7 + 0.5)
    assert first_found("dog", found, detector.classes) is None
    assert read_relation("a red cat and a dog") is None
