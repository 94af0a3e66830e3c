"""The order of one source: a permutation in blocks with random access."""

import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from blip3o.data.order import RecordOrder

LENGTHS = [100, 3, 70, 1, 1200]


@pytest.mark.parametrize(("block", "group"), [(64, 8), (1, 1), (7, 1000), (5000, 2)])
def test_every_epoch_holds_every_record_once(block: int, group: int) -> None:
    order = RecordOrder(LENGTHS, 5, "order", block_records=block, group_blocks=group)
    epochs = [[order.position(epoch, n) for n in range(1374)] for epoch in (0, 1)]
    assert all(sorted(epoch) == list(range(1374)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_a_new_order_finds_any_place() -> None:
    order = RecordOrder(LENGTHS, 5, "order", block_records=16, group_blocks=4)
    for epoch, number in ((3, 700), (0, 0), (9, 1373), (3, 1), (4, 63)):
        fresh = RecordOrder(LENGTHS, 5, "order", block_records=16, group_blocks=4)
        assert order.position(epoch, number) == fresh.position(epoch, number)


def test_neighbors_in_the_order_come_from_few_places() -> None:
    order = RecordOrder([1000] * 50, 0, "order", block_records=100, group_blocks=5)
    met = np.array([order.position(0, n) for n in range(50_000)])
    for window in met.reshape(-1, 500):
        assert len(set(window // 100)) == 5
    steps = np.abs(np.diff(met))
    assert np.median(steps) > 5000  # neighbors in the order are far apart in the source


def test_the_cost_does_not_grow_with_the_place() -> None:
    order = RecordOrder([10_000] * 3000, 0, "order")  # 30 million records

    def seconds(epoch: int, number: int) -> float:
        start = time.perf_counter()
        order.position(epoch, number)
        return time.perf_counter() - start

    seconds(0, 0)
    assert seconds(700_000, 29_999_999) < 20 * max(seconds(1, 0), 0.005)


@pytest.fixture
def busy_threads() -> Iterator[None]:
    """Makes threads switch as often as possible."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("busy_threads")
def test_threads_may_share_an_order() -> None:
    # A step of a small source spans many epochs, and many threads read remote records.
    wanted = [(epoch, n) for epoch in range(300) for n in range(3)]
    alone = RecordOrder([3], 0, "order")
    expected = [alone.position(epoch, n) for epoch, n in wanted]
    shared = RecordOrder([3], 0, "order")
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(lambda one: shared.position(*one), wanted)) == expected
