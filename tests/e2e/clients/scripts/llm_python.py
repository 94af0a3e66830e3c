"""The command `llm`: it asks about text and images, but cannot request an image."""

import base64
import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

from cells import AND_NOW, HELLO, MODEL, PROMPT, QUESTION, URL, run

folder = Path(tempfile.mkdtemp(prefix="blip3o-llm-"))
model = {"model_name": MODEL, "api_base": URL, "vision": True}
listed = [{"model_id": "chat", **model}, {"model_id": "responses", "responses": True, **model}]
(folder / "extra-openai-models.yaml").write_text(json.dumps(listed))  # JSON is valid YAML
environment = {**os.environ, "LLM_USER_PATH": str(folder), "OPENAI_API_KEY": "none"}


def llm(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "llm", *words],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout.strip()


def ask() -> str:
    return llm("-m", "chat", HELLO, "--no-stream")


def stream() -> str:
    return llm("-m", "chat", HELLO)


def look() -> str:
    body = json.dumps({"prompt": PROMPT}).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{URL}/images/generations", body, headers)
    with urllib.request.urlopen(request) as answer:
        b64 = json.load(answer)["data"][0]["b64_json"]
    (folder / "car.png").write_bytes(base64.b64decode(b64))
    return llm("-m", "chat", QUESTION, "-a", str(folder / "car.png"))


def talk() -> str:
    llm("-m", "chat", HELLO)
    return llm("-c", AND_NOW)


def sample() -> str:
    options = {
        "temperature": "0.7",
        "top_p": "0.9",
        "seed": "3",
        "max_tokens": "20",
        "stop": "\n\n",
    }
    words = [word for name, value in options.items() for word in ("-o", name, value)]
    return llm("-m", "chat", HELLO, "-s", "Be short.", *words)


def respond() -> str:
    return llm("-m", "responses", HELLO, "--no-stream")


def respond_streamed() -> str:
    return llm("-m", "responses", HELLO)


run(
    ask=ask,
    stream=stream,
    look=look,
    talk=talk,
    sample=sample,
    respond=respond,
    respond_streamed=respond_streamed,
)
