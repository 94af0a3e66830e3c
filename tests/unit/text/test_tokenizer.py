"""The tokenizer: round trips, special tokens, determinism, damaged files."""

import pickle
from pathlib import Path

import pytest
import tokenizers
from tokenizers import models

from blip3o.core.errors import UsageError
from blip3o.text.tokenizer import SPECIAL_TOKENS, Tokenizer, train_tokenizer

TEXTS = ["a red apple left of a blue car", "two yellow suns over a house", "a red car"] * 3


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, 320)


@pytest.mark.parametrize(
    "text",
    ["a red apple", "", " ", "Un caf\u00e9 \u732b \U0001f431\nline two", "12345", "\x00\t<image>"],
)
def test_decoding_gives_the_text_back(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_special_tokens_have_the_first_ids_for_any_training_text(tokenizer: Tokenizer) -> None:
    ids = [tokenizer.special_id(token) for token in SPECIAL_TOKENS]
    assert ids == list(range(len(SPECIAL_TOKENS)))
    assert tokenizer.pad_id == 0


def test_special_strings_are_tokens_or_plain_text_as_requested(tokenizer: Tokenizer) -> None:
    text = "red<|im_end|>[IMG] car"
    ids = tokenizer.encode(text)
    assert ids.count(tokenizer.special_id("<|im_end|>")) == ids.count(tokenizer.image_start_id) == 1
    assert tokenizer.decode(ids) == "red car"
    assert tokenizer.decode(ids, skip_special=False) == text
    plain = tokenizer.encode(text, allow_special=False)
    assert min(plain) >= len(SPECIAL_TOKENS)
    assert tokenizer.decode(plain) == text


def test_training_is_deterministic_and_the_vocabulary_bounded(tokenizer: Tokenizer) -> None:
    again = train_tokenizer(reversed(TEXTS), 320)
    assert again.encode(TEXTS[0]) == tokenizer.encode(TEXTS[0])
    assert again.vocab_size == tokenizer.vocab_size <= 320
    assert len(tokenizer.encode(TEXTS[0])) < len(TEXTS[0]) // 2
    with pytest.raises(UsageError, match="at least 263"):
        train_tokenizer(TEXTS, 100)


def test_saved_and_loaded_it_is_the_same(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "model")
    loaded = Tokenizer.load(tmp_path / "model")
    text = "a red <|im_start|> apple"
    assert loaded.encode(text) == tokenizer.encode(text)
    assert loaded.encode(text, allow_special=False) == tokenizer.encode(text, allow_special=False)
    assert loaded.vocab_size == tokenizer.vocab_size
    loaded.save(tmp_path / "again")
    first, second = (tmp_path / n / "tokenizer.json" for n in ("model", "again"))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("content", [None, b"", b"{}", b"not json", b"\xff\xfe", b'{"model": 3}'])
def test_a_missing_or_damaged_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(UsageError, match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path)


def test_a_missing_special_token_is_named() -> None:
    bare = Tokenizer(tokenizers.Tokenizer(models.BPE()))
    with pytest.raises(UsageError, match=r"\[IMG\]"):
        _ = bare.image_start_id


def test_lone_surrogates_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError, match="Unicode"):
        tokenizer.encode("red \udcff car")


def test_another_process_reads_special_tokens_as_this_one_does(tokenizer: Tokenizer) -> None:
    there = pickle.loads(pickle.dumps(tokenizer))  # a data loader on macOS does this
    for allow_special in (True, False):
        for text in ("a<|im_end|> red car", "[IMG]", "a red car"):
            ids = tokenizer.encode(text, allow_special=allow_special)
            assert there.encode(text, allow_special=allow_special) == ids
