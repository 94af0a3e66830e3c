"""Questions about images: asks them, and compares answers as the VQA benchmarks do."""

import dataclasses
import functools
import io
import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Literal, TypeVar

from blip3o.core.errors import UsageError
from blip3o.core.files import read_text
from blip3o.eval.benchmark import Outcome, Sample
from blip3o.eval.judges.asking import Reading, ask
from blip3o.eval.prompt_files import BUNDLED
from blip3o.remote.chat import Answer, ChatImage, ChatModel, ChatRequest

T = TypeVar("T")

# ---------------------------------------------------------------------------------------------
# Asking


def chat_image(sample: Sample) -> ChatImage:
    """Returns the image of a sample as a PNG file for a request.

    Raises:
        ValueError: if the sample is not an image.
    """
    if sample.image is None:
        raise ValueError(f"sample {sample.number} of {sample.item.id} has no image")
    file = io.BytesIO()
    sample.image.save(file, format="PNG")
    return ChatImage(file.getvalue())


def ask_each(
    model: ChatModel,
    requests: Sequence[Sequence[ChatRequest]],
    read: Callable[[str], T | None],
    *,
    attempts: int = 1,
) -> Iterator[tuple[int, list[Reading[T]]]]:
    """Yields (position of a group, readings of its requests) as soon as all of a group are there.

    Args:
        model: the judge.
        requests: groups of requests, such as the questions about each sample.
        read: as for `ask`.
        attempts: as for `ask`.
    """
    places = [(group, place) for group, some in enumerate(requests) for place in range(len(some))]
    flat = [requests[group][place] for group, place in places]
    readings: dict[int, dict[int, Reading[T]]] = {group: {} for group in range(len(requests))}
    for group in [group for group, some in enumerate(requests) if not some]:
        yield group, list(readings.pop(group).values())
    for number, reading in ask(model, flat, read, attempts=attempts):
        group, place = places[number]
        readings[group][place] = reading
        if len(readings[group]) == len(requests[group]):
            yield group, [reading for _, reading in sorted(readings.pop(group).items())]


def ask_first_tokens(
    model: ChatModel, requests: Sequence[Sequence[ChatRequest]], *, attempts: int = 1
) -> Iterator[tuple[int, list[Reading[str]]]]:
    """Yields the readings of each group, as `ask_each`, with the probabilities of first tokens.

    An answer without a text is judged as well if its first token is known.

    Args:
        model: the judge.
        requests: groups of requests with `top_logprobs`.
        attempts: as for `ask`.

    Raises:
        UsageError: if the judge answers without probabilities.
    """
    for group, readings in ask_each(model, requests, str, attempts=attempts):
        known: list[Reading[str]] = []
        for reading in readings:
            answer = reading.answers[-1]
            if reading.outcome == "judged" and not answer.first_token:
                raise UsageError(
                    f"{model.name} answers without the probabilities of tokens, from which the "
                    "score is made: use a server with logprobs"
                )
            if reading.outcome == "empty" and answer.first_token:
                reading = dataclasses.replace(reading, outcome="judged", value="")
            known.append(reading)
        yield group, known


def worst_outcome(readings: Iterable[Reading[T]]) -> Outcome:
    """Returns "judged" if all requests gave a value, else the reason of the first that gave none.

    A transport error precedes all others, because asking again may remove it.
    """
    faults = [reading.outcome for reading in readings if reading.outcome != "judged"]
    if not faults:
        return "judged"
    return "transport" if "transport" in faults else faults[0]


def token_probability(answer: Answer, spellings: Collection[str]) -> float:
    """Returns the probability that the first token of an answer is one of some spellings.

    A token that the server does not list has the probability 0, and each token counts once.

    Args:
        answer: the answer to a request with `top_logprobs`.
        spellings: the tokens, with their leading spaces.
    """
    found = (math.exp(log) for token, log in answer.first_token if token in spellings)
    return min(1.0, sum(found))  # a server may round logarithms up


