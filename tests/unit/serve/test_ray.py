"""Settings of a deployment, and a real Ray Serve that scales, replaces and drains its replicas."""

import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from fastapi.testclient import TestClient

from blip3o.core.config import from_dict
from blip3o.core.errors import UsageError
from blip3o.serve.ray import RayServeConfig, Replica, app, deployment

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="needs Ray: pip install 'blip3o[ray]'"
)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"modle": "pocket"}, "unknown config key 'modle'; did you mean model"),
        ({"model": "pockt"}, "unknown model 'pockt'"),
        ({"max_replicas": "many"}, "max_replicas must be int"),
        ({"min_replicas": "3", "max_replicas": 2}, "min_replicas=3 exceeds max_replicas=2"),
        ({"max_ongoing_requests": 4}, "target_ongoing_requests=8 is never reached"),
        ({"num_gpus": "1.5"}, "Ray shares one GPU, or gives whole ones"),
        ({"server.workers": "2"}, "server.workers has no effect under Ray Serve"),
        ({"server": {"max_n": 0}}, "--max-n must be positive"),
        ({"dtype": "fp8"}, "dtype must be"),
    ],
)
def test_wrong_settings_are_one_line(settings: dict[str, object], message: str) -> None:
    with pytest.raises(Exception, match=message) as error:
        app(settings)
    assert type(error.value).__name__ == "ClickException"
    assert "\n" not in str(error.value)


def test_ray_is_named_if_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"ray is missing: pip install 'blip3o\[ray\]'"):
        deployment(RayServeConfig())


@needs_ray
def test_every_setting_reaches_ray() -> None:
    settings = {
        "num_cpus": 2.0,
        "num_gpus": 0.25,
        "min_replicas": 2,
        "max_replicas": 7,
        "target_ongoing_requests": 3.0,
        "max_ongoing_requests": 5,
        "max_queued_requests": 11,
        "look_back_period_s": 13.0,
        "upscale_delay_s": 17.0,
        "downscale_delay_s": 19.0,
        "health_check_period_s": 23.0,
        "health_check_timeout_s": 29.0,
        "server": {"drain_timeout_s": 31.0},
    }
    made: Any = deployment(from_dict(RayServeConfig, settings))
    options = made._bound_deployment
    config = options._deployment_config
    assert options.ray_actor_options == {"num_cpus": 2.0, "num_gpus": 0.25}
    scaling = config.autoscaling_config
    names = (
        *("min_replicas", "max_replicas", "target_ongoing_requests"),
        *("look_back_period_s", "upscale_delay_s", "downscale_delay_s"),
    )
    assert [getattr(scaling, name) for name in names] == [settings[name] for name in names]
    names = (
        *("max_ongoing_requests", "max_queued_requests"),
        *("health_check_period_s", "health_check_timeout_s"),
    )
    assert [getattr(config, name) for name in names] == [settings[name] for name in names]
    assert config.graceful_shutdown_timeout_s == 31.0


START = """
import ray
from ray.serve.scripts import cli

for attempt in reversed(range(4)):
    try:
        ray.init("local", include_dashboard=False, namespace="serve")
        break
    except Exception:
        ray.shutdown()
        if not attempt:
            raise
cli()
"""
"""The command `serve`, without the many processes of Ray's dashboard. On a busy machine Ray often
does not start within its own fixed limits, so it gets several attempts."""


def test_a_replica_answers_until_its_engine_fails(tiny_folder: Path) -> None:
    replica = Replica(RayServeConfig(model=str(tiny_folder), device="cpu", dtype="fp32"))
    client = TestClient(replica.__serve_build_asgi_app__(), base_url="http://127.0.0.1")
    assert client.get("/health").json()["ready"]
    assert client.get("/v1/models").json()["data"][0]["id"] == tiny_folder.name
    assert client.get("/health", headers={"Host": "evil.example"}).status_code == 403
    replica.check_health()
    replica.__del__()
    with pytest.raises(RuntimeError, match="the engine has stopped"):
        replica.check_health()


