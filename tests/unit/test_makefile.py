"""`make setup` prints one line for each step, and names its log if a step fails."""

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

FAKE_PYTHON = """#!/bin/sh
if [ "$1" = -m ] && [ "$2" = venv ]; then
    mkdir -p "$3/bin" && cp "$0" "$3/bin/python"
elif [ "$1" = -m ]; then
    for word in "$@"; do last=$word; done
    for line in 1 2 3 4 5 6 7 8 9; do echo "pip says $line of $last"; done
    [ "$last" != "$FAILS" ]
fi
"""


def setup(tmp_path: Path, fails: str = "nothing") -> subprocess.CompletedProcess[str]:
    python = tmp_path / "python"
    python.write_text(FAKE_PYTHON)
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    return subprocess.run(
        ["make", "--no-print-directory", "setup", f"PYTHON={python}", f"VENV={tmp_path / 'venv'}"],
        cwd=ROOT,
        env={**os.environ, "FAILS": fails, "MAKEFLAGS": ""},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_setup_is_quiet_and_ends_with_the_next_step(tmp_path: Path) -> None:
    ran = setup(tmp_path)
    assert (ran.returncode, ran.stderr) == (0, "")
    lines = ran.stdout.splitlines()
    assert [line.split(":")[0] for line in lines[:3]] == [f"setup {step}/3" for step in (1, 2, 3)]
    assert "blip3o generate" in lines[3]
    assert len(lines) == 4
    assert (tmp_path / "venv" / ".installed").exists()


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize("step", ["torch", ".[all]"])
def test_a_setup_that_fails_names_the_log(tmp_path: Path, step: str) -> None:
    ran = setup(tmp_path, fails=step)
    assert ran.returncode != 0
    log = tmp_path / "venv" / "setup.log"
    assert f"pip says 9 of {step}" in ran.stdout
    assert "pip says 1 of" not in ran.stdout
    assert f"output is in {log}" in ran.stdout
    assert f"pip says 1 of {step}" in log.read_text()
    assert not (tmp_path / "venv" / ".installed").exists()
