"""Captions of a folder's images: their places, their precedence, and contradictions."""

import unicodedata
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from blip3o.core.errors import UsageError
from blip3o.data.sources.folder import FolderConfig, FolderSource


def write(folder: Path, *images: str, **texts: str | bytes) -> None:
    """Writes images and text files; `__` in a keyword stands for a dot."""
    for name in images:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(folder / name)
    for name, text in texts.items():
        data = text if isinstance(text, bytes) else text.encode()
        (folder / name.replace("__", ".")).write_bytes(data)


def source(folder: Path, caption: str | None = None) -> FolderSource:
    return FolderConfig(path=str(folder), name="own", caption=caption).build()


def fields(folder: Path, position: int = 0, caption: str | None = None) -> dict[str, Any]:
    return dict(source(folder, caption).read(position)[2])


@pytest.mark.parametrize(
    "name",
    [
        *("a.txt", "a.TXT", "a.Txt", "a.caption", "a.CAPTION", "a.CapTion"),
        *("a.png.txt", "a.png.Caption", "a.png.TXT"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_caption_may_be_in_any_of_these_files(tmp_path: Path, name: str, encoding: str) -> None:
    write(tmp_path, "a.png")
    (tmp_path / name).write_bytes("eine Katze: \u00fc\n".encode(encoding))
    own = source(tmp_path, "the default")
    assert own.read(0)[2] == {"caption": "eine Katze: \u00fc"}
    assert own.passed_over == {}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metadata.jsonl", '{"file_name": "in/b.png", "text": "a dog", "score": 3}\n\n'),
        ("METADATA.JSONL", '\ufeff{"text": "a dog", "score": 3, "file_name": "./in/b.png"}\r\n'),
        ("metadata.jsonl", '{"file_name": "in\\\\b.png", "caption": "a dog", "score": 3}'),
        ("metadata.csv", 'file_name,text,score\nin/b.png,"a dog",3\n'),
        ("metadata.csv", 'text;"file_name";score\r\n"a dog";in/b.png;3\r\n'),
        ("metadata.csv", "file_name\ttext\tscore\nin/b.png\ta dog\t3\n"),
        ("metadata.csv", "\ufeffscore,prompt,file_name\r\n3,a dog,in/b.png\r\n"),
        ("in/metadata.jsonl", '{"file_name": "b.png", "text": "a dog", "score": 3}'),
        ("metadata.csv", "file_name|caption|score\nin/b.png|a dog|3\n"),
        ("metadata.csv", "File_Name,Text,score\nin/b.png,a dog,3\n"),
        ("metadata.csv", '\ufeff"FILE_NAME";"CAPTION";"score"\r\n"in/b.png";"a dog";"3"\r\n'),
        ("metadata.csv", "sep=;\r\nfile_name;prompt;score\r\nin/b.png;a dog;3\r\n"),
        ("metadata.csv", "\n \nfile_name,text,score\n\nin/b.png,a dog,3\n\n"),
        ("metadata.csv", "file_name,text,score,\nin/b.png,a dog,3,\n"),
        ("metadata.csv", "file_name,text,score\rin/b.png,a dog,3\r"),
        ("metadata.jsonl", '{"file_name": "in/b.png", "Text": "a dog", "score": 3}'),
        ("metadata.jsonl", '{"file_name": "in/b.png", "text": "a dog", "score": 3, "x": NaN}'),
    ],
)
def test_a_list_of_captions_in_the_folder_is_read(tmp_path: Path, name: str, text: str) -> None:
    write(tmp_path, "a.png", "in/b.png")
    (tmp_path / name).write_bytes(text.encode())
    own = source(tmp_path, "the default")
    assert own.read(0)[2] == {"caption": "the default"}
    fields = dict(own.read(1)[2])
    assert str(fields.pop("score")) == "3"
    fields.pop("x", None)
    assert list(fields.values()) == ["a dog"]
    assert own.passed_over == {}


def test_a_table_may_contain_commas_and_line_ends(tmp_path: Path) -> None:
    write(tmp_path, "a.png", metadata__csv='file_name,text\na.png,"a cat,\nand ""a"" dog"\n')
    assert fields(tmp_path) == {"text": 'a cat,\nand "a" dog'}


def test_the_nearest_list_counts(tmp_path: Path) -> None:
    write(tmp_path, "in/a.png", metadata__jsonl='{"file_name": "in/a.png", "text": "far"}')
    write(tmp_path / "in", metadata__jsonl='{"file_name": "a.png", "text": "near"}')
    assert fields(tmp_path) == {"text": "near"}


def test_names_with_accents_are_found_however_they_are_written(tmp_path: Path) -> None:
    decomposed = unicodedata.normalize("NFD", "caf\u00e9.png")
    write(tmp_path, decomposed, metadata__jsonl='{"file_name": "caf\u00e9.png", "text": "x"}')
    assert fields(tmp_path) == {"text": "x"}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metadata.jsonl", '{"file_name": "a.png", "text": "x"}\n{"file_name', "line 2: not JSON"),
        (
            "metadata.jsonl",
            '{"file_name": "a.png", "text": "x", "text": "y"}',
            "'text' appears twice",
        ),
        ("metadata.jsonl", '{"file_name": "a.png"}\n{"text": "x"}', "row 2 of .* no file_name"),
        ("metadata.jsonl", '["file_name"]', "line 1 is not a JSON object"),
        ("metadata.csv", "file_name,text\na.png,a cat, and a dog\n", "number of columns"),
        ("metadata.csv", "file_name,text\na.png\n", "number of columns"),
        ("metadata.csv", "file_name,text,text\na.png,x,y\n", "same name"),
        ("metadata.csv", "file_name,text,FILE_NAME\na.png,x,y\n", "same name"),
        ("metadata.csv", 'file_name,text\na.png,"a \\"red\\" cat"\n', 'line 2: .* write ""'),
        ("metadata.csv", 'file_name,text\na.png,"open\n', "line 2: unexpected end"),
        ("metadata.csv", "version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        ("metadata.jsonl", "version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        ("metadata.jsonl", "PAR1\x15\x04 file_name", "a Parquet table"),
        ("metadata.csv", "PK\x03\x04", "an Excel sheet"),
    ],
)
def test_a_damaged_list_is_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    write(tmp_path, "a.png")
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=message):
        source(tmp_path)


