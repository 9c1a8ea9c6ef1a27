"""Leases: which sessions may lock which bytes of a file, who waits, and the rules by which one follows the other.

A lease is a session's right to grant locks to its processes: on one file, in one space (flock(2) and fcntl(2) locks do not see
each other), for runs of bytes, shared or exclusive. Requests that conflict with what others hold, or with a request that came
before them, wait in one queue, first come, first served. A queued request is at the same time the recall: the holders see it
in their State, and give up what it asks for as soon as no process of theirs holds it.

What came first goes first, except where that would make a process wait for one that waits for it, or wait although it asked
not to: a request does not stand behind an earlier one that waits for its own session, and one that does not want to wait
stands behind none. So fcntl(2) locks can be extended and upgraded while others wait for them, and LOCK_NB tells the truth, as
on a local disk.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

import msgspec
from msgspec.structs import replace

from agentfs.model.errors import Exists, Invalid, NoLocks
from agentfs.model.ids import NO_SESSION, SessionId

FLOCK: Final = 0
POSIX: Final = 1
"""The spaces of locks."""

SHARED: Final = 1
EXCLUSIVE: Final = 2
"""The modes; a stronger one is the greater number."""

OFFSET_MAX: Final = 2**63 - 1
"""The last byte that a lock can name; a lock up to it reaches to the end of the file, wherever that will be (fcntl(2))."""


QUEUE_MAX: Final = 4096
"""Requests that may wait on one file in one space."""

RUNS_MAX: Final = 1024
"""Runs that a session may hold of one file in one space, together with what its waiting requests may add to them."""

_RUNS_PER_REQUEST: Final = 2
"""A run that is laid over others adds itself, and may cut one of them in two."""


class Run(msgspec.Struct, frozen=True, array_like=True, order=True):
    """Bytes `first` to `last`, both included, in a mode."""

    first: int
    last: int
    mode: int


WHOLE: Final = Run(0, OFFSET_MAX, EXCLUSIVE)


class Grant(msgspec.Struct, frozen=True, array_like=True, order=True):
    """A run that a session holds. `since_ns` is the stamped time of the entry's change that granted it."""

    session: SessionId
    run: Run
    since_ns: int


class Request(msgspec.Struct, frozen=True, array_like=True):
    """A session's request that waits. `number` is the session's own; `wait` False: its process does not want to wait.

    `since_ns` is the stamped time of the change that asked. `passes`: it goes ahead of those that wait for what its session
    holds, since the process may need it in order to let go of that.
    """

    session: SessionId
    number: int
    run: Run
    wait: bool
    since_ns: int
    passes: bool = True


class Leases(msgspec.Struct, frozen=True, array_like=True):
    """Everything about one file in one space: what is granted, ordered, and what waits, in the order it came."""

    grants: tuple[Grant, ...] = ()
    queue: tuple[Request, ...] = ()


# ---- what is held


def conflicts(a: Run, b: Run) -> bool:
    """Whether two sessions cannot hold both: they share a byte, and one of the two is exclusive."""
    return a.first <= b.last and b.first <= a.last and EXCLUSIVE in (a.mode, b.mode)


def runs_of(leases: Leases, session: SessionId) -> list[Run]:
    """What a session holds: disjoint, in the order of bytes."""
    return [grant.run for grant in leases.grants if grant.session == session]


def covers(runs: Sequence[Run], run: Run) -> bool:
    """Whether each byte of `run` is in one of `runs`, which are disjoint and in order, in its mode or a stronger one."""
    missing = run.first
    for held in runs:
        if held.first <= missing <= held.last and held.mode >= run.mode:
            missing = held.last + 1
    return missing > run.last


def yielded(runs: Sequence[Run], asked: Run) -> list[Run]:
    """What a holder of `runs`, disjoint and in order, keeps when it gives way to `asked`.

    Bytes that are asked for shared stay shared; bytes that are asked for exclusively go.
    """
    held = [Grant(NO_SESSION, run, 0) for run in runs]
    kept = _outside(held, asked)
    if asked.mode == SHARED:
        kept += _inside(held, asked)
    return [grant.run for grant in _joined(kept)]


