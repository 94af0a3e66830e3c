"""Byte-level BPE tokenizer based on the `tokenizers` library, with the special tokens of blip3o.

A `tokenizer.json` of the Qwen family works unchanged. This module, not the library, detects special
tokens: each call decides whether its text may contain them, while the library has one setting for
all calls.
"""

import functools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from blip3o.core.errors import UsageError, first_line
from blip3o.core.files import write_atomic

FILE_NAME = "tokenizer.json"

PAD = "<|endoftext|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
IMAGE_START = "[IMG]"
VISION_START = "<|vision_start|>"
VISION_END = "<|vision_end|>"
IMAGE_PAD = "<|image_pad|>"
SPECIAL_TOKENS = (PAD, TURN_START, TURN_END, IMAGE_START, VISION_START, VISION_END, IMAGE_PAD)

# The published split of the Qwen family: contractions, words, single digits, punctuation, spaces.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Tokenizer:
    """Converts text to token ids and back.

    Args:
        backend: the library's tokenizer; this object takes ownership of it.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        backend.no_padding()
        backend.no_truncation()
        backend.encode_special_tokens = True  # makes the library read them as plain text
        self._backend = backend
        added = backend.get_added_tokens_decoder()
        self._special_ids = {token.content: i for i, token in added.items() if token.special}
        names = sorted(self._special_ids, key=len, reverse=True)
        self._special = re.compile("(" + "|".join(map(re.escape, names)) + ")") if names else None

    def __reduce__(self) -> tuple[type["Tokenizer"], tuple[tokenizers.Tokenizer]]:
        """Pickles only the backend; unpickling restores settings that the library does not save."""
        return Tokenizer, (self._backend,)

    @classmethod
    def load(cls, folder: str | Path) -> "Tokenizer":
        """Returns the tokenizer stored in a folder.

        Args:
            folder: holds `tokenizer.json`.

        Raises:
            UsageError: if the file is missing or not a tokenizer.
        """
        file = Path(folder) / FILE_NAME
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"no readable tokenizer at {file}") from error
        try:
            return cls(tokenizers.Tokenizer.from_str(text))
        except Exception as error:  # the library raises a bare Exception for any fault of the file
            reason = first_line(error)
            raise UsageError(f"{file} is damaged or not a tokenizer: {reason}") from error

    def save(self, folder: str | Path) -> None:
        """Writes `tokenizer.json` into a folder, created if missing."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_atomic(Path(folder) / FILE_NAME, self._backend.to_str(pretty=True) + "\n")

    def encode(self, text: str, *, allow_special: bool = True) -> list[int]:
        """Returns the token ids of a text, without tokens before or after it.

        Args:
            text: any valid Unicode text.
            allow_special: True reads strings such as "<|im_end|>" as special tokens; False reads
                them as plain characters, for text from untrusted sources.

        Raises:
            UsageError: for lone surrogates; Python represents invalid bytes of a command line so.
        """
        if not allow_special or self._special is None:
            return self._encode_plain(text)
        ids: list[int] = []
        for place, piece in enumerate(self._special.split(text)):
            if place % 2:
                ids.append(self._special_ids[piece])
            else:
                ids += self._encode_plain(piece)
        return ids

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Returns the text of token ids.

        Args:
            ids: token ids in [0, vocab_size).
            skip_special: whether to leave out special tokens.
        """
        return self._backend.decode(list(ids), skip_special_tokens=skip_special)

    def special_id(self, token: str) -> int:
        """Returns the id of a special token, such as "<|im_end|>".

        Raises:
            UsageError: if this tokenizer has no such special token.
        """
        if token not in self._special_ids:
            raise UsageError(
                f"the tokenizer has no special token {token!r}; take the tokenizer.json that "
                "belongs to the model, or add the token to it"
            )
        return self._special_ids[token]

    def is_special(self, token: int) -> bool:
        """Returns whether an id is that of a special token."""
        return token in self._special_numbers

    @functools.cached_property
    def _special_numbers(self) -> frozenset[int]:
        return frozenset(self._special_ids.values())

    @property
    def vocab_size(self) -> int:
        """Number of token ids, including special tokens."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    @functools.cached_property
    def pad_id(self) -> int:
        """Id of the token that pads rows to equal length."""
        return self.special_id(PAD)

    @functools.cached_property
    def image_start_id(self) -> int:
        """Id of the token that precedes the query tokens of an image to generate."""
        return self.special_id(IMAGE_START)

    @functools.cached_property
    def image_pad_id(self) -> int:
        """Id of the placeholder for the features of an image in the prompt."""
        return self.special_id(IMAGE_PAD)

    def _encode_plain(self, text: str) -> list[int]:
        if not text:
            return []
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UsageError(f"the text is not valid Unicode: {text[:40]!r}") from error
        return self._backend.encode(text, add_special_tokens=False).ids


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Returns a byte-level BPE tokenizer trained on texts; equal texts give equal tokenizers.

    Args:
        texts: the training texts, in any order.
        vocab_size: largest number of token ids, including the 256 bytes and the special tokens.

    Raises:
        UsageError: if the vocabulary is too small for the bytes and the special tokens.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    least = len(alphabet) + len(SPECIAL_TOKENS)
    if vocab_size < least:
        raise UsageError(f"a byte-level vocabulary needs at least {least} tokens, not {vocab_size}")
    backend = tokenizers.Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    # Special tokens come first, so that their ids do not depend on the number of merges.
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return Tokenizer(backend)
