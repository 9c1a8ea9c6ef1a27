"""The lock table does what Linux does: rule by rule, against a map of bytes, and against the kernel itself."""

import random
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from itertools import groupby
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentfs.model.errors import NoLocks
from agentfs.model.lease import EXCLUSIVE, OFFSET_MAX, SHARED, WHOLE, Run
from agentfs.workspace.lock_table import Lock, LockTable, WaitGraph
from tests.mount.lock_oracle import KernelTable, LockingProcess, locking_process

ANN, BEN, CAT = 1, 2, 3
"""Owners."""


def shared(first: int, last: int) -> Run:
    return Run(first, last, SHARED)


def exclusive(first: int, last: int) -> Run:
    return Run(first, last, EXCLUSIVE)


def lock(owner: int, run: Run, *, pid: int = 0, handle: int = 0) -> Lock:
    return Lock(owner, run, pid or 100 + owner, handle or 200 + owner)


def table(*locks: Lock, locks_max: int = 100) -> LockTable:
    """A table in which these were set, in this order."""
    made = LockTable(locks_max=locks_max)
    for each in locks:
        made.set(each)
    return made


def runs(made: LockTable, owner: int = ANN) -> list[Run]:
    return [each.run for each in made.locks if each.owner == owner]


def test_a_new_table_is_empty() -> None:
    made = LockTable()
    assert not made
    assert made.locks == ()
    assert made.held_runs() == []
    assert made.conflicting(ANN, WHOLE) is None
    assert not made.clear(ANN, 0, OFFSET_MAX)
    assert not made.clear_owner(ANN)
    assert not made.clear_handle(201)


# Conflicts.


@pytest.mark.parametrize(
    ("held", "asked", "conflicts"),
    [
        (shared(0, 9), shared(0, 9), False),
        (shared(0, 9), exclusive(9, 9), True),
        (exclusive(0, 9), shared(9, 20), True),
        (exclusive(0, 9), exclusive(5, 5), True),
        (exclusive(0, 9), exclusive(10, 20), False),
        (exclusive(10, 20), exclusive(0, 9), False),
        (exclusive(10, OFFSET_MAX), shared(OFFSET_MAX, OFFSET_MAX), True),
    ],
)
def test_runs_conflict_where_they_overlap_and_one_is_exclusive(held: Run, asked: Run, *, conflicts: bool) -> None:
    made = table(lock(ANN, held))
    assert made.conflicting(BEN, asked) == (lock(ANN, held) if conflicts else None)


def test_an_owner_does_not_conflict_with_itself() -> None:
    made = table(lock(ANN, exclusive(0, 9)))
    assert made.conflicting(ANN, exclusive(0, 9)) is None


def test_the_lock_in_the_way_that_starts_first_is_reported() -> None:
    made = table(lock(BEN, shared(20, 29)), lock(CAT, shared(10, 12)), lock(ANN, shared(10, 15)), lock(BEN, exclusive(0, 4)))
    assert made.conflicting(9, exclusive(5, 50)) == lock(ANN, shared(10, 15))
    assert made.conflicting(9, shared(5, 50)) is None
    assert made.conflicting(9, shared(4, 50)) == lock(BEN, exclusive(0, 4))


def test_setting_a_lock_over_a_conflict_is_a_bug() -> None:
    made = table(lock(ANN, exclusive(0, 9)))
    with pytest.raises(AssertionError):
        made.set(lock(BEN, shared(9, 10)))


# Laying a lock over others of its owner.


def test_a_lock_in_the_middle_of_the_other_mode_splits_it() -> None:
    made = table(lock(ANN, shared(0, 99)), lock(ANN, exclusive(10, 19)))
    assert runs(made) == [shared(0, 9), exclusive(10, 19), shared(20, 99)]


def test_a_lock_over_the_edge_of_the_other_mode_cuts_it() -> None:
    made = table(lock(ANN, shared(10, 19)), lock(ANN, shared(30, 39)), lock(ANN, exclusive(15, 34)))
    assert runs(made) == [shared(10, 14), exclusive(15, 34), shared(35, 39)]


