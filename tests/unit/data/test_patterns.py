"""Patterns of shards: existing paths are literal, and every file of a range must exist."""

from pathlib import Path

import pytest

from blip3o.core.errors import UsageError
from blip3o.data.sources import patterns
from blip3o.data.sources.files import expand, neighbor
from blip3o.data.sources.shards import INDEX_SUFFIX
from blip3o.data.sources.webdataset import WebDatasetConfig
from blip3o.data.walk import source_config


def make(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def found(folder: Path, pattern: str) -> list[str]:
    return [str(Path(path).relative_to(folder)) for path in expand(f"{folder}/{pattern}")]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a-{00..03}.tar", ["a-00.tar", "a-01.tar", "a-02.tar", "a-03.tar"]),
        ("a-{3..0}.tar", []),
        ("a-{03..02}.tar", ["a-02.tar", "a-03.tar"]),
        ("a-0{1..2}.tar", ["a-01.tar", "a-02.tar"]),
        ("a-{1..02}.tar", ["a-01.tar", "a-02.tar"]),
        ("a-*.tar", ["a-00.tar", "a-01.tar", "a-02.tar", "a-03.tar"]),
        ("a-0[12].tar", ["a-01.tar", "a-02.tar"]),
        ("d-{0..1}/*.tar", ["d-0/x.tar", "d-1/x.tar"]),
        ("d-?/x.tar", ["d-0/x.tar", "d-1/x.tar"]),
        ("{1..11}*.tar", ["1.tar", "11.tar"]),  # each once
        ("odd [v1]/x.tar", ["odd [v1]/x.tar"]),
        ("odd [v1]/*.tar", ["odd [v1]/x.tar"]),
        ("odd*/[x].tar", ["odd [v1]/x.tar"]),
        ("*/deep [2]/*.tar", ["odd [v1]/deep [2]/y{0..1}.tar"]),
        ("odd [v1]/deep [2]/y{0..1}.tar", ["odd [v1]/deep [2]/y{0..1}.tar"]),
        ("what?.tar", ["what?.tar"]),
        ("{0..2}/*", ["{0..2}/a*.tar"]),
        ("{0..2}/a*.tar", ["{0..2}/a*.tar"]),
        ("{0..2}/{5..5}.tar", []),
        ("none-*.tar", []),
        ("[", []),
    ],
)
def test_an_existing_path_takes_precedence_over_a_pattern(
    tmp_path: Path, pattern: str, expected: list[str]
) -> None:
    make(tmp_path, *(f"a-{number:02d}.tar" for number in range(4)), "1.tar", "11.tar")
    make(tmp_path, "odd [v1]/x.tar", "odd [v1]/deep [2]/y{0..1}.tar", "d-0/x.tar", "d-1/x.tar")
    make(tmp_path, "what?.tar", "whats.tar", "{0..2}/a*.tar")
    assert found(tmp_path, pattern) == expected


def test_patterns_without_a_folder_apply_to_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path, "b.tar", "a.tar", "[d]/c.tar")
    assert expand("*.tar") == ["a.tar", "b.tar"]
    assert expand("./*.tar") == ["./a.tar", "./b.tar"]
    assert expand("[d]/*") == ["[d]/c.tar"]


@pytest.mark.parametrize(
    ("pattern", "missing"),
    [
        ("x-{000..003}.tar", ["x-002.tar"]),
        ("x-{0000..0003}.tar", []),
        ("d-{0..2}/x.tar", ["d-1/x.tar"]),
        ("d-{0..2}/*.tar", ["d-1/*.tar"]),
        ("x-{000..020}.tar", ["x-002.tar", "x-004.tar", "..."]),
    ],
)
def test_every_counted_file_must_exist(tmp_path: Path, pattern: str, missing: list[str]) -> None:
    make(tmp_path, "x-000.tar", "x-001.tar", "x-003.tar", f"x-002.tar{INDEX_SUFFIX}")
    make(tmp_path, "d-0/x.tar", "d-2/x.tar")
    with pytest.raises(UsageError) as caught:
        WebDatasetConfig(path=f"{tmp_path}/{pattern}", name="s").build()
    assert "\n" not in str(caught.value)
    assert all(name in str(caught.value) for name in missing)
    assert ("are missing" if missing else "no shard matches") in str(caught.value)


def test_endless_counts_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "_MAX_FILES", 1000)
    for pattern in ("x-{0..99999999999}.tar", "http://h/{0..9999}{0..9999}.tar"):
        with pytest.raises(UsageError, match="stands for more than 1000 files"):
            expand(pattern)


def test_indices_are_not_shards_and_an_index_without_shard_is_reported(
    shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = WebDatasetConfig(path=f"{shards}/*", name="s")
    assert len(config.build()) == len(config.build()) == 18
    assert not capsys.readouterr().err
    (shards / "scenes-1.tar").unlink()
    assert len(config.build()) == 13
    assert "there is an index of the shard" in capsys.readouterr().err
    (shards / "folder").mkdir()
    with pytest.raises(UsageError, match=r"matches the folder .*/folder; give a pattern of tars"):
        config.build()


def test_paths_with_special_characters_are_literal(shards: Path) -> None:
    folder = shards / "odd [v1] {0..3}"
    folder.mkdir()
    (shards / "scenes-0.tar").rename(folder / "x?.tar")
    for path in (f"{folder}/x?.tar", f"{folder}/*.tar"):
        assert len(source_config(path).build()) == 7


def test_addresses(tmp_path: Path) -> None:
    assert expand("http://h/{08..11}.tar") == [f"http://h/{k:02d}.tar" for k in range(8, 12)]
    signed = "https://h/{0..1}.tar?token=a*b&x=[1]"
    assert expand(signed) == [signed.replace("{0..1}", str(k)) for k in range(2)]
    for pattern in ("http://h/*.tar", "http://h/x-?.tar", "https://h/[0-9].tar"):
        with pytest.raises(UsageError, match="lists no files"):
            expand(pattern)
    assert neighbor("https://h/a.tar?token=b", ".npz") == "https://h/a.tar.npz?token=b"
    assert neighbor("/x/a?.tar", ".npz") == "/x/a?.tar.npz"
