"""Texts of users: common encodings, and JSON without repeated keys."""

import pytest

from blip3o.core.texts import decode_text, load_json


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_a_text_is_read_in_every_common_encoding(encoding: str) -> None:
    assert decode_text("gr\u00fc\u00df dich".encode(encoding)) == "gr\u00fc\u00df dich"
    assert load_json('{"a": 1}'.encode(encoding)) == {"a": 1}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        (bytes(30), "only zero bytes"),
        (b"caf\xe9", "not utf-8 text: .* at byte 3; save it as UTF-8"),
        (b"\xff\xfea", "not utf-16-le text"),
    ],
)
def test_bytes_other_than_text_are_described(data: bytes, message: str) -> None:
    for read in (decode_text, load_json):
        with pytest.raises(ValueError, match=message):
            read(data)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": 1,\n "b": {"a": 1},\n "a": 2}', "^line 3: the key 'a' appears twice"),
        ('[{"x": [],\n"y": "{\\"x\\": 1}", "x": 1}]', "^line 2: the key 'x' appears twice"),
        ('{"\\u0061": 1, "a": 1}', "^the key 'a' appears twice"),
        ("{", "not JSON"),
        ("", "not JSON"),
        ('{"a": 1} x', "not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ("9" * 5000, "a number of more than 4300 digits"),
    ],
)
def test_invalid_or_ambiguous_json_is_refused(content: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_json(content)
    assert load_json('{"a": [{"b": 1}, {"b": 1}]}') == {"a": [{"b": 1}, {"b": 1}]}