def test_a_lock_over_others_replaces_them() -> None:
    made = table(lock(ANN, shared(10, 19)), lock(ANN, exclusive(30, 39)), lock(ANN, shared(0, 50)))
    assert runs(made) == [shared(0, 50)]


@pytest.mark.parametrize(("mode", "other"), [(SHARED, EXCLUSIVE), (EXCLUSIVE, SHARED)])
def test_the_same_bytes_in_the_other_mode_are_converted(mode: int, other: int) -> None:
    made = table(lock(ANN, Run(5, 9, mode)), lock(ANN, Run(5, 9, other)))
    assert runs(made) == [Run(5, 9, other)]


def test_neighbours_and_overlaps_of_one_mode_become_one() -> None:
    made = table(lock(ANN, shared(0, 9)), lock(ANN, shared(20, 29)), lock(ANN, shared(10, 21)))
    assert runs(made) == [shared(0, 29)]


def test_neighbours_of_two_modes_and_of_two_owners_stay_apart() -> None:
    made = table(lock(ANN, shared(0, 9)), lock(ANN, exclusive(10, 19)), lock(BEN, exclusive(20, 29)))
    assert made.locks == (lock(ANN, shared(0, 9)), lock(ANN, exclusive(10, 19)), lock(BEN, exclusive(20, 29)))


def test_a_conversion_joins_what_it_makes_equal() -> None:
    made = table(lock(ANN, shared(0, 9)), lock(ANN, exclusive(10, 19)), lock(ANN, shared(20, 29)), lock(ANN, shared(10, 19)))
    assert runs(made) == [shared(0, 29)]


def test_a_merged_lock_keeps_the_pid_and_handle_of_the_first() -> None:
    made = table(lock(ANN, shared(0, 9), pid=7, handle=8), lock(ANN, shared(10, 19), pid=70, handle=80))
    assert made.locks == (Lock(ANN, shared(0, 19), 7, 8),)


def test_the_last_byte_has_no_neighbour_after_it() -> None:
    made = table(lock(ANN, exclusive(OFFSET_MAX - 1, OFFSET_MAX - 1)), lock(ANN, exclusive(OFFSET_MAX, OFFSET_MAX)))
    assert runs(made) == [exclusive(OFFSET_MAX - 1, OFFSET_MAX)]


# Unlocking.


def test_unlocking_the_middle_splits() -> None:
    made = table(lock(ANN, WHOLE))
    assert made.clear(ANN, 10, 19)
    assert runs(made) == [exclusive(0, 9), exclusive(20, OFFSET_MAX)]


def test_unlocking_takes_only_the_owners_and_only_what_is_there() -> None:
    made = table(lock(ANN, shared(0, 9)), lock(BEN, shared(0, 9)))
    assert made.clear(ANN, 5, 50)
    assert not made.clear(ANN, 5, 50)
    assert made.locks == (lock(ANN, shared(0, 4)), lock(BEN, shared(0, 9)))


def test_the_last_lock_to_go_leaves_an_empty_table() -> None:
    made = table(lock(ANN, shared(0, 9)))
    assert made.clear(ANN, 0, OFFSET_MAX)
    assert not made


def test_an_owner_that_closes_the_file_loses_everything() -> None:
    made = table(lock(ANN, shared(0, 9)), lock(ANN, exclusive(20, 29)), lock(BEN, shared(0, 9)))
    assert made.clear_owner(ANN)
    assert not made.clear_owner(ANN)
    assert made.locks == (lock(BEN, shared(0, 9)),)


def test_a_closed_description_loses_everything_taken_through_it() -> None:
    made = table(lock(ANN, shared(0, 9)), lock(ANN, shared(20, 29), handle=5), lock(BEN, shared(0, 9), handle=5))
    assert made.clear_handle(5)
    assert not made.clear_handle(5)
    assert made.locks == (lock(ANN, shared(0, 9)),)


# What the lease must cover.


