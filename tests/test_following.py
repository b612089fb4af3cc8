"""What came behind what."""

from __future__ import annotations

from twisted_proxy.record.following import Following


def names(following: Following[str], before: bytes, wanted: str) -> str | None:
    return following.find(before, lambda each: each == wanted)


def test_a_value_is_found_where_it_stood() -> None:
    """Behind what it was added to, and nowhere else."""
    following: Following[str] = Following(most_bytes=10_000)
    following.add(b"1", "a", 1)
    following.add(b"2", "b", 1)
    assert names(following, b"1", "a") == "a"
    assert names(following, b"1", "b") is None
    assert names(following, b"2", "a") is None
    assert names(following, b"3", "a") is None


def test_as_many_as_may_be() -> None:
    """Of those behind the same one, that which was of no use for the longest goes."""
    following: Following[str] = Following(most=2, most_bytes=10_000)
    following.add(b"1", "a", 1)
    following.add(b"1", "b", 1)
    assert names(following, b"1", "a")
    following.add(b"1", "c", 1)
    assert [names(following, b"1", each) for each in "abc"] == ["a", None, "c"]


def test_as_many_bytes_as_may_be() -> None:
    """What stood behind the one that was of no use for the longest goes, all of it."""
    following: Following[str] = Following(most_bytes=5000)
    following.add(b"1", "a", 1000)
    following.add(b"2", "b", 600)
    following.add(b"2", "c", 600)
    assert names(following, b"1", "a")
    following.add(b"3", "d", 1700)
    assert [
        names(following, before, each) for before, each in ((b"1", "a"), (b"2", "b"), (b"2", "c"), (b"3", "d"))
    ] == [
        "a",
        None,
        None,
        "d",
    ]


def test_bytes_are_counted_down() -> None:
    """What goes makes room, whichever way it went."""
    following: Following[int] = Following(most=1, most_bytes=2000)
    following.add(b"0", 0, 100)
    for number in range(1, 100):
        following.add(b"1", number, 1000)
        assert following.find(b"1", number.__eq__) == number
        assert following.find(b"0", (0).__eq__) == 0


def test_more_than_may_be() -> None:
    """What is too large alone is not kept, and does no harm."""
    following: Following[str] = Following(most_bytes=1000)
    following.add(b"1", "a", 5000)
    assert names(following, b"1", "a") is None
    following.add(b"1", "b", 500)
    assert names(following, b"1", "b") == "b"