QUIET = {"NO_PROXY": "127.0.0.1", "RAY_USAGE_STATS_ENABLED": "0"}


class Cluster:
    """`serve run`, in a process of its own: Ray looks for the network."""

    def __init__(self, folder: Path, **settings: object) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        content = {
            "http_options": {"host": "127.0.0.1", "port": self.port},
            "applications": [
                {"name": "blip3o", "import_path": "blip3o.serve.ray:app", "args": settings}
            ],
        }
        file = folder / "serve.yaml"
        file.write_text(yaml.safe_dump(content))
        self.log = (folder / "log").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-c", START, "run", str(file)],
            stdout=self.log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **QUIET},
        )

    def ask(self, seed: int = 0) -> httpx.Response:
        """Requests an image."""
        return httpx.post(
            f"http://127.0.0.1:{self.port}/v1/images/generations",
            json={"prompt": "a red cat", "seed": seed},
            timeout=60,
        )

    def is_up(self) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"http://127.0.0.1:{self.port}/health").status_code == 200
        return False

    def replicas(self) -> set[int]:
        """Returns the processes of the replicas."""
        parents, found = {}, set()
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                name = (folder / "cmdline").read_text()
                pid = int(folder.name)
                parents[pid] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                if name.startswith("ray::ServeReplica"):
                    found.add(pid)
        return {pid for pid in found if self.process.pid in _line(pid, parents)}

    def wait_for(self, what: Callable[[], bool], within_s: float = 300) -> None:
        end = time.monotonic() + within_s
        while not what():
            assert self.process.poll() is None, self.text()
            assert time.monotonic() < end, self.text()
            time.sleep(0.2)

    def text(self) -> str:
        self.log.seek(0)
        return self.log.read()


def _line(pid: int, parents: dict[int, int]) -> Iterator[int]:
    while pid in parents:
        pid = parents[pid]
        yield pid


@needs_ray
@pytest.mark.slow
class TestOnRay:
    def test_replicas_come_under_load_and_are_replaced_and_drained(
        self, tiny_folder: Path, tmp_path: Path
    ) -> None:
        cluster = Cluster(
            tmp_path,
            model=str(tiny_folder),
            num_cpus=0.5,
            max_replicas=2,
            target_ongoing_requests=1,
            look_back_period_s=2,
            upscale_delay_s=1,
            downscale_delay_s=1,
            health_check_period_s=1,
        )
        try:
            cluster.wait_for(cluster.is_up)
            alone = cluster.ask()
            assert alone.status_code == 200
            (first,) = cluster.replicas()

            statuses = []
            stop = False

            def load(number: int) -> None:
                while not stop:
                    answer = cluster.ask()
                    statuses.append(answer.status_code)
                    if answer.status_code == 200:
                        assert answer.json()["data"] == alone.json()["data"]

            with ThreadPoolExecutor(8) as pool:
                work = [pool.submit(load, number) for number in range(8)]
                cluster.wait_for(lambda: len(cluster.replicas()) == 2)
                # Without load the number falls to one; the requests on their way are answered.
                stop = True
                for one in work:
                    one.result()
            assert set(statuses) == {200}
            cluster.wait_for(lambda: len(cluster.replicas()) == 1)
            (last,) = cluster.replicas()
            os.kill(last, signal.SIGKILL)
            cluster.wait_for(lambda: bool(cluster.replicas() - {first, last}))
            cluster.wait_for(lambda: cluster.is_up() and cluster.ask().status_code == 200)
            assert cluster.ask().json()["data"] == alone.json()["data"]
        finally:
            cluster.process.send_signal(signal.SIGINT)
            cluster.process.wait(60)

    def test_the_command_prints_a_wrong_setting_as_one_line(self) -> None:
        command = [sys.executable, "-m", "ray.serve.scripts", "run"]
        done = subprocess.run(
            [*command, "blip3o.serve.ray:app", "max_replicas=0"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert done.stderr.endswith("Error: max_replicas must be at least 1, got 0\n")
        assert "Traceback" not in done.stderr
