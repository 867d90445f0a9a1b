"""Extent maps against an array with one container per byte."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given, settings

from unifs.journal.extents import HOLE, ExtentMap

END = 60
RANGES = st.tuples(
    st.sampled_from(["lay", "cut"]), st.integers(0, END), st.integers(0, END), st.integers(1, 4)
)


@settings(max_examples=300, deadline=None)
@given(st.lists(RANGES, max_size=25), st.integers(0, END), st.integers(0, END))
def test_a_map_is_an_array(steps: list[tuple[str, int, int, int]], offset: int, end: int) -> None:
    array = [HOLE] * END
    extents = ExtentMap()
    for what, start, stop, container in steps:
        if what == "lay":
            extents.lay(start, stop, container)
            array[start:stop] = [container] * max(0, stop - start)
        else:
            extents.truncate(start)
            array[start:] = [HOLE] * (END - start)
        found = [HOLE] * END
        last = (-1, HOLE)
        for first, after, holder in zip(
            extents.starts, extents.ends, extents.containers, strict=True
        ):
            assert first < after
            assert first > last[0] or (first == last[0] and holder != last[1])
            found[first:after] = [holder] * (after - first)
            last = (after, holder)
        assert found == array
    assert ExtentMap.unpack(extents.pack()).pack() == extents.pack()
    pieces = list(extents.pieces(offset, end))
    assert [holder for holder, a, b in pieces for _ in range(a, b)] == array[offset:end]
    if offset < end:
        one = set(array[offset:end])
        assert extents.single(offset, end) == (one.pop() if len(one) == 1 else HOLE)
    for container in range(1, 5):
        assert extents.held_by(container) == array.count(container)
    copy = extents.copy()
    copy.lay(0, END, 9)
    assert extents.held_by(9) == 0
