"""Readings of yes and no, MME's scores, probabilities of tokens, and questions asked in groups."""

import math
from collections.abc import Iterator, Sequence

import pytest

from blip3o.eval.benchmark import Outcome
from blip3o.eval.judges.asking import Reading, ask_each, token_probability, worst_outcome
from blip3o.eval.vqa import mme_score, normalize_answer, read_mme, read_yes_no, soft_accuracy
from blip3o.remote.chat import Answer, ChatRequest


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("yes", True),
        ("Yes.", True),
        ("**Yes**, it is.", True),
        ("no", False),
        ("No, there are three.", False),
        ("yesterday", None),
        ("not sure", None),
        ("It is red. Yes.", None),
        ("...", None),
        ("", None),
    ],
)
def test_the_first_word_decides_between_yes_and_no(text: str, expected: bool | None) -> None:
    assert read_yes_no(text) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes.", "yes"),
        ("Y", "yes"),
        ("n.", "no"),
        ("No, it is not", "no"),
        (" yes", "yes"),
        ("Not really", "no"),
        ("The answer is yes", "other"),
        ("", "other"),
    ],
)
def test_mme_reads_the_first_four_letters(text: str, expected: str) -> None:
    assert read_mme(text) == expected


def test_mme_adds_the_share_of_images_without_a_fault() -> None:
    assert mme_score({"a": [True, True], "b": [True, False]}) == pytest.approx(75 + 50)


def test_the_own_answer_of_an_annotator_does_not_count() -> None:
    answers = ["cat"] * 3 + ["dog"] * 7
    # The three annotators who said cat see two others, the seven see three.
    assert soft_accuracy("a Cat.", answers) == pytest.approx((3 * 2 / 3 + 7) / 10)


def test_a_mark_that_touches_a_space_anywhere_vanishes_everywhere() -> None:
    assert normalize_answer("x-y") == "x y"
    assert normalize_answer("x-y -z") == "xy z"
    assert normalize_answer("x-y- z") == "xy z"


def test_a_token_counts_once_and_others_do_not() -> None:
    tokens = (("Yes", math.log(0.5)), (" yes", math.log(0.25)), ("No", math.log(0.125)))
    answer = Answer(outcome="answered", text="Yes", first_token=tokens)
    assert token_probability(answer, ("Yes", "yes", " yes", "Yes")) == pytest.approx(0.75)
    assert token_probability(answer, ("yes", "no", "Maybe")) == 0


class Echo:
    name = "echo"

    def answers(self, requests: Sequence[ChatRequest]) -> Iterator[tuple[int, Answer]]:
        for place in reversed(range(len(requests))):
            yield place, Answer(outcome="answered", text=str(requests[place].parts[0]))


def test_a_group_is_complete_as_soon_as_its_last_answer_is_there() -> None:
    groups = [[ChatRequest(parts=(f"{g}{k}",)) for k in range(g)] for g in range(4)]
    found = list(ask_each(Echo(), groups, str))
    assert [number for number, _ in found] == [0, 3, 2, 1]
    values = {number: [reading.value for reading in readings] for number, readings in found}
    assert values == {0: [], 1: ["10"], 2: ["20", "21"], 3: ["30", "31", "32"]}


def test_a_transport_error_precedes_other_faults() -> None:
    def reading(outcome: Outcome) -> Reading[str]:
        return Reading(outcome=outcome, value=None, answers=())

    assert worst_outcome([]) == "judged"
    assert worst_outcome([reading("judged"), reading("empty"), reading("cut")]) == "empty"
    assert worst_outcome([reading("empty"), reading("transport")]) == "transport"
