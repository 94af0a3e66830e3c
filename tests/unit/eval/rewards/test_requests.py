"""Requests that are refused, and the limits; no scorer runs here."""

import base64
import dataclasses
import io
import json
from collections.abc import Mapping
from typing import Any

import pytest

pytest.importorskip("fastapi")
from PIL import Image
from starlette.testclient import TestClient

from blip3o.core.errors import UsageError
from blip3o.data.scenes.prompts import eval_prompts
from blip3o.eval.benchmark import Item
from blip3o.eval.rewards import Reward
from blip3o.eval.rewards.app import RewardService, create_app
from blip3o.eval.rewards.config import RewardServerConfig
from blip3o.eval.rewards.tasks import Task

ITEM = dataclasses.asdict(eval_prompts("counting", 1)[0])
FORM = {"items": json.dumps([ITEM])}


def png(px: int = 8) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (px, px)).save(file, "PNG")
    return file.getvalue()


PNG = png()


class Server:
    """An application whose images get the reward 0.5 as soon as they are in the queue."""

    def __init__(self, **limits: Any) -> None:
        app = create_app("scenes", (), RewardServerConfig(**limits))
        self.service: RewardService = app.state.service
        self.http = TestClient(app)  # without its lifespan: no scorer is started
        self.seen: list[Task] = []
        put = self.service.queue.put

        def judge(tasks: list[Task]) -> None:
            put(tasks)
            self.seen += tasks
            for number, task in enumerate(tasks):
                task.reward.set_running_or_notify_cancel()
                task.reward.set_result(Reward(score=number / 2, data={"n": number}))

        self.service.queue.put = judge

    def json(self, **fields: object) -> Any:
        return self.http.post("/v1/rewards", json=fields)

    def form(self, files: int = 1, data: Mapping[str, Any] = FORM, name: str = "images") -> Any:
        parts = [(name, (f"{n}.png", PNG)) for n in range(files)]
        return self.http.post("/v1/rewards", data=data, files=parts)


@pytest.fixture
def server() -> Server:
    return Server()


def text(data: bytes = PNG) -> str:
    return base64.b64encode(data).decode()


def check(answer: Any, status: int, words: str) -> None:
    assert (answer.status_code, words in answer.json()["error"]["message"]) == (status, True), (
        answer.text
    )


def test_json_and_forms_give_the_rewards_in_their_order(server: Server) -> None:
    answer = server.json(images=[text(b"first"), text(b"second")], items=[ITEM, ITEM])
    assert answer.status_code == 200
    expected = [
        {"score": 0.0, "outcome": "judged", "data": {"n": 0}},
        {"score": 0.5, "outcome": "judged", "data": {"n": 1}},
    ]
    assert answer.json()["rewards"] == expected
    assert [task.data for task in server.seen] == [b"first", b"second"]
    assert server.seen[0].item.id != server.seen[1].item.id
    answer = server.form(2, {"items": json.dumps([ITEM, ITEM])})
    assert answer.json()["rewards"] == expected


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "images"),
        ({"images": [], "items": []}, "images"),
        ({"images": [text()], "items": [ITEM], "seed": 1}, "unknown field 'seed'"),
        ({"images": [text()], "items": [{**ITEM, "size": 1}]}, "unknown field 'items.0.size'"),
        ({"images": [text()], "items": [ITEM, {**ITEM, "category": "x"}]}, "items.1.category"),
        ({"images": [text()], "items": [ITEM, ITEM]}, "1 images, but 2 items"),
        ({"images": [text(), "%%%"], "items": [ITEM, ITEM]}, "images.1 is not base64"),
        ({"images": [1], "items": [ITEM]}, "images.0"),
        ({"images": [text()], "items": [None]}, "items.0"),
    ],
)
def test_wrong_json_is_refused(server: Server, fields: dict[str, Any], words: str) -> None:
    check(server.json(**fields), 422, words)
    assert not server.seen


def test_wrong_bodies_are_refused(server: Server) -> None:
    post = server.http.post
    check(post("/v1/rewards", content=b"\x80\x04N."), 415, "application/json")
    kind = {"content-type": "application/json"}
    check(post("/v1/rewards", content=b"{", headers=kind), 422, "JSON")
    check(post("/v1/rewards", content=b"[" * 100_000, headers=kind), 422, "JSON")
    packed = {**kind, "content-encoding": "gzip"}
    check(post("/v1/rewards", content=b"{}", headers=packed), 415, "compression")
    form = {"content-type": "multipart/form-data; boundary=x"}
    check(post("/v1/rewards", content=b"--y", headers=form), 422, "form")