def test_held_runs_join_all_owners() -> None:
    made = table(
        lock(ANN, shared(0, 20)),
        lock(BEN, shared(5, 9)),
        lock(CAT, shared(10, 30)),
        lock(BEN, exclusive(31, 40)),
        lock(ANN, exclusive(41, 41)),
        lock(ANN, exclusive(43, 43)),
    )
    assert made.held_runs() == [shared(0, 30), exclusive(31, 41), exclusive(43, 43)]


# The bound.


def test_one_lock_too_many_is_refused_and_changes_nothing() -> None:
    made = table(lock(ANN, shared(0, 9)), lock(BEN, shared(20, 29)), locks_max=2)
    before = made.locks
    with pytest.raises(NoLocks):
        made.set(lock(CAT, shared(0, 9)))
    with pytest.raises(NoLocks):
        made.set(lock(ANN, exclusive(4, 5)))
    with pytest.raises(NoLocks):
        made.clear(ANN, 4, 5)
    assert made.locks == before


def test_a_full_table_still_unlocks_converts_and_merges() -> None:
    made = table(lock(ANN, shared(0, 9)), lock(BEN, shared(20, 29)), locks_max=2)
    made.set(lock(ANN, exclusive(0, 9)))
    made.set(lock(ANN, exclusive(10, 12)))
    assert made.clear(ANN, 0, 4)
    assert made.clear_owner(BEN)
    made.set(lock(CAT, shared(20, 29)))
    assert made.locks == (lock(ANN, exclusive(5, 12)), lock(CAT, shared(20, 29)))


# Against a map of bytes.

SIZE = 40
CELLS = [
    *((byte, byte) for byte in range(SIZE)),
    (SIZE, OFFSET_MAX - 3),
    *((OFFSET_MAX - n, OFFSET_MAX - n) for n in (2, 1, 0)),
]
"""Runs of bytes that generated locks never divide: small offsets, so that locks often touch, and the far end."""

Cells = tuple[int, int]
Map = dict[int, list[int]]
"""For each owner, the mode in which it holds each cell; 0: not at all."""

CELL_RUNS = st.tuples(st.integers(0, len(CELLS) - 1), st.integers(0, len(CELLS) - 1)).map(lambda ends: (min(ends), max(ends)))
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["set"] * 4 + ["clear", "clear_owner", "clear_handle"]), st.sampled_from([ANN, BEN, CAT]), CELL_RUNS
    ).flatmap(lambda step: st.tuples(st.just(step), st.sampled_from([SHARED, SHARED, EXCLUSIVE]))),
    max_size=60,
)


def run_of(cells: Cells, mode: int) -> Run:
    return Run(CELLS[cells[0]][0], CELLS[cells[1]][1], mode)


def runs_in(modes: list[int]) -> Iterator[Run]:
    """The longest runs of cells in one mode."""
    for mode, group in groupby(range(len(CELLS)), key=lambda cell: modes[cell]):
        cells = list(group)
        if mode:
            yield run_of((cells[0], cells[-1]), mode)


def expected_conflict(held: Map, owner: int, run: Run) -> Lock | None:
    """By looking at every lock."""
    return min(
        (
            lock(other, each)
            for other, modes in held.items()
            for each in runs_in(modes)
            if other != owner and each.first <= run.last and run.first <= each.last and EXCLUSIVE in (each.mode, run.mode)
        ),
        key=lambda found: (found.run.first, found.owner),
        default=None,
    )