def test_a_text_file_takes_precedence_over_the_json(tmp_path: Path) -> None:
    write(tmp_path, "a.png", a__txt="text", a__json='{"captions": ["x", "y"], "id": 1}')
    assert fields(tmp_path) == {"id": 1, "caption": "text"}
    (tmp_path / "a.txt").unlink()
    assert fields(tmp_path) == {"id": 1, "captions": ["x", "y"]}


@pytest.mark.parametrize("name", ["a.json", "a.JSON", "a.png.json", "a.png.Json"])
@pytest.mark.parametrize("field", ["caption", "Caption", "TEXT", "prompt"])
def test_fields_may_be_in_any_of_these_files(tmp_path: Path, name: str, field: str) -> None:
    write(tmp_path, "a.png")
    (tmp_path / name).write_text(f'{{"{field}": "a dog"}}')
    assert fields(tmp_path, caption="the default") == {field: "a dog"}


@pytest.mark.parametrize("json_text", ['{"caption": null}', '{"id": 1}', '{"captions": []}'])
def test_the_default_is_used_where_an_image_has_no_caption(tmp_path: Path, json_text: str) -> None:
    write(tmp_path, "a.png", a__json=json_text)
    assert fields(tmp_path, caption="my dog")["caption"] == "my dog"


CONFLICTS: list[dict[str, str | bytes]] = [
    {"a__txt": "one", "a__caption": "two"},
    {"a__txt": "one", "a__TXT": "two"},
    {"a__txt": "one", "a__png__txt": "two"},
    {"a__txt": "one", "metadata__jsonl": '{"file_name": "a.png", "text": "two"}'},
    {
        "metadata__jsonl": '{"file_name": "a.png", "text": "one"}',
        "metadata__csv": "file_name,text\na.png,two\n",
    },
    {
        "metadata__csv": "file_name,text\na.png,one\na.png,two\n",
    },
    {"a__json": '{"caption": "one"}', "metadata__csv": "file_name,text\na.png,two\n"},
]


