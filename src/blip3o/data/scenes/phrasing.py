"""Ways to say the same, shared by the captions of training and the prompts of evaluation."""

import numpy as np

OPENINGS = ("", "", "a photo of ", "a picture of ", "an image of ")
"""What may stand before a noun phrase; none twice as often."""

RELATION_PHRASES = {
    "left of": ("to the left of", "left of", "on the left of"),
    "right of": ("to the right of", "right of", "on the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
OPPOSITE_SIDES = {
    "left of": ("on the left", "on the right"),
    "right of": ("on the right", "on the left"),
    "above": ("at the top", "at the bottom"),
    "below": ("at the bottom", "at the top"),
}


def pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    """Returns one of the options."""
    return options[int(rng.integers(len(options)))]


def related(rng: np.random.Generator, first: str, relation: str, second: str) -> str:
    """Returns a phrase for two noun phrases in a relation: "a cat to the left of a dog"."""
    if rng.random() < 0.15:
        here, there = OPPOSITE_SIDES[relation]
        return f"{first} {here} and {second} {there}"
    return f"{first} {pick(rng, RELATION_PHRASES[relation])} {second}"


def opened(rng: np.random.Generator, words: str, *, many: bool = False) -> str:
    """Returns the words with or without an opening: "a photo of ...", "there is ...".

    Args:
        rng: where the choice comes from.
        words: noun phrases.
        many: whether the first noun phrase is a plural.

    """
    if rng.random() < 0.15:
        return f"there {'are' if many else 'is'} {words}"
    return pick(rng, OPENINGS) + words


def finished(rng: np.random.Generator, sentence: str) -> str:
    """Returns the sentence, now and then with a capital and a period, as people write."""
    if rng.random() < 0.1:
        sentence = sentence[0].upper() + sentence[1:]
        return f"{sentence}."
    return sentence
