"""The command line: its options, output and errors."""

import argparse
import dataclasses
import io
import json
import sys
from pathlib import Path
from typing import NoReturn, cast

import pytest
from PIL import Image

from blip3o import Blip3oPipeline, __version__, cli_commands
from blip3o.cli import build_parser, main
from blip3o.core.config import from_dict, read_yaml
from blip3o.core.errors import PreemptedError, UsageError
from blip3o.core.options import flag
from blip3o.core.shard import Shard
from blip3o.eval.rewards.config import RewardServerConfig
from blip3o.generate.text_settings import TextSettings
from blip3o.recipes import RECIPES
from blip3o.runs.start import load_recipe
from blip3o.serve.config import ServeConfig
from blip3o.study import STUDIES
from blip3o.study.grid import Study
from blip3o.train.config import RunConfig
from blip3o.weights import folder as weights

SAMPLING = ["--seed", "--steps", "--guidance"]
TEXT = ["--temperature", "--top-p", "--top-k", "--seed", "--max-new-tokens", "--stop"]
SERVER = ["--server"]
MODEL = ["--model", "--device", "--dtype", "--quantize", "--offload"]
PIPELINE = ["--revision", "--set"]
SERVE = [flag(field.name) for field in dataclasses.fields(ServeConfig)]
REWARDS = [flag(field.name) for field in dataclasses.fields(RewardServerConfig)]
OPTIONS = {
    "generate": [
        *("prompt", "--prompts", "--out", "--num-images", *SAMPLING, *MODEL, *PIPELINE, *SERVER)
    ],
    "ask": ["image", *TEXT, *MODEL, *PIPELINE, *SERVER],
    "chat": [*TEXT, *MODEL, *PIPELINE],
    "edit": ["image", "instruction", "--out", *SAMPLING, *MODEL, *PIPELINE, *SERVER],
    "reconstruct": ["image", "--out", "--seed", *MODEL, *PIPELINE],
    "serve": [*SERVE, *MODEL, *PIPELINE],
    "train": ["recipe", "--out", "overrides"],
    "eval": ["benchmark", "--out", "--shard", "--url", "overrides", *MODEL, *PIPELINE],
    "eval score": [
        *("benchmark", "folder", "--out", "--about", "--allow-missing", "--shard", "overrides")
    ],
    "eval report": ["folders", "--out", "--side-by-side"],
    "eval serve-rewards": ["--benchmark", *REWARDS, "overrides"],
    "data": [],
    "data index": ["paths", "--jobs"],
    "data lint": [
        *("paths", "--jobs", "--task", "--min-px", "--out", "--max-tokens", "--model"),
        *("--conversation", "--max-turns", "--image-folder"),
    ],
    "data stats": ["paths", "--jobs", "--out", "--image-folder"],
    "data pack": ["path", "--jobs", "--out", "--name", "--shard-size", "--image-folder"],
    "data decontaminate": [
        *("paths", "--jobs", "--against", "--image-folder", "--clean", "--shard-size", "--out")
    ],
    "data curate": ["curation", "overrides", "--out", "--shard", "--ray", "--estimate", "--lost"],
    "data review": ["folder", "--out", "--num", "--decisions", "--seed"],
    "data cache": ["recipe", "--shard", "overrides"],
    "scenes": ["--out", "overrides"],
    "study": ["study", "--out", "--shard", "overrides"],
    "convert": ["source", "dest", "--to", "--revision", "--allow-pickle"],
    "recipes": ["action", "name"],
    "models": [],
    "doctor": ["--model", "--device"],
}
"""Every command and option. A new option needs a reason and documentation."""


@pytest.fixture
def image(tmp_path: Path) -> str:
    Image.new("RGB", (20, 12), "red").save(tmp_path / "red.png")
    return str(tmp_path / "red.png")


def refusal(capsys: pytest.CaptureFixture[str], *words: str, status: int = 2) -> str:
    """Runs a command that must fail with one line on stderr, and returns the line."""
    try:
        got = main(words)
    except SystemExit as stop:  # argparse exits by itself
        got = stop.code
    captured = capsys.readouterr()
    assert got == status, captured.err
    assert captured.out == ""
    line, end, rest = captured.err.partition("\n")
    assert (end, rest) == ("\n", "")
    assert "Traceback" not in line
    return line


