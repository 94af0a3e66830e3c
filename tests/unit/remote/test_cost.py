"""Estimates before the requests, and caps that hold over threads, processes and resumed runs."""

import dataclasses
import io
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from blip3o.core.errors import PreemptedError, UsageError
from blip3o.remote.cache import CachedModel
from blip3o.remote.chat import Answer, ChatImage, ChatRequest
from blip3o.remote.client import ChatClient
from blip3o.remote.cost import Account, Budget, Prices, Spent, estimate
from blip3o.remote.http import ServerSettings
from blip3o.remote.images import ImageRequest

Questions = Callable[[int], list[ChatRequest]]
Server = Any  # the class in conftest.py
PRICES = Prices(prompt=1000.0, completion=10_000.0)
"""An answer of the server (100 tokens read, 10 written) costs 0.2."""
ANSWER = Answer(outcome="answered", text="yes", prompt_tokens=100, completion_tokens=10)
REQUEST = ChatRequest(parts=("is it a cat?",), max_tokens=20)


def png(width: int, height: int) -> ChatImage:
    data = io.BytesIO()
    Image.new("RGB", (width, height)).save(data, "PNG")
    return ChatImage(data.getvalue())


def sums(budget: Budget) -> tuple[int, Any]:
    """Returns the number of requests and the money, which is compared approximately."""
    spent = budget.spent()
    return spent.num_requests, pytest.approx(spent.cost)


def test_estimate() -> None:
    requests = [
        ChatRequest(parts=("x" * 300, png(56, 28)), max_tokens=50),
        ChatRequest(parts=(png(29, 28), ChatImage(b"not an image")), extra={"max_tokens": 5}),
    ]
    expected = estimate(requests, Prices(prompt=1.0, completion=2.0))
    assert (expected.num_requests, expected.num_images) == (2, 3)
    assert expected.prompt_tokens == 8 + 100 + 2 + 8 + 2 + 1000
    assert expected.completion_tokens == 55
    assert expected.least_cost == pytest.approx(1120e-6)
    assert expected.most_cost == pytest.approx(1230e-6)
    assert str(expected) == (
        "2 requests with 3 images, about 1,120 tokens to read, at most 55 to write, "
        "cost about 0.00112 to 0.00123"
    )
    assert estimate(requests).most_cost is None
    assert "cost" not in str(estimate(requests))


def test_estimate_of_images() -> None:
    source = png(56, 28).data
    requests = [
        ImageRequest(prompt="x" * 300, seed=0, images=(source, source)),
        ImageRequest(prompt="x" * 30, seed=0),
    ]
    expected = estimate(requests, Prices(prompt=1.0, image=0.25))
    assert (expected.num_requests, expected.num_images, expected.num_drawn) == (2, 2, 2)
    assert expected.prompt_tokens == 8 + 100 + 2 + 2 + 8 + 10
    assert expected.most_cost == pytest.approx(0.5 + 130e-6)
    assert ", 2 images to draw, cost about 0.5001 to 0.5001" in str(expected)
    most = estimate([ImageRequest(prompt="", seed=0)], Prices(completion=1000.0)).most_cost
    assert most == pytest.approx(6.24)  # the largest image of gpt-image-1


def test_accounts_are_parts_of_the_sums(tmp_path: Path) -> None:
    budget = Budget(tmp_path, prices=PRICES, max_requests=3)
    for account in ("judge", "captions", "captions"):
        paid = budget.reserve(REQUEST, account)
        assert paid is not None
        budget.settle(paid, ANSWER, account)
    assert budget.reserve(REQUEST, "judge") is None
    parts = {
        "judge": Account(num_requests=1, cost=0.2),
        "captions": Account(num_requests=2, cost=0.4),
    }
    assert budget.spent().accounts == parts
    assert "3 of 3 requests are sent, 2 of them for captions (" in str(
        budget.reached(REQUEST, "captions")
    )
    assert "3 of 3 requests are sent (" in str(budget.reached(REQUEST))
    capped = Budget(tmp_path, prices=PRICES, max_cost=0.6)
    assert "0.6 of 0.6 is spent, 0.2 of it for judge (" in str(capped.reached(REQUEST, "judge"))
    other = Budget(tmp_path, prices=PRICES)
    paid = other.reserve(REQUEST, "judge")
    assert paid is not None
    assert other.spent().accounts["judge"].num_requests == 2
    other.release(paid, "judge")
    assert other.spent().accounts == parts
    assert sums(other) == (3, 0.6)


def test_sums_of_before_there_were_accounts(tmp_path: Path) -> None:
    (tmp_path / "spent.json").write_text('{"num_requests": 4, "cost": 1.5}\n')
    budget = Budget(tmp_path, max_requests=5)
    assert budget.spent() == Spent(num_requests=4, cost=1.5)
    assert budget.reserve(REQUEST, "judge") is not None
    assert budget.reserve(REQUEST, "judge") is None
    assert budget.spent() == Spent(
        num_requests=5, cost=1.5, accounts={"judge": Account(num_requests=1)}
    )


def test_a_cap_has_room_for_its_last_cent(tmp_path: Path) -> None:
    """In binary fractions 0.1 + 0.1 + 0.1 is more than 0.3."""
    budget = Budget(tmp_path, prices=Prices(image=0.1), max_cost=0.3)
    request = ImageRequest(prompt="a cat", seed=0)
    assert [budget.reserve(request) for _ in range(4)] == [0.1, 0.1, 0.1, None]


