"""The package as a whole: the cost of importing it and its dependencies."""

import ast
import json
import pkgutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import blip3o

SOURCE = Path(blip3o.__file__).parent
WEB = ("fastapi", "prometheus_client", "pydantic", "python_multipart", "starlette", "uvicorn")
OPTIONAL = (
    "diffusers",
    "gradio",
    "matplotlib",
    "peft",
    "tensorboard",
    "timm",
    "torchvision",
    "webdataset",
    *WEB,
)
_REWARDS = (
    "app",
    "dispatcher",
    "errors",
    "geneval",
    "metrics",
    "requests",
    "scenes",
    "schemas",
    "server",
)
"""The HTTP side of the reward server; its client needs no extra."""
NEED_AN_EXTRA = (
    "blip3o.serve.http",
    "blip3o.serve.page",
    *(f"blip3o.eval.rewards.{name}" for name in _REWARDS),
)

ADAPTERS = ("blip3o.models.backbones.cache",)
"""Modules that import transformers; others import them inside functions only."""


def _run(code: str) -> str:
    """Runs code in a new interpreter and returns its output."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_imports_nothing_heavy() -> None:
    loaded = json.loads(_run("import json, sys, blip3o.cli; print(json.dumps(list(sys.modules)))"))
    assert not {"torch", "numpy", "PIL", "transformers"} & set(loaded)


def test_every_module_imports_offline_with_base_dependencies_only() -> None:
    names = [
        module.name
        for module in pkgutil.walk_packages([str(SOURCE)], "blip3o.")
        if not module.name.endswith("__main__")
        and not module.name.startswith(NEED_AN_EXTRA)
        and module.name not in ADAPTERS
    ]
    assert len(names) > 50
    output = _run(
        "import importlib, socket, sys\n"
        "def refuse(*_, **__): raise OSError('network')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        f"sys.modules.update(dict.fromkeys({OPTIONAL!r}))\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "print('transformers' in sys.modules)"
    )
    assert output.strip() == "False", "a module imports transformers outside an adapter function"


def test_lower_layers_import_only_allowed_packages() -> None:
    allowed = set(sys.stdlib_module_names) | {"blip3o", "einops", "numpy", "torch", "yaml", "tqdm"}
    for layer in ("core", "nn", "flow"):
        for file in (SOURCE / layer).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom):
                    names = [node.module or ""]
                else:
                    continue
                for name in names:
                    assert name.split(".")[0] in allowed, f"{file} imports {name}"


def test_sources_are_ascii() -> None:
    for file in SOURCE.rglob("*.py"):
        assert file.read_text(encoding="utf-8").isascii(), file


def test_tests_can_connect_only_to_this_machine() -> None:
    with pytest.raises(RuntimeError, match="may not use the network"):
        socket.create_connection(("example.com", 80))
    with pytest.raises(RuntimeError, match="may not use the network"), socket.socket() as outward:
        outward.connect(("192.0.2.1", 80))
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        socket.create_connection(server.getsockname()).close()