def test_commands_and_options_are_these_and_no_others() -> None:
    found: dict[str, set[str]] = {}

    def collect(parser: argparse.ArgumentParser, prefix: str) -> None:
        for table in parser._actions:
            if isinstance(table, argparse._SubParsersAction):
                for name, command in table.choices.items():
                    actions = [
                        a for a in command._actions if a.dest not in {"help", "==SUPPRESS=="}
                    ]
                    found[prefix + name] = {(a.option_strings or [a.dest])[0] for a in actions}
                    collect(command, f"{prefix}{name} ")

    collect(build_parser(), "")
    expected = {name: {*options, "--debug"} for name, options in OPTIONS.items()}
    assert found == {**expected, "data": set()}


def test_version_and_help_succeed(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--version"], ["--help"], ["generate", "--help"]):
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 0
    assert f"blip3o {__version__}" in capsys.readouterr().out


def test_arguments_and_options_may_have_any_order() -> None:
    parse = build_parser().parse_args
    options = parse(["train", "pocket.smoke", "--out", "x", "train.steps=5", "--debug", "a.b=1"])
    assert (options.recipe, options.overrides) == ("pocket.smoke", ["train.steps=5", "a.b=1"])
    assert options.debug
    options = parse(["generate", "a cat", "--num-images", "2", "a dog"])
    assert (options.prompt, options.num_images) == (["a cat", "a dog"], 2)
    assert parse(["ask", "a.png", "--model", "m", "what?"]).image == ["a.png", "what?"]
    assert parse(["recipes"]).action == "list"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["generat"], "unknown command 'generat'; did you mean generate"),
        (["data", "lnt"], "unknown command 'lnt'; did you mean lint"),
        (["generate", "a cat", "--prompt", "x"], "unrecognized arguments: --prompt"),
        (["generate", "a cat", "--steps", "many"], "argument --steps: invalid int value: 'many'"),
        (["edit", "a.png"], "the following arguments are required: instruction"),
        (["train", "pocket.smoke"], "the following arguments are required: --out"),
        (["recipes", "shw"], "invalid choice: 'shw'"),
        (["generate"], "no prompt: give prompts or --prompts FILE"),
        (["generate", "--prompts", "no-such-file.txt"], "cannot read prompts from no-such-file"),
        (["generate", "a cat", "--model", "pockt"], "unknown model 'pockt'; "),
        (["generate", "a cat", "--device", "gpu"], "unknown device 'gpu'; use auto, cpu"),
        (["generate", "a cat", "--device", "cpu", "--dtype", "int8"], "unknown precision 'int8'"),
        (["generate", "a cat", "--server", "x", "--dtype", "bf16"], "--dtype is for a local model"),
        (
            ["eval", "scenes", "--out", "x", "--url", "http://x", "--device", "cuda"],
            "--device is for a local model: leave it out with --url",
        ),
        (["generate", "a cat", "--server", "ftp://x"], "'ftp://x/v1' is not an address: write"),
        (["generate", "a cat", "--quantize", "int3"], "unknown quantization 'int3'; did you mean"),
        (
            ["ask", "a.png", "what?", "--offload", "cpu"],
            "unknown offload 'cpu'; known: model, none",
        ),
        (["doctor", "--model", "blip3o-9b"], "unknown model 'blip3o-9b'; did you mean blip3o-"),
        (["doctor", "--model", "pocket", "--device", "cuda:99"], "has no device 'cuda:99'"),
        (["ask", "what is this?"], "no question"),
        (["train", "pocket.smok", "--out", "x"], "did you mean pocket.smoke"),
        (["train", "none.yaml", "--out", "x"], "no such file: none.yaml"),
        (["train", "pocket.smoke", "--out", "x", "train.step=5"], "did you mean train.steps"),
        (["train", "pocket.smoke", "--out", "x", "train.steps"], "path.to.field=value"),
        (["train", "pocket.smoke", "--out", "x", "train.steps=-1"], "steps must be at least 1"),
        (["train", "pocket.all", "--out", "x", "train.steps=1"], "must start with a stage: enc"),
        (["eval", "scene", "--out", "x"], "unknown benchmark 'scene'; did you mean scenes"),
        (["eval", "scenes", "--out", "x", "sede=1"], "unknown config key 'sede'; did you mean"),
        (["scenes", "--out", "x", "num_scene=5"], "did you mean num_scenes"),
        (["recipes", "show"], "no recipe: give its name"),
        (["study", "papr", "--out", "x"], "unknown study 'papr'; did you mean paper?"),
        (["study", "training"], "no folder for the study: add --out DIR"),
        (["study", "training", "--out", "x", "--shard", "0/2"], "--shard I/N needs I from 1 to N"),
        (["study", "training", "--out", "x", "--shard", "2"], "--shard must be I/N, such as 1/2"),
        (["study", "training", "--out", "x", "train.step=5"], "did you mean train.steps"),
        (["study", "training", "--out", "x", "seeds=[1,1]"], "seeds must be different"),
        (["serve", "--max-batch", "0"], "--max-batch must be positive, got 0"),
        (["serve", "--port", "70000"], "--port must be at most 65535, got 70000"),
        (["recipes", "show", "pocket.generaton"], "did you mean pocket.generation"),
        (["reconstruct", "a.png", "--steps", "3"], "unrecognized arguments: --steps"),
        (["eval", "scenes", "--out", "x", "batch_size=0"], "batch_size must be at least 1"),
        (["eval", "scenes", "--out", "x", "num_edits=-1"], "num_edits must be at least 0"),
    ],
)
def test_mistakes_are_reported_in_one_line_with_status_2(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    line = refusal(capsys, *words)
    assert message in line
    assert line.startswith("blip3o")
    assert not list(tmp_path.iterdir())


def test_debug_shows_the_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["generate", "a cat", "--model", "pockt", "--debug"]) == 2
    captured = capsys.readouterr().err
    assert "Traceback (most recent call last)" in captured
    assert captured.splitlines()[-1].startswith("blip3o: error: unknown model 'pockt'")


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (RuntimeError("first\nsecond"), 1, "failed: RuntimeError: first (--debug shows more)"),
        (AssertionError(), 1, "failed: AssertionError: no reason given"),
        (PreemptedError("stopped at step 5"), 75, "stopped at step 5"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_other_errors_have_their_own_status(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    status: int,
    message: str,
) -> None:
    def fail(options: argparse.Namespace) -> NoReturn:
        raise error

    monkeypatch.setattr(cli_commands, "models", fail)
    assert message in refusal(capsys, "models", status=status)


def test_generate_writes_images_a_grid_and_metadata(
    capsys: pytest.CaptureFixture[str], tiny_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "prompts.txt").write_text("a car\n")
    out = tmp_path / "out"
    words = ["generate", "a cat", "--prompts", str(tmp_path / "prompts.txt"), "--num-images", "2"]
    words += ["--out", str(out), "--seed", "3", "--steps", "2", "--guidance", "1.5"]
    assert main([*words, "a dog", "--model", str(tiny_folder), "--dtype", "fp32"]) == 0
    names = [f"{p:04d}-{k}.png" for p in range(3) for k in range(2)]
    printed = [out / name for name in (*names, "metadata.jsonl", "grid.png")]
    assert capsys.readouterr().out.splitlines() == list(map(str, printed))
    assert sorted(p.name for p in out.iterdir()) == [*names, "grid.png", "metadata.jsonl"]
    rows = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows[::2]] == ["a cat", "a dog", "a car"]
    assert (rows[0]["seed"], rows[0]["num_inference_steps"]) == (3, 2)
    assert rows[0]["guidance_scale"] == 1.5