@settings(deadline=None)
@given(STEPS)
def test_holds_what_a_map_of_bytes_would(steps: list[tuple[tuple[str, int, Cells], int]]) -> None:
    made = LockTable()
    held: Map = {owner: [0] * len(CELLS) for owner in (ANN, BEN, CAT)}
    for (verb, owner, cells), mode in steps:
        run, where = run_of(cells, mode), slice(cells[0], cells[1] + 1)
        conflict = expected_conflict(held, owner, run)
        assert made.conflicting(owner, run) == conflict
        if verb == "set":
            if conflict is None:
                made.set(lock(owner, run))
                held[owner][where] = [mode] * (where.stop - where.start)
        elif verb == "clear":
            assert made.clear(owner, run.first, run.last) == any(held[owner][where])
            held[owner][where] = [0] * (where.stop - where.start)
        else:
            changed = made.clear_owner(owner) if verb == "clear_owner" else made.clear_handle(200 + owner)
            assert changed == any(held[owner])
            held[owner] = [0] * len(CELLS)
        for each, modes in held.items():
            assert runs(made, each) == list(runs_in(modes))
        assert made.held_runs() == list(runs_in([max(column) for column in zip(*held.values(), strict=True)]))
        assert bool(made) == any(map(any, held.values()))


# Against the kernel.

FILES = ("a", "b")
"""What each process calls its two descriptions of the file."""


class Compared:
    """A few processes that lock a file the kernel serves, and a table to which the same is done; their answers must agree."""

    def __init__(self, processes: list[LockingProcess], seed: int) -> None:
        self.random = random.Random(seed)
        self.kernel = KernelTable(processes[0])
        self.processes = processes
        self.ranges, self.whole = LockTable(), LockTable()
        for process in processes:
            for name in FILES:
                process.open(name)

    def step(self) -> str:
        """Do one thing on both sides; what it was."""
        process, name = self.random.choice(self.processes), self.random.choice(FILES)
        verb = self.random.choices([self.set_range, self.probe_range, self.flock, self.reopen], [6, 4, 3, 1])[0]
        return f"{verb.__name__} {process.pid} {name} {verb(process, name)}"

    def agree(self) -> None:
        """The kernel lists the locks that the tables hold."""
        assert self.kernel.locks("POSIX", "OFDLCK") == sorted((each.run, each.pid) for each in self.ranges.locks)
        assert self.kernel.locks("FLOCK") == sorted((each.run, each.pid) for each in self.whole.locks)

    def set_range(self, process: LockingProcess, name: str) -> object:
        run, owner, of_description = self.drawn_run(unlock=True), *self.drawn_owner(process, name)
        expected = run.mode == 0 or self.ranges.conflicting(owner, run) is None
        granted = False
        with suppress(BlockingIOError):
            process.lock(name, run, of_description=of_description)
            granted = True
        assert granted == expected, (run, of_description)
        if granted and run.mode:
            self.ranges.set(Lock(owner, run, -1 if of_description else process.pid, handle(process, name)))
        elif granted:
            self.ranges.clear(owner, run.first, run.last)
        return run, of_description, granted

    def probe_range(self, process: LockingProcess, name: str) -> object:
        """Of several locks in the way the kernel names any, so its answer need only be one of them."""
        run, owner, of_description = self.drawn_run(unlock=False), *self.drawn_owner(process, name)
        found = process.probe(name, run, of_description=of_description)
        expected = self.ranges.conflicting(owner, run)
        assert (found is None) == (expected is None), (run, found, expected)
        if found is not None:
            in_the_way = [each for each in self.ranges.locks if table(each).conflicting(owner, run)]
            assert found in [(each.run, each.pid) for each in in_the_way]
        return run, found

    def flock(self, process: LockingProcess, name: str) -> object:
        owner, mode = handle(process, name), self.random.choice([0, SHARED, EXCLUSIVE])
        held = [each.run.mode for each in self.whole.locks if each.owner == owner]
        if held != [mode]:
            self.whole.clear_owner(owner)
        run = Run(0, OFFSET_MAX, mode)
        expected = mode == 0 or self.whole.conflicting(owner, run) is None
        granted = False
        with suppress(BlockingIOError):
            process.flock(name, mode)
            granted = True
        assert granted == expected, mode
        if granted and held != [mode] and mode:
            self.whole.set(Lock(owner, run, process.pid, owner))
        return mode, granted

    def reopen(self, process: LockingProcess, name: str) -> None:
        process.close(name)
        process.open(name)
        self.ranges.clear_owner(process.pid)
        for each in (self.ranges, self.whole):
            each.clear_handle(handle(process, name))

    def drawn_run(self, *, unlock: bool) -> Run:
        far = [OFFSET_MAX - 1, OFFSET_MAX] if self.random.random() < 0.1 else []
        first, last = sorted(self.random.choices([*range(24), *far * 12], k=2))
        return Run(first, last, self.random.choice([SHARED, SHARED, EXCLUSIVE, *[0] * unlock]))

    def drawn_owner(self, process: LockingProcess, name: str) -> tuple[int, bool]:
        of_description = self.random.random() < 0.3
        return (handle(process, name) if of_description else process.pid), of_description


