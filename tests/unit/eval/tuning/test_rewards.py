"""Rewards of reward tuning: parts of a caption count, and servers that fail are reported."""

import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from blip3o.core.errors import UsageError
from blip3o.core.types import ImageRequest
from blip3o.data.scenes.captions import caption_texts
from blip3o.data.scenes.render import render
from blip3o.data.scenes.scene import sample_scene
from blip3o.data.scenes.synonyms import PLURALS
from blip3o.data.scenes.types import Placed, Scene
from blip3o.eval.tuning.http import HttpRewardConfig
from blip3o.eval.tuning.scenes import ScenesReward

LEFT, RIGHT = {"x": 0.27, "y": 0.5, "size": 0.3}, {"x": 0.73, "y": 0.5, "size": 0.3}
CAT, DOG = ("cat", "red"), ("dog", "blue")


def scene(*placed: tuple[tuple[str, str], Mapping[str, float]]) -> Scene:
    objects = [Placed(thing=look[0], color=look[1], **place) for look, place in placed]
    return Scene(background="white", objects=tuple(objects))


BOTH = scene((CAT, LEFT), (DOG, RIGHT))
SWAPPED = scene((DOG, LEFT), (CAT, RIGHT))


def score(shown: Scene, caption: str, record: Scene = BOTH) -> float:
    fields = {"objects": [asdict(one) for one in record.objects]}
    (found,) = ScenesReward().score([render(shown)], [ImageRequest(prompt=caption, fields=fields)])
    return found


@pytest.mark.parametrize(
    ("caption", "shown", "expected"),
    [
        ("a red cat and a blue dog", BOTH, 1.0),
        ("A red kitten, a navy puppy!", BOTH, 1.0),
        ("a red cat and a blue dog", SWAPPED, 1.0),
        ("a red cat to the left of a blue dog", BOTH, 1.0),
        ("a red cat to the left of a blue dog", SWAPPED, 0.5),
        ("a cat over a dog", SWAPPED, 1.0),  # the record's objects are not apart along y
        ("a red cat and a blue dog", scene((CAT, LEFT)), 0.5),
        ("a red cat left of a blue dog", scene((CAT, LEFT)), 0.25),
        ("a red cat and a blue dog", scene((("cat", "green"), LEFT), (DOG, RIGHT)), 0.75),
        ("a cat and a dog", scene((("cat", "green"), LEFT), (("dog", "pink"), RIGHT)), 1.0),
        ("a cat, a dog, light blue background", scene((CAT, LEFT), (("dog", "pink"), RIGHT)), 1),
        ("a red cat", BOTH, 0.5),
        ("a red cat on the left", scene((CAT, LEFT)), 1.0),
        ("a red cat on the left", scene((CAT, RIGHT)), 0.5),
        ("two things of mine", BOTH, 1.0),
        ("a red cat and a blue dog", scene((("bus", "red"), LEFT)), 0.0),
    ],
)  # fmt: skip
def test_an_image_gets_credit_for_what_it_shows(
    caption: str, shown: Scene, expected: float
) -> None:
    assert score(shown, caption) == expected


@pytest.mark.parametrize(("thing", "words"), PLURALS.items())
def test_every_plural_names_its_thing(thing: str, words: str) -> None:
    named = ((thing, "red"), LEFT)
    assert score(scene(named), f"some {words}", record=scene(named, (DOG, RIGHT))) == 1.0


def test_the_true_image_of_a_caption_has_the_full_reward_and_another_one_less() -> None:
    right, wrong = [], []
    for index in range(12):
        true, other = sample_scene(3, index), sample_scene(3, index + 100)
        for caption in caption_texts(true, np.random.default_rng(index)):
            right.append(score(true, caption, true))
            wrong.append(score(other, caption, true))
    assert np.mean(right) == 1
    assert max(wrong) < 1
    assert np.mean(wrong) < 0.3


def test_a_record_without_objects_is_refused_in_one_line() -> None:
    request = ImageRequest(prompt="a cat", fields={"caption": "a cat"})
    with pytest.raises(UsageError, match=r"record of 'a cat' has no 'objects'"):
        ScenesReward().score([render(BOTH)], [request])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server that gives the rewards of a list, and its address."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    rewards: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            assert b'{"tag": "t"}' in body
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"judge": "j", "rewards": rewards}).encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}", rewards
    http.shutdown()
    http.server_close()


def test_http_asks_a_server_and_reports_what_it_cannot_judge(
    server: tuple[str, list[dict[str, Any]]],
) -> None:
    url, rewards = server
    reward = HttpRewardConfig(url=url, patience_s=0.1).build()
    requests = [ImageRequest(prompt="a cat", fields={"item": {"tag": "t"}})]
    rewards[:] = [{"score": 0.25, "outcome": "judged", "data": {}}]
    assert reward.score([render(BOTH)], requests) == [0.25]
    rewards[:] = [{"score": None, "outcome": "transport", "data": {"error": "it died"}}]
    with pytest.raises(UsageError, match=r"no score for 1 of 1 images; the first: transport, it d"):
        reward.score([render(BOTH)], requests)
    bare = [ImageRequest(prompt="a cat", fields={})]
    with pytest.raises(UsageError, match=r"record of 'a cat' has no object 'item'"):
        reward.score([render(BOTH)], bare)


def test_a_server_that_is_gone_is_one_clear_line() -> None:
    gone = HttpRewardConfig(url="http://127.0.0.1:9", patience_s=0.1).build()
    requests = [ImageRequest(prompt="a cat", fields={"item": {}})]
    with pytest.raises(UsageError, match=r"http://127.0.0.1:9 did not judge within 0.1") as error:
        gone.score([render(BOTH)], requests)
    assert "\n" not in str(error.value)
    with pytest.raises(UsageError, match="is not the address of a server"):
        HttpRewardConfig(url="localhost").build()