def test_the_sums_are_those_of_the_answers(tmp_path: Path) -> None:
    budget = Budget(tmp_path, prices=PRICES)
    assert budget.spent() == Spent()
    most = estimate([REQUEST], PRICES).most_cost

    def pay() -> float:
        paid = budget.reserve(REQUEST)
        assert paid is not None
        return paid

    paid = pay()
    assert paid == most
    assert sums(budget) == (1, most)
    budget.settle(paid, ANSWER)
    assert sums(budget) == (1, 0.2)
    budget.settle(pay(), None)  # an error of the server costs nothing
    assert sums(budget) == (2, 0.2)
    budget.settle(pay(), dataclasses.replace(ANSWER, prompt_tokens=0))  # unknown: as expected
    assert sums(budget) == (3, 0.2 + paid)
    budget.release(pay())
    assert sums(Budget(tmp_path)) == (3, 0.2 + paid)


def test_a_cap_of_money_needs_prices(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="max_cost needs the prices"):
        Budget(tmp_path, max_cost=1.0)


DAMAGED = [
    "",
    "[]",
    "{}",
    '{"num_requests": "x", "cost": 0}',
    '{"num_requests": 0, "cost": 0, "accounts": null}',
    '{"num_requests": 0, "cost": 0, "accounts": {"a": {}}}',
    '{"num_requests": 0, "cost": 0, "accounts": ["a"]}',
]


@pytest.mark.parametrize("text", DAMAGED)
def test_damaged_sums_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "spent.json").write_text(text)
    with pytest.raises(UsageError, match=r"spent\.json: repair it"):
        Budget(tmp_path, max_requests=1).reserve(REQUEST)


def test_threads_never_exceed_a_cap(tmp_path: Path) -> None:
    budgets = [Budget(tmp_path, prices=PRICES, max_requests=25) for _ in range(2)]
    paid: list[float | None] = []

    def work(number: int) -> None:
        for _ in range(5):
            paid.append(budgets[number % 2].reserve(REQUEST))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(one is not None for one in paid) == 25
    assert paid.count(None) == 15


def judge(
    settings: ServerSettings, folder: Path, requests: list[ChatRequest], **caps: Any
) -> list[int]:
    """Returns the positions of the answers that came before a cap."""
    model = CachedModel(ChatClient(settings, Budget(folder, **caps)), folder)
    found = []
    try:
        for number, answer in model.answers(requests):
            assert answer.outcome == "answered"
            found.append(number)
    except PreemptedError:
        return found
    assert len(found) == len(requests)
    return found


def test_a_cap_of_requests_stops_and_a_higher_one_goes_on(
    server: Server, settings: ServerSettings, tmp_path: Path, questions: Questions
) -> None:
    client = ChatClient(settings, Budget(tmp_path, max_requests=6))
    answers = CachedModel(client, tmp_path).answers(questions(10))
    given = [next(answers) for _ in range(6)]
    with pytest.raises(PreemptedError, match=r"6 of 6 requests .* raise max_requests") as caught:
        next(answers)
    assert "\n" not in str(caught.value)
    assert len(server.calls) == 6
    stored = [json.loads(file.read_text()) for file in tmp_path.glob("answers/*/*.json")]
    assert len(stored) == len(given)
    assert len(judge(settings, tmp_path, questions(10), max_requests=6)) == 6  # all from the cache
    assert len(server.calls) == 6
    assert len(judge(settings, tmp_path, questions(10), max_requests=20)) == 10
    assert len(server.calls) == 10


def test_a_cap_of_money_is_never_exceeded(
    server: Server, settings: ServerSettings, tmp_path: Path, questions: Questions
) -> None:
    requests = [dataclasses.replace(one, max_tokens=20) for one in questions(30)]
    most = estimate(requests[:1], PRICES).most_cost
    assert most is not None
    caps = {"prices": PRICES, "max_cost": 2.1}
    found = judge(settings, tmp_path, requests, **caps)
    spent = Budget(tmp_path).spent()
    assert spent.cost == pytest.approx(0.2 * len(found))
    assert 2.1 - most < spent.cost <= 2.1
    assert len(server.calls) == len(found)
    judge(settings, tmp_path, requests, **caps)
    assert len(server.calls) == len(found)
    with pytest.raises(PreemptedError, match=r"2 of 2\.1 is spent .* raise max_cost"):
        list(ChatClient(settings, Budget(tmp_path, **caps)).answers(requests[-1:]))
    assert len(judge(settings, tmp_path, requests, prices=PRICES, max_cost=100.0)) == 30
    assert len(server.calls) == 30


def test_further_attempts_count(
    server: Server, settings: ServerSettings, tmp_path: Path, questions: Questions
) -> None:
    server.reply = lambda call: server.error(500)
    settings = dataclasses.replace(settings, max_in_flight=3, retries=50)
    assert judge(settings, tmp_path, questions(5), prices=PRICES, max_requests=20) == []
    assert len(server.calls) == 20
    assert Budget(tmp_path).spent() == Spent(num_requests=20, cost=0.0)


def test_a_lost_answer_counts_with_what_it_may_cost(
    server: Server, settings: ServerSettings, tmp_path: Path
) -> None:
    server.reply = lambda call: server.text(is_cut=call.earlier == 0)
    judge(settings, tmp_path, [REQUEST], prices=PRICES)
    most = estimate([REQUEST], PRICES).most_cost
    assert most is not None
    assert sums(Budget(tmp_path)) == (2, 0.2 + most)


def test_the_estimate_is_said_once(
    settings: ServerSettings,
    tmp_path: Path,
    questions: Questions,
    capsys: pytest.CaptureFixture[str],
) -> None:
    client = ChatClient(settings, Budget(tmp_path, prices=PRICES))
    list(client.answers(questions(3)))
    list(client.answers(questions(3)))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("first requests to judge: 3 requests with 0 images, about ")
    list(ChatClient(settings, Budget(tmp_path)).answers(questions(3)))
    assert capsys.readouterr().err == ""
