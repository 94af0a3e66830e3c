"""The server with real scorer processes that die, fail, hang or are killed."""

import base64
import dataclasses
import io
import json
import os
import random
import re
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from PIL import Image

from blip3o.data.scenes.prompts import CATEGORIES, eval_prompts
from blip3o.data.scenes.render import render
from blip3o.data.scenes.scene import sample_scene
from blip3o.data.scenes.world import World
from blip3o.eval.benchmark import Sample
from blip3o.eval.rewards import Reward
from blip3o.eval.rewards.scenes import SceneMetadata, SceneRewards
from blip3o.imaging.load import open_image

Start = Callable[..., Any]


def until(holds: Callable[[], object], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def square(red: int) -> bytes:
    return png(Image.new("RGB", (8, 8), (red, 0, 0)))


def does(*names: str) -> list[dict[str, str]]:
    return [{"does": name} for name in names]


def scores(rewards: Sequence[Reward]) -> list[float | None]:
    return [one.score for one in rewards]


def is_ready(server: Any) -> bool:
    return server.service.dispatcher.state == "ready"


def num_batches(server: Any) -> int:
    text = server.service.metrics.text().decode()
    return int(float(re.findall(r"batch_size_count (\S+)", text)[0]))


def has_died(server: Any, times: int) -> bool:
    text = server.service.metrics.text().decode()
    return f"blip3o_rewards_scorer_deaths_total {float(times)}" in text


def test_one_bad_image_does_not_affect_the_others(shared: Any) -> None:
    big = png(Image.new("RGB", (11, 11)))
    files = [square(51), b"no image", b"", square(255)[:50], big, square(0)]
    with shared.client() as client:
        found = client.score([*files, square(102)], does(*["judge"] * 7))
    assert scores(found) == [0.2, None, None, None, None, 0, 0.4]
    assert [one.outcome for one in found] == ["judged", *["broken"] * 4, "judged", "judged"]
    assert ["limit of 100 pixels" in str(one.data) for one in found].index(True) == 4
    assert "0 bytes" in found[2].data["error"]


def test_faults_of_the_scorer_do_not_affect_the_other_images(shared: Any) -> None:
    with shared.client() as client:
        found = client.score(
            [square(51 * n) for n in range(6)],
            does("judge", "raise", "nan", "judge", "skip", "judge"),
        )
        assert scores(found) == [0, None, None, 0.6, None, 1]
        outcomes = [one.outcome for one in found]
        assert [n for n, one in enumerate(outcomes) if one == "transport"] == [1, 2, 4]
        assert client.health()["status"] == "ready"
        assert client.info()["judge"] == "red-1"
    assert has_died(shared, 0)


@pytest.mark.slow
def test_an_image_that_kills_every_scorer_is_given_up_and_the_others_are_judged(
    start: Start, fake: str
) -> None:
    server = start(fake, max_deaths=3)
    with server.client() as client:
        found = client.score(
            [square(51 * n) for n in range(4)], does("judge", "die", "judge", "judge")
        )
    assert scores(found) == [0, None, 0.4, 0.6]
    assert found[1].outcome == "transport"
    assert "died 3 times" in found[1].data["error"]


@pytest.mark.slow
def test_a_scorer_that_hangs_is_replaced(start: Start, fake: str) -> None:
    server = start(fake, max_deaths=1, judge_timeout_s=1.0)
    with server.client() as client:
        assert client.score([square(0)], does("hang"))[0].outcome == "transport"
        assert scores(client.score([square(255)], does("judge"))) == [1]


def test_images_of_several_clients_share_a_batch(shared: Any) -> None:
    before = num_batches(shared)
    shared.service.queue._max_wait_s = 5.0
    with shared.client() as client, ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda red: client.score([square(red)], does("judge")), range(4)))
    shared.service.queue._max_wait_s = 0.02
    assert [one.data["red"] for (one,) in found] == [0, 1, 2, 3]
    assert num_batches(shared) == before + 1


def test_a_full_queue_pushes_back_and_clients_return(shared: Any) -> None:
    shared.service.queue._max_images = 4
    body = {"images": [base64.b64encode(square(9)).decode()] * 4, "items": does(*["sleep"] * 4)}

    def post(_: int) -> httpx.Response:
        return httpx.post(f"{shared.url}/v1/rewards", json=body, timeout=60)

    def score(red: int) -> list[Reward]:
        return client.score([square(red)] * 4, does(*["judge"] * 4))

    with shared.client() as client, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(post, range(5)))
        found = list(pool.map(score, range(8)))
    shared.service.queue._max_images = 100
    assert [[one.data["red"] for one in some] for some in found] == [[n] * 4 for n in range(8)]
    assert {answer.status_code for answer in answers} == {200, 429}
    assert all("retry-after" in one.headers for one in answers if one.status_code == 429)