@pytest.mark.parametrize("texts", CONFLICTS)
def test_two_different_captions_are_a_bad_record(
    tmp_path: Path, texts: dict[str, str | bytes]
) -> None:
    write(tmp_path, "a.png", **texts)
    if len(list(tmp_path.iterdir())) == len(texts):
        pytest.skip("this file system ignores the case of file names")
    with pytest.raises(ValueError, match="different captions; keep one"):
        source(tmp_path).read(0)
    same = {
        name: text.replace("two", "one") if isinstance(text, str) else text.replace(b"two", b"one")
        for name, text in texts.items()
    }
    write(tmp_path, **same)
    assert "one" in fields(tmp_path).values()


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.json", b'{"caption": "x", "caption": "y"}', "'caption' appears twice"),
        ("a.json", b'{"caption": "x",}', "comma precedes the closing bracket"),
        ("a.json", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("a.txt", b"caf\xe9", "save it as UTF-8"),
        ("a.txt", b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        ("a.caption", b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        ("a.png.json", b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        ("a.txt", bytes(30), "only zero bytes"),
    ],
)
def test_a_bad_text_names_its_file(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    write(tmp_path, "a.png")
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=rf"{name}.*{message}"):
        source(tmp_path).read(0)


def test_unused_texts_are_counted_and_the_default_is_mentioned(tmp_path: Path) -> None:
    write(tmp_path, "a.png", "b.png", "c.png", c__txt="used")
    write(tmp_path, a__md="a dog", bb__txt="misspelled", B__TXT="another case", notes__yaml="x")
    write(tmp_path, metadata__csv="name,age\nx,3\n")
    reasons = source(tmp_path, "my dog").passed_over
    assert sum(reasons.values()) == 5
    (texts,) = (reason for reason, count in reasons.items() if count == 4)
    assert "belongs to no image, while 2 images take the default caption 'my dog'" in texts
    assert any("no column" in reason or "without a column" in reason for reason in reasons)
    assert not any("default" in reason for reason in source(tmp_path).passed_over)


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("notes/a.txt", "a dog", "a text that belongs to no image"),
        ("a.md", "a dog", "a text that belongs to no image"),
        ("a.txt.gz", "", "a text that belongs to no image"),
        ("metadata.tsv", "file_name\ttext\na.png\tx", "a text that belongs to no image"),
        ("metadata.json", "[]", "a text that belongs to no image"),
        ("metadata.csv", "image,text\na.png,x\n", "without a column file_name"),
        ("metadata.jsonl", '{"image": "a.png", "text": "x"}', "without a column file_name"),
        ("metadata.csv", "file_name,description\na.png,x\n", "without a column caption or text"),
        ("metadata.jsonl", '{"file_name": "a.png", "text": null}', "without a column caption"),
        ("metadata.csv", "file_name,text\nA.PNG,x\n", "named in a list of captions"),
    ],
)
def test_unused_texts_are_reported_with_the_default_caption_that_replaces_them(
    tmp_path: Path, name: str, text: str, reason: str
) -> None:
    write(tmp_path, "a.png")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
    own = source(tmp_path, "my dog")
    assert own.read(0)[2]["caption"] == "my dog"
    (full_reason,) = own.passed_over
    assert reason in full_reason
    assert "while 1 image takes the default caption 'my dog'" in full_reason


def test_a_list_of_conversations_needs_no_captions(tmp_path: Path) -> None:
    talk = '[{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]'
    rows = f'{{"file_name": "a.png", "conversations": {talk}}}'
    write(tmp_path, "a.png", metadata__jsonl=rows)
    assert source(tmp_path).passed_over == {}


def test_names_that_would_break_a_line_are_written_out(tmp_path: Path) -> None:
    write(tmp_path, "a.png")
    for name in ("b\nc.heic", "d\x1b[2J.txt", "e\u2028.md"):
        (tmp_path / name).write_bytes(b"x")
    reasons = " ".join(source(tmp_path).passed_over)
    assert reasons.isprintable()
    assert "b\\nc.heic" in reasons


@pytest.mark.parametrize(
    "text", ["a,b\n1,2,3\n", "", "name,text\nx\n", "{", "id;url\n1;2", '"a\n', "\x00\x01"]
)
@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_a_list_about_something_else_is_counted(tmp_path: Path, name: str, text: str) -> None:
    write(tmp_path, "a.png")
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert fields(tmp_path) == {}
    assert list(source(tmp_path).passed_over.values()) == [1]


def test_a_listed_image_that_is_not_there_is_counted(tmp_path: Path) -> None:
    rows = '{"file_name": "a.png", "text": "x"}\n{"file_name": "gone.png", "text": "x"}'
    write(tmp_path, "a.png", metadata__jsonl=rows)
    (reason,) = source(tmp_path).passed_over
    assert "named in a list of captions but not read (gone.png)" in reason


def test_texts_change_their_own_fingerprint_only(tmp_path: Path) -> None:
    write(tmp_path, "a.png", metadata__jsonl='{"file_name": "a.png", "text": "x"}')
    before = source(tmp_path).fingerprint(), source(tmp_path).texts_fingerprint()
    write(tmp_path, metadata__jsonl='{"file_name": "a.png", "text": "longer"}')
    assert source(tmp_path).fingerprint() == before[0]
    assert source(tmp_path).texts_fingerprint() != before[1]