def test_generate_twice_gives_the_same_files(tiny_folder: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        out = str(tmp_path / name)
        assert main(["generate", "a cat", "--out", out, "--model", str(tiny_folder)]) == 0
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["generate", ""], "the prompt is empty"),
        (["generate", "cat " * 99], "the prompt has"),
        (["generate", "a cat", "--num-images", "0"], "the number of images must be 1 to 1000"),
        (["generate", "a cat", "--steps", "0"], "num_inference_steps must be 1 to 1000"),
        (["generate", "a cat", "--guidance", "0"], "guidance_scale must be 1 to 100"),
        (["ask", "none.png", "what?"], "no such image: none.png"),
        (["ask", "red.png", " "], "the question is empty"),
        (["edit", "red.png", ""], "the prompt is empty"),
        (["edit", "bad.png", "blue"], "bad.png is not an image"),
        (["edit", "red.png", "blue", "--out", "x.txt"], "use a name that ends in .png"),
        (["reconstruct", "none.png"], "no such image"),
    ],
)
def test_invalid_requests_are_reported_in_one_line(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tiny_folder: Path,
    tmp_path: Path,
    image: str,
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.png").write_text("not an image")
    assert message in refusal(capsys, *words, "--model", str(tiny_folder))
    assert not [p for p in tmp_path.rglob("*.png") if p.name not in ("red.png", "bad.png")]


def test_ask_prints_the_answer_and_nothing_else(
    capsys: pytest.CaptureFixture[str], tiny_folder: Path, image: str
) -> None:
    from blip3o import Blip3oPipeline

    words = ["ask", image, image, "what?", "--model", str(tiny_folder), "--dtype", "fp32"]
    assert main(words) == 0
    captured = capsys.readouterr()
    pipe = Blip3oPipeline.from_pretrained(tiny_folder, device="cpu", dtype="fp32")
    assert captured.out == pipe.ask([image, image], "what?") + "\n"
    assert captured.err == ""


def test_edit_and_reconstruct_write_one_image(
    capsys: pytest.CaptureFixture[str], tiny_folder: Path, tmp_path: Path, image: str
) -> None:
    out = tmp_path / "new" / "x.png"
    for words in (["edit", image, "make it blue"], ["reconstruct", image]):
        assert main([*words, "--out", str(out), "--model", str(tiny_folder)]) == 0
        assert capsys.readouterr().out == f"{out}\n"
        assert Image.open(out).size == (16, 16)
        out.unlink()


@pytest.mark.parametrize("seed", [7, 2**64])
def test_equal_seeds_give_equal_images_in_python_and_on_the_command_line(
    tiny_folder: Path, tmp_path: Path, image: str, seed: int
) -> None:
    # The server accepts the same seeds. Any integer is a seed, as in `generate`.
    from blip3o.core.rng import image_generator

    pipe = Blip3oPipeline.from_pretrained(tiny_folder, device="cpu", dtype="fp32")
    expected = {
        "edit": pipe.edit(image, "make it blue", generator=image_generator(seed, 0, 0)),
        "reconstruct": pipe.reconstruct(image, generator=image_generator(seed, 0, 0)),
    }
    out = tmp_path / "x.png"
    for words in (["edit", image, "make it blue"], ["reconstruct", image]):
        words += ["--out", str(out), "--seed", str(seed), "--dtype", "fp32", "--device", "cpu"]
        assert main([*words, "--model", str(tiny_folder)]) == 0
        assert Image.open(out).tobytes() == expected[words[0]].images[0].tobytes()


@pytest.mark.parametrize("words", [["edit", "p.png", "make it blue"], ["reconstruct", "p.png"]])
@pytest.mark.parametrize("name", ["x", "x.gif", "."])
def test_an_output_name_that_cannot_be_written_is_refused_before_any_work(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str], name: str
) -> None:
    monkeypatch.setattr(cli_commands, "_pipeline", lambda options: pytest.fail("work was done"))
    assert main([*words, "--out", name]) == 2
    assert capsys.readouterr().err.startswith("blip3o: error: cannot write")


