"""A `RangeSet` holds what a plain set of offsets would, whatever is done to it."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentfs.model.ranges import RangeSet

SIZE = 40
"""Offsets are small, so that generated ranges often touch, overlap and cover each other."""

SPANS = st.tuples(st.integers(0, SIZE), st.integers(0, SIZE))
OPERATIONS = st.lists(st.tuples(st.sampled_from(["add", "remove"]), SPANS), max_size=40)


def done(operations: list[tuple[str, tuple[int, int]]]) -> tuple[RangeSet, set[int]]:
    """A `RangeSet` and a plain set after the same operations."""
    ranges, offsets = RangeSet(), set[int]()
    for verb, (start, end) in operations:
        getattr(ranges, verb)(start, end)
        (offsets.update if verb == "add" else offsets.difference_update)(range(start, end))
    return ranges, offsets


def offsets_in(spans: list[tuple[int, int]]) -> set[int]:
    return {offset for start, end in spans for offset in range(start, end)}


@settings(deadline=None)
@given(OPERATIONS)
def test_holds_the_same_offsets(operations: list[tuple[str, tuple[int, int]]]) -> None:
    ranges, offsets = done(operations)
    assert offsets_in(list(ranges)) == offsets
    assert ranges.total == len(offsets)
    assert ranges.end == max(offsets, default=-1) + 1
    assert bool(ranges) == bool(offsets)


@settings(deadline=None)
@given(OPERATIONS)
def test_ranges_are_sorted_and_apart(operations: list[tuple[str, tuple[int, int]]]) -> None:
    ranges, _ = done(operations)
    spans = list(ranges)
    assert len(ranges) == len(spans)
    assert all(start < end for start, end in spans)
    assert all(end < start for (_, end), (start, _) in pairwise(spans))


@settings(deadline=None)
@given(OPERATIONS, SPANS)
def test_overlap_is_what_both_hold(operations: list[tuple[str, tuple[int, int]]], window: tuple[int, int]) -> None:
    ranges, offsets = done(operations)
    spans = ranges.overlap(*window)
    assert offsets_in(spans) == offsets & set(range(*window))
    assert all(start < end for start, end in spans)
    assert spans == sorted(spans)


@settings(deadline=None)
@given(OPERATIONS)
def test_changes_while_it_is_iterated(operations: list[tuple[str, tuple[int, int]]]) -> None:
    ranges, offsets = done(operations)
    seen = []
    for span in ranges:
        seen.append(span)
        ranges.remove(*span)
    assert offsets_in(seen) == offsets
    assert not ranges


def test_a_new_one_is_empty() -> None:
    ranges = RangeSet()
    assert (list(ranges), ranges.total, ranges.end, len(ranges), bool(ranges)) == ([], 0, 0, 0, False)
    assert ranges.overlap(0, SIZE) == []


@pytest.mark.parametrize("order", [range(100), reversed(range(100)), [*range(0, 100, 2), *range(1, 100, 2)]])
def test_neighbours_become_one(order: range | list[int]) -> None:
    ranges = RangeSet()
    for block in order:
        ranges.add(block * 4096, (block + 1) * 4096)
    assert list(ranges) == [(0, 100 * 4096)]


def test_offsets_beyond_32_bits() -> None:
    ranges = RangeSet()
    ranges.add(0, 1 << 63)
    ranges.remove(1 << 40, (1 << 40) + 1)
    assert list(ranges) == [(0, 1 << 40), ((1 << 40) + 1, 1 << 63)]
    assert ranges.total == (1 << 63) - 1
