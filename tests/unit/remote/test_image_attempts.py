"""One request of an image client with all its attempts: outcomes, pauses, caps, and the end."""

import concurrent.futures
import dataclasses
import io
import os
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from blip3o.core.errors import PreemptedError, UsageError
from blip3o.remote.chat import ChatRequest
from blip3o.remote.client import ChatClient
from blip3o.remote.cost import Account, Budget, Prices, estimate
from blip3o.remote.http import ServerSettings
from blip3o.remote.images import ImageAnswer, ImageClient, ImageRequest

Server = Any  # the class in conftest.py
CAT = ImageRequest(prompt="a cat", seed=3)
PRICES = Prices(image=0.1)


def file_of(form: str) -> bytes:
    data = io.BytesIO()
    Image.effect_noise((32, 24), 80).convert("RGB").save(data, form)
    return data.getvalue()


PNG = file_of("PNG")
IDAT = PNG.index(b"IDAT")


def huge_png() -> bytes:
    """Returns a small file that states 60,000 x 60,000 pixels."""
    head = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return PNG[:12] + head + struct.pack(">I", zlib.crc32(head)) + PNG[33:]


def split_png() -> bytes:
    """Returns a file whose second part of the pixels has no valid name."""
    pixels = PNG[IDAT + 4 : IDAT + 104]
    first = struct.pack(">I", 100) + b"IDAT" + pixels
    return PNG[: IDAT - 4] + first + struct.pack(">I", zlib.crc32(b"IDAT" + pixels)) + bytes(200)


def ask(
    settings: ServerSettings, request: ImageRequest = CAT, budget: Budget | None = None
) -> ImageAnswer:
    answer = ImageClient(settings, budget=budget).ask(request, threading.Event())
    assert answer is not None
    return answer


@pytest.fixture(autouse=True)
def drawing(server: Server) -> None:
    """Lets the server answer with an image, without a number of tokens."""
    server.reply = lambda call: server.image(PNG)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_an_answer_keeps_the_file_and_what_the_server_states(
    server: Server, settings: ServerSettings, form: str
) -> None:
    file = file_of(form) + b"notes at the end"
    usage = {"input_tokens": 12, "output_tokens": 345}
    server.reply = lambda call: server.image(file, {"model": "painter-2", "usage": usage})
    assert ask(settings) == ImageAnswer(
        outcome="answered", data=file, model="painter-2", prompt_tokens=12, completion_tokens=345
    )
    server.reply = lambda call: server.image(file, {"usage": None})
    assert ask(settings) == ImageAnswer(outcome="answered", data=file)
    assert len(server.calls) == 2