def handle(process: LockingProcess, name: str) -> int:
    """A number for a description; never that of a process."""
    return -(process.pid * len(FILES) + FILES.index(name))


@pytest.mark.parametrize("seed", range(8))
def test_answers_as_the_kernel_does(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "file"
    path.touch()
    done: list[str] = []
    with ExitStack() as stack:
        compared = Compared([stack.enter_context(locking_process(path)) for _ in range(3)], seed)
        try:
            for _ in range(250):
                done.append(compared.step())
                compared.agree()
        except AssertionError as error:
            error.add_note("\n".join(done[-12:]))
            raise
    assert any("True" in each for each in done)
    assert any("False" in each for each in done)


# Deadlocks.


def graph(*edges: tuple[int, set[int]]) -> WaitGraph:
    """A graph in which these wait, each with a request of its own."""
    made = WaitGraph()
    for request, (owner, blockers) in enumerate(edges):
        made.waits(owner, blockers, request=request)
    return made


def test_two_that_would_wait_for_each_other_deadlock() -> None:
    made = graph((ANN, {BEN}))
    assert made.would_deadlock(BEN, {ANN})
    assert not made.would_deadlock(CAT, {ANN})
    assert not made.would_deadlock(BEN, {CAT})


def test_a_long_chain_is_followed() -> None:
    made = graph(*((owner, {owner + 1}) for owner in range(100)))
    assert made.would_deadlock(100, {0})
    assert not made.would_deadlock(101, {0})


def test_any_of_several_blockers_can_close_the_circle() -> None:
    made = graph((ANN, {BEN, CAT}))
    assert made.would_deadlock(CAT, {9, ANN})


def test_a_circle_of_others_is_not_ours() -> None:
    made = graph((ANN, {BEN}), (BEN, {ANN}))
    assert not made.would_deadlock(CAT, {ANN})


def test_an_owner_waits_with_several_requests_until_the_last_stops() -> None:
    made = WaitGraph()
    made.waits(ANN, {BEN}, request=1)
    made.waits(ANN, {CAT}, request=2)
    made.stops(ANN, request=1)
    assert not made.would_deadlock(BEN, {ANN})
    assert made.would_deadlock(CAT, {ANN})
    made.stops(ANN, request=2)
    assert not made.would_deadlock(CAT, {ANN})
    assert not made


def test_the_blockers_of_a_request_can_change() -> None:
    made = graph((ANN, {BEN}))
    made.waits(ANN, {CAT}, request=0)
    assert not made.would_deadlock(BEN, {ANN})
    assert made.would_deadlock(CAT, {ANN})


def test_stopping_what_does_not_wait_changes_nothing() -> None:
    made = graph((ANN, {BEN}))
    made.stops(ANN, request=7)
    made.stops(CAT, request=0)
    assert made.would_deadlock(BEN, {ANN})


def test_one_wait_too_many_is_refused() -> None:
    made = WaitGraph(waits_max=1)
    made.waits(ANN, {BEN}, request=1)
    made.waits(ANN, {CAT}, request=1)
    with pytest.raises(NoLocks):
        made.waits(BEN, {CAT}, request=1)
    made.stops(ANN, request=1)
    made.waits(BEN, {CAT}, request=1)


def test_a_search_gives_up_at_its_bound() -> None:
    made = graph(*((owner, {owner + 1}) for owner in range(2000)))
    assert not made.would_deadlock(2000, {0})
