"""`--server`: commands that a real server of a tiny model does, against the same commands here."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("fastapi")

import uvicorn

from blip3o.cli import main
from blip3o.generate.pipeline import Blip3oPipeline
from blip3o.serve.config import ServeConfig
from blip3o.serve.http.app import build_app
from blip3o.serve.http.service import Service

NAME, KEY = "tiny", "a-long-secret"


@pytest.fixture(scope="module")
def url(tiny_pipe: Blip3oPipeline) -> Iterator[str]:
    config = ServeConfig(max_wait_ms=0, max_n=1, max_steps=5)
    service = Service([tiny_pipe], NAME, config)
    service.start()
    app = build_app(service, [KEY])
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()
    service.stop()


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.fixture
def image(tmp_path: Path) -> str:
    Image.effect_noise((30, 20), 90).convert("RGB").save(tmp_path / "noise.jpg")
    return str(tmp_path / "noise.jpg")


@pytest.fixture
def local(tiny_folder: Path) -> list[str]:
    return ["--model", str(tiny_folder), "--device", "cpu", "--dtype", "fp32"]


def served(url: str) -> list[str]:
    return ["--server", url, "--model", NAME]


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("extra", [[], ["--steps", "2", "--guidance", "1.5", "--seed", "7"]])
def test_generate_writes_the_same_files(
    url: str, local: list[str], tmp_path: Path, extra: list[str]
) -> None:
    words = ["generate", "a red cat", "a dog", "--num-images", "2", *extra, "--out"]
    assert main([*words, str(tmp_path / "local"), *local]) == 0
    assert main([*words, str(tmp_path / "served"), *served(url)]) == 0
    assert files(tmp_path / "served") == files(tmp_path / "local")
    assert len(set(files(tmp_path / "served").values())) == 6


def test_edit_writes_the_same_file(url: str, local: list[str], tmp_path: Path, image: str) -> None:
    words = ["edit", image, "make it blue", "--seed", "3", "--steps", "2", "--out"]
    assert main([*words, str(tmp_path / "local.png"), *local]) == 0
    assert main([*words, str(tmp_path / "served.png"), *served(url)]) == 0
    assert (tmp_path / "served.png").read_bytes() == (tmp_path / "local.png").read_bytes()


@pytest.mark.parametrize(
    "extra",
    [[], ["--max-new-tokens", "3"], ["--temperature", "0.9", "--top-k", "40", "--seed", "5"]],
)
def test_ask_prints_the_same_answer(
    url: str, local: list[str], image: str, extra: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["ask", image, "What is this?", *extra]
    assert main([*words, *local]) == 0
    expected = capsys.readouterr().out
    assert main([*words, *served(url)]) == 0
    assert capsys.readouterr().out == expected


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(list(words)) == 2
    line, end, rest = capsys.readouterr().err.partition("\n")
    assert (end, rest) == ("\n", "")
    return line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "other"], "the model 'other' is not served here; use 'tiny'"),
        (["--model", NAME, "--steps", "9"], "num_inference_steps must be at most 5, got 9"),
        (["--model", NAME, "--device", "cuda"], "--device is for a local model"),
        (["--model", NAME, "--set", "a=1"], "--set is for a local model"),
    ],
)
def test_a_refusal_is_one_line(
    url: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    out = str(tmp_path / "out")
    line = refusal(capsys, "generate", "a cat", "--server", url, "--out", out, *words)
    assert message in line


def test_a_wrong_key_is_one_line(
    url: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "another-secret")
    out = str(tmp_path / "out")
    line = refusal(capsys, "generate", "a cat", *served(url), "--out", out)
    assert "check the key in the environment variable OPENAI_API_KEY" in line


def test_a_server_that_is_not_there_is_one_line_without_torch(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "from blip3o.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    words = ["generate", "a cat", "--out", str(tmp_path), "--server", "http://127.0.0.1:1"]
    command = [sys.executable, "-c", program, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in done.stderr.splitlines() if line.startswith("blip3o: error:")]
    assert (done.returncode, len(lines)) == (2, 1), done.stderr
    assert "cannot reach http://127.0.0.1:1/v1: " in lines[0]
