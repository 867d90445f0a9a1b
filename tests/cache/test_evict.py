"""The order of eviction: second uses protect, scans do not flush, weights add up."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from unifs.cache.evict import PROTECTED_PERCENT, RECENT_MAX, SegmentedLru


def _lru() -> SegmentedLru[str, bytes]:
    return SegmentedLru(len)


def _forget_recent(lru: SegmentedLru[str, bytes]) -> None:
    for number in range(RECENT_MAX):
        lru.put(f"filler{number}", b"f")


def test_the_coldest_goes_first() -> None:
    lru = _lru()
    for name in "abc":
        lru.put(name, b"x")
    assert lru.pop_coldest() == ("a", b"x")
    assert len(lru) == 2


def test_a_second_use_protects_against_a_scan() -> None:
    lru = _lru()
    lru.put("kept", b"x")
    _forget_recent(lru)
    assert lru.get("kept") == b"x"
    for number in range(1000):
        lru.put(f"scan{number}", b"x")
        while lru.weight > 50:
            lru.pop_coldest()
    assert "kept" in lru


def test_many_requests_for_one_extent_in_a_row_are_one_use() -> None:
    lru = _lru()
    lru.put("scanned", b"x")
    for _ in range(8):
        assert lru.get("scanned") == b"x"
    _forget_recent(lru)
    assert lru.pop_coldest()[0] == "scanned"


def test_replacing_a_value_changes_the_weight() -> None:
    lru = _lru()
    lru.put("a", b"xxx")
    lru.put("a", b"x")
    assert lru.weight == 1
    assert lru.pop("a") == b"x"
    assert lru.pop("a") is None
    assert lru.weight == 0


def test_the_protected_segment_keeps_to_its_share() -> None:
    lru = _lru()
    names = [f"n{number}" for number in range(100)]
    for name in names:
        lru.put(name, b"x")
    for name in names:
        lru.get(name)
    _forget_recent(lru)
    probation = 0
    for _ in range(len(lru) - 100 * PROTECTED_PERCENT // 100 - RECENT_MAX):
        probation += lru.pop_coldest()[0] in names
    assert probation > 0


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["put", "get", "pop", "coldest"]),
            st.sampled_from("abcdefghijklmnopqrstuvwxyz"),
            st.integers(1, 9),
        ),
        max_size=300,
    )
)
def test_weight_is_the_sum_of_what_is_there(steps: list[tuple[str, str, int]]) -> None:
    lru = _lru()
    model: dict[str, bytes] = {}
    for verb, key, weight in steps:
        if verb == "put":
            lru.put(key, b"x" * weight)
            model[key] = b"x" * weight
        elif verb == "get":
            assert lru.get(key) == model.get(key)
        elif verb == "pop":
            assert lru.pop(key) == model.pop(key, None)
        elif model:
            victim, value = lru.pop_coldest()
            assert model.pop(victim) == value
        assert lru.weight == sum(map(len, model.values()))
        assert len(lru) == len(model)
    while model:
        victim, value = lru.pop_coldest()
        assert model.pop(victim) == value
    assert (lru.weight, len(lru)) == (0, 0)


def test_the_first_use_of_what_nobody_asked_for_is_no_second_use() -> None:
    lru: SegmentedLru[int, int] = SegmentedLru(lambda weight: weight)
    for number in range(RECENT_MAX + 2):
        lru.put(number, 1, is_used=False)
    assert lru.get(0) == 1
    assert lru.pop_coldest()[0] == 0, "used once: still on probation, and the oldest there"
    lru.put(0, 1)
    for number in range(1, RECENT_MAX + 2):
        lru.get(number)
    lru.get(0)
    assert lru.pop_coldest()[0] == 1, "used twice: protected"
