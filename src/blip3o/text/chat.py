r"""The chat format: conversations as token ids, for training and for prompts.

A turn of the Qwen family is `<|im_start|>{role}\n{content}<|im_end|>\n`, one of Llama 3
`<|start_header_id|>{role}<|end_header_id|>\n\n{content}<|eot_id|>`.
Texts of users and data are encoded as plain text. Only this file places special tokens, so a
caption can neither end a turn nor insert an image.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Literal

from blip3o.core.errors import UsageError
from blip3o.core.types import IGNORE_LABEL, IMAGE_MARK, ImagePlace, Message
from blip3o.text.tokenizer import (
    IMAGE_PAD,
    IMAGE_START,
    TURN_END,
    TURN_START,
    VISION_END,
    VISION_START,
    Tokenizer,
)

ROLES = ("system", "user", "assistant")
_DRAWN_END = VISION_END
"""Follows an image of an answer, which `IMAGE_START` begins; nothing has to predict it."""
IMAGE_IN_WORDS = "(an image)"
"""Replacement of the image mark in an assistant's answer."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Special:
    """A special token, repeated `count` times."""

    name: str
    count: int = 1


_Piece = str | _Special
_Part = Literal["prompt", "frame", "answer"]  # a frame surrounds the words of an answer
_Placed = tuple[_Piece, _Part]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _TurnFormat:
    """Tokens and text around the role and the content of a turn."""

    begin: tuple[_Special, ...] = ()  # before the first turn only
    start: _Special
    after_role: tuple[_Piece, ...]
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
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ChatConfig:
    """Turn format and wording of prompts.

    Args:
        kind: the turn format.
        system: text of the system turn; None for no system turn.
        generate: user turn that requests an image; `{caption}` is replaced.
        edit: text after the image in the user turn of an edit; `{instruction}` is replaced.
        reconstruct: text after the image in the user turn of a reconstruction.
        close_image_turn: end the assistant's turn before `[IMG]`. The released training does this;
            the released inference does not.
        learn_whole_turns: include the assistant's headers and the text after its turns in the loss,
            as the released training does; otherwise only the answer and its end token.

    Raises:
        ValueError: if a template lacks its placeholder.
    """

    kind: Literal["qwen", "llama3"] = "qwen"
    system: str | None = "You are a helpful assistant."
    generate: str = "Please generate image based on the following caption: {caption}"
    edit: str = "{instruction}"
    reconstruct: str = "Please reconstruct the given image."
    close_image_turn: bool = False
    learn_whole_turns: bool = False

    def __post_init__(self) -> None:
        for name, text, mark in (
            ("generate", self.generate, "{caption}"),
            ("edit", self.edit, "{instruction}"),
        ):
            if mark not in text:
                raise ValueError(f"chat.{name} must contain {mark}, got {text!r}")

    @classmethod
    def llama3(cls) -> "ChatConfig":
        """Returns the published format and wording for Llama 3."""
        return cls(
            kind="llama3",
            system=(
                "A chat between a curious user and an artificial intelligence assistant. The "
                "assistant gives helpful, detailed, and polite answers to the user's questions."
            ),
        )


