"""An answer while it is written: its next token, the text to show, and the reason why it ends."""

from typing import Literal

from torch import Tensor

from blip3o.generate.spelling import Speller
from blip3o.generate.text_sampling import TokenChooser
from blip3o.generate.text_settings import TextSampling
from blip3o.text.chat import ChatTemplate


class Answer:
    """An answer that grows token by token; only its own logits and settings decide what it says.

    Args:
        chat_template: the model's chat format, with its tokenizer.
        sampling: how it is written; with a seed where the temperature is above 0.
        limit: most tokens.
        number: its number among the answers to one prompt.

    Attributes:
        tokens: what was written, the token that ended it included.
        text: the part of it that can be shown.
        reason: why it ended: "stop" where the model or a stop text ended it, "length" where the
            limit did; None while it goes on.
    """

    def __init__(
        self, chat_template: ChatTemplate, sampling: TextSampling, limit: int, number: int = 0
    ) -> None:
        tokenizer = chat_template.tokenizer
        # The end of a text ends an answer, too: now and then released models end one by it and
        # not by the turn.
        self._ends = (chat_template.turn_end_id, tokenizer.pad_id)
        self._chooser = TokenChooser(sampling, number)
        self._speller = Speller(tokenizer.decode, sampling.stop)
        self._limit = limit
        self.tokens: list[int] = []
        self.text = ""
        self.reason: Literal["stop", "length"] | None = None

    def add(self, logits: Tensor, likeliest: int) -> str:
        """Writes the next token and returns the text that can be shown because of it.

        Args:
            logits: of every token, [V].
            likeliest: the id of the largest one.
        """
        chooser = self._chooser
        token = likeliest if chooser.is_greedy else chooser.draw(logits, len(self.tokens))
        self.tokens.append(token)
        piece = ""
        if token in self._ends:
            self.reason = "stop"
        else:
            piece = self._speller.add(token)
            if self._speller.is_stopped:
                self.reason = "stop"
            elif len(self.tokens) >= self._limit:
                self.reason = "length"
        if self.reason is not None:
            piece += self._speller.finish()
        self.text += piece
        return piece
