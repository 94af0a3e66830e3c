"""Lists of records in all common formats, and clear errors for the others."""

import gzip
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from blip3o.core.errors import UsageError
from blip3o.data.sources.jsonl import JsonlConfig, JsonlSource
from blip3o.data.walk import source_config

ROWS: list[dict[str, Any]] = [{"caption": "a cat"}, {"caption": "\u732b \u2028 x"}, {"id": 7}]
LINES = [json.dumps(row, ensure_ascii=False) for row in ROWS]


def read(file: Path) -> list[dict[str, Any]]:
    own = JsonlConfig(path=str(file), name="d").build()
    return [dict(own.read(k)[2]) for k in range(len(own))]


def write(folder: Path, name: str, text: str, encoding: str = "utf-8") -> Path:
    (folder / name).write_bytes(text.encode(encoding))
    return folder / name


FORMS = {
    "lines": "\n".join(LINES),
    "windows lines": "\r\n".join(LINES) + "\r\n",
    "old mac lines": "\r".join(LINES),
    "blank lines": "\n\n \n" + "\n\n\t\n".join(LINES) + "\n\n",
    "array": f"[{','.join(LINES)}]",
    "array of lines": "[\n" + ",\n".join(LINES) + "\n]\n",
    "pretty array": json.dumps(ROWS, indent=2),
    "pretty values": "\n".join(json.dumps(row, indent=1) for row in ROWS),
    "data": json.dumps({"version": 1, "data": ROWS}),
    "pretty records": json.dumps({"records": ROWS, "info": {"data": []}}, indent=4),
}