def test_eval_accepts_and_stores_a_revision_and_settings_of_the_model(
    capsys: pytest.CaptureFixture[str], tiny_folder: Path, tmp_path: Path
) -> None:
    words = ["eval", "scenes", "--model", str(tiny_folder), "--out", str(tmp_path / "out")]
    assert "a revision belongs to a hub id" in refusal(capsys, *words, "--revision", "main")
    parts = (
        *("num_questions", "num_captions", "num_edits", "num_reconstructions"),
        *("wording_prompts_per_category", "num_wording_questions", "num_wording_edits"),
    )
    words += ["prompts_per_category=1", "images_per_prompt=1", *(f"{part}=0" for part in parts)]
    assert main([*words, "--set", "sampling.num_inference_steps=2"]) == 0
    stored = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert stored["model"]["revision"] is None
    assert stored["model"]["model_overrides"] == ["sampling.num_inference_steps=2"]
    assert stored["sampler"]["num_inference_steps"] == 2


def test_chat_uses_stdin_and_stdout(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tiny_folder: Path
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n/quit\n"))
    assert main(["chat", "--model", str(tiny_folder)]) == 0
    assert "/image FILE" in capsys.readouterr().out


def test_ask_and_chat_accept_text_sampling_options(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tiny_pipe: Blip3oPipeline,
    image: str,
) -> None:
    monkeypatch.setattr(cli_commands, "_pipeline", lambda options: tiny_pipe)
    words = ["--temperature", "5", "--top-p", "0.9", "--top-k", "50", "--max-new-tokens", "9"]
    words += ["--stop", "zzz", "--stop", "yyy"]

    def answer_of(seed: int, about: str | None, question: str = "what?") -> str:
        options = {"temperature": 5.0, "top_p": 0.9, "top_k": 50, "max_new_tokens": 9, "seed": seed}
        settings: TextSettings = cast("TextSettings", options)
        return tiny_pipe.ask(about, question, **settings)

    expected = [answer_of(seed, image) for seed in (3, 4)]
    assert len(set(expected)) == 2
    for seed, answer in zip(("3", "4"), expected, strict=True):
        assert main(["ask", image, "what?", *words, "--seed", seed]) == 0
        assert capsys.readouterr() == (answer + "\n", "")
    assert main(["ask", image, "what?", *words, "--seed", "-1"]) == 0
    out, err = capsys.readouterr()
    drawn = int(err.removeprefix("blip3o: ").removeprefix("seed "))
    assert out == answer_of(drawn, image) + "\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n"))
    assert main(["chat", *words, "--seed", "3"]) == 0
    answer = answer_of(3, None, "hello")
    assert f"> {answer}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--temperature", "-0.1"], "temperature must be 0 or more, got -0.1"),
        (["--temperature", "nan"], "temperature must be 0 or more, got nan"),
        (["--temperature", "inf"], "temperature must be 0 or more, got inf"),
        (["--top-p", "0"], "top_p must be above 0 and at most 1"),
        (["--top-k", "-1"], "top_k must be 0 or more"),
        (["--seed", "-2"], "seed must be from 0 to"),
        (["--max-new-tokens", "0"], "max_new_tokens must be at least 1"),
        (["--stop", ""], "a stop text is empty"),
        (["--stop", "x" * 1001], "more than 1000 characters"),
        (["--stop", "a"] * 17, "at most 16 stop texts, got 17"),
    ],
)
def test_bad_text_sampling_options_are_refused_before_a_model_is_loaded(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    words: list[str],
    message: str,
) -> None:
    monkeypatch.setattr(cli_commands, "_pipeline", lambda options: pytest.fail("work was done"))
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    for command in (["ask", str(tmp_path / "a.png"), "what?"], ["chat"]):
        assert message in refusal(capsys, *command, *words)


