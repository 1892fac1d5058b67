"""The cache holds what it may and no more."""

from __future__ import annotations

from server.storage.lru import ByteLru


def test_the_least_recently_used_goes_first() -> None:
    cache = ByteLru(30)
    for name in "abc":
        cache.put(name, name, 10)
    assert cache.get("a") == "a"
    cache.put("d", "d", 10)
    assert cache.get("b") is None
    assert [cache.get(name) for name in "acd"] == ["a", "c", "d"]
    assert cache.nbytes == 30


def test_what_is_greater_than_the_cache_is_not_kept() -> None:
    cache = ByteLru(10)
    cache.put("small", 1, 5)
    cache.put("great", 2, 11)
    assert cache.get("great") is None
    assert cache.get("small") == 1


def test_a_value_that_grows_is_counted_once() -> None:
    cache = ByteLru(100)
    cache.put("a", 1, 10)
    cache.put("a", 2, 20)
    assert cache.nbytes == 20
    assert cache.get("a") == 2
    cache.put("a", 3, 200)
    assert cache.get("a") is None
    assert cache.nbytes == 0
