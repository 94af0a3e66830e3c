"""Runs the examples of docs/serving.md unchanged except for the port."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

PAGE = Path(__file__).parents[3] / "docs" / "serving.md"


def example(language: str, number: int = 0) -> str:
    found = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return found[number]


def run(command: list[str], code: str, server: Any, folder: Path, image: str = "car.png") -> str:
    code = code.replace("http://127.0.0.1:8000", server.url)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [*command, code],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "NO_PROXY": "127.0.0.1", "PATH": path},
    )
    assert done.returncode == 0, done.stderr
    assert Image.open(folder / image).size == (96, 96)
    return done.stdout


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_shell(server: Any, tmp_path: Path) -> None:
    out = run(["bash", "-ec"], example("bash"), server, tmp_path)
    answers, place = [], 0
    while place < len(out):
        answer, place = json.JSONDecoder().raw_decode(out, place)
        answers.append(answer)
    assert all("error" not in answer for answer in answers)
    assert [len(answer.get("data", ())) for answer in answers] == [1, 1, 0, 0]
    assert answers[2]["choices"][0]["message"]["content"]
    assert answers[3]["ready"]


def test_commands(server: Any, tmp_path: Path) -> None:
    out = run(["bash", "-ec"], example("bash", 1), server, tmp_path, "outputs/0001-1.png")
    *files, edited, answer = out.splitlines()
    assert files[-1] == "outputs/grid.png"
    assert edited == "edited.png"
    assert "car" in answer


def test_python(server: Any, tmp_path: Path) -> None:
    out = run([sys.executable, "-c"], example("python"), server, tmp_path)
    assert out.endswith("data:image/png;base64,\n")
    assert len(out) > 30
