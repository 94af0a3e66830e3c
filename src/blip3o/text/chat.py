r"""The chat format: conversations as token ids, for training and for prompts.

Every turn is `<|im_start|>{role}\n{content}<|im_end|>\n` (BLIP3-o's format for the Qwen family).
What people and data say is read as plain text: only this file places special tokens, so no caption
can end a turn or claim a picture that is not there.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Literal

from blip3o.core.errors import UsageError
from blip3o.core.types import IGNORE_LABEL, IMAGE_MARK, Message
from blip3o.text.tokenizer import Tokenizer

ROLES = ("system", "user", "assistant")

_Piece = str | tuple[int, ...]  # plain text, or ids that stand as they are


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ChatConfig:
    """The words around prompts.

    Args:
        kind: the turn format.
        system: what the system turn says; None for no system turn.
        generate: user turn that asks for a picture; `{caption}` is replaced.
        edit: what follows the picture in the user turn of an edit; `{instruction}` is replaced.
        reconstruct: what follows the picture that is to be given back.

    Raises:
        ValueError: if a template lacks its placeholder.
    """

    kind: Literal["qwen"] = "qwen"
    system: str | None = "You are a helpful assistant."
    generate: str = "Please generate image based on the following caption: {caption}"
    edit: str = "{instruction}"
    reconstruct: str = "Please reconstruct the given image."

    def __post_init__(self) -> None:
        for name, mark in (("generate", "{caption}"), ("edit", "{instruction}")):
            if mark not in getattr(self, name):
                raise ValueError(f"chat.{name} must contain {mark}, got {getattr(self, name)!r}")


class ChatTemplate:
    """Turns messages into token ids.

    Args:
        tokenizer: the model's tokenizer.
        config: the words around prompts.
        num_image_tokens: tokens that stand for one picture of a prompt (N).
    """

    def __init__(self, tokenizer: Tokenizer, config: ChatConfig, num_image_tokens: int) -> None:
        self.tokenizer = tokenizer
        self.config = config
        self.num_image_tokens = num_image_tokens

    def generate_messages(self, caption: str) -> tuple[Message, ...]:
        """Returns the conversation that asks for a picture of a caption."""
        text = self.config.generate.replace("{caption}", caption)
        return (Message(role="user", text=text),)

    def edit_messages(self, instruction: str) -> tuple[Message, ...]:
        """Returns the conversation that asks for one picture to be changed as told."""
        text = self.config.edit.replace("{instruction}", instruction)
        return (Message(role="user", text=f"{IMAGE_MARK}\n{text}"),)

    def reconstruct_messages(self) -> tuple[Message, ...]:
        """Returns the conversation that asks for one picture to be given back."""
        return (Message(role="user", text=f"{IMAGE_MARK}\n{self.config.reconstruct}"),)

    def image_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Returns the ids after which the query tokens of a picture stand.

        The same form serves inference and training: the opened assistant turn, then `[IMG]`.

        Args:
            messages: the turns so far, ending with the user's.

        Raises:
            UsageError: for an unknown role or a picture outside a user turn.
        """
        return [*self.text_prompt(messages), self.tokenizer.image_start_id]

    def text_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Returns the ids after which the assistant's answer stands.

        Args:
            messages: the turns so far, ending with the user's.

        Raises:
            UsageError: for an unknown role or a picture outside a user turn.
        """
        pieces: list[_Piece] = []
        for message in self._with_system(messages):
            pieces += self._turn(message)
        pieces += [(self.tokenizer.turn_start_id,), "assistant\n"]
        return [i for ids in self._encode(pieces) for i in ids]

    def conversation(self, messages: Sequence[Message]) -> tuple[list[int], list[int]]:
        """Returns the ids of a whole conversation and what to learn of them.

        Args:
            messages: all turns; an assistant's turn is learned with the token that ends it.

        Returns:
            Ids and labels of one length; a label is the id at its own place, or `IGNORE_LABEL`.

        Raises:
            UsageError: for an unknown role or a picture outside a user turn.
        """
        ids: list[int] = []
        labels: list[int] = []
        for message in self._with_system(messages):
            pieces = self._turn(message)
            for place, piece_ids in enumerate(self._encode(pieces)):
                ids += piece_ids
                # An assistant's pieces are start, header, content, end, newline.
                learned = message.role == "assistant" and place in (2, 3)
                labels += piece_ids if learned else [IGNORE_LABEL] * len(piece_ids)
        return ids, labels

    def _with_system(self, messages: Sequence[Message]) -> Iterator[Message]:
        for message in messages:
            if message.role not in ROLES:
                raise UsageError(f"unknown role {message.role!r}; use one of {', '.join(ROLES)}")
            if IMAGE_MARK in message.text and message.role != "user":
                raise UsageError(
                    f"{IMAGE_MARK} in a turn of the {message.role}; pictures stand in user turns"
                )
        if self.config.system is not None and (not messages or messages[0].role != "system"):
            yield Message(role="system", text=self.config.system)
        yield from messages

    def _turn(self, message: Message) -> list[_Piece]:
        text, *rest = self._content(message)
        header = f"{message.role}\n"
        # An answer is encoded apart from its header, because a prompt ends exactly there; all
        # other text that touches is encoded as one.
        answer = message.role == "assistant"
        first: list[_Piece] = [header, text] if answer else [header + text]
        start, end = (self.tokenizer.turn_start_id,), (self.tokenizer.turn_end_id,)
        return [start, *first, *rest, end, "\n"]

    def _content(self, message: Message) -> tuple[str, *tuple[_Piece, ...]]:
        if IMAGE_MARK not in message.text:
            return (message.text,)
        token = self.tokenizer
        picture = (
            token.vision_start_id,
            *[token.image_pad_id] * self.num_image_tokens,
            token.vision_end_id,
        )
        first, *others = message.text.strip().split(IMAGE_MARK)
        return (first, *(piece for text in others for piece in (picture, text)))

    def _encode(self, pieces: Sequence[_Piece]) -> Iterator[list[int]]:
        for piece in pieces:
            if isinstance(piece, str):
                yield self.tokenizer.encode(piece, allow_special=False)
            else:
                yield list(piece)