def recalls(leases: Leases, session: SessionId) -> tuple[Request, ...]:
    """The waiting requests of other sessions that are in conflict with what `session` holds: it has to answer them."""
    held = runs_of(leases, session)
    return tuple(request for request in leases.queue if request.session != session and _any_conflict(held, request.run))


# ---- what happens to it


def acquire(leases: Leases, request: Request, now_ns: int) -> Leases:
    """Grant a request, or append it to the queue; the whole file exclusively where no other session has anything of it.

    Raises Invalid for a run that makes no sense, Exists for a number that waits already, NoLocks where a bound is reached.
    """
    _check(request.run)
    held = runs_of(leases, request.session)
    if len(held) == len(leases.grants) and not leases.queue:
        return Leases(_granted(leases.grants, replace(request, run=WHOLE), now_ns))
    own = [waiting.number for waiting in leases.queue if waiting.session == request.session]
    if request.number in own:
        raise Exists(f"request {request.number} waits already")
    if len(leases.queue) >= QUEUE_MAX or len(held) + _RUNS_PER_REQUEST * (len(own) + 1) > RUNS_MAX:
        raise NoLocks("too many locks, or too many that wait for one, on the file")
    if _must_wait(leases.grants, leases.queue, request):
        return replace(leases, queue=(*leases.queue, request))
    return _advanced(replace(leases, grants=_granted(leases.grants, request, now_ns)), now_ns)


def withdraw(leases: Leases, session: SessionId, number: int, now_ns: int) -> Leases:
    """Take a request out of the queue, if it is there."""
    queue = tuple(request for request in leases.queue if (request.session, request.number) != (session, number))
    return _advanced(replace(leases, queue=queue), now_ns)


def release(leases: Leases, session: SessionId, keep: Sequence[Run], now_ns: int) -> Leases:
    """Reduce what a session holds to `keep`, which never strengthens it.

    Raises Invalid for a run that makes no sense, NoLocks when too many runs would be left.
    """
    if len(keep) > RUNS_MAX:
        raise NoLocks("too many locks on the file")
    held = [grant for grant in leases.grants if grant.session == session]
    left = _joined([grant for run in _levelled(keep) for grant in _inside(held, run)])
    waiting = sum(request.session == session for request in leases.queue)
    if len(left) + _RUNS_PER_REQUEST * waiting > RUNS_MAX:
        raise NoLocks("too many locks on the file")
    return _advanced(replace(leases, grants=_with(leases.grants, session, left)), now_ns)


def deny(leases: Leases, holder: SessionId, session: SessionId, number: int, now_ns: int) -> Leases:
    """Refuse a request that does not want to wait; nothing happens when `holder` has nothing that is in its way."""
    denied = any((each.session, each.number, each.wait) == (session, number, False) for each in recalls(leases, holder))
    return withdraw(leases, session, number, now_ns) if denied else leases


def end(leases: Leases, session: SessionId, now_ns: int) -> Leases:
    """A session ended: what it holds and what it asks for goes."""
    queue = tuple(request for request in leases.queue if request.session != session)
    return _advanced(Leases(_with(leases.grants, session, []), queue), now_ns)


def _advanced(leases: Leases, now_ns: int) -> Leases:
    """Grant what need not wait any more, in the order of the queue, until all that is left has to wait."""
    grants, queue = leases.grants, leases.queue
    while True:
        waiting: list[Request] = []
        for request in queue:
            if _must_wait(grants, waiting, request):
                waiting.append(request)
            else:
                grants = _granted(grants, request, now_ns)
        # A session that got more may be who an earlier one waits for by now, which frees that session's other requests.
        if len(waiting) == len(queue):
            return Leases(grants, queue)
        queue = tuple(waiting)


def _must_wait(grants: Sequence[Grant], earlier: Sequence[Request], request: Request) -> bool:
    """Whether a grant of another session is in a request's way, or a request of another session that came before."""
    if any(grant.session != request.session and conflicts(grant.run, request.run) for grant in grants):
        return True
    if not request.wait:
        return False
    held = [grant.run for grant in grants if grant.session == request.session and request.passes]
    return any(
        other.session != request.session and conflicts(other.run, request.run) and not _any_conflict(held, other.run)
        for other in earlier
    )