TROUBLES: dict[str, Callable[[Any], Any]] = {
    "500": lambda server: server.error(500, "too busy"),
    "429": lambda server: server.error(429, "too busy"),
    "lost": lambda server: server.image(PNG, is_cut=True),
    "hang": lambda server: server.image(PNG, wait_s=0.8),
    "half of the JSON": lambda server: server.raw(server.image(PNG).body[:200]),
    "half of a PNG": lambda server: server.image(PNG[: len(PNG) // 2]),
    "damaged PNG": lambda server: server.image(PNG[:45] + bytes(20) + PNG[65:]),
    "half of a JPEG": lambda server: server.image(file_of("JPEG")[:400]),
    "PNG of strange parts": lambda server: server.image(split_png()),
    "PNG of too many pixels": lambda server: server.image(huge_png()),
    "no image": lambda server: server.image(b"<html>"),
    "an empty image": lambda server: server.image(b""),
    "an error as a success": lambda server: server.raw(b'{"error": {"message": "too busy"}}'),
    "nothing": lambda server: server.raw(b'{"data": [null]}'),
}
CHARGED = sorted(TROUBLES.keys() - {"500", "429"})


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_passing_trouble_is_overcome(
    server: Server, settings: ServerSettings, trouble: str
) -> None:
    server.reply = lambda call: server.image(PNG) if call.earlier else TROUBLES[trouble](server)
    answer = ask(dataclasses.replace(settings, timeout_s=0.4))
    assert (answer.outcome, answer.data) == ("answered", PNG)
    assert len(server.calls) == 2


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_lasting_trouble_is_a_fault_of_the_transport(
    server: Server, settings: ServerSettings, tmp_path: Path, trouble: str
) -> None:
    server.reply = lambda call: TROUBLES[trouble](server)
    budget = Budget(tmp_path, prices=PRICES)
    answer = ask(dataclasses.replace(settings, timeout_s=0.4), budget=budget)
    assert (answer.outcome, answer.data) == ("transport", b"")
    assert "3 attempts" in answer.text
    assert (": too busy" in answer.text) == (b"too busy" in TROUBLES[trouble](server).body)
    assert len(server.calls) == 3
    # an image that is lost on its way may be charged
    assert budget.spent().cost == pytest.approx(0.3 if trouble in CHARGED else 0.0)
    assert budget.spent().num_requests == 3


def test_retry_after_is_honored_by_all_requests(server: Server, settings: ServerSettings) -> None:
    asked = threading.Event()

    def reply(call: Any) -> Any:
        if call is server.calls[0]:
            asked.set()
            return server.error(429, retry_after="0.7")
        return server.image(PNG)

    server.reply = reply
    client = ImageClient(settings)
    stop = threading.Event()
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        first = pool.submit(client.ask, CAT, stop)
        asked.wait(5)
        time.sleep(0.2)
        second = pool.submit(client.ask, dataclasses.replace(CAT, prompt="a dog"), stop)
        answers = [first.result(), second.result()]
    assert [one and one.outcome for one in answers] == ["answered", "answered"]
    times = [call.at for call in server.calls]
    assert len(times) == 3
    assert times[1] - times[0] >= 0.7


def test_a_pause_beyond_the_limit_ends_the_request(
    server: Server, settings: ServerSettings
) -> None:
    server.reply = lambda call: server.error(429, "daily limit", retry_after="86400")
    start = time.monotonic()
    answer = ask(settings)
    assert answer.outcome == "transport"
    assert "86400 s" in answer.text
    assert "longest_pause_s" in answer.text
    assert len(server.calls) == 1
    with pytest.raises(UsageError, match=r"gave no image of 'a cat': HTTP 429: daily limit; "):
        ImageClient(settings).images([CAT])
    assert time.monotonic() - start < 2


def test_a_filter_of_the_server_is_a_refusal(
    server: Server, settings: ServerSettings, tmp_path: Path
) -> None:
    server.reply = lambda call: server.error(400, "not this", "content_policy_violation")
    budget = Budget(tmp_path, prices=Prices(completion=1000.0, image=0.1))
    assert ask(settings, budget=budget) == ImageAnswer(outcome="refusal", text="not this")
    assert len(server.calls) == 1
    assert budget.spent().cost == pytest.approx(6.34)  # unknown: the most that it may cost


def test_an_address_instead_of_an_image_stops_at_once(
    server: Server, settings: ServerSettings, tmp_path: Path
) -> None:
    server.reply = lambda call: server.raw(b'{"data": [{"url": "http://x", "b64_json": null}]}')
    budget = Budget(tmp_path, prices=PRICES)
    with pytest.raises(UsageError, match="must support response_format b64_json"):
        ask(settings, budget=budget)
    assert len(server.calls) == 1
    assert budget.spent().cost == pytest.approx(0.1)  # the server has drawn it


def test_a_wrong_request_stops_at_once_and_costs_nothing(
    server: Server, settings: ServerSettings, tmp_path: Path
) -> None:
    server.reply = lambda call: server.error(400, "unknown size")
    budget = Budget(tmp_path, prices=PRICES)
    with pytest.raises(UsageError, match="unknown size"):
        ask(settings, budget=budget)
    assert (budget.spent().num_requests, budget.spent().cost) == (1, 0.0)


def test_a_server_that_is_not_there_is_named(settings: ServerSettings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(UsageError, match=r"cannot reach .*check the url"):
        ask(dataclasses.replace(settings, url=url))


def test_extra_fields_replace_and_remove(server: Server, settings: ServerSettings) -> None:
    extra = {"response_format": None, "seed": None, "quality": "high", "size": "64x64"}
    client = ImageClient(settings, size="32x32", extra=extra)
    client.ask(CAT, threading.Event())
    assert server.calls[0].body == {
        "model": "judge",
        "prompt": "a cat",
        "n": 1,
        "quality": "high",
        "size": "64x64",
    }


@pytest.mark.parametrize("name", ["model", "prompt", "n", "image", "image[]", "stream"])
def test_extra_fields_that_are_no_settings(
    server: Server, settings: ServerSettings, tmp_path: Path, name: str
) -> None:
    budget = Budget(tmp_path, prices=PRICES)
    client = ImageClient(settings, budget=budget, extra={name: None})
    with pytest.raises(UsageError, match=f"extra cannot hold '{name}'".replace("[", r"\[")):
        client.ask(CAT, threading.Event())
    assert server.calls == []
    assert (budget.spent().num_requests, budget.spent().cost) == (0, 0.0)


def test_a_request_that_is_stopped_before_is_not_sent(
    server: Server, settings: ServerSettings, tmp_path: Path
) -> None:
    stop = threading.Event()
    stop.set()
    budget = Budget(tmp_path, prices=PRICES)
    assert ImageClient(settings, budget=budget).ask(CAT, stop, "a") is None
    assert ChatClient(settings, budget).ask(ChatRequest(parts=("hi",)), stop, "a") is None
    assert server.calls == []
    assert budget.spent().accounts == {"a": Account()}
    assert (budget.spent().num_requests, budget.spent().cost) == (0, 0.0)


@pytest.mark.parametrize("pause", ["of its own", "that the server asks for", "of the pace"])
def test_stop_ends_a_pause(
    server: Server, settings: ServerSettings, tmp_path: Path, pause: str
) -> None:
    headers = {"retry_after": "100"} if pause == "that the server asks for" else {}
    server.reply = lambda call: server.error(503, **headers)
    slow = dataclasses.replace(
        settings,
        pause_s=100.0 if pause == "of its own" else 0.01,
        requests_per_minute=0.6 if pause == "of the pace" else None,
    )
    stop, budget = threading.Event(), Budget(tmp_path, prices=PRICES)
    threading.Timer(0.5, stop.set).start()
    start = time.monotonic()
    assert ImageClient(slow, budget=budget).ask(CAT, stop) is None
    assert time.monotonic() - start < 5
    assert len(server.calls) == 1
    assert (budget.spent().num_requests, budget.spent().cost) == (1, 0.0)


def ask_all(
    client: ImageClient, count: int, account: str = "", num_threads: int = 6
) -> list[ImageAnswer | None]:
    stop = threading.Event()
    requests = [ImageRequest(prompt=f"image {n}", seed=n) for n in range(count)]
    with concurrent.futures.ThreadPoolExecutor(num_threads) as pool:
        return list(pool.map(lambda request: client.ask(request, stop, account), requests))


def test_a_cap_of_requests_holds_with_further_attempts(
    server: Server, settings: ServerSettings, tmp_path: Path
) -> None:
    server.reply = lambda call: server.image(PNG) if call.earlier else server.error(500)
    budget = Budget(tmp_path, max_requests=11)
    answers = ask_all(ImageClient(settings, budget=budget), 20)
    assert len(server.calls) == 11
    assert budget.spent().num_requests == 11
    assert {one and one.outcome for one in answers} == {"answered", None}
    assert len(ask_all(ImageClient(settings, budget=budget), 3)) == 3
    assert len(server.calls) == 11


def test_a_cap_of_money_is_used_to_the_end_and_never_exceeded(
    server: Server, settings: ServerSettings, tmp_path: Path
) -> None:
    budget = Budget(tmp_path, prices=PRICES, max_cost=0.7)
    answers = ask_all(ImageClient(settings, budget=budget), 20)
    assert sum(one is not None for one in answers) == 7
    assert len(server.calls) == 7
    assert budget.spent().cost == 0.7


def test_images_stop_at_a_cap(server: Server, settings: ServerSettings, tmp_path: Path) -> None:
    requests = [dataclasses.replace(CAT, seed=n) for n in range(5)]
    budget = Budget(tmp_path, prices=PRICES, max_cost=0.4)
    with pytest.raises(PreemptedError, match=r"0\.4 of 0\.4 is spent .* may cost 0\.1;"):
        ImageClient(settings, budget=budget).images(requests)
    assert len(server.calls) == 4


def test_tokens_of_an_image_are_priced_if_they_are_counted(
    server: Server, settings: ServerSettings, tmp_path: Path
) -> None:
    prices = Prices(prompt=1000.0, completion=10_000.0)
    budget = Budget(tmp_path, prices=prices)
    usage = {"input_tokens": 100, "output_tokens": 2000}
    server.reply = lambda call: server.image(PNG, {"usage": usage})
    ask(settings, budget=budget)
    assert budget.spent().cost == pytest.approx(20.1)
    server.reply = lambda call: server.image(PNG)  # nothing is counted: the most that it may cost
    ask(settings, budget=budget)
    most = estimate([CAT], prices).most_cost
    assert most is not None
    assert budget.spent().cost == pytest.approx(20.1 + most)
    ask(settings, budget=Budget(tmp_path, prices=dataclasses.replace(prices, image=0.5)))
    assert budget.spent().cost == pytest.approx(20.1 + most + 0.5)


def test_chat_and_images_share_a_budget_and_have_accounts(
    server: Server, settings: ServerSettings, tmp_path: Path
) -> None:
    server.reply = lambda call: server.image(PNG) if "prompt" in call.body else server.text()
    budget = Budget(tmp_path, prices=Prices(prompt=1000.0, image=0.1), max_requests=6)
    stop, question = threading.Event(), ChatRequest(parts=("a cat?",))
    chat, painter = ChatClient(settings, budget), ImageClient(settings, budget=budget)
    for _ in range(2):
        answer = chat.ask(question, stop, "judge")
        assert answer is not None
        assert answer.text == "yes"
    ask_all(painter, 3, "draw")
    assert painter.ask(CAT, stop) is not None
    spent = Budget(tmp_path).spent()
    assert spent.accounts == {
        "judge": Account(num_requests=2, cost=0.2),
        "draw": Account(num_requests=3, cost=0.3),
    }
    assert (spent.num_requests, spent.cost) == (6, pytest.approx(0.6))
    assert chat.ask(question, stop, "judge") is None
    assert painter.ask(CAT, stop, "draw") is None
    assert len(server.calls) == 6
    assert Budget(tmp_path).spent() == spent


SCRIPT = """
import sys, threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from blip3o.remote.cost import Budget, Prices
from blip3o.remote.http import ServerSettings
from blip3o.remote.images import ImageClient, ImageRequest

url, folder, account = sys.argv[1:]
budget = Budget(Path(folder), prices=Prices(image=0.1), max_cost=4.0)
settings = ServerSettings(model="painter", url=url, key_variable="", pause_s=0.01)
client, stop = ImageClient(settings, budget=budget), threading.Event()
requests = [ImageRequest(prompt=f"{account} {n}", seed=n) for n in range(60)]
with ThreadPoolExecutor(4) as pool:
    answers = list(pool.map(lambda one: client.ask(one, stop, account), requests))
print(sum(answer is not None for answer in answers))
"""


def test_processes_share_the_cap_of_images(server: Server, tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, server.url, str(tmp_path), account],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ,
        )
        for account in ("first", "second")
    ]
    counts = [int(process.communicate(timeout=60)[0]) for process in processes]
    assert sum(counts) == len(server.calls) == 40
    spent = Budget(tmp_path).spent()
    assert (spent.num_requests, spent.cost) == (40, 4.0)
    parts = [spent.accounts.get(name, Account()) for name in ("first", "second")]
    assert [one.num_requests for one in parts] == counts
