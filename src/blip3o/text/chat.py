r"""The chat format: conversations as token ids, for training and for prompts.

A turn of the Qwen family is `<|im_start|>{role}\n{content}<|im_end|>\n`, one of Llama 3
`<|start_header_id|>{role}<|end_header_id|>\n\n{content}<|eot_id|>`, a plain one
`{content}<|endoftext|>`.
What people and data say is read as plain text: only this file places special tokens, so no caption
can end a turn or claim an image that is not there.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Literal

from blip3o.core.errors import UsageError
from blip3o.core.types import IGNORE_LABEL, IMAGE_MARK, Message
from blip3o.text.tokenizer import (
    IMAGE_PAD,
    IMAGE_START,
    PAD,
    TURN_END,
    TURN_START,
    VISION_END,
    VISION_START,
    Tokenizer,
)

ROLES = ("system", "user", "assistant")
IMAGE_IN_WORDS = "(an image)"
"""What stands for an image in the words of an assistant."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Special:
    """A special token, which only this file places; `count` of them in a row."""

    name: str
    count: int = 1


_Piece = str | _Special
_Part = Literal["prompt", "frame", "answer"]  # a frame stands around the words of an answer
_Placed = tuple[_Piece, _Part]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _TurnFormat:
    """What stands around the role and the content of a turn."""

    begin: tuple[_Special, ...] = ()  # once, before the first turn
    start: _Special | None  # None for turns without a header: no role, no `after_role`
    after_role: tuple[_Piece, ...] = ()
    end: _Special
    after_turn: str = ""


