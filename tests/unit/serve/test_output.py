"""The shelf of results that clients fetch later."""

import pytest

pytest.importorskip("fastapi")

from blip3o.serve.http.output import Shelf


def test_the_oldest_results_are_dropped_and_the_newest_always_stays() -> None:
    shelf: Shelf[str] = Shelf(max_bytes=10)
    for name, size in (("a", 4), ("b", 4), ("c", 4)):
        shelf.put(name, name.upper(), size)
    assert [shelf.get(name) for name in ("a", "b", "c", "d")] == [None, "B", "C", None]
    shelf.put("e", "E", 99)
    assert [shelf.get(name) for name in ("b", "c", "e")] == [None, None, "E"]
    shelf.put("f", "F", 1)
    assert [shelf.get(name) for name in ("e", "f")] == [None, "F"]
