"""Tokens to text: whole characters and no part of a stop text, for any borders of tokens."""

import itertools
from collections.abc import Iterator, Sequence

import pytest

from blip3o.generate.answer import Speller
from blip3o.text.tokenizer import Tokenizer

TEXTS = ("abcabd", "aaaa", "END", "na\u00efve \U0001f431!", "x\n\nUser: y", "ab\U0001f431\u00efc")


def of_bytes(ids: Sequence[int]) -> str:
    return bytes(ids).decode("utf-8", errors="replace")


def splits(text: str) -> Iterator[list[str]]:
    """Returns every way to split a text into tokens."""
    for cuts in itertools.product([False, True], repeat=len(text) - 1):
        pieces = [text[0]]
        for cut, letter in zip(cuts, text[1:], strict=True):
            if cut:
                pieces.append(letter)
            else:
                pieces[-1] += letter
        yield pieces


def spelled(speller: Speller, tokens: Sequence[int]) -> list[str]:
    pieces = []
    for token in tokens:
        pieces.append(speller.add(token))
        if speller.is_stopped:
            break
    return [*pieces, speller.finish()]


def ended(text: str, stop: Sequence[str]) -> str:
    """Returns the text that remains before the first stop text, letter by letter."""
    for end in range(1, len(text) + 1):
        found = [one for one in stop if text[:end].endswith(one)]
        if found:
            return text[: end - max(map(len, found))]
    return text


@pytest.mark.parametrize(
    "stop",
    [
        (),
        ("c",),
        ("ab",),
        ("abd",),
        ("abcabd",),
        ("bca", "cab"),
        ("b", "abc"),
        ("aab", "aaaab"),
        ("aaa",),
        ("END", "N"),
        ("ND",),
        ("\U0001f431",),
        ("\u00ef",),
        ("\n\nUser:", "\n\n\n"),
        ("e \U0001f431!", "nothing of it"),
        ("abcabdx",),
    ],
)
def test_an_answer_ends_before_a_stop_text_whatever_its_tokens(stop: tuple[str, ...]) -> None:
    for text in TEXTS:
        expected = ended(text, stop)
        for tokens in splits(text):
            speller = Speller(lambda ids, tokens=tokens: "".join(tokens[i] for i in ids), stop)
            pieces = spelled(speller, range(len(tokens)))
            assert "".join(pieces) == expected, tokens
            assert speller.is_stopped == (expected != text)
            for piece in itertools.accumulate(pieces):
                assert expected.startswith(piece)
        # One token per byte, as byte-level tokenizers may give.
        speller = Speller(of_bytes, stop)
        assert "".join(spelled(speller, text.encode())) == expected


def test_pieces_are_whole_characters_and_are_not_delayed(tiny_tokenizer: Tokenizer) -> None:
    """Byte-level tokens split characters; a terminal must never show part of one."""
    text = "na\u00efve \U0001f431!"
    ids = tiny_tokenizer.encode(text)
    assert len(ids) > len(text)
    pieces = [Speller(tiny_tokenizer.decode).add(token) for token in ids[:1]]
    speller = Speller(tiny_tokenizer.decode)
    pieces = [speller.add(token) for token in ids]
    assert "".join(pieces) == text
    assert speller.finish() == ""
    assert not any("\ufffd" in piece for piece in pieces)
    assert "\U0001f431" in pieces
    assert pieces[0] == "n"
    # An answer that ends inside a character is shown up to that character.
    speller = Speller(tiny_tokenizer.decode)
    assert "".join(spelled(speller, ids[:-2])) == "na\u00efve "


def test_only_text_that_may_become_a_stop_text_is_held_back() -> None:
    speller = Speller(of_bytes, ("stop",))
    assert [speller.add(letter) for letter in b"as stone st"] == [
        *("a", "", "s ", "", "", "", "ston", "e", " ", "", ""),
    ]
    assert speller.finish() == "st"


def test_a_letter_that_needs_the_one_before_it_keeps_it() -> None:
    """Some tokenizers drop a space at the very start of what they decode."""

    def decode(ids: Sequence[int]) -> str:
        return "".join(" the" if i else " a" for i in ids).removeprefix(" ")

    speller = Speller(decode)
    assert [speller.add(token) for token in (0, 1, 1, 0)] == ["a", " the", " the", " a"]
