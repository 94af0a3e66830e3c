"""The command line before any work: paths, names and numbers are checked without torch."""

import argparse
import dataclasses
import errno
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from blip3o import cli_commands
from blip3o.cli import build_parser, main
from blip3o.core.config import override
from blip3o.eval import BENCHMARKS
from blip3o.runs.scenes import ScenesConfig

FOLDERS = [
    ["generate", "a cat"],
    ["eval", "scenes"],
    ["scenes"],
    ["study", "training"],
    ["train", "pocket.smoke"],
    ["data", "pack", "."],
]
FILES = [
    ["edit", "a.png", "blue"],
    ["reconstruct", "a.png"],
    ["data", "lint", "."],
    ["data", "stats", "."],
    ["data", "decontaminate", "."],
]


def parsers(parser: argparse.ArgumentParser, name: str = "") -> Iterator[tuple[str, object]]:
    yield name, parser
    for table in parser._actions:
        if isinstance(table, argparse._SubParsersAction):
            for word, command in table.choices.items():
                yield from parsers(command, f"{name} {word}".strip())


PARSERS = list(parsers(build_parser()))


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (20, 12), "red").save(tmp_path / "a.png")


def refusal(capsys: pytest.CaptureFixture[str], words: list[str]) -> str:
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize("words", FOLDERS, ids=" ".join)
def test_a_file_where_a_folder_is_wanted_is_refused_before_any_work(
    capsys: pytest.CaptureFixture[str], image: None, words: list[str], tmp_path: Path
) -> None:
    for out in ("a.png", "a.png/x/y"):
        message = refusal(capsys, [*words, "--out", out])
        assert f"cannot write to {out}" in message
        assert "is a file; give the name of a folder" in message
    assert [one.name for one in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("words", FILES, ids=" ".join)
def test_a_folder_where_a_file_is_wanted_is_refused_before_any_work(
    capsys: pytest.CaptureFixture[str], image: None, words: list[str], tmp_path: Path
) -> None:
    (tmp_path / "folder.png").mkdir()
    assert "it is a folder" in refusal(capsys, [*words, "--out", "folder.png"])
    assert "is a file" in refusal(capsys, [*words, "--out", "a.png/x.png"])
    assert not list((tmp_path / "folder.png").iterdir())


@pytest.mark.parametrize("words", [*FOLDERS, *FILES], ids=" ".join)
def test_an_impossible_path_is_refused_in_one_line(
    capsys: pytest.CaptureFixture[str], image: None, words: list[str], tmp_path: Path
) -> None:
    assert "the name is too long" in refusal(capsys, [*words, "--out", "x" * 300])
    if words[0] != "train":  # its processes may create the folder at the same time
        assert "it cannot be created" in refusal(capsys, [*words, "--out", "/proc/x/y.png"])
    assert [one.name for one in tmp_path.iterdir()] == ["a.png"]


def test_other_outputs_are_checked_too(
    capsys: pytest.CaptureFixture[str], image: None, tmp_path: Path
) -> None:
    assert "is a file" in refusal(capsys, ["convert", "pocket", "a.png"])
    assert "is a file" in refusal(capsys, ["data", "decontaminate", ".", "--clean", "a.png"])


@pytest.mark.parametrize("words", [*FOLDERS, *FILES], ids=" ".join)
def test_out_may_begin_with_the_home_folder(
    monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    options = build_parser().parse_args([*words, "--out=~/x.png"])
    assert options.out == Path("/home/me/x.png")


def test_other_paths_may_begin_with_the_home_folder(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    parse = build_parser().parse_args
    assert parse(["generate", "--prompts=~/p.txt"]).prompts == tmp_path / "p.txt"
    assert parse(["convert", "pocket", "~/m"]).dest == tmp_path / "m"
    assert parse(["data", "lint", "~/a b", "c"]).paths == [f"{tmp_path}/a b", "c"]
    for words in (["ask", "~/a.png", "q"], ["edit", "~/a.png", "q"], ["reconstruct", "~/a.png"]):
        assert f"no such image: {tmp_path}/a.png" in refusal(capsys, words)


EARLY = [
    ["ask", "nosuch.png", "what?"],
    ["edit", "nosuch.png", "blue"],
    ["reconstruct", "nosuch.png"],
    ["generate", "a cat", "--steps", "0"],
    ["generate", "a cat", "--guidance", "0.5"],
    ["generate", "a cat", "--num-images", "0"],
    ["generate", "--prompts", "nosuch.txt"],
    ["generate", "a cat", "--out", "/proc/x"],
    ["generate", "a cat", "--model", "pockt"],
    ["generate", "a cat", "--quantize", "int3"],
    ["generate", "a cat", "--dtype", "int8"],
    ["study", "papr", "--out", "x"],
    ["study", "training", "--out", "x", "--shard", "3/2"],
    ["chat", "--offload", "cpu"],
    ["chat", "--model", "pockt"],
    ["serve", "--model", "pockt"],
    ["edit", "a.png", "blue", "--steps", "5000"],
    ["edit", "a.png", "blue", "--out", "x.txt"],
    ["train", "pocket.smok", "--out", "x"],
    ["eval", "scenes", "--model", "pockt", "--out", "x"],
    ["doctor", "--model", "pockt"],
    ["convert", "pockt", "x"],
    ["recipes", "show", "pocket.smok"],
]
FREE = [["--help"], [], ["models"], ["recipes"], ["scenes", "--help"], ["eval", "--help"]]


def test_mistakes_and_lists_need_no_torch(image: None) -> None:
    """All commands run in one process in which importing torch fails."""
    program = (
        "import json, sys\n"
        "sys.modules['torch'] = None\n"
        "from blip3o.cli import main\n"
        "for words in json.loads(sys.argv[1]):\n"
        "    try:\n"
        "        status = main(words)\n"
        "    except SystemExit as stop:\n"
        "        status = stop.code\n"
        "    print('STATUS', status)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, json.dumps([*EARLY, *FREE])],
        capture_output=True,
        text=True,
        check=True,
    )
    found = [int(line.split()[1]) for line in ran.stdout.splitlines() if line.startswith("STATUS")]
    assert found == [2] * len(EARLY) + [0] * len(FREE), ran.stderr
    assert "torch" not in ran.stderr.replace("blip3o", "")


def test_a_new_seed_is_drawn_and_printed(
    capsys: pytest.CaptureFixture[str], image: None, tiny_folder: Path, tmp_path: Path
) -> None:
    model = ["--model", str(tiny_folder), "--dtype", "fp32"]
    commands = {
        "generate": ["a cat", "--out", "out"],
        "edit": ["a.png", "blue", "--out", "x.png"],
        "reconstruct": ["a.png", "--out", "y.png"],
    }
    for name, words in commands.items():
        seeds = set()
        for option in ("--seed=-1", "--seed=-1"):
            assert main([name, *words, option, *model]) == 0
            lines = [one for one in capsys.readouterr().err.splitlines() if one.startswith("seed ")]
            seeds.add(int(lines[0].split()[1]))
        assert len(seeds) == 2
        assert min(seeds) >= 0
        drawn = int(lines[0].split()[1])
        file = Path("out/0000-0.png" if name == "generate" else words[-1])
        before = file.read_bytes()
        if name == "generate":
            assert json.loads(Path("out/metadata.jsonl").read_text())["seed"] == drawn
        assert main([name, *words, f"--seed={drawn}", *model]) == 0
        assert file.read_bytes() == before
        capsys.readouterr()


def test_without_a_command_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    for words, name in (([], "generate"), (["data"], "lint")):
        assert main(words) == 0
        assert f"    {name}" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "parser"), PARSERS, ids=[name or "blip3o" for name, _ in PARSERS])
def test_help_describes_every_argument_and_its_default(
    name: str, parser: argparse.ArgumentParser
) -> None:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            continue
        assert action.help, f"{name}: {action.dest}"
        if action.option_strings and action.default not in (None, False, [], argparse.SUPPRESS):
            assert "%(default)s" in action.help or str(action.default) in action.help, action.dest
    if any(action.dest == "overrides" for action in parser._actions):
        text = " ".join(parser.format_help().split())
        assert "path=value" in text
        assert "such as " in text


@pytest.mark.parametrize(("name", "parser"), PARSERS, ids=[name or "blip3o" for name, _ in PARSERS])
def test_help_of_every_command_is_printed(
    capsys: pytest.CaptureFixture[str], name: str, parser: argparse.ArgumentParser
) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*name.split(), "--help"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: {parser.prog} [-h]")


def check_settings(text: str, config: Any) -> None:
    """Checks that a text names every setting of a config with its default."""
    assignments = re.findall(r"^  (\w+(?:\.\*)?=.*?)(?:  .*)?$", text, re.M)
    names = {line.partition("=")[0].removesuffix(".*") for line in assignments}
    assert names == {field.name for field in dataclasses.fields(config)}
    assert len(assignments) == len(names)
    # A nested config is named as a whole, "world.*=".
    nested = [line.removesuffix(".*=") for line in assignments if line.endswith(".*=")]
    assert all(dataclasses.is_dataclass(getattr(config, name)) for name in nested)
    flat = [line for line in assignments if not line.endswith(".*=")]
    assert override(config, flat) == config


def test_the_settings_of_a_data_set_are_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["scenes", "--help"])
    check_settings(capsys.readouterr().out.split("settings", 1)[1], ScenesConfig())


