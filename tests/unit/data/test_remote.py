"""Remote shards and lists: range reads, retries with pauses, and one clear error."""

import http.server
import itertools
import json
import pickle
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import fsspec
import pytest

from blip3o.core.errors import UsageError
from blip3o.data.loader import Loader
from blip3o.data.mixture import MixtureEntry
from blip3o.data.sources import files as module
from blip3o.data.sources.files import files_of, read_file
from blip3o.data.sources.jsonl import JsonlConfig
from blip3o.data.sources.shards import INDEX_SUFFIX
from blip3o.data.sources.webdataset import WebDatasetConfig

MakeLoader = Callable[..., Loader]


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder with ranges; `trouble(path)` may answer with a status or cut a body."""

    folder: Path
    trouble: Callable[[str], int | str | None]
    requests: list[tuple[str, str | None]]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    @property
    def _hub(self) -> Server:
        return cast("Server", self.server)

    def do_GET(self) -> None:
        wanted = self.headers["range"]
        self._hub.requests.append((self.path, wanted))
        trouble = self._hub.trouble(self.path)
        file = self._hub.folder / self.path[1:]
        status = trouble if isinstance(trouble, int) else 206 if file.is_file() else 404
        body = file.read_bytes() if file.is_file() else b""
        total = len(body)
        if status == 206:
            found = re.fullmatch(r"bytes=(\d+)-(\d+)", wanted)
            assert found is not None
            first, last = found.groups()
            body = body[int(first) : int(last) + 1]
            status = 206 if body else 416
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        if status == 206:
            self.send_header("content-range", f"bytes {wanted[6:]}/{total}")
            self.send_header("etag", f'"{hash(file.read_bytes())}"')
        self.end_headers()
        if trouble == "cut":
            body = body[: len(body) // 2]
            self.close_connection = True
        self.wfile.write(body)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "RETRY_DELAYS_S", (0.01, 0.01, 0.01))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def server(shards: Path) -> Iterator[Server]:
    made = Server(("127.0.0.1", 0), Handler)
    made.folder, made.trouble, made.requests = shards, lambda path: None, []
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def remote(server: Server) -> WebDatasetConfig:
    return WebDatasetConfig(path=f"{server.url}/scenes-{{0..1}}.tar", name="scenes")


def test_http_shards_give_the_records_of_local_ones(
    server: Server, scenes: WebDatasetConfig
) -> None:
    local, source = scenes.build(), remote(server).build()
    assert source.is_remote
    assert source.fingerprint() == local.fingerprint()
    assert [source.read(k) for k in range(12)] == [local.read(k) for k in range(12)]
    assert all(wanted for _, wanted in server.requests)  # no file was fetched whole
    server.requests.clear()
    again = remote(server).build()
    assert server.requests == []  # the index was stored
    again.read(3)
    assert len(server.requests) == 1  # one range for all members of a record


def test_a_source_that_was_read_can_be_pickled(server: Server) -> None:
    source = remote(server).build()
    record = source.read(3)  # over the connection that is open now
    assert pickle.loads(pickle.dumps(source)).read(3) == record


def test_a_published_index_is_used(server: Server, shards: Path, scenes: WebDatasetConfig) -> None:
    scenes.build()
    source = remote(server).build()
    indices = [path for path, _ in server.requests if path.endswith(INDEX_SUFFIX)]
    assert len(indices) == 4  # size and content of each index
    assert source.read(11) == scenes.build().read(11)


def test_a_published_index_of_another_shard_is_not_used(
    server: Server, shards: Path, scenes: WebDatasetConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = [scenes.build().read(k) for k in range(12)]
    (shards / f"scenes-0.tar{INDEX_SUFFIX}").write_bytes(
        (shards / f"edits-0.tar{INDEX_SUFFIX}").read_bytes()
        if (shards / f"edits-0.tar{INDEX_SUFFIX}").exists()
        else (shards / f"scenes-1.tar{INDEX_SUFFIX}").read_bytes()
    )
    with (shards / "scenes-0.tar").open("ab") as file:
        file.write(bytes(10240))  # no longer the size in the index
    source = remote(server).build()
    assert "is of another shard" in capsys.readouterr().err
    assert [source.read(k) for k in range(12)] == expected


@pytest.mark.parametrize("trouble", [503, 429, "cut"])
def test_a_server_that_fails_for_a_moment_is_retried(
    server: Server, scenes: WebDatasetConfig, trouble: int | str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = remote(server).build()
    left = [trouble, trouble]
    server.trouble = lambda path: left.pop() if left else None
    assert source.read(5) == scenes.build().read(5)
    assert capsys.readouterr().err.count("next attempt in") == 2


def test_a_server_that_stays_unreachable_stops_the_run_and_counts_no_sample(
    server: Server, make_loader: MakeLoader, tmp_path: Path
) -> None:
    for workers in (0, 1):
        server.trouble = lambda path: None
        entry = MixtureEntry(source=remote(server), task="text_to_image")
        quarantine = tmp_path / "q.jsonl"
        loader = make_loader(mixture=(entry,), num_workers=workers, quarantine=quarantine)
        steps = loader(0)
        assert sum(len(batch) for batch in next(steps)) == 6
        server.trouble = lambda path: 500
        with pytest.raises(UsageError, match=r"scenes-.\.tar cannot be reached, 4 attempts: HTTP"):
            list(itertools.islice(steps, 20))
        assert loader.num_bad == 0
        assert not quarantine.exists()


def test_remote_and_local_samples_are_the_same(
    server: Server, make_loader: MakeLoader, scenes: WebDatasetConfig
) -> None:
    def indices(source: WebDatasetConfig, workers: int) -> list[Any]:
        entry = MixtureEntry(source=source, task="text_to_image")
        steps = make_loader(mixture=(entry,), num_workers=workers)(1)
        taken = [(b.indices.tolist(), b.input_ids.tolist()) for _ in range(4) for b in next(steps)]
        steps.close()
        return taken

    expected = indices(scenes, 0)
    assert indices(remote(server), 0) == expected
    assert indices(remote(server), 2) == expected


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        (403, "HTTP 403"),
        (404, "HTTP 404"),
        (200, "ignores range requests"),
        (502, "cannot be reached, 4 attempts: HTTP 502"),
    ],
)
def test_an_unreadable_file_gives_a_one_line_error(
    server: Server, trouble: int, message: str
) -> None:
    server.trouble = lambda path: trouble
    with pytest.raises(UsageError, match=message) as caught:
        remote(server).build()
    assert "\n" not in str(caught.value)
    assert server.url in str(caught.value)


def test_an_unreachable_server_gives_one_error() -> None:
    with pytest.raises(UsageError, match=r"127\.0\.0\.1:9/a\.tar cannot be reached, 4 attempts"):
        WebDatasetConfig(path="http://127.0.0.1:9/a.tar", name="a").build()


def test_a_replaced_shard_is_reported(
    server: Server, shards: Path, write_tar: Callable[..., None]
) -> None:
    source = remote(server).build()
    members = {f"{k:04d}.png": bytes(40 + k) for k in range(40)}
    write_tar(shards / "scenes-0.tar", members)
    with pytest.raises(ValueError, match="does not hold record 0003 where its index says"):
        source.read(3)


def test_a_remote_list_reads_its_images_one_by_one(server: Server, shards: Path) -> None:
    (shards / "images").mkdir()
    (shards / "images" / "a.png").write_bytes(b"A")
    rows = [{"image": "images/a.png", "caption": "a"}, {"image": "http://elsewhere/a.png"}]
    (shards / "l.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    source = JsonlConfig(path=f"{server.url}/l.jsonl", name="l").build()
    assert source.read(0) == ("0", {"image": b"A"}, {"caption": "a"})
    with pytest.raises(ValueError, match="relative"):
        source.read(1)
    with pytest.raises(UsageError, match="HTTP 404"):
        JsonlConfig(path=f"{server.url}/gone.jsonl", name="l").build()


def test_any_store_of_fsspec_is_read(scenes: WebDatasetConfig, shards: Path) -> None:
    memory = fsspec.filesystem("memory")
    for number in range(2):
        memory.pipe(f"/bucket/scenes-{number}.tar", (shards / f"scenes-{number}.tar").read_bytes())
    try:
        config = WebDatasetConfig(path="memory://bucket/scenes-*.tar", name="s")
        source, local = config.build(), scenes.build()
        assert [source.read(k) for k in range(12)] == [local.read(k) for k in range(12)]
        assert read_file("memory://bucket/scenes-0.tar") == (shards / "scenes-0.tar").read_bytes()
        with pytest.raises(UsageError, match="no such file: memory://bucket/x"):
            files_of("memory://bucket/x").stamp("memory://bucket/x")
    finally:
        memory.rm("/bucket", recursive=True)


def test_a_missing_plug_in_is_reported() -> None:
    with pytest.raises(UsageError, match="cannot read nope://x"):
        files_of("nope://x").stamp("nope://x")


def test_a_truncated_answer_of_a_store_is_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/a.tar", bytes(range(100)))
    whole, answers = type(memory).cat_file, [5, 0]

    def broken(self: Any, path: str, start: int, end: int) -> bytes:
        data = whole(self, path, start, end)
        return data[: answers.pop()] if answers else data

    monkeypatch.setattr(type(memory), "cat_file", broken)
    try:
        address = "memory://bucket/a.tar"
        assert files_of(address).read(address, 10, 50) == bytes(range(10, 60))
        assert files_of(address).read(address, 90, 50) == bytes(range(90, 100))
    finally:
        memory.rm("/bucket", recursive=True)


def test_an_address_with_brackets_in_a_store_is_read(shards: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/odd [v1]/a.tar", (shards / "scenes-0.tar").read_bytes())
    try:
        config = WebDatasetConfig(path="memory://bucket/odd [v1]/a.tar", name="s")
        assert len(config.build()) == 7
    finally:
        memory.rm("/bucket", recursive=True)


def test_a_page_in_place_of_a_published_index_is_not_read_whole(
    server: Server, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (shards / f"scenes-0.tar{INDEX_SUFFIX}").open("wb") as file:
        file.truncate(1 << 20)
    assert len(remote(server).build()) == 12
    assert "is of another shard" in capsys.readouterr().err
    asked = [wanted for path, wanted in server.requests if path.endswith(f"0.tar{INDEX_SUFFIX}")]
    assert asked == ["bytes=0-0"]