def test_images_of_a_client_that_left_are_dropped(shared: Any) -> None:
    body = {"images": [base64.b64encode(square(9)).decode()] * 50, "items": does(*["sleep"] * 50)}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{shared.url}/v1/rewards", json=body, timeout=0.5)
    until(lambda: not len(shared.service.queue), seconds=15)  # they would take 25 s


def test_a_killed_idle_scorer_is_replaced_without_a_request(shared: Any) -> None:
    before = shared.service.dispatcher.pid
    os.kill(before, signal.SIGKILL)
    until(lambda: shared.service.dispatcher.pid not in (None, before) and is_ready(shared))
    assert has_died(shared, 1)
    assert httpx.get(f"{shared.url}/health").json()["scorer_pid"] != before
    with shared.client() as client:
        assert scores(client.score([square(255)], does("judge"))) == [1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("way", "words"), [("refuse", "there are no weights; get some"), ("die", "2 times in a row")]
)
def test_a_scorer_that_cannot_be_loaded_fails_the_requests(
    start: Start, fake: str, way: str, words: str
) -> None:
    server = start(fake, f"load={way}", max_starts=2)
    body = {"images": [base64.b64encode(square(9)).decode()], "items": does("judge")}
    answer = httpx.post(f"{server.url}/v1/rewards", json=body, timeout=60)
    assert answer.status_code == 503
    assert words in answer.json()["error"]["message"]
    health = httpx.get(f"{server.url}/health")
    assert (health.status_code, health.json()["status"]) == (503, "failed")


@pytest.mark.parametrize(
    ("num_requests", "num_clients", "num_kills"),
    [(300, 4, 2), pytest.param(10_000, 16, 20, marks=pytest.mark.slow)],
)
def test_no_reward_is_lost_or_wrong_when_scorers_are_killed(
    start: Start, num_requests: int, num_clients: int, num_kills: int
) -> None:
    server = start("scenes")
    cases = scene_cases(min(num_requests // 12, 200))
    rng = random.Random(0)
    order = [rng.randrange(len(cases)) for _ in range(num_requests)]
    kills = sorted(rng.sample(range(num_requests // 10, num_requests * 8 // 10), num_kills))
    done: list[int] = []
    killed: list[int] = []

    def ask(which: int) -> Reward:
        (found,) = client.score([cases[which][0]], [cases[which][1]])
        done.append(which)
        return found

    def kill() -> None:
        for number, limit in enumerate(kills):
            until(lambda limit=limit: len(done) >= limit, seconds=7200)
            for _ in range(2 if number % 5 == 4 else 1):  # sometimes while it loads
                until(lambda: server.service.dispatcher.pid not in (None, *killed))
                killed.append(server.service.dispatcher.pid)
                os.kill(killed[-1], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with server.client(patience_s=7200) as client, ThreadPoolExecutor(num_clients) as pool:
        found = list(pool.map(ask, order))
    killer.join()
    wrong = [n for n, which in enumerate(order) if found[n] != cases[which][2]]
    assert not wrong
    assert len(found) == num_requests
    assert len(killed) >= num_kills
    text = server.service.metrics.text().decode()
    count = f'blip3o_rewards_images_total{{outcome="judged"}} {float(num_requests)}'
    assert count in text, "none is judged twice"


def scene_cases(count: int) -> list[tuple[bytes, dict[str, Any], Reward]]:
    """Returns image files, their metadata, and the rewards that are computed directly.

    Half of the images show one of the prompts' things, so some scores are 1.
    """
    cases = []
    world = World(max_objects=1)
    for index in range(count):
        scene = sample_scene(3, index, world=world)
        category = CATEGORIES[index % len(CATEGORIES)]
        metadata = dataclasses.asdict(eval_prompts(category, 6, seed=index)[0])
        if index % 2:
            one = scene.objects[0]
            include = [{"thing": one.thing, "color": one.color, "count": 1}]
            metadata = {"category": category, "include": include, "relation": None}
        data = png(render(scene, 96))
        item = SceneRewards().item_of(SceneMetadata.model_validate_json(json.dumps(metadata)))
        sample = Sample(item=item, number=0, sha256="", image=open_image(data))
        (verdict,) = SceneRewards().scorer().verdicts([sample])
        cases.append((data, metadata, Reward(score=verdict.score, data=verdict.data)))
    assert {case[2].score for case in cases} == {0.0, 1.0}
    return cases
