"""The lock table: the locks that this mount's processes hold on one file in one space, and who of them waits for whom.

The rules are Linux's (fs/locks.c, fcntl(2) "Advisory record locking", flock(2)). An owner never conflicts with itself: what it
asks for replaces what it holds there. Linux converts a flock(2) lock in two steps, so one that must wait for its new mode has
lost the old one: whoever calls `set` for it has called `clear_owner` first.

Everything here is a value in memory: no I/O, no clock, nothing that blocks.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from agentfs.model.errors import NoLocks
from agentfs.model.lease import EXCLUSIVE, OFFSET_MAX, SHARED, Run

LOCKS_MAX: Final = 65_536
"""The most locks that one table holds; the one that would be too many fails with ENOLCK."""

WAITS_MAX: Final = 65_536
"""The most requests that wait in one graph; the one that would be too many fails with ENOLCK."""

SEARCH_MAX: Final = 1024
"""The most waiting owners that a search for a deadlock looks at (the kernel gives up after a chain of ten)."""


@dataclass(frozen=True, slots=True)
class Lock:
    """A lock that a process of this mount holds.

    `owner` is FUSE's lock owner: the process's file table for fcntl(2) locks, the open file description for flock(2) and for
    open-file-description locks. `pid` is the process that F_GETLK names, `handle` the open file through which it was taken.
    """

    owner: int
    run: Run
    pid: int
    handle: int


class LockTable:
    """The locks on one file in one space. Not even two locks of different owners conflict, at any time.

    Each owner's locks are kept apart, disjoint and in file order, so that whatever touches a run is found by bisection.
    """

    def __init__(self, *, locks_max: int = LOCKS_MAX) -> None:
        self._held: dict[int, list[Lock]] = {}
        self._count = 0
        self._locks_max = locks_max

    def __bool__(self) -> bool:
        return bool(self._held)

    @property
    def locks(self) -> tuple[Lock, ...]:
        """All of them, in file order; of those that start together, the lower owner's first."""
        every = (lock for held in self._held.values() for lock in held)
        return tuple(sorted(every, key=_file_order))

    def conflicting(self, owner: int, run: Run) -> Lock | None:
        """The first lock in file order that keeps `owner` from `run`, as F_GETLK reports it; None if nothing does."""
        _check(run.first, run.last)
        found = (_first_conflict(held, run) for other, held in self._held.items() if other != owner)
        return min((lock for lock in found if lock is not None), key=_file_order, default=None)

    def set(self, lock: Lock) -> None:
        """Lay `lock` over what its owner holds; there must be no conflict.

        Locks in the other mode are cut where it covers them; neighbours in the same mode become one with it, and the result
        keeps the pid and the handle of the first of them, as the kernel's does.
        NoLocks: the table is full; it stays as it was.
        """
        assert lock.run.mode in (SHARED, EXCLUSIVE), lock
        assert self.conflicting(lock.owner, lock.run) is None, lock
        first, last, mode = lock.run.first, lock.run.last, lock.run.mode
        touched = self._window(lock.owner, first - 1, last + 1)
        old = self._held.get(lock.owner, [])[touched]
        same = [each for each in old if each.run.mode == mode]
        merged = replace(
            same[0] if same else lock,
            run=Run(min([first, *(each.run.first for each in same)]), max([last, *(each.run.last for each in same)]), mode),
        )
        rest = [piece for each in old if each.run.mode != mode for piece in _outside(each, first, last)]
        self._put(lock.owner, touched, sorted([merged, *rest], key=_file_order))

    def clear(self, owner: int, first: int, last: int) -> bool:
        """Unlock the bytes `first` to `last` of `owner`, cutting locks that reach beyond; True if it held any of them.

        NoLocks: a lock would be cut in two and the table is full; it stays as it was.
        """
        _check(first, last)
        touched = self._window(owner, first, last)
        old = self._held.get(owner, [])[touched]
        if old:
            self._put(owner, touched, [piece for each in old for piece in _outside(each, first, last)])
        return bool(old)

    def clear_owner(self, owner: int) -> bool:
        """Drop everything that `owner` holds (a process closed the file); True if it held anything."""
        dropped = self._held.pop(owner, [])
        self._count -= len(dropped)
        return bool(dropped)

    def clear_handle(self, handle: int) -> bool:
        """Drop everything taken through `handle`, whoever owns it (its last descriptor is closed); True if any was."""
        before = self._count
        for owner, held in list(self._held.items()):
            self._put(owner, slice(0, len(held)), [lock for lock in held if lock.handle != handle])
        return self._count != before

    def held_runs(self) -> list[Run]:
        """What all owners hold together, which a lease must cover: in file order, disjoint, neighbours of one mode merged.

        A byte that several owners hold is held shared by each of them, so no byte has two modes.
        """
        runs: list[Run] = []
        for lock in self.locks:
            run = lock.run
            if runs and runs[-1].mode == run.mode and run.first <= runs[-1].last + 1:
                runs[-1] = Run(runs[-1].first, max(runs[-1].last, run.last), run.mode)
            else:
                assert not runs or run.first > runs[-1].last, lock
                runs.append(run)
        return runs

    def _window(self, owner: int, first: int, last: int) -> slice:
        """Where in the owner's list the locks are that have a byte in `first` to `last`."""
        return _window(self._held.get(owner, []), first, last)

    def _put(self, owner: int, where: slice, locks: list[Lock]) -> None:
        count = self._count + len(locks) - (where.stop - where.start)
        if count > max(self._count, self._locks_max):
            raise NoLocks(f"more than {self._locks_max} locks on one file")
        held = self._held.setdefault(owner, [])
        held[where] = locks
        self._count = count
        if not held:
            del self._held[owner]