def test_wrong_forms_are_refused(server: Server) -> None:
    check(server.form(0), 415, "multipart")
    check(server.form(2), 422, "2 images, but 1 items")
    check(server.form(1, {}), 422, "0 texts")
    check(server.form(1, {"items": "[{}]"}), 422, "items.0.category")
    check(server.form(1, {"items": "{"}), 422, "items")
    check(server.form(1, {**FORM, "seed": "1"}), 422, "not 'seed'")
    check(server.form(1, name="image"), 422, "not 'image'")
    assert not server.seen


def test_limits_of_a_request() -> None:
    server = Server(max_images=2, max_image_bytes=100, max_body_bytes=5000)
    check(server.json(images=[text(b"x" * 101)], items=[ITEM]), 413, "image 0 has 101 bytes")
    check(server.json(images=["eHg="] * 3, items=[ITEM] * 3), 413, "at most 2")
    check(server.json(images=["x" * 6000], items=[ITEM]), 413, "over 5000 bytes")
    pieces = (b"x" * 1000 for _ in range(9))  # without a length
    kind = {"content-type": "application/json"}
    check(server.http.post("/v1/rewards", content=pieces, headers=kind), 413, "over 5000 bytes")
    assert server.json(images=["eHg="] * 2, items=[ITEM] * 2).status_code == 200
    assert server.service.reader._held_bytes == 0


def test_a_full_queue_answers_429_with_the_time_to_wait() -> None:
    server = Server(max_queue=300)
    server.service.queue.put_back([Task(Item(id="", number=0), b"")] * 299)
    server.service.metrics.seconds_per_image = 0.04
    answer = server.json(images=["eHg="] * 2, items=[ITEM] * 2)
    check(answer, 429, "299 images are waiting")
    assert answer.headers["retry-after"] == "12"
    assert server.json(images=["eHg="], items=[ITEM]).status_code == 200


def test_too_many_bytes_of_other_requests_answer_429() -> None:
    server = Server(max_bodies_bytes=1000)
    server.service.reader._held_bytes = 990  # other requests
    answer = server.json(images=[text()], items=[ITEM])
    check(answer, 429, "too many bytes")
    assert answer.headers["retry-after"]


def test_a_stopping_server_answers_503_with_the_time_to_wait(server: Server) -> None:
    server.service.queue.close("the server is shutting down")
    answer = server.json(images=[text()], items=[ITEM])
    check(answer, 503, "shutting down")
    assert answer.headers["retry-after"]
    health = server.http.get("/health")
    assert (health.status_code, health.json()["status"]) == (503, "stopping")


def test_a_request_that_takes_too_long_answers_503_and_leaves_the_queue() -> None:
    app = create_app("scenes", (), RewardServerConfig(timeout_s=0.01))
    answer = TestClient(app).post("/v1/rewards", json={"images": [text()], "items": [ITEM]})
    check(answer, 503, "send it again")
    assert app.state.service.queue.take(9, 0) == []


def test_a_bug_gives_500_without_details(server: Server) -> None:
    http = TestClient(server.http.app, raise_server_exceptions=False)

    def fail(metadata: object) -> None:
        raise RuntimeError("secret")

    server.service.source.item_of = fail  # type: ignore[method-assign]
    answer = http.post("/v1/rewards", json={"images": [text()], "items": [ITEM]})
    check(answer, 500, "internal error")
    assert "secret" not in answer.text


def test_an_item_that_the_benchmark_cannot_judge_is_refused(server: Server) -> None:
    def refuse(metadata: object) -> None:
        raise UsageError("no such class")

    server.service.source.item_of = refuse  # type: ignore[method-assign]
    check(server.json(images=[text()], items=[ITEM]), 422, "items.0: no such class")


def test_other_paths_and_methods(server: Server) -> None:
    check(server.http.get("/v1/reward"), 404, "/v1/rewards")
    assert server.http.get("/v1/rewards").status_code == 405
    assert server.http.get("/docs").status_code == 404, "its page loads scripts from other sites"


def test_info_and_metrics(server: Server) -> None:
    server.json(images=[text()], items=[ITEM])
    server.json(images=[])
    info = server.http.get("/v1/info").json()
    assert info["benchmark"] == "scenes"
    assert info["settings"]["world"]["max_objects"] == 4
    assert info["limits"]["max_images"] == 256
    assert set(info["metadata"]["properties"]) == set(ITEM)
    text_ = server.http.get("/metrics").text
    assert 'blip3o_rewards_requests_total{status="200"} 1.0' in text_
    assert 'blip3o_rewards_requests_total{status="422"} 1.0' in text_
    assert "blip3o_rewards_ready 0.0" in text_


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"port": 65536}, "--port"),
        ({"host": " "}, "--host"),
        ({"max_wait_ms": -1}, "--max-wait-ms"),
        ({"max_images": 0}, "--max-images"),
        ({"timeout_s": float("nan")}, "--timeout-s"),
        ({"timeout_s": float("inf")}, "--timeout-s"),
        ({"max_images": 9, "max_queue": 8}, "--max-queue"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        RewardServerConfig(**settings)
