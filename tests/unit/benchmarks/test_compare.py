"""The comparison of two commits, on a repository of two small ones."""

import os
import subprocess
import sys
from pathlib import Path

import compare
import options
import pytest

BENCHMARK = """
import json, sys
import blip3o
slow = {"median": blip3o.SECONDS}
rows = [{"case": "work", "variant": "plain", "wall_s": slow, "cpu_s": {"median": 1.0}}]
errors = {}
if hasattr(blip3o, "fast"):
    rows.append({**rows[0], "variant": "fast"})
else:
    errors["fast"] = "AttributeError: no fast"
with open(LOG, "a") as log:
    print(blip3o.SECONDS, *sys.argv[1:-2], file=log)
with open(sys.argv[-1], "w") as file:
    json.dump({"rows": rows, "errors": errors}, file)
"""


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with the commits "old" (2 seconds), "new" (1 second) and "broken"."""
    folder = tmp_path / "repository"
    package = folder / "src" / "blip3o" / "__init__.py"
    package.parent.mkdir(parents=True)
    identity = {f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in _WHO}
    environment = {**os.environ, **identity}

    def git(*words: str) -> None:
        command = ["git", "-C", str(folder), *words]
        subprocess.run(command, check=True, capture_output=True, env=environment)

    git("init", "-q")
    for tag, code in (
        ("old", "SECONDS = 2.0"),
        ("new", "SECONDS = 1.0\ndef fast(): ..."),
        ("broken", "raise RuntimeError('this commit cannot start')"),
    ):
        package.write_text(code, encoding="utf-8")
        git("add", "-A")
        git("commit", "-q", "-m", tag)
        git("tag", tag)
    benchmarks = folder / "benchmarks"
    benchmarks.mkdir()
    log = f"LOG = {str(tmp_path / 'log')!r}\n"
    (benchmarks / "fake.py").write_text(log + BENCHMARK, encoding="utf-8")
    monkeypatch.setattr(options, "FOLDER", benchmarks)
    monkeypatch.setattr(compare, "FOLDER", benchmarks)
    monkeypatch.setattr(options, "NAMES", ("fake",))
    return folder


_WHO = ("NAME", "EMAIL")


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["compare.py", *words])
    compare.main()


def test_processes_of_two_commits_take_turns_and_the_table_has_their_ratios(
    repository: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    call(monkeypatch, "old", "new", "fake/work", "--pairs", "2", "--rounds", "4", "--quick")
    log = (tmp_path / "log").read_text(encoding="utf-8").splitlines()
    assert [line.split(" ", 1)[0] for line in log] == ["2.0", "1.0", "1.0", "2.0"]
    assert set(line.split(" ", 1)[1] for line in log) == {"work --rounds 4 --device cpu --quick"}
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == (
        "| fake/work plain | 2 | 1 | 0.500 (0.500 to 0.500) | faster | 1 | 1 "
        "| 1.000 (1.000 to 1.000) | within noise |"
    )
    assert lines[3:] == ["old cannot run fake/fast: AttributeError: no fast"]
    listed = ["git", "-C", str(repository), "worktree", "list"]
    remaining = subprocess.run(listed, check=True, capture_output=True, text=True).stdout
    assert remaining.count("\n") == 1, "the temporary checkouts are removed"


def test_a_commit_that_cannot_start_is_named_with_the_reason(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call(monkeypatch, "broken", "new", "--pairs", "1")
    expected = "broken cannot run fake: RuntimeError: this commit cannot start"
    assert capsys.readouterr().out.splitlines()[2:] == [expected]


def test_an_unknown_commit_or_benchmark_is_one_line(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match=r"^compare: fatal: Needed a single revision$"):
        call(monkeypatch, "old", "nowhere")
    with pytest.raises(SystemExit) as ended:
        call(monkeypatch, "old", "new", "fast")
    assert ended.value.code == 2
    assert "no benchmark 'fast'; choose from fake" in capsys.readouterr().err
