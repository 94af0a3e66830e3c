"""A server shared by all clients, and the results of each client's script, run once."""

import functools
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
PYTHON = HERE.parents[2] / ".venv-clients" / "bin" / "python"
MODULES = HERE / "node_modules"
LONGEST_S = 300


@pytest.fixture(scope="session")
def url(launch: Callable[..., Any]) -> Iterator[str]:
    running = launch("--no-page")
    yield f"{running.url}/v1"
    assert running.stop() == 0
    assert "Traceback" not in "".join(running.lines)


@pytest.fixture(scope="session")
def results(url: str) -> Callable[[str], dict[str, dict[str, Any]]]:
    """Returns a function that maps a script's name to its output: value or error per cell."""

    @functools.cache
    def run(script: str) -> dict[str, dict[str, Any]]:
        done = subprocess.run(
            [*_command(script), str(HERE / "scripts" / script), url],
            capture_output=True,
            text=True,
            timeout=LONGEST_S,
            check=False,
            cwd=HERE,
            env=_environment(),
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


def _command(script: str) -> list[str]:
    if script.endswith(".py"):
        if not PYTHON.exists():
            pytest.skip("the clients for Python are not installed: make test-clients")
        return [str(PYTHON), "-W", "ignore"]
    node = shutil.which("node")
    if node is None or not MODULES.exists():
        pytest.skip("the clients for JavaScript are not installed: make test-clients, with npm")
    return [node]


def _environment() -> dict[str, str]:
    """Returns an environment in which clients contact only the server."""
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONPATH" and "proxy" not in k.lower()}
    return {
        **kept,
        "NO_PROXY": "127.0.0.1",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LANGSMITH_TRACING": "false",
    }
