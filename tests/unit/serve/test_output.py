"""The cache of results that clients fetch later."""

import pytest

pytest.importorskip("fastapi")

from blip3o.serve.http.output import ResultCache


def test_the_oldest_results_are_dropped_and_the_newest_always_stays() -> None:
    cache: ResultCache[str] = ResultCache(max_bytes=10)
    for name, size in (("a", 4), ("b", 4), ("c", 4)):
        cache.put(name, name.upper(), size)
    assert [cache.get(name) for name in ("a", "b", "c", "d")] == [None, "B", "C", None]
    cache.put("e", "E", 99)
    assert [cache.get(name) for name in ("b", "c", "e")] == [None, None, "E"]
    cache.put("f", "F", 1)
    assert [cache.get(name) for name in ("e", "f")] == [None, "F"]
