"""Prompts of benchmarks are found in any wording, and other scenes are not."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from blip3o.curate.contamination import BenchmarkPrompt, MatchSettings, PromptIndex
from blip3o.curate.decontaminate import BUNDLED, benchmark_prompts

PARAPHRASES = sorted((Path(__file__).parents[2] / "data" / "paraphrases").glob("*.jsonl"))
"""Sentences of authors who did not see the lists of words."""
LEAST_RECALL, MOST_FALSE = 0.95, 0.02


@pytest.fixture(scope="module")
def bundled() -> PromptIndex:
    return PromptIndex(benchmark_prompts(BUNDLED))


def index(*texts: str, **settings: float) -> PromptIndex:
    prompts = [BenchmarkPrompt("mine", text) for text in texts]
    return PromptIndex(prompts, MatchSettings(**settings))  # type: ignore[arg-type]


def kind(prompts: PromptIndex, text: str) -> str | None:
    match = prompts.match(text)
    return match.kind if match else None


def test_every_bundled_prompt_is_found_as_it_is(bundled: PromptIndex) -> None:
    prompts = benchmark_prompts(BUNDLED)
    assert {prompt.benchmark for prompt in prompts} == set(BUNDLED)
    assert all(kind(bundled, prompt.text.upper() + " ") == "exact" for prompt in prompts)


def test_the_index_finds_the_same_as_a_comparison_with_each_prompt() -> None:
    prompts = benchmark_prompts(["geneval"])[::10]
    one_by_one = [PromptIndex([prompt]) for prompt in prompts]
    together = PromptIndex(prompts)
    texts = [f"{one.text} {end}" for one in prompts for end in ("", "and a lamp", "in a red barn")]
    found = [together.match(text) is not None for text in texts]
    assert all(found[::3])
    assert {*found[1::3]} == {True, False}, "one more thing: near for long prompts only"
    assert found == [any(single.match(text) for single in one_by_one) for text in texts]


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("a photo of a cow", "One cow, please!"),
        ("a photo of three dogs", "3 puppies"),
        ("a photo of two clocks", "Draw a pair of clocks."),
        ("a photo of a red car and a blue dog", "a blue dog next to a red automobile, 4k"),
        ("a photo of a red car and a blue dog", "A car that is red, and a dog that's blue"),
        ("a photo of a red car and a blue dog", "a car and a dog: the car is red, the dog is blue"),
        ("a photo of a dog right of a teddy bear", "a teddy bear to the left of a dog"),
        ("a photo of a dog right of a teddy bear", "a stuffed bear with a dog to its right"),
        ("a photo of a bench above a cat", "Below a bench there is a cat"),
        ("a photo of traffic lights", "a stoplight"),
        ("把狗换成猫", "把狗换成猫。"),
    ],
)
def test_other_wordings_of_a_prompt_are_found(prompt: str, text: str) -> None:
    assert kind(index(prompt), text) in ("meaning", "exact")


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("a photo of a red car and a blue dog", "a photo of a blue car and a red dog"),
        ("a photo of a red car and a blue dog", "a photo of a red car and a green dog"),
        ("a photo of three dogs", "a photo of two dogs"),
        ("two cats and three dogs", "three cats and two dogs"),
        ("a photo of a dog right of a teddy bear", "a photo of a dog left of a teddy bear"),
        ("a photo of a dog right of a teddy bear", "a dog with a teddy bear to its right"),
        ("a photo of a bench above a cat", "a bench under a cat"),
        ("a photo of a cow", "a cow and a horse on a meadow in the morning"),
        ("把狗换成猫", "把猫换成狗。"),
    ],
)
def test_other_scenes_are_not_found(prompt: str, text: str) -> None:
    assert kind(index(prompt), text) is None


def rows(*, same: bool) -> Iterator[dict[str, str]]:
    lines = [line for file in PARAPHRASES for line in file.read_text("utf-8").splitlines()]
    return (row for row in map(json.loads, lines) if row["same"] is same)


def test_planted_paraphrases_are_found(bundled: PromptIndex) -> None:
    planted = list(rows(same=True))
    missed = [row for row in planted if bundled.match(row["text"]) is None]
    assert 1 - len(missed) / len(planted) >= LEAST_RECALL, missed


def test_near_misses_are_not_found(bundled: PromptIndex) -> None:
    planted = list(rows(same=False))
    found = [row for row in planted if bundled.match(row["text"])]
    assert len(found) / len(planted) <= MOST_FALSE, found


def test_a_long_prompt_is_found_shuffled_and_by_a_passage(bundled: PromptIndex) -> None:
    rng = random.Random(0)
    long = [one.text for one in benchmark_prompts(("dpg",)) if one.text.count(". ") > 2]
    assert len(long) > 100
    for text in long:
        sentences = text.rstrip(". ").split(". ")
        rng.shuffle(sentences)
        assert bundled.match(". ".join(sentences)), text
        words = text.split()
        assert bundled.match(f"Hello. {' '.join(words[3:19])} in the evening"), text


def test_limits_of_a_match() -> None:
    text = "a red car, a blue dog, a green tree, a yellow boat and a white house"
    near, far = "red car, blue dog, green tree, yellow boat", "red car, blue dog, bridge, pond"
    assert kind(index(text), f"{near}, white hut") == "near"
    assert kind(index(text), f"{near}, gray house") is None  # another color
    assert kind(index(text, short_missing=0.0), f"{near}, white hut") is None
    assert kind(index(text, short_extra=0.0), f"{near}, white hut") == "near"
    assert kind(index(text, short_extra=0.0), f"{near}, white house, sun, moon, lake, hill") is None
    assert kind(index(text, long_words=8), near) == "near"
    assert kind(index(text, long_words=8), far) is None
    assert kind(index("one two three four five", passage_words=3), "two three four!") == "passage"
    with pytest.raises(ValueError, match="long_share"):
        MatchSettings(long_share=0)


def test_texts_without_words_are_no_prompts_and_no_matches() -> None:
    assert index("", "?!", "a photo of the").match("?!") is None
    assert kind(index("a photo"), "a photo") == "exact"
    assert index("a photo of a cow").match("") is None
