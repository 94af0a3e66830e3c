"""Reads and compares answers to questions about images as the VQA benchmarks do."""

import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Literal

from blip3o.core.files import read_text
from blip3o.eval.prompt_files import BUNDLED

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
DIGITS = {
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
_NUMBERS = {"none": "0", "zero": "0", **DIGITS}
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
