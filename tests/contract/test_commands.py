"""Every command works with every form of every generator, or refuses in one line."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from blip3o.cli import main
from blip3o.generate.pipeline import Blip3oPipeline
from blip3o.models.unified import UnifiedModel
from blip3o.text.tokenizer import Tokenizer
from blip3o.weights.folder import save_model

Run = Callable[..., str]
FEW = (
    "prompts_per_category=1",
    "images_per_prompt=1",
    *(f"num_{part}=1" for part in ("questions", "captions", "edits", "reconstructions")),
    *(f"num_wording_{part}=0" for part in ("questions", "edits")),
    "wording_prompts_per_category=0",
    "num_inference_steps=2",
)
"""Settings of the smallest benchmark with all parts of its first axis."""


@pytest.fixture
def folder(model: UnifiedModel, tokenizer: Tokenizer, tmp_path: Path) -> Path:
    save_model(model, tokenizer, tmp_path / "model", torch.float32)
    Image.new("RGB", (20, 12), "red").save(tmp_path / "red.png")
    return tmp_path / "model"


@pytest.fixture
def run(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command on the model in the folder of the test, and returns its output."""
    monkeypatch.chdir(folder.parent)

    def call(*words: str, status: int = 0) -> str:
        assert main([*words, "--model", "model"]) == status
        output, errors = capsys.readouterr()
        if status:
            assert errors.startswith("blip3o: error: ")
            assert errors.count("\n") == 1
            return errors
        return output

    return call


def pixels(folder: str) -> list[bytes]:
    return [Image.open(file).tobytes() for file in sorted(Path(folder).glob("[0-9]*.png"))]


def test_images_and_texts(run: Run) -> None:
    cpu = ("--device", "cpu", "--dtype", "fp32")
    prompts = ("generate", "a red cat", "x", "--num-images", "2", "--seed", "3", *cpu)
    run(*prompts, "--out", "plain")
    assert len(pixels("plain")) == 4
    run(*prompts, "--out", "offloaded", "--offload", "sequential")
    assert pixels("offloaded") == pixels("plain")
    run(*prompts, "--out", "quantized", "--quantize", "int8")
    assert len(pixels("quantized")) == 4
    run("ask", "red.png", "What is this?", "--max-new-tokens", "3", *cpu)
    for words in (("edit", "red.png", "blue"), ("reconstruct", "red.png")):
        run(*words, "--out", f"{words[0]}.png", *cpu)
        assert Image.open(f"{words[0]}.png").size == (16, 16)


def test_a_benchmark_and_the_memory(run: Run) -> None:
    run("eval", "scenes", "--out", "results", "--device", "cpu", *FEW)
    assert Path("results/results.json").is_file()
    assert "sequential" in run("doctor")


def test_conversion(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = folder.parent
    assert main(["convert", str(folder), str(home / "copy")]) == 0
    stored = [Path(one, "model.safetensors").read_bytes() for one in (folder, home / "copy")]
    assert stored[0] == stored[1]
    capsys.readouterr()
    assert main(["convert", str(folder), str(home / "p"), "--to", "published"]) == 2
    message = capsys.readouterr().err
    assert "the published layout cannot hold this model: backbone qwen3" in message
    assert message.count("\n") == 1


def test_abilities_that_a_method_lacks(run: Run, model: UnifiedModel) -> None:
    config = model.config.generator
    guided = (("generate", "x", "--out", "a"), ("edit", "red.png", "x", "--out", "b.png"))
    for words in guided:
        if config.is_guided:
            run(*words, "--guidance", "3")
        else:
            error = run(*words, "--guidance", "3", status=2)
            assert f"this model ({config.kind}) has no guidance: guidance_scale must be 1" in error
    error = run("generate", "x", "--out", "c", "--set", "generator.num_query_tokens=9", status=2)
    assert "num_query_tokens" in error


def test_the_page_offers_what_the_method_has(model: UnifiedModel, tokenizer: Tokenizer) -> None:
    pytest.importorskip("fastapi")
    gr = pytest.importorskip("gradio")
    from blip3o.serve.config import ServeConfig
    from blip3o.serve.http.service import Service
    from blip3o.serve.page.parts import sampling_fields

    with gr.Blocks():
        service = Service([Blip3oPipeline(model, tokenizer)], "m", ServeConfig())
        guidance = sampling_fields(service).guidance
    assert guidance.visible == model.config.generator.is_guided
    assert guidance.value == model.config.sampling.guidance_scale


def test_a_server_refuses_what_the_method_lacks(model: UnifiedModel, tokenizer: Tokenizer) -> None:
    pytest.importorskip("fastapi")
    from fastapi.testclient import TestClient

    from blip3o.serve.config import ServeConfig
    from blip3o.serve.http.app import build_app
    from blip3o.serve.http.service import Service

    service = Service(
        [Blip3oPipeline(model, tokenizer)], "m", ServeConfig(max_wait_ms=0, max_batch=2)
    )
    service.start()
    try:
        client = TestClient(build_app(service))
        drawing = {"prompt": "x", "num_inference_steps": 2}
        assert client.post("/v1/images/generations", json=drawing).status_code == 200
        answer = client.post("/v1/images/generations", json={**drawing, "guidance_scale": 3})
        if model.config.generator.is_guided:
            assert answer.status_code == 200
        else:
            assert answer.status_code == 400
            assert "has no guidance: guidance_scale must be 1" in answer.json()["error"]["message"]
    finally:
        service.stop()