_FORMATS = {
    "qwen": _TurnFormat(
        start=_Special(TURN_START),
        after_role=("\n",),
        end=_Special(TURN_END),
        after_turn="\n",
    ),
    "llama3": _TurnFormat(
        begin=(_Special("<|begin_of_text|>"),),
        start=_Special("<|start_header_id|>"),
        after_role=(_Special("<|end_header_id|>"), "\n\n"),
        end=_Special("<|eot_id|>"),
    ),
    "plain": _TurnFormat(start=None, end=_Special(PAD)),
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ChatConfig:
    """The words around prompts.

    Args:
        kind: the turn format.
        system: what the system turn says; None for no system turn.
        generate: user turn that asks for an image; `{caption}` is replaced.
        edit: what follows the image in the user turn of an edit; `{instruction}` is replaced.
        reconstruct: what follows the image that is to be given back.
        close_image_turn: end the assistant's turn before `[IMG]`, as the released training does
            and the released inference does not.
        learn_whole_turns: learn the assistant's headers and what follows its turns too, as the
            released training does; else the answer and the token that ends it.

    Raises:
        ValueError: if a template lacks its placeholder.
    """

    kind: Literal["qwen", "llama3", "plain"] = "qwen"
    system: str | None = "You are a helpful assistant."
    generate: str = "Please generate image based on the following caption: {caption}"
    edit: str = "{instruction}"
    reconstruct: str = "Please reconstruct the given image."
    close_image_turn: bool = False
    learn_whole_turns: bool = False

    def __post_init__(self) -> None:
        for name, mark in (("generate", "{caption}"), ("edit", "{instruction}")):
            if mark not in getattr(self, name):
                raise ValueError(f"chat.{name} must contain {mark}, got {getattr(self, name)!r}")

    @classmethod
    def llama3(cls) -> "ChatConfig":
        """Returns the published words for Llama 3."""
        return cls(
            kind="llama3",
            system=(
                "A chat between a curious user and an artificial intelligence assistant. The "
                "assistant gives helpful, detailed, and polite answers to the user's questions."
            ),
        )


class ChatTemplate:
    """Turns messages into token ids.

    Args:
        tokenizer: the model's tokenizer.
        config: the words around prompts.
        num_image_tokens: tokens that stand for one image of a prompt (N).
    """

    def __init__(self, tokenizer: Tokenizer, config: ChatConfig, num_image_tokens: int) -> None:
        self.tokenizer = tokenizer
        self.config = config
        self.num_image_tokens = num_image_tokens
        self._format = _FORMATS[config.kind]

    @functools.cached_property
    def plain(self) -> "ChatTemplate":
        """The same without a chat format: no headers, no system turn."""
        config = dataclasses.replace(self.config, kind="plain", system=None)
        return ChatTemplate(self.tokenizer, config, self.num_image_tokens)

    @property
    def turn_end_id(self) -> int:
        """Id of the token that ends an answer."""
        return self.tokenizer.special_id(self._format.end.name)

    def generate_messages(self, caption: str) -> tuple[Message, ...]:
        """Returns the conversation that asks for an image of a caption."""
        text = self.config.generate.replace("{caption}", caption)
        return (Message(role="user", text=text),)

    def edit_messages(self, instruction: str) -> tuple[Message, ...]:
        """Returns the conversation that asks for one image to be changed as told."""
        text = self.config.edit.replace("{instruction}", instruction)
        return (Message(role="user", text=f"{IMAGE_MARK}\n{text}"),)

    def reconstruct_messages(self) -> tuple[Message, ...]:
        """Returns the conversation that asks for one image to be given back."""
        return (Message(role="user", text=f"{IMAGE_MARK}\n{self.config.reconstruct}"),)

    def image_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Returns the ids after which the query tokens of an image stand.

        The same form serves inference and training: the opened assistant turn (or the closed one,
        see `ChatConfig.close_image_turn`), then `[IMG]`.

        Args:
            messages: the turns so far, ending with the user's.

        Raises:
            UsageError: for an unknown role or an image outside a user turn.
        """
        pieces = self._prompt(messages)
        if self.config.close_image_turn:
            pieces.append((self._format.end, "answer"))
            pieces.append((self._format.after_turn, "frame"))
        pieces.append((_Special(IMAGE_START), "prompt"))
        return [i for ids, _ in self._encode(pieces) for i in ids]

    def text_prompt(
        self, messages: Sequence[Message], image_tokens: Sequence[int] | None = None
    ) -> list[int]:
        """Returns the ids after which the assistant's answer stands.

        Args:
            messages: the turns so far, ending with the user's.
            image_tokens: tokens that stand for each image, where they differ.

        Raises:
            UsageError: for an unknown role, an image outside a user turn or another number of
                images than of marks.
        """
        pieces = _with_counts(self._prompt(messages), image_tokens)
        return [i for ids, _ in self._encode(pieces) for i in ids]

    def text_prompt_string(self, messages: Sequence[Message]) -> str:
        """Returns `text_prompt` as a string for people to read, special tokens by their names.

        It cannot be told here whether a name is the token or something that a person said, so a
        model is never given this string.

        Args:
            messages: the turns so far, ending with the user's.

        Raises:
            UsageError: for an unknown role or an image outside a user turn.
        """
        return "".join(
            piece if isinstance(piece, str) else piece.name * piece.count
            for piece, _ in self._prompt(messages)
        )

    def conversation(
        self, messages: Sequence[Message], image_tokens: Sequence[int] | None = None
    ) -> tuple[list[int], list[int]]:
        """Returns the ids of a whole conversation and what to learn of them.

        Args:
            messages: all turns; an assistant's turn is learned with the token that ends it.
            image_tokens: tokens that stand for each image, where they differ.

        Returns:
            Ids and labels of one length; a label is the id at its own place, or `IGNORE_LABEL`.

        Raises:
            UsageError: for an unknown role or an image outside a user turn.
        """
        learned = ("frame", "answer") if self.config.learn_whole_turns else ("answer",)
        ids: list[int] = []
        labels: list[int] = []
        for piece_ids, part in self._encode(_with_counts(self._turns(messages), image_tokens)):
            ids += piece_ids
            labels += piece_ids if part in learned else [IGNORE_LABEL] * len(piece_ids)
        return ids, labels

    def _turns(self, messages: Sequence[Message]) -> list[_Placed]:
        pieces: list[_Placed] = [(piece, "prompt") for piece in self._format.begin]
        for message in self._with_system(messages):
            pieces += self._turn(message)
        return pieces

    def _prompt(self, messages: Sequence[Message]) -> list[_Placed]:
        return [*self._turns(messages), *self._header("assistant", "frame")]

    def _with_system(self, messages: Sequence[Message]) -> Iterator[Message]:
        for message in messages:
            if message.role not in ROLES:
                raise UsageError(f"unknown role {message.role!r}; use one of {', '.join(ROLES)}")
            if IMAGE_MARK in message.text and message.role != "user":
                raise UsageError(
                    f"{IMAGE_MARK} in a turn of the {message.role}; images stand in user turns"
                )
        if self.config.system is not None and (not messages or messages[0].role != "system"):
            yield Message(role="system", text=self.config.system)
        yield from messages

    def _header(self, role: str, part: _Part) -> Iterator[_Placed]:
        if self._format.start is None:
            return
        for piece in (self._format.start, role, *self._format.after_role):
            yield piece, part

    def _turn(self, message: Message) -> Iterator[_Placed]:
        frame, words = ("frame", "answer") if message.role == "assistant" else ("prompt", "prompt")
        yield from self._header(message.role, frame)
        if message.learned is None:
            for piece in self._content(message):
                yield piece, words
        else:
            yield from _marked(message.text, message.learned)
        yield self._format.end, words
        yield self._format.after_turn, frame

    def _content(self, message: Message) -> Iterator[_Piece]:
        if IMAGE_MARK not in message.text:
            yield message.text
            return
        first, *others = message.text.strip().split(IMAGE_MARK)
        yield first
        for text in others:
            yield _Special(VISION_START)
            yield _Special(IMAGE_PAD, self.num_image_tokens)
            yield _Special(VISION_END)
            yield text

    def _encode(self, pieces: Sequence[_Placed]) -> Iterator[tuple[list[int], _Part]]:
        """Yields ids and the part they belong to.

        Text that touches is encoded as one, but an answer apart from its header, because a prompt
        ends exactly there.
        """
        text = ""
        for place, (piece, part) in enumerate(pieces):
            if isinstance(piece, _Special):
                yield [self.tokenizer.special_id(piece.name)] * piece.count, part
                continue
            text += piece
            following = pieces[place + 1 : place + 2]
            if following and isinstance(following[0][0], str) and following[0][1] == part:
                continue
            yield self.tokenizer.encode(text, allow_special=False), part
            text = ""


def said_back(answer: str) -> str:
    """Returns an answer as a turn of the conversation that goes on.

    Said by a model, the image mark is a word; said back to it, it would ask for an image.

    Args:
        answer: what a model said.
    """
    return answer.replace(IMAGE_MARK, IMAGE_IN_WORDS)


def _marked(text: str, learned: Sequence[tuple[int, int]]) -> Iterator[_Placed]:
    """Yields an answer of which only some parts are learned; each part is encoded by itself."""
    done = 0
    for start, stop in learned:
        yield text[done:start], "prompt"
        yield text[start:stop], "answer"
        done = stop
    yield text[done:], "prompt"


def _with_counts(pieces: list[_Placed], image_tokens: Sequence[int] | None) -> list[_Placed]:
    """Returns the pieces with as many placeholders for each image as it has tokens."""
    if image_tokens is None:
        return pieces
    is_image = [isinstance(one, _Special) and one.name == IMAGE_PAD for one, _ in pieces]
    if sum(is_image) != len(image_tokens):
        raise UsageError(f"{sum(is_image)} image marks for {len(image_tokens)} images")
    counts = iter(image_tokens)
    return [
        (_Special(IMAGE_PAD, next(counts)), part) if image else (piece, part)
        for image, (piece, part) in zip(is_image, pieces, strict=True)
    ]
