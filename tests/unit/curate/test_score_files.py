"""Score files of other tools are read in their own formats."""

import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from blip3o.core.errors import UsageError
from blip3o.curate.score_files import FileScores, fingerprint_of, read_scores

SHA = "51" * 32
needs_pyarrow = pytest.mark.skipif(
    importlib.util.find_spec("pyarrow") is None, reason="needs pyarrow"
)


def write_lines(file: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def read(*paths: str) -> FileScores:
    return read_scores(paths, fingerprint_of(paths))


@pytest.mark.parametrize(
    "row",
    [
        {"id": "00000012"},
        {"key": "00000012"},
        {"image_id": "00000012"},
        {"id": 12, "image": "/data/00000012.jpg"},
        {"images": ["00000012.png"]},
    ],
)
def test_a_row_may_name_its_draft_in_several_ways(tmp_path: Path, row: dict[str, Any]) -> None:
    scores = read(write_lines(tmp_path / "a.jsonl", [{**row, "blur": 0.5}]))
    assert (scores.drafts["00000012"]["blur"], scores.images) == (0.5, {})


@pytest.mark.parametrize(
    "row", [{"id": SHA}, {"sha256": SHA}, {"images": [f"/run/images/51/{SHA}"]}]
)
def test_a_row_may_name_its_image_in_several_ways(tmp_path: Path, row: dict[str, Any]) -> None:
    scores = read(write_lines(tmp_path / "a.jsonl", [{**row, "blur": 0.5}]))
    assert (scores.drafts, scores.images) == ({}, {SHA: {"blur": 0.5}})


def test_the_data_file_of_data_juicer(tmp_path: Path) -> None:
    stats = {"aspect_ratios": [1.5], "image_nsfw_score": [0.25], "text_len": 9, "lang": "en"}
    row = {"id": "00000012", "text": "{a car}", "images": ["x.jpg"], "__dj__stats__": stats}
    packed = {"id": "00000013", "__dj__stats__": json.dumps(stats)}
    scores = read(write_lines(tmp_path / "out.jsonl", [row, packed]))
    expected = {"aspect_ratios": 1.5, "image_nsfw_score": 0.25, "text_len": 9}
    assert scores.drafts == {"00000012": expected, "00000013": expected}
    assert scores.of_drafts == expected.keys()


def test_the_stats_file_of_data_juicer_takes_the_keys_of_its_data_file(tmp_path: Path) -> None:
    rows = [{"__dj__stats__": {"text_len": length}} for length in (4, 5)]
    stats = write_lines(tmp_path / "out_stats.jsonl", rows)
    with pytest.raises(UsageError, match=r"row 1 of .* names neither a draft"):
        read(stats)
    data = [{"id": "00000003", "text": "a"}, {"id": "00000001", "text": "b"}]
    write_lines(tmp_path / "out.jsonl", data)
    assert read(stats).drafts == {"00000003": {"text_len": 4}, "00000001": {"text_len": 5}}
    before = fingerprint_of([stats])
    write_lines(tmp_path / "out.jsonl", data[::-1])
    assert fingerprint_of([stats]) != before
    write_lines(tmp_path / "out.jsonl", data[:1])
    with pytest.raises(UsageError, match="differ in the number of lines"):
        read(stats)


@needs_pyarrow
def test_the_parquet_files_of_nemo_curator(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    writer = {
        "image_id": SHA,
        "tar_file": "images-0.tar",
        "member_name": f"{SHA}.jpg",
        "original_path": "",
        "metadata": repr({"aesthetic_score": 6.5, "caption": None}),
    }
    older = [
        {
            "key": "00000001",
            "aesthetic_score": 5.5,
            "nsfw_score": 0.0,
            "image_embedding": [1.0] * 9,
        },
        {"key": "00000002", "aesthetic_score": None, "nsfw_score": float("nan")},
    ]
    parquet.write_table(pa.Table.from_pylist([writer]), tmp_path / "images-0.parquet")
    parquet.write_table(pa.Table.from_pylist(older), tmp_path / "images-1.parquet")
    scores = read(str(tmp_path / "images-*.parquet"))
    assert scores.images == {SHA: {"aesthetic_score": 6.5}}
    assert scores.drafts == {
        "00000001": {"aesthetic_score": 5.5, "nsfw_score": 0.0},
        "00000002": {},
    }


def test_rows_of_several_files_join_and_must_agree(tmp_path: Path) -> None:
    first = write_lines(tmp_path / "a.jsonl", [{"id": SHA, "blur": 1}])
    second = write_lines(tmp_path / "b.jsonl", [{"id": SHA, "nsfw": 0, "blur": 1}])
    assert read(first, second).images == {SHA: {"blur": 1, "nsfw": 0}}
    third = write_lines(tmp_path / "c.jsonl", [{"id": SHA, "blur": 2}])
    with pytest.raises(UsageError, match=r"row 1 of .*c.jsonl: 51.* has two values of blur"):
        read(first, third)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[1]\n", "line 1 of .* is not a JSON object"),
        (b'{"id": "00000001"}\n{"id"\n', "line 2 of .* is not a JSON object"),
        (b"\xff\xfe\x00", "is not JSON lines"),
        (b'{"id": "dog"}\n', "row 1 of .* names neither"),
    ],
)
def test_a_faulty_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        read(str(file))


def test_a_missing_file_is_named() -> None:
    with pytest.raises(UsageError, match="no such score file: /nowhere/"):
        fingerprint_of(["/nowhere/*.jsonl"])


@needs_pyarrow
def test_a_damaged_parquet_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UsageError, match=r"a\.parquet is not a Parquet file"):
        read(str(tmp_path / "a.parquet"))


def test_parquet_without_its_library_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"")
    with pytest.raises(UsageError, match=r"pip install 'blip3o\[curate\]'"):
        read(str(tmp_path / "a.parquet"))
