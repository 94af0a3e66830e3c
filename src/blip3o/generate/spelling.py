"""Turns the tokens of an answer into text: whole characters only, and no part of a stop text."""

from collections.abc import Callable, Sequence


class Speller:
    """Spells an answer token by token.

    The answer ends before the first stop text that is complete; if several are complete at the same
    character, before the longest of them. A stop text may begin and end inside tokens. Text that
    may still become a stop text is held back.

    Args:
        decode: token ids to text, with "\ufffd" for a part of a character.
        stop: texts that end the answer.

    Attributes:
        is_stopped: whether a stop text has come.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stop = stop
        self._context: list[int] = []  # the last tokens that were spelled; a letter may need them
        self._tokens: list[int] = []
        self._held = ""
        self.is_stopped = False

    def add(self, token: int) -> str:
        """Returns the text that can be shown now that a token has come; often none.

        Args:
            token: its id.
        """
        self._tokens.append(token)
        text = self._decode(self._context + self._tokens)
        if text.endswith("\ufffd"):
            return ""
        new = text[len(self._decode(self._context)) :]
        self._context, self._tokens = self._tokens, []
        return self._show(new)

    def finish(self) -> str:
        """Returns the text that was held back, after the last token; without half a character."""
        held, self._held = self._held, ""
        return held

    def _show(self, new: str) -> str:
        text = self._held + new
        found = [(text.find(stop), stop) for stop in self._stop]
        ends = [(place + len(stop), place) for place, stop in found if place >= 0]
        if ends:
            self.is_stopped, self._held = True, ""
            return text[: min(ends)[1]]
        start = len(text) - max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[start:]
        return text[:start]


def _overlap(text: str, stop: str) -> int:
    """Returns the length of the longest end of a text that a stop text begins with."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
