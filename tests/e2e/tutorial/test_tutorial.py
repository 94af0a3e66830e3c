"""The tutorial works as written: its files, its table lines and its commands, in a copy of src."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from difflib import ndiff
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "tutorial.md"
PARTS = {
    "flow_huber": "objectives",
    "color_question": "eval",
    "query_mlp": "models/generators",
    "smollm2": "models/backbones",
}
"""Name of each part of the tutorial, with the package that holds its file and its table."""
COPIED = (
    "pyproject.toml",
    "src/blip3o",
    "tests/conftest.py",
    "tests/contract",
    "tests/unit/conftest.py",
    "tests/unit/objectives",
)


class Block(NamedTuple):
    language: str
    file: str
    text: str


class Copy(NamedTuple):
    """A copy of the source in which the parts of the tutorial have been added."""

    folder: Path
    before: dict[str, str]

    def run(self, module: str, words: list[str]) -> str:
        """Runs a module in the copy and returns its output."""
        done = subprocess.run(
            [sys.executable, "-m", module, *words],
            check=False,
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(self.folder / "src"), "OMP_NUM_THREADS": "1"},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert done.returncode == 0, f"{module} {words}\n{done.stdout}"
        return done.stdout


def blocks(*languages: str) -> list[Block]:
    found = re.findall(
        r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```', PAGE.read_text(encoding="utf-8"), re.M | re.S
    )
    return [Block(*one) for one in found if one[0] in languages]


def commands(program: str) -> list[list[str]]:
    """Returns the words after the program, for each command of the tutorial that calls it."""
    lines = "".join(one.text for one in blocks("console")).replace("\\\n", " ").splitlines()
    found = [shlex.split(line) for line in lines]
    assert {words[0] for words in found} == {"blip3o", "python"}
    return [words[1:] for words in found if words[0] == program]


def sources(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): file.read_text(encoding="utf-8")
        for file in sorted((folder / "src").rglob("*.py"))
    }


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    """Follows the tutorial: writes each file, and inserts each line at the start of its table."""
    folder = tmp_path_factory.mktemp("tutorial")
    for name in COPIED:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, folder / name)
        else:
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    before = sources(folder)
    for block in blocks("python"):
        assert not (folder / block.file).exists(), block.file
        (folder / block.file).write_text(block.text, encoding="utf-8")
    for block in blocks("text"):
        file, table = block.file.split(", ")
        text = (folder / file).read_text(encoding="utf-8")
        start = re.search(rf"^{table}\b[^{{]*\{{", text, re.M)
        assert start is not None, block.file
        text = f"{text[: start.end()]}{block.text.strip()} {text[start.end() :]}"
        (folder / file).write_text(text, encoding="utf-8")
    return Copy(folder, before)


def test_each_part_is_one_file_and_one_line_of_a_table(copy: Copy) -> None:
    after = sources(copy.folder)
    new = [f"src/blip3o/{package}/{name}.py" for name, package in PARTS.items()]
    tables = [f"src/blip3o/{package}/__init__.py" for package in PARTS.values()]
    assert sorted(after.keys() - copy.before.keys()) == sorted(new)
    changed = [name for name, text in copy.before.items() if after[name] != text]
    assert sorted(changed) == sorted(tables)
    for name in tables:
        lines = list(ndiff(copy.before[name].splitlines(), after[name].splitlines()))
        assert sum(line.startswith("+ ") for line in lines) == 1, name
        assert sum(line.startswith("- ") for line in lines) == 1, name


def test_the_run_and_the_evaluation_write_the_files_of_the_table(copy: Copy) -> None:
    for words in commands("blip3o"):
        copy.run("blip3o", words)
    page = PAGE.read_text(encoding="utf-8")
    listed = re.findall(r"^\| `((?:runs|outputs)/\S+)` \|", page, re.M)
    assert len(listed) >= 7
    for name in listed:
        assert (copy.folder / name).exists(), name
    lines = (copy.folder / "runs/huber/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert any("squared_error" in line for line in lines)
    results = json.loads((copy.folder / "outputs/huber/results.json").read_text(encoding="utf-8"))
    assert results["num_samples"] == 16
    assert results["overall"] > 0.5  # it starts from the bundled model


def test_the_contract_holds_for_the_new_parts(copy: Copy) -> None:
    """One process runs all three commands, because imports take most of their time."""
    files, names = [], []
    for words in commands("python"):
        options, file, name = words[:3], words[3], words[5]
        assert options == ["-m", "pytest", "-q"]
        assert words[4] == "-k"
        files.append(file)
        names.append(name)
    assert set(names) == PARTS.keys() - {"color_question"}
    output = copy.run("pytest", ["-rA", *files, "-k", " or ".join(names)])
    for name in names:
        assert len(re.findall(rf"^PASSED .*{name}", output, re.M)) >= 4, output