@pytest.mark.parametrize("name", ["d.jsonl", "d.json", "d.ndjson", "D.JSONL", "d.JSON", "d.txt"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read_under_any_name(tmp_path: Path, form: str, name: str) -> None:
    file = write(tmp_path, name, FORMS[form])
    assert read(file) == ROWS
    assert source_config(str(file)).kind == "jsonl"


@pytest.mark.parametrize(
    "encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"]
)
@pytest.mark.parametrize("form", ["lines", "pretty array"])
@pytest.mark.parametrize("name", ["d.jsonl", "d.json"])
def test_other_unicode_encodings_are_read(
    tmp_path: Path, encoding: str, form: str, name: str
) -> None:
    assert read(write(tmp_path, name, FORMS[form], encoding)) == ROWS


def test_json_lines_are_not_kept_in_memory(tmp_path: Path) -> None:
    own: JsonlSource = JsonlConfig(
        path=str(write(tmp_path, "d.json", FORMS["lines"])), name="d"
    ).build()
    assert own._text is None


def test_one_record_alone_is_a_list(tmp_path: Path) -> None:
    for name in ("d.json", "d.jsonl"):
        row = {"caption": "x", "items": [{"a": 1}]}
        assert read(write(tmp_path, name, json.dumps(row))) == [row]
        assert read(write(tmp_path, name, json.dumps(row, indent=1))) == [row]


BAD_LINES = {
    '{"caption": "x", "caption": "y"}': "key 'caption' appears twice",
    '{"a": {"b": 1, "b": 2}}': "key 'b' appears twice",
    '{"caption": "x"},': "a comma follows the value",
    '{"caption": "\udce9"}': "not utf-8 text: .* save it as UTF-8",
    '{"caption": "x",}': "a comma precedes the closing bracket",
    "{'caption': 'x'}": "double quotes",
    '{"caption": "x': "record 1 ",
    "[1]": "not a JSON object",
    "null": "not a JSON object",
    '{"id": ' + "9" * 5000 + "}": "a number of more than 4300 digits",
    '{"caption": "x", "c\\u0061ption": "y"}': "key 'caption' appears twice",
    '{"a": 1} {"a": 2}': "not JSON: Extra data",
    '{"a":' * 100_000: "nested too deeply",
    "\x00" * 40: "not JSON",
}


@pytest.mark.parametrize("line", BAD_LINES)
def test_one_bad_line_is_one_bad_record(tmp_path: Path, line: str) -> None:
    file = tmp_path / "d.jsonl"
    text = f"{LINES[0]}\n{line}\n{LINES[1]}\n"
    file.write_bytes(text.encode(errors="surrogateescape"))  # Latin-1 among UTF-8
    own = JsonlConfig(path=str(file), name="d").build()
    assert len(own) == 3
    assert [own.read(k)[2] for k in (0, 2)] == ROWS[:2]
    with pytest.raises(ValueError, match=BAD_LINES[line]):
        own.read(1)


def test_a_bad_record_in_a_list_leaves_the_others_intact(tmp_path: Path) -> None:
    long = "9" * 5000
    file = write(
        tmp_path, "d.json", f'[{LINES[0]}, {{"a": 1, "a": 1}}, 3, {{"a": {long}}}, {LINES[1]}]'
    )
    own = JsonlConfig(path=str(file), name="d").build()
    assert [own.read(k)[2] for k in (0, 4)] == ROWS[:2]
    with pytest.raises(ValueError, match="a number of more than 4300 digits"):
        own.read(3)
    with pytest.raises(ValueError, match="key 'a' appears twice"):
        own.read(1)
    with pytest.raises(ValueError, match="not a JSON object"):
        own.read(2)


@pytest.mark.parametrize("text", ['[{"a": 1},]', '[\n{"a": 1},\n]', '{"data": [{"a": 1},]}'])
def test_a_trailing_comma_is_named(tmp_path: Path, text: str) -> None:
    file = write(tmp_path, "d.json", text)
    with pytest.raises(UsageError, match="a comma precedes the closing bracket"):
        JsonlConfig(path=str(file), name="d").build()


def test_nan_is_read_as_a_number(tmp_path: Path) -> None:
    (row,) = read(write(tmp_path, "d.jsonl", '{"caption": "x", "score": NaN}'))
    assert row["score"] != row["score"]


FOREIGN = {
    "git lfs pull": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 12\n",
    "a Parquet table": b"PAR1\x15\x04",
    "an Arrow table": b"ARROW1\0\0",
    "gunzip": gzip.compress(b"{}", mtime=0),
    "unzstd": b"\x28\xb5\x2f\xfd\x04",
    "a ZIP archive": b"PK\x03\x04\x14",
    "HDF5": b"\x89HDF\r\n\x1a\n",
    "SQLite": b"SQLite format 3\0",
    "pickle": b"\x80\x04\x95\x10",
    "a web page": b"\n<!DOCTYPE html><html>404",
}


@pytest.mark.parametrize("word", FOREIGN)
def test_other_kinds_of_files_are_recognized(tmp_path: Path, word: str) -> None:
    for name in ("d.jsonl", "d.json", "d.parquet", "d"):
        (tmp_path / name).write_bytes(FOREIGN[word])
        with pytest.raises(UsageError, match=word):
            source_config(str(tmp_path / name)).build()


def test_a_tar_whose_first_name_looks_like_something_else_is_a_tar(tmp_path: Path) -> None:
    for number, name in enumerate(("PAR1.png", "BZh/a.png", "<html.png", "[1].png", "{a}.png")):
        with tarfile.open(tmp_path / f"{number}.tar", "w") as tar:
            tar.addfile(tarfile.TarInfo(name))
        assert source_config(str(tmp_path / f"{number}.tar")).kind == "webdataset"


def test_other_arrays_next_to_the_records_are_counted(tmp_path: Path) -> None:
    file = write(tmp_path, "d.json", json.dumps({"train": ROWS, "test": ROWS, "info": {}}))
    own = JsonlConfig(path=str(file), name="d").build()
    assert len(own) == len(ROWS)
    assert own.passed_over == {"another array next to that of the records: 'test'": 1}


def test_the_fingerprint_depends_on_the_image_folder(tmp_path: Path) -> None:
    file = str(write(tmp_path, "d.jsonl", FORMS["lines"]))
    prints = {
        JsonlConfig(path=file, name="d", image_folder=folder).build().fingerprint()
        for folder in (None, "one", "two", "two/")
    }
    assert len(prints) == 3


@pytest.mark.parametrize("change", ["content", "gone", "nothing", "list copied"])
def test_the_fingerprint_depends_on_the_images(tmp_path: Path, change: str) -> None:
    (tmp_path / "a.png").write_bytes(b"1")
    rows: list[Any] = [{"image": "a.png"}, "no record", {"image": "gone.png"}, {"image": None}]
    file = write(tmp_path, "d.jsonl", "\n".join(map(json.dumps, rows)))
    before = JsonlConfig(path=str(file), name="d").build().fingerprint()
    match change:
        case "content":
            (tmp_path / "a.png").write_bytes(b"22")
        case "gone":
            (tmp_path / "a.png").unlink()
        case "list copied":
            os.utime(file, (1, 1))
    after = JsonlConfig(path=str(file), name="d").build().fingerprint()
    assert (after == before) == (change in {"nothing", "list copied"})


def test_tables_coco_and_images_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a table; write its rows as JSON lines"):
        source_config(str(write(tmp_path, "d.CSV", "a,b\n1,2\n")))
    coco = {"images": [{"id": 1}], "annotations": [{"image_id": 1}]}
    with pytest.raises(UsageError, match="COCO annotations"):
        source_config(str(write(tmp_path, "d.json", json.dumps(coco)))).build()
    with pytest.raises(UsageError, match=r"a\.PNG is an image; give the folder"):
        source_config(str(write(tmp_path, "a.PNG", "x")))


@pytest.mark.parametrize("name", ["pipe.jsonl", "dir.jsonl"])
def test_a_list_that_is_not_a_regular_file_is_refused(tmp_path: Path, name: str) -> None:
    if name.startswith("pipe"):
        os.mkfifo(tmp_path / name)
    else:
        (tmp_path / name).mkdir()
    with pytest.raises(UsageError, match=r"not an ordinary file|is a folder"):
        JsonlConfig(path=str(tmp_path / name), name="d").build()
    with pytest.raises(UsageError, match="not an ordinary file"):
        JsonlConfig(path="/dev/zero", name="d").build()