class WaitGraph:
    """Who waits for whom among this mount's lock owners, to find deadlocks (fcntl(2), EDEADLK).

    Threads of one process share an owner, so an owner can wait with several requests; a `request` number tells them apart.
    """

    def __init__(self, *, waits_max: int = WAITS_MAX) -> None:
        self._waits: dict[int, dict[int, frozenset[int]]] = {}
        self._count = 0
        self._waits_max = waits_max

    def __bool__(self) -> bool:
        return bool(self._waits)

    def waits(self, owner: int, blockers: Iterable[int], *, request: int) -> None:
        """`owner` waits with `request` until none of `blockers` is in its way; said again, it replaces what was said before.

        NoLocks: too many requests wait.
        """
        known = request in self._waits.get(owner, {})
        if not known and self._count >= self._waits_max:
            raise NoLocks(f"more than {self._waits_max} requests for locks wait")
        self._waits.setdefault(owner, {})[request] = frozenset(blockers)
        self._count += not known

    def stops(self, owner: int, *, request: int) -> None:
        """`request` waits no longer: granted, refused or interrupted. Nothing happens if it did not wait."""
        requests = self._waits.get(owner, {})
        if requests.pop(request, None) is not None:
            self._count -= 1
            if not requests:
                del self._waits[owner]

    def would_deadlock(self, owner: int, blockers: Iterable[int]) -> bool:
        """Whether some chain of waits leads from `blockers` back to `owner`, so that it would wait for itself.

        Like the kernel's, the search gives up in the end and says no, and it takes an owner to be stuck as soon as one of its
        requests is, although another thread might still unlock.
        """
        ahead = list(dict.fromkeys(blockers))
        seen = set(ahead)
        for _ in range(SEARCH_MAX):
            if owner in seen:
                return True
            if not ahead:
                return False
            fresh = self._blockers(ahead.pop()) - seen
            seen |= fresh
            ahead += sorted(fresh)
        return False

    def _blockers(self, owner: int) -> frozenset[int]:
        return frozenset().union(*self._waits.get(owner, {}).values())


def _check(first: int, last: int) -> None:
    assert 0 <= first <= last <= OFFSET_MAX, (first, last)


def _file_order(lock: Lock) -> tuple[int, int]:
    return lock.run.first, lock.owner


def _window(held: list[Lock], first: int, last: int) -> slice:
    """Where in one owner's list the locks are that have a byte in `first` to `last`; an empty slice if there are none."""
    low = bisect_left(held, first, key=lambda lock: lock.run.last)
    return slice(low, bisect_right(held, last, lo=low, key=lambda lock: lock.run.first))


def _first_conflict(held: list[Lock], run: Run) -> Lock | None:
    touched = held[_window(held, run.first, run.last)]
    return next((lock for lock in touched if EXCLUSIVE in (lock.run.mode, run.mode)), None)


def _outside(lock: Lock, first: int, last: int) -> Iterator[Lock]:
    """The parts of `lock` before `first` and after `last`."""
    run = lock.run
    if run.first < first:
        yield replace(lock, run=Run(run.first, min(run.last, first - 1), run.mode))
    if run.last > last:
        yield replace(lock, run=Run(max(run.first, last + 1), run.last, run.mode))
