"""An answer while it is written: its tokens, its visible text and the reason why it ends."""

from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor

from blip3o.generate.text_sampling import TokenChooser
from blip3o.generate.text_settings import TextSampling
from blip3o.text.chat import ChatTemplate


class Speller:
    """Converts the tokens of an answer to text that can be shown: whole characters only.

    The answer ends before the first complete stop text. If several stop texts are complete at the
    same character, it ends before the longest. A stop text may begin and end inside tokens. Text
    that may still become a stop text is held back.

    Args:
        decode: converts token ids to text, with "\ufffd" for an incomplete character.
        stop: texts that end the answer.

    Attributes:
        is_stopped: whether the answer has reached a stop text.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stop = stop
        self._context: list[int] = []  # last decoded tokens; a character may depend on them
        self._tokens: list[int] = []  # tokens that do not form whole characters yet
        self._held = ""
        self.is_stopped = False

    def add(self, token: int) -> str:
        """Adds the id of a token and returns the new text that can be shown; it may be empty."""
        self._tokens.append(token)
        text = self._decode(self._context + self._tokens)
        if text.endswith("\ufffd"):
            return ""
        new = text[len(self._decode(self._context)) :]
        self._context = self._tokens
        self._tokens = []
        return self._show(new)

    def finish(self) -> str:
        """Returns the text that was held back; call it after the last token."""
        held, self._held = self._held, ""
        return held

    def _show(self, new: str) -> str:
        """Adds decoded text and returns the part of it that can no longer become a stop text."""
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
    """Returns the length of the longest suffix of a text that is a proper prefix of a stop text."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0


class Answer:
    """An answer that grows token by token; it depends only on its own logits and settings.

    Args:
        chat_template: the model's chat format, with its tokenizer.
        sampling: settings; with a seed if the temperature is above 0.
        limit: largest number of tokens.
        number: number of this answer among the answers to one prompt, from 0.
        draws: whether the mark of an image interrupts the answer.

    Attributes:
        tokens: all tokens, including the one that ended the answer.
        text: the text that can be shown.
        reason: why the answer ended: "stop" for the model's own end or a stop text, "length" for
            the limit; None while it continues.
        awaits_image: whether the last token is the mark of an image; then no token follows until
            `resume`.
    """

    def __init__(
        self,
        chat_template: ChatTemplate,
        sampling: TextSampling,
        limit: int,
        number: int = 0,
        *,
        draws: bool = False,
    ) -> None:
        tokenizer = chat_template.tokenizer
        # Released models sometimes end an answer with the end of the text instead of the turn.
        self._ends = (chat_template.turn_end_id, tokenizer.pad_id)
        self._image_id = tokenizer.image_start_id if draws else None
        self._chooser = TokenChooser(sampling, number)
        self._speller = Speller(tokenizer.decode, sampling.stop)
        self._limit = limit
        self.tokens: list[int] = []
        self.text = ""
        self.reason: Literal["stop", "length"] | None = None
        self.awaits_image = False

    def add(self, logits: Tensor, likeliest: int) -> str:
        """Adds the next token and returns the new text that can be shown.

        Args:
            logits: logits of the vocabulary, [V].
            likeliest: id of the largest logit.
        """
        chooser = self._chooser
        token = likeliest if chooser.is_greedy else chooser.draw(logits, len(self.tokens))
        self.tokens.append(token)
        piece = ""
        if token in self._ends:
            self.reason = "stop"
        elif token == self._image_id:
            self.awaits_image = True
        else:
            piece = self._speller.add(token)
            if self._speller.is_stopped:
                self.reason = "stop"
            elif len(self.tokens) >= self._limit:
                self.reason = "length"
        if self.reason is not None or self.awaits_image:
            piece += self._speller.finish()
        self.text += piece
        return piece

    def resume(self, room: int) -> None:
        """Continues after an image.

        Args:
            room: largest number of further tokens; 0 ends the answer, as does its own limit.
        """
        self.awaits_image = False
        self._limit = min(self._limit, len(self.tokens) + room)
        if len(self.tokens) >= self._limit:
            self.reason = "length"