@pytest.mark.parametrize("name", BENCHMARKS.names())
def test_a_benchmark_without_a_folder_lists_its_settings(
    capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert main(["eval", name]) == 0
    check_settings(capsys.readouterr().out, BENCHMARKS.get(name)())


def test_eval_without_a_name_lists_all_benchmarks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == BENCHMARKS.names()
    assert all(len(line.split()) > 2 for line in lines)


TROUBLES = [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT, errno.ENAMETOOLONG, errno.EIO]


@pytest.mark.parametrize("number", TROUBLES, ids=lambda number: errno.errorcode[number])
def test_a_disk_that_cannot_be_written_is_reported_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(options: argparse.Namespace) -> None:
        raise OSError(number, os.strerror(number), "runs/x/sheet.png")

    monkeypatch.setattr(cli_commands, "models", fail)
    message = refusal(capsys, ["models"])
    assert message.startswith("blip3o: error: cannot use runs/x/sheet.png: ")


def test_a_disk_error_of_a_library_is_recognized(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(options: argparse.Namespace) -> None:
        raise RuntimeError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(cli_commands, "models", fail)
    assert "a file cannot be written: the disk is full" in refusal(capsys, ["models"])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_an_output_that_cannot_be_written_is_reported_in_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        ran = subprocess.run(
            [sys.executable, "-m", "blip3o", "models"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert ran.returncode == 2
    assert ran.stderr.count("\n") == 1
    assert "the standard output: the disk is full" in ran.stderr


@pytest.mark.parametrize("module", ["blip3o.cli", "argparse", "blip3o.serve.config"])
def test_an_interrupt_during_the_first_imports_ends_quietly(module: str) -> None:
    program = (
        "import builtins, os, runpy, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore it\n"
        "plain = builtins.__import__\n"
        "def interrupted(name, *rest, **options):\n"
        "    if name == sys.argv[1]: os.kill(os.getpid(), signal.SIGINT)\n"
        "    return plain(name, *rest, **options)\n"
        "builtins.__import__ = interrupted\n"
        "runpy.run_module('blip3o', run_name='__main__')\n"
    )
    command = [sys.executable, "-c", program, module]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (130, "", "blip3o: interrupted\n")


def test_the_console_script_starts_the_module_that_handles_an_early_interrupt() -> None:
    project = Path(__file__).parents[2] / "pyproject.toml"
    scripts = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["scripts"]
    assert scripts == {"blip3o": "blip3o.__main__:run"}