class ChatTemplate:
    """Converts messages to token ids.

    Args:
        tokenizer: the model's tokenizer.
        config: turn format and wording.
        num_image_tokens: number of placeholder tokens for one image of a prompt (N).
    """

    def __init__(self, tokenizer: Tokenizer, config: ChatConfig, num_image_tokens: int) -> None:
        self.tokenizer = tokenizer
        self.config = config
        self.num_image_tokens = num_image_tokens
        self._format = _FORMATS[config.kind]

    @property
    def turn_end_id(self) -> int:
        """Id of the token that ends an answer."""
        return self.tokenizer.special_id(self._format.end.name)

    def generate_messages(self, caption: str) -> tuple[Message, ...]:
        """Returns the conversation that requests an image of a caption."""
        text = self.config.generate.replace("{caption}", caption)
        return (Message(role="user", text=text),)

    def edit_messages(self, instruction: str, num_images: int = 1) -> tuple[Message, ...]:
        """Returns the conversation that requests an edit of one image or of several images."""
        text = self.config.edit.replace("{instruction}", instruction)
        marks = IMAGE_MARK * num_images
        return (Message(role="user", text=f"{marks}\n{text}" if marks else text),)

    def reconstruct_messages(self) -> tuple[Message, ...]:
        """Returns the conversation that requests a reconstruction of one image."""
        return (Message(role="user", text=f"{IMAGE_MARK}\n{self.config.reconstruct}"),)

    def image_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Returns the token ids of a prompt for an image; the query tokens follow them.

        Inference and training use the same form: the opened assistant turn (or a closed one, see
        `ChatConfig.close_image_turn`), then `[IMG]`.

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
        self,
        messages: Sequence[Message],
        image_tokens: Sequence[int] | None = None,
        *,
        draws: bool = False,
    ) -> list[int]:
        """Returns the token ids of a prompt for text; the assistant's answer follows them.

        Args:
            messages: the turns so far, ending with the user's.
            image_tokens: number of placeholder tokens for each image, if the numbers differ.
            draws: whether earlier answers may hold images, see `conversation`.

        Raises:
            UsageError: for an unknown role, an image outside a user turn, or if the number of
                images differs from that of image marks.
        """
        pieces = _with_counts(self._prompt(messages, draws=draws), image_tokens)
        return [i for ids, _ in self._encode(pieces) for i in ids]

    def conversation(
        self,
        messages: Sequence[Message],
        image_tokens: Sequence[int] | None = None,
        *,
        draws: bool = False,
    ) -> tuple[list[int], list[int]]:
        """Returns the token ids and the labels of a whole conversation.

        Args:
            messages: all turns; the loss covers an assistant's turn and its end token.
            image_tokens: number of placeholder tokens for each image, if the numbers differ.
            draws: whether answers may hold images. Such an image is `[IMG]`, placeholders and
                `<|vision_end|>`; only the first of these has a label. Headers have none.

        Returns:
            Ids and labels of equal length; a label is the id at its position or `IGNORE_LABEL`.

        Raises:
            UsageError: for an unknown role or an image in a turn that may not hold it.
        """
        is_whole = self.config.learn_whole_turns and not draws
        learned = ("frame", "answer") if is_whole else ("answer",)
        ids: list[int] = []
        labels: list[int] = []
        pieces = self._turns(messages, draws=draws)
        for piece_ids, part in self._encode(_with_counts(pieces, image_tokens)):
            ids += piece_ids
            labels += piece_ids if part in learned else [IGNORE_LABEL] * len(piece_ids)
        return ids, labels

    def image_places(self, ids: Sequence[int], labels: Sequence[int]) -> list[ImagePlace]:
        """Returns the places of the images of a conversation, in order.

        Args:
            ids: token ids of the conversation.
            labels: their labels; a drawn image is a target if its `[IMG]` has a label.
        """
        pad, begin = self.tokenizer.image_pad_id, self.tokenizer.image_start_id
        words = [
            place
            for place, label in enumerate(labels)
            if label != IGNORE_LABEL and not self.tokenizer.is_special(label)
        ]
        places: list[ImagePlace] = []
        at = 0
        for is_image, run in itertools.groupby(ids, key=lambda one: one == pad):
            length = len(list(run))
            if is_image:
                places.append(
                    ImagePlace(
                        start=at,
                        length=length,
                        is_drawn=ids[at - 1] == begin,
                        is_target=labels[at - 1] == begin,
                        before_text=bool(words) and words[-1] > at,
                    )
                )
            at += length
        return places

    def drawn_image(self, num_tokens: int) -> list[int]:
        """Returns the token ids of a drawn image after its `[IMG]`: placeholders and end."""
        end = self.tokenizer.special_id(_DRAWN_END)
        return [self.tokenizer.image_pad_id] * num_tokens + [end]

    def _turns(self, messages: Sequence[Message], *, draws: bool = False) -> list[_Placed]:
        pieces: list[_Placed] = [(piece, "prompt") for piece in self._format.begin]
        for message in self._with_system(messages, draws=draws):
            pieces += self._turn(message)
        return pieces

    def _prompt(self, messages: Sequence[Message], *, draws: bool = False) -> list[_Placed]:
        return [*self._turns(messages, draws=draws), *self._header("assistant", "frame")]

    def _with_system(self, messages: Sequence[Message], *, draws: bool) -> Iterator[Message]:
        holders = ("user", "assistant") if draws else ("user",)
        for message in messages:
            if message.role not in ROLES:
                raise UsageError(f"unknown role {message.role!r}; use one of {', '.join(ROLES)}")
            if IMAGE_MARK in message.text and message.role not in holders:
                raise UsageError(
                    f"{IMAGE_MARK} in a turn of the {message.role}; images belong in user turns"
                )
        if self.config.system is not None and (not messages or messages[0].role != "system"):
            yield Message(role="system", text=self.config.system)
        yield from messages

    def _header(self, role: str, part: _Part) -> Iterator[_Placed]:
        for piece in (self._format.start, role, *self._format.after_role):
            yield piece, part

    def _turn(self, message: Message) -> Iterator[_Placed]:
        frame, words = ("frame", "answer") if message.role == "assistant" else ("prompt", "prompt")
        yield from self._header(message.role, frame)
        if message.role == "assistant":
            for text, part in _marked(message.text, message.learned):
                yield from self._answer(text, part)
        else:
            for piece in self._content(message):
                yield piece, words
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

    def _answer(self, text: str, part: _Part) -> Iterator[_Placed]:
        first, *others = text.split(IMAGE_MARK)
        yield first, part
        for following in others:
            yield _Special(IMAGE_START), part
            yield _Special(IMAGE_PAD, self.num_image_tokens), "prompt"
            yield _Special(_DRAWN_END), "prompt"
            yield following, part

    def _encode(self, pieces: Sequence[_Placed]) -> Iterator[tuple[list[int], _Part]]:
        """Yields token ids and the part of the turn to which they belong.

        Adjacent texts of one part are encoded together. An answer and its header are encoded
        separately, because a prompt ends between them.
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
    """Returns an answer in the form in which it continues a conversation.

    The image mark is an ordinary word in an answer, but in a prompt it would insert an image.

    Args:
        answer: the answer of a model.
    """
    return answer.replace(IMAGE_MARK, IMAGE_IN_WORDS)


def _marked(text: str, learned: Sequence[tuple[int, int]] | None) -> Iterator[tuple[str, _Part]]:
    """Yields the parts of an answer; each part is encoded separately."""
    if learned is None:
        yield text, "answer"
        return
    done = 0
    for start, stop in learned:
        yield text[done:start], "prompt"
        yield text[start:stop], "answer"
        done = stop
    yield text[done:], "prompt"


def _with_counts(pieces: list[_Placed], image_tokens: Sequence[int] | None) -> list[_Placed]:
    """Returns the pieces with the given number of placeholder tokens for each image."""
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