YES_SPELLINGS = ("Yes", "yes", " yes", " Yes")

# ---------------------------------------------------------------------------------------------
# Yes and no


def read_yes_no(text: str) -> bool | None:
    """Returns whether an answer says yes; None if it begins with neither "yes" nor "no".

    Case, quotes, stars and other marks before and after the word do not matter: "**Yes**, it is."
    """
    words = re.findall(r"\w+", text.lower())
    return {"yes": True, "no": False}.get(words[0]) if words else None


def read_mme(text: str) -> Literal["yes", "no", "other"]:
    """Returns the reading of an answer in MME.

    The answer is read in lower case without periods: the word or its letter alone, else the word
    within the first four letters.
    """
    plain = text.lower().replace(".", "").strip()
    if plain in {"y", "n"}:
        return "yes" if plain == "y" else "no"
    start = plain[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


MME_PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
MME_COGNITION = (
    "commonsense_reasoning",
    "numerical_calculation",
    "text_translation",
    "code_reasoning",
)


def mme_score(right_by_image: Mapping[str, Sequence[bool]]) -> float:
    """Returns the score of a category of MME, from 0 to 200.

    It is the percentage of right answers plus the percentage of images with right answers only.

    Args:
        right_by_image: whether each answer is right, by image.
    """
    answers = [is_right for marks in right_by_image.values() for is_right in marks]
    images = [all(marks) for marks in right_by_image.values()]
    return 100 * sum(answers) / len(answers) + 100 * sum(images) / len(images)


# ---------------------------------------------------------------------------------------------
# VQAv2 (parity family `vqa`)

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_NUMBERS = {
    "none": "0",
    "zero": "0",
    "one": "1",
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
    "ten": "10",
}
_ARTICLES = {"a", "an", "the"}
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")


@functools.cache
def _contractions() -> dict[str, str]:
    """Returns the words that lack an apostrophe, with their right forms."""
    return json.loads(read_text(BUNDLED / "vqa" / "contractions.json"))


def normalize_answer(text: str, *, split_possessive: bool = False) -> str:
    """Returns an answer in the form in which VQAv2 compares answers.

    Punctuation marks vanish if one of their kind touches a space anywhere in the answer or if a
    comma stands between digits; otherwise they become spaces. Words are in lower case, number words
    are digits, articles are dropped, and contractions have their apostrophe.

    Args:
        text: the answer.
        split_possessive: removes commas and question marks first and separates "'s" from its word,
            as TextVQA does.
    """
    if split_possessive:
        text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    text = text.replace("\n", " ").replace("\t", " ").strip()
    has_number = _COMMA_IN_NUMBER.search(text) is not None
    plain = text
    for mark in _MARKS:
        vanishes = has_number or f"{mark} " in text or f" {mark}" in text
        plain = plain.replace(mark, "" if vanishes else " ")
    words = (_NUMBERS.get(word, word) for word in _PERIOD.sub("", plain).lower().split())
    table = _contractions()
    return " ".join(table.get(word, word) for word in words if word not in _ARTICLES)


def soft_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Returns the accuracy of VQAv2, from 0 to 1.

    It is the mean over the annotators of min(1, matches among the other annotators / 3).

    Args:
        prediction: the answer of the model.
        answers: the answers of the annotators; VQAv2 has ten.
    """
    wanted = normalize_answer(prediction)
    matches = [normalize_answer(answer) == wanted for answer in answers]
    total = sum(matches)
    return sum(min(1.0, (total - match) / 3) for match in matches) / len(matches)


def grouped(pairs: Iterable[tuple[str, T]]) -> dict[str, list[T]]:
    """Returns the values of each name, names in the order of their first appearance."""
    groups: dict[str, list[T]] = defaultdict(list)
    for name, value in pairs:
        groups[name].append(value)
    return dict(groups)
