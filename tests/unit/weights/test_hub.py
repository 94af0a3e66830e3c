"""Downloads from a small local hub by the real client, in a separate process."""

import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

NAME = "org/name"
LOAD = """
import sys
from blip3o.core.errors import UsageError
from blip3o.weights.hub import to_local
try:
    print(to_local(sys.argv[1], sys.argv[2] if sys.argv[2:] else None))
except UsageError as error:
    print(error)
    sys.exit(2)
"""


class Hub:
    """Repositories by revision, and a log of the requests.

    Args:
        refs: for each branch, tag or commit the commit and its files.
    """

    def __init__(self, refs: dict[str, tuple[str, dict[str, bytes]]]) -> None:
        self.refs = refs
        self.requests: list[str] = []
        self.ranges: list[str] = []
        self.cut: set[str] = set()
        """Files whose first response breaks in the middle."""
        self.refuse: str | None = None
        """The error code of every response."""
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.answer(self, with_body=True)

            def do_HEAD(self) -> None:
                hub.answer(self, with_body=False)

            def log_message(self, format: str, *args: Any) -> None:
                del format, args

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def downloaded(self) -> set[str]:
        """Names of the files that were sent."""
        return {path for path in self.requests if not path.startswith("/")}

    def answer(self, request: Any, *, with_body: bool) -> None:
        path = request.path.partition("?")[0]
        api = re.fullmatch(rf"/api/models/{NAME}/(revision|tree)/([^/]+)", path)
        file = re.fullmatch(rf"/{NAME}/resolve/([^/]+)/(.+)", path)
        ref = api[2] if api else file[1] if file else None
        if self.refuse or ref is None:
            return self.fail(request, self.refuse or "RepoNotFound")
        if ref not in self.refs:
            return self.fail(request, "RevisionNotFound")
        commit, files = self.refs[ref]
        if api:
            self.requests.append(path)
            listed = [
                {"type": "file", "path": name, "size": len(data), "oid": f"{len(data):040x}"}
                for name, data in files.items()
            ]
            siblings = [{"rfilename": name} for name in files]
            info = {"id": NAME, "sha": commit, "siblings": siblings}
            body = json.dumps(info if api[1] == "revision" else listed).encode()
            return self.send(request, body, {"Content-Type": "application/json"})
        assert file is not None
        name = file[2]
        if name not in files:
            return self.fail(request, "EntryNotFound")
        if with_body:
            self.requests.append(name)
        headers = {"ETag": f'"{commit[:4]}{len(files[name]):036x}"', "X-Repo-Commit": commit}
        return self.send(request, files[name], headers, name if with_body else None)

    def fail(self, request: Any, code: str) -> None:
        request.send_response(401 if code in ("GatedRepo", "RepoNotFound") else 404)
        request.send_header("X-Error-Code", code)
        request.send_header("Content-Length", "0")
        request.end_headers()

    def send(
        self, request: Any, body: bytes, headers: dict[str, str], file: str | None = None
    ) -> None:
        start = 0
        partial = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range") or "")
        if partial:
            self.ranges.append(partial[0])
            start = int(partial[1])
            headers = {**headers, "Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"}
        request.send_response(206 if partial else 200)
        for name, value in headers.items():
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(body) - start))
        request.end_headers()
        if request.command == "HEAD":
            return
        if file in self.cut:
            self.cut.remove(file)
            request.wfile.write(body[start : len(body) // 2])
            request.wfile.flush()
            request.close_connection = True
            return
        request.wfile.write(body[start:])


FIRST, SECOND = "1" * 40, "2" * 40
EXTRA = {
    "trainer_state.json": b"{}",
    "training_args.bin": b"a pickle",
    "pytorch_model.bin": b"a pickle",
    "optimizer.safetensors": b"x",
    "pipeline_llava_gen.py": b"print('never')",
    "diffusion-decoder/safety_checker_none/model.safetensors": b"x",
    "diffusion-decoder/tokenizer/vocab.json": b"{}",
    "checkpoint-100/model.safetensors": b"x",
}


@pytest.fixture
def hub(released_folder: Path) -> Iterator[Hub]:
    """The tiny published folder as "main", with other common files; "v1" is an older revision."""
    files = {
        str(file.relative_to(released_folder)): file.read_bytes()
        for file in released_folder.rglob("*")
        if file.is_file()
    }
    old = {"config.json": b'{"old": true}'}
    main = (SECOND, {**files, **EXTRA})
    hub = Hub({"main": main, SECOND: main, "v1": (FIRST, old), FIRST: (FIRST, old)})
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


@pytest.fixture
def environment(hub: Hub, tmp_path: Path) -> dict[str, str]:
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
        "HF_HOME": str(tmp_path / "cache"),
        "HF_ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": "0",
        "TRANSFORMERS_OFFLINE": "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }


def run(
    environment: dict[str, str], *words: str, command: tuple[str, ...] = ("-c", LOAD)
) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, *command, *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout.strip(), done.stderr


def test_only_files_of_the_model_are_downloaded_and_only_once(
    hub: Hub, environment: dict[str, str], released_folder: Path
) -> None:
    status, folder, said = run(environment, NAME)
    assert status == 0, folder
    needed = {
        str(file.relative_to(released_folder))
        for file in released_folder.rglob("*")
        if file.suffix in (".json", ".safetensors")
    }
    assert hub.downloaded == needed
    assert said == f"{NAME}: {folder}\n"  # no progress bars without a terminal
    for name in needed:
        assert (Path(folder) / name).read_bytes() == (released_folder / name).read_bytes()
    hub.requests.clear()
    assert run(environment, NAME)[:2] == (0, folder)
    assert hub.downloaded == set()
    hub.requests.clear()
    assert run({**environment, "HF_HUB_OFFLINE": "1"}, NAME)[:2] == (0, folder)
    assert hub.requests == []


def test_a_revision_is_pinned(hub: Hub, environment: dict[str, str]) -> None:
    status, folder, _ = run(environment, NAME, "v1")
    assert status == 0
    assert json.loads((Path(folder) / "config.json").read_text()) == {"old": True}
    assert FIRST in folder
    assert run(environment, NAME, FIRST)[1] == folder
    status, message, _ = run(environment, NAME, "v2")
    assert (status, message) == (
        2,
        f"there is no folder {NAME}, and its repository on the hub has no revision 'v2'",
    )


def test_a_broken_download_is_resumed(hub: Hub, environment: dict[str, str]) -> None:
    """The client keeps received data in pieces of 10 MiB."""
    file, data = "model-large.safetensors", bytes(range(256)) * 100_000
    hub.refs["main"][1][file] = data
    hub.cut.add(file)
    status, folder, _ = run(environment, NAME)
    assert status == 0, folder
    assert hub.ranges == [f"bytes={10 * 2**20}-"]
    assert (Path(folder) / file).read_bytes() == data


def test_an_interrupted_download_is_refused_offline_and_resumed_later(
    hub: Hub, environment: dict[str, str]
) -> None:
    _, folder, _ = run(environment, NAME)
    gone = next(Path(folder).glob("model-00002-*"))
    gone.resolve().unlink()
    gone.unlink()
    status, message, _ = run({**environment, "HF_HUB_OFFLINE": "1"}, NAME)
    assert status == 2
    assert f"only a part of it is in the hub's cache; download it: hf download {NAME}" in message
    hub.requests.clear()
    assert run(environment, NAME)[:2] == (0, folder)
    assert hub.downloaded == {gone.name}


@pytest.mark.parametrize(
    ("refuse", "said"),
    [
        ("RepoNotFound", "the hub has no model of that name, or it is private"),
        (
            "GatedRepo",
            f"the hub requires your agreement first: https://huggingface.co/{NAME}",
        ),
    ],
)
def test_a_refusal_of_the_hub_is_reported_in_one_line(
    hub: Hub, environment: dict[str, str], refuse: str, said: str
) -> None:
    hub.refuse = refuse
    status, message, _ = run(environment, NAME)
    assert status == 2
    assert message.startswith(f"there is no folder {NAME}, and {said}")
    assert "\n" not in message


def test_offline_or_without_a_hub_one_line_names_the_remedy(
    hub: Hub, environment: dict[str, str]
) -> None:
    status, message, _ = run({**environment, "HF_HUB_OFFLINE": "1"}, NAME, "v1")
    assert status == 2
    assert "not in the hub's cache, and HF_HUB_OFFLINE forbids" in message
    assert message.endswith(f"hf download {NAME} --revision v1")
    assert hub.requests == []
    hub.server.shutdown()
    hub.server.server_close()
    status, message, _ = run(environment, NAME)
    assert status == 2
    assert "the download failed: " in message
    assert "\n" not in message


def test_a_repository_without_a_model_is_reported(hub: Hub, environment: dict[str, str]) -> None:
    files = {"pytorch_model.bin": b"a pickle"}
    hub.refs["main"] = hub.refs[SECOND] = (SECOND, files)
    status, message, _ = run(environment, NAME)
    assert status == 2
    assert f"{NAME} on the hub has no config.json" in message
    assert hub.downloaded == set()


def test_the_command_line_reads_a_hub_id_and_pins_its_revision(
    environment: dict[str, str], tmp_path: Path
) -> None:
    """Covers all steps from the download to the image."""
    words = ("generate", "a red cat", "--dtype", "fp32", "--out", str(tmp_path / "out"))
    module = ("-m", "blip3o")
    picked = ("--model", NAME, "--revision", SECOND)
    status, printed, said = run(environment, *words, *picked, command=module)
    assert status == 0, said
    assert Path(printed.splitlines()[-1]).is_file()
    shutil.rmtree(tmp_path / "out")
    status, _, said = run(environment, *words, *picked[:2], "--revision", "v9", command=module)
    assert status == 2
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()
