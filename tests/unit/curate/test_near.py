"""Near duplicates are found exactly, as a comparison of all pairs finds them."""

import random
import time
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageDraw

from blip3o.curate.near import MOST_BITS, ImageMark, NearImages, NearTexts, word_runs

Scene = Callable[[int], Image.Image]
Recompress = Callable[[Image.Image, int], Image.Image]
THINGS = ("dog", "cat", "car", "tree", "house", "boat")
COLORS = ("red", "blue", "green", "black")


def prompts(num: int) -> list[str]:
    """Prompts of a few templates, many of them alike."""
    draw = random.Random(0).choice
    return [
        f"a {draw(COLORS)} {draw(THINGS)} next to a {draw(COLORS)} {draw(THINGS)} on a sunny day"
        for _ in range(num)
    ]


def firsts(texts: list[str], least: float, num_words: int = 2) -> list[int | None]:
    runs = [word_runs(text, num_words) for text in texts]
    index = NearTexts(least, runs)
    found: list[int | None] = []
    for key, one in enumerate(runs):
        mark = index.mark(one)
        near = mark.first()
        found.append(near.key if near else None)
        if near is None:
            mark.keep(key)
    return found


def overlap(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / len(one | other)


@pytest.mark.parametrize("least", [0.3, 0.5, 0.7, 0.75, 0.9, 1.0])
def test_texts_are_found_as_a_comparison_of_all_pairs_finds_them(least: float) -> None:
    texts = prompts(400)
    runs = [word_runs(text, 2) for text in texts]
    expected: list[int | None] = []
    for number, one in enumerate(runs):
        kept = (key for key, first in enumerate(expected) if first is None)
        near = (key for key in kept if overlap(one, runs[key]) >= least)
        expected.append(next(near, None))
        assert len(expected) == number + 1
    assert firsts(texts, least) == expected


@pytest.mark.parametrize(("num_common", "least"), [(num, num / 10) for num in range(1, 11)])
def test_the_least_overlap_itself_is_near(num_common: int, least: float) -> None:
    common = frozenset(f"common {n}" for n in range(num_common))
    others = frozenset(f"other {n}" for n in range(10 - num_common))
    index = NearTexts(least, [common, common | others])
    index.mark(common).keep(3)
    near = index.mark(common | others).first()
    assert near is not None
    assert near.likeness == f"{least:.2f}"


def test_case_marks_and_accents_do_not_count() -> None:
    assert firsts(["A café, at night", "a cafe at night!", "a café in the night"], 0.9) == [
        None, 0, None,
    ]  # fmt: skip


def test_short_texts_are_one_run_and_scopes_share_none() -> None:
    assert firsts(["dog", "cat", "Dog!"], 0.5, num_words=3) == [None, None, 0]
    assert not word_runs("remove the dog", 2, "one") & word_runs("remove the dog", 2, "two")


def test_images_are_found_as_a_comparison_of_all_pairs_finds_them() -> None:
    rng = np.random.default_rng(0)
    bases = [int.from_bytes(rng.bytes(32), "big") for _ in range(10)]
    for most_bits in (0, 15, 24, MOST_BITS):
        index = NearImages(most_bits)
        marks: list[ImageMark] = []
        for _ in range(300):
            flips = rng.choice(256, rng.integers(0, 50), replace=False)
            bits = bases[rng.integers(10)] ^ sum(1 << int(bit) for bit in flips)
            marks.append(ImageMark(index, bits, np.zeros((4, 4, 3), dtype=np.int16), ""))
        kept: list[int] = []
        for key, mark in enumerate(marks):
            distances = ((mark.bits ^ marks[one].bits).bit_count() for one in kept)
            pairs = zip(kept, distances, strict=True)
            expected = next((one for one, distance in pairs if distance <= most_bits), None)
            near = mark.first()
            assert (near.key if near else None) == expected
            if near is None:
                kept.append(key)
                mark.keep(key)


def test_an_image_is_found_after_compression_and_in_another_size(
    scene: Scene, recompressed: Recompress
) -> None:
    index = NearImages(24)
    for seed in range(20):
        index.mark(scene(seed)).keep(seed)
    for seed in range(20):
        for copy in (recompressed(scene(seed), 40), scene(seed).resize((500, 375))):
            near = index.mark(copy).first()
            assert near is not None
            assert near.key == seed
        assert index.mark(scene(seed + 100)).first() is None


def cube(color: str) -> Image.Image:
    image = Image.new("RGB", (128, 128), "white")
    ImageDraw.Draw(image).rectangle((30, 30, 90, 90), fill=color)
    return image


def test_another_color_is_another_image(recompressed: Recompress) -> None:
    index = NearImages(24)
    red, green = index.mark(cube("red")), index.mark(cube("green"))
    assert (red.bits ^ green.bits).bit_count() <= 24, "the hash alone does not tell them apart"
    red.keep(0)
    assert green.first() is None
    assert index.mark(recompressed(cube("red"), 40)).first() is not None


def test_edits_of_one_source_may_look_alike(scene: Scene) -> None:
    index = NearImages(24)
    index.mark(scene(0), "a" * 64).keep(0)
    assert index.mark(scene(0), "a" * 64).first() is None
    assert index.mark(scene(0), "b" * 64).first() is not None
    assert index.mark(scene(0)).first() is not None


def test_few_pairs_of_texts_are_compared() -> None:
    names = [f"thing{number}" for number in range(300)]
    draw = random.Random(0).choice
    texts = [f"a photo of a {draw(names)} next to a {draw(names)} at night" for _ in range(8000)]
    start = time.process_time()
    firsts(texts, 0.7)
    assert time.process_time() - start < 10, "all pairs take a minute, these take a second"


def test_the_first_of_several_is_named() -> None:
    assert firsts(["a b c d e f x", "a b c d e f y z w", "a b c d e f"], 0.5) == [None, 0, 0]