def test_every_recipe_is_listed_with_a_summary(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    listed = capsys.readouterr().out
    assert main(["recipes", "list"]) == 0
    assert capsys.readouterr().out == listed
    lines = listed.splitlines()
    assert [line.split()[0] for line in lines] == RECIPES.names()
    assert all(len(line.split()) > 3 for line in lines)


@pytest.mark.parametrize("name", RECIPES.names())
def test_a_shown_recipe_loads_as_the_same_recipe(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str
) -> None:
    assert main(["recipes", "show", name]) == 0
    shown = capsys.readouterr().out
    recipe = load_recipe(name, Path("runs") / name)
    file = tmp_path / "recipe.yaml"
    file.write_text(shown)
    assert load_recipe(str(file), tmp_path) == recipe
    if isinstance(recipe, RunConfig):
        assert from_dict(RunConfig, read_yaml(file)) == recipe


def test_a_file_of_stages_with_an_unknown_key_names_the_stage(tmp_path: Path) -> None:
    file = tmp_path / "stages.yaml"
    file.write_text("first: {data: {}, trian: {}}\n")
    with pytest.raises(UsageError, match=r"first\.trian.*first\.train"):
        load_recipe(str(file), tmp_path)


def test_every_study_is_listed_with_a_summary(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == STUDIES.names()
    assert all(len(line.split()) > 3 for line in lines)


def test_a_study_prints_its_report_and_says_whether_it_is_complete(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls: list[tuple[object, ...]] = []
    for is_complete in (True, False):
        monkeypatch.setattr(
            "blip3o.study.start.run_study",
            lambda *arguments, result=is_complete: calls.append(arguments) or result,
        )
        words = ["study", "training", "--shard", "2/3", "--out", str(tmp_path), "train.steps=8"]
        assert main(words) == (0 if is_complete else 1)
        assert capsys.readouterr().out == f"{tmp_path / 'report.md'}\n"
    study, out, changes, shard = calls[0]
    assert (out, changes, shard) == (tmp_path, ["train.steps=8"], Shard(2, 3))
    assert isinstance(study, Study)


def test_models_and_doctor_print_a_report(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tiny_folder: Path
) -> None:
    monkeypatch.setattr(weights, "BUNDLED", {"tiny": tiny_folder})
    monkeypatch.setattr("blip3o.weights.names.BUNDLED", {"tiny": tiny_folder})
    monkeypatch.setattr("blip3o.doctor.report.BUNDLED", {"tiny": tiny_folder})
    assert main(["models"]) == 0
    assert capsys.readouterr().out.startswith("tiny  0.0 M parameters")
    assert main(["doctor"]) == 0
    report = capsys.readouterr().out
    assert f"blip3o {__version__}, Python 3." in report
    assert "\ndevice: " in report
    assert "\nprecision: " in report
    assert "\nmodel tiny: whole, 0.0 M parameters\n" in report
    monkeypatch.setattr(weights, "BUNDLED", {"tiny": tiny_folder / "gone"})
    assert main(["doctor"]) == 0
    assert "model tiny: the bundled model 'tiny' is not in this installation" in (
        capsys.readouterr().out
    )