def _any_conflict(runs: Sequence[Run], asked: Run) -> bool:
    return any(conflicts(run, asked) for run in runs)


def _granted(grants: Sequence[Grant], request: Request, now_ns: int) -> tuple[Grant, ...]:
    # Clocks differ between hosts: what was asked for is not said to be held since before that.
    since_ns = max(now_ns, request.since_ns)
    held = [grant for grant in grants if grant.session == request.session]
    return _with(grants, request.session, _laid(held, Grant(request.session, request.run, since_ns)))


def _with(grants: Sequence[Grant], session: SessionId, held: Sequence[Grant]) -> tuple[Grant, ...]:
    """The grants, in order, with those of a session replaced."""
    return tuple(sorted([*(grant for grant in grants if grant.session != session), *held]))


# ---- runs of bytes


def _check(run: Run) -> None:
    if not 0 <= run.first <= run.last <= OFFSET_MAX or run.mode not in (SHARED, EXCLUSIVE):
        raise Invalid("not a run of bytes that can be locked")


def _laid(held: Sequence[Grant], new: Grant) -> list[Grant]:
    """`held`, disjoint and in order, with `new` over it: of two modes the stronger, of two grants in one mode the older."""
    laid, missing = _outside(held, new.run), new.run.first
    for grant in _inside(held, Run(new.run.first, new.run.last, EXCLUSIVE)):
        if missing < grant.run.first:
            laid.append(_piece(new, missing, grant.run.first - 1))
        laid.append(grant if grant.run.mode >= new.run.mode else _piece(new, grant.run.first, grant.run.last))
        missing = grant.run.last + 1
    if missing <= new.run.last:
        laid.append(_piece(new, missing, new.run.last))
    return _joined(laid)


def _levelled(runs: Sequence[Run]) -> list[Run]:
    """Runs that are disjoint and in order; where some overlap, the strongest mode counts."""
    for run in runs:
        _check(run)
    if all(a.last < b.first for a, b in pairwise(runs)):
        return list(runs)
    level: list[Grant] = []
    for run in runs:
        level = _laid(level, Grant(NO_SESSION, run, 0))
    return [grant.run for grant in level]


def _inside(held: Sequence[Grant], run: Run) -> list[Grant]:
    """The parts of `held`, disjoint and in order, that are in `run`, in its mode at most."""
    low = bisect_left(held, run.first, key=_last)
    high = bisect_right(held, run.last, key=_first)
    return [_piece(grant, max(grant.run.first, run.first), min(grant.run.last, run.last), run.mode) for grant in held[low:high]]


def _outside(held: Sequence[Grant], run: Run) -> list[Grant]:
    """The parts of `held` that are not in `run`."""
    before = [
        _piece(grant, grant.run.first, min(grant.run.last, run.first - 1)) for grant in held if grant.run.first < run.first
    ]
    after = [_piece(grant, max(grant.run.first, run.last + 1), grant.run.last) for grant in held if grant.run.last > run.last]
    return before + after


def _joined(parts: Sequence[Grant]) -> list[Grant]:
    """One session's disjoint parts in order, neighbours of one mode made one, which is held since the first of them was."""
    joined: list[Grant] = []
    for part in sorted(parts):
        last = joined[-1] if joined else None
        if last is not None and last.run.last + 1 == part.run.first and last.run.mode == part.run.mode:
            run = Run(last.run.first, part.run.last, part.run.mode)
            joined[-1] = Grant(part.session, run, min(last.since_ns, part.since_ns))
        else:
            joined.append(part)
    return joined


def _piece(grant: Grant, first: int, last: int, mode: int = EXCLUSIVE) -> Grant:
    return Grant(grant.session, Run(first, last, min(grant.run.mode, mode)), grant.since_ns)


def _first(grant: Grant) -> int:
    return grant.run.first


def _last(grant: Grant) -> int:
    return grant.run.last
