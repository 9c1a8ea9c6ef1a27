"""Who is granted a lease, who waits, and who is next: a table of cases, and what holds after any sequence of steps."""

from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentfs.model import lease
from agentfs.model.errors import Exists, Invalid, NoLocks
from agentfs.model.ids import SessionId
from agentfs.model.lease import EXCLUSIVE, OFFSET_MAX, QUEUE_MAX, RUNS_MAX, SHARED, WHOLE, Grant, Leases, Request, Run

A, B, C = (SessionId(number) for number in (1, 2, 3))
S, X = SHARED, EXCLUSIVE
ENDS = (0, 1, 2, 3, 4, 5, OFFSET_MAX)
"""Where the runs of the properties begin and end."""

BYTES = (*ENDS, 6)
"""Bytes that stand for all: 6 for those between the last two ends."""


def asked(leases: Leases, session: SessionId, number: int, run: Run, *, wait: bool = True, at: int = 10) -> Leases:
    return lease.acquire(leases, Request(session, number, run, wait, at), at)


def shared_by(*sessions: SessionId, run: Run = WHOLE) -> Leases:
    return Leases(tuple(Grant(session, Run(run.first, run.last, S), 1) for session in sessions))


def held(leases: Leases, session: SessionId) -> list[tuple[int, int, int]]:
    return [(run.first, run.last, run.mode) for run in lease.runs_of(leases, session)]


def waiting(leases: Leases) -> list[tuple[SessionId, int]]:
    return [(request.session, request.number) for request in leases.queue]


# ---- cases


def test_the_first_to_ask_gets_the_whole_file() -> None:
    leases = asked(Leases(), A, 1, Run(3, 5, S))
    assert leases == Leases((Grant(A, WHOLE, 10),))


def test_the_only_holder_gets_the_whole_file_back() -> None:
    leases = lease.release(asked(Leases(), A, 1, WHOLE), A, [Run(0, 1, S)], 11)
    assert held(leases, A) == [(0, 1, S)]
    assert held(asked(leases, A, 2, Run(9, 9, S)), A) == [(0, OFFSET_MAX, X)]


def test_a_conflict_waits_and_is_a_recall_to_the_holder_alone() -> None:
    leases = asked(Leases(), A, 1, WHOLE)
    leases = asked(leases, B, 7, Run(0, 3, S))
    assert waiting(leases) == [(B, 7)]
    assert [request.number for request in lease.recalls(leases, A)] == [7]
    assert lease.recalls(leases, B) == lease.recalls(leases, C) == ()


def test_giving_way_to_a_reader_leaves_both_reading_and_the_rest_as_it_was() -> None:
    leases = asked(asked(Leases(), A, 1, WHOLE), B, 1, Run(2, 3, S))
    keep = lease.yielded(lease.runs_of(leases, A), Run(2, 3, S))
    leases = lease.release(leases, A, keep, 20)
    assert held(leases, A) == [(0, 1, X), (2, 3, S), (4, OFFSET_MAX, X)]
    assert held(leases, B) == [(2, 3, S)]
    assert [grant.since_ns for grant in leases.grants] == [10, 10, 10, 20]


def test_giving_way_to_a_writer_drops_what_it_asks_for() -> None:
    leases = asked(asked(Leases(), A, 1, WHOLE), B, 1, Run(2, 3, X))
    leases = lease.release(leases, A, lease.yielded(lease.runs_of(leases, A), Run(2, 3, X)), 20)
    assert held(leases, A) == [(0, 1, X), (4, OFFSET_MAX, X)]
    assert held(leases, B) == [(2, 3, X)]


def test_disjoint_runs_of_two_sessions_never_wait() -> None:
    leases = asked(shared_by(A, run=Run(0, 0, S)), B, 1, Run(1, 1, X))
    for at in range(2, 20):
        leases = asked(leases, (A, B)[at % 2], at, Run(at, at, X))
    assert not leases.queue


def test_what_is_held_is_never_weakened_and_neighbours_become_one() -> None:
    leases = shared_by(C, run=Run(50, 50, S))
    leases = asked(leases, A, 1, Run(2, 3, X), at=11)
    leases = asked(leases, A, 2, Run(0, 5, S), at=12)
    assert held(leases, A) == [(0, 1, S), (2, 3, X), (4, 5, S)]
    assert [grant.since_ns for grant in leases.grants] == [12, 11, 12, 1]
    leases = asked(leases, A, 3, Run(0, 5, X), at=13)
    assert held(leases, A) == [(0, 5, X)]
    assert leases.grants[0].since_ns == 11


def test_a_reader_does_not_pass_a_writer_that_waits() -> None:
    leases = asked(asked(shared_by(A), B, 1, WHOLE), C, 1, Run(0, OFFSET_MAX, S))
    assert waiting(leases) == [(B, 1), (C, 1)]
    leases = lease.release(leases, A, [], 20)
    assert (held(leases, B), waiting(leases)) == ([(0, OFFSET_MAX, X)], [(C, 1)])
    assert held(lease.release(leases, B, [], 30), C) == [(0, OFFSET_MAX, S)]


def test_waiting_readers_are_granted_together() -> None:
    leases = asked(Leases(), A, 1, WHOLE)
    for session in (B, C):
        leases = asked(leases, session, 1, Run(0, OFFSET_MAX, S))
    leases = lease.release(leases, A, [], 20)
    assert leases.queue == ()
    assert {grant.session for grant in leases.grants} == {B, C}


def test_nobody_waits_for_a_request_that_waits_for_him() -> None:
    """A lock can be made longer, or exclusive, while another waits for it, as on a local disk; otherwise both would wait."""
    leases = asked(shared_by(A, run=Run(0, 3, S)), B, 1, Run(0, 9, X))
    assert waiting(leases) == [(B, 1)]
    assert held(asked(leases, A, 2, Run(2, 5, S)), A) == [(0, 5, S)]
    assert held(asked(leases, A, 2, Run(0, 3, X)), A) == [(0, 3, X)]


def test_a_grant_late_in_the_queue_frees_who_stands_before_it() -> None:
    """B waits for D. A waits behind B, until A gets what B waits for as well."""
    D = SessionId(4)
    leases = Leases((Grant(C, Run(5, 5, S), 1), Grant(D, Run(0, 0, S), 1)))
    leases = asked(leases, B, 1, Run(0, 9, X))
    leases = asked(leases, A, 1, Run(7, 7, X))
    leases = asked(leases, A, 2, Run(5, 5, X), wait=False)
    assert waiting(leases) == [(B, 1), (A, 1), (A, 2)]
    leases = lease.end(leases, C, 20)
    assert (held(leases, A), waiting(leases)) == ([(5, 5, X), (7, 7, X)], [(B, 1)])


def test_a_request_that_does_not_want_to_wait_heeds_holders_alone() -> None:
    """LOCK_NB on bytes that are free succeeds, though a request that is stuck elsewhere asks for them too."""
    leases = asked(shared_by(C, run=Run(0, 0, S)), B, 1, Run(0, 9, X))
    assert waiting(asked(leases, A, 1, Run(5, 5, X))) == [(B, 1), (A, 1)]
    assert held(asked(leases, A, 1, Run(5, 5, X), wait=False), A) == [(5, 5, X)]


def test_deny_answers_only_who_does_not_want_to_wait_and_only_by_a_holder() -> None:
    leases = asked(Leases(), A, 1, WHOLE)
    patient, hasty = asked(leases, B, 1, Run(0, 0, X)), asked(leases, B, 1, Run(0, 0, X), wait=False)
    assert lease.deny(patient, A, B, 1, 20) == patient
    assert lease.deny(hasty, C, B, 1, 20) == hasty
    assert lease.deny(hasty, A, B, 2, 20) == hasty
    assert lease.deny(hasty, A, B, 1, 20) == leases


def test_withdrawing_lets_those_behind_pass() -> None:
    leases = asked(asked(shared_by(A), B, 1, WHOLE), C, 1, Run(0, OFFSET_MAX, S))
    leases = lease.withdraw(leases, B, 1, 20)
    assert (held(leases, C), waiting(leases)) == ([(0, OFFSET_MAX, S)], [])
    assert lease.withdraw(leases, C, 1, 21) == leases


def test_the_end_of_a_session_takes_its_grants_and_requests() -> None:
    leases = asked(asked(asked(Leases(), A, 1, WHOLE), B, 1, WHOLE), C, 1, WHOLE)
    assert lease.end(leases, B, 20) == asked(asked(Leases(), A, 1, WHOLE), C, 1, WHOLE)
    assert held(lease.end(lease.end(leases, B, 20), A, 21), C) == [(0, OFFSET_MAX, X)]


def test_nothing_is_held_since_before_it_was_asked_for() -> None:
    leases = asked(asked(Leases(), A, 1, WHOLE, at=50), B, 1, Run(0, 0, X), at=60)
    assert lease.end(leases, A, 0).grants == (Grant(B, Run(0, 0, X), 60),)


@pytest.mark.parametrize("run", [Run(2, 1, X), Run(-1, 1, X), Run(0, OFFSET_MAX + 1, X), Run(0, 1, 0), Run(0, 1, 3)])
def test_a_run_must_make_sense(run: Run) -> None:
    with pytest.raises(Invalid):
        asked(Leases(), A, 1, run)
    with pytest.raises(Invalid):
        lease.release(shared_by(A), A, [run], 20)


def test_a_number_waits_once() -> None:
    leases = asked(asked(Leases(), A, 1, WHOLE), B, 1, WHOLE)
    with pytest.raises(Exists):
        asked(leases, B, 1, Run(0, 0, S))


def test_the_queue_has_a_bound() -> None:
    queue = tuple(Request(SessionId(2 + number), 1, WHOLE, True, 1) for number in range(QUEUE_MAX))
    with pytest.raises(NoLocks):
        asked(Leases((Grant(A, WHOLE, 1),), queue), B, 2, WHOLE)


def test_a_session_s_runs_have_a_bound_that_requests_that_wait_keep() -> None:
    room = shared_by(B, run=Run(1, 1, S))
    spread = [Run(2 * number, 2 * number, S) for number in range(RUNS_MAX)]
    grants = tuple(Grant(A, run, 1) for run in spread[: RUNS_MAX - 2])
    full = Leases((*grants, *room.grants))
    assert len(held(asked(full, A, 1, spread[-1]), A)) == RUNS_MAX - 1
    stuck = asked(full, A, 1, Run(1, 1, X))
    with pytest.raises(NoLocks):
        asked(stuck, A, 2, spread[-1])
    with pytest.raises(NoLocks):
        lease.release(asked(Leases(), A, 1, WHOLE), A, [*spread, Run(9999, 9999, S)], 20)
    rest = Leases((Grant(A, Run(2, OFFSET_MAX, X), 1), *room.grants))
    with pytest.raises(NoLocks):
        lease.release(asked(rest, A, 1, Run(1, 1, X)), A, spread[1:], 20)
    assert len(held(lease.release(rest, A, spread[1:], 20), A)) == RUNS_MAX - 1


# ---- whatever happens

runs = st.builds(
    lambda ends, mode: Run(min(ends), max(ends), mode), st.tuples(*[st.sampled_from(ENDS)] * 2), st.sampled_from((S, X))
)
sessions = st.sampled_from((A, B, C))
steps = st.lists(
    st.one_of(
        st.tuples(st.just("acquire"), sessions, runs, st.booleans()),
        st.tuples(st.just("acquire"), sessions, runs, st.just(True)),
        st.tuples(st.just("give way"), sessions),
        st.tuples(st.just("release"), sessions, st.lists(runs, max_size=3)),
        st.tuples(st.just("withdraw"), sessions, st.integers(0, 20)),
        st.tuples(st.just("deny"), sessions, sessions, st.integers(0, 20)),
        st.tuples(st.just("end"), sessions),
    ),
    max_size=20,
)


def run_step(leases: Leases, number: int, step: tuple) -> Leases:
    match step:
        case ("acquire", session, run, wait):
            return asked(leases, session, number, run, wait=wait, at=number)
        case ("give way", session):
            return given_way(leases, session, number)
        case ("release", session, keep):
            return lease.release(leases, session, keep, number)
        case ("withdraw", session, which):
            return lease.withdraw(leases, session, which, number)
        case ("deny", holder, session, which):
            return lease.deny(leases, holder, session, which, number)
        case ("end", session):
            return lease.end(leases, session, number)
    raise AssertionError(step)


def given_way(leases: Leases, session: SessionId, at: int) -> Leases:
    keep = lease.runs_of(leases, session)
    for request in lease.recalls(leases, session):
        keep = lease.yielded(keep, request.run)
    return lease.release(leases, session, keep, at)


def modes(runs_held: list[Run]) -> dict[int, int]:
    """The mode of each byte, by counting: 0 where nothing is held."""
    return {byte: max((run.mode for run in runs_held if run.first <= byte <= run.last), default=0) for byte in BYTES}


def clash(one: Run, other: Run) -> bool:
    """Conflict, byte by byte."""
    pairs = zip(modes([one]).values(), modes([other]).values(), strict=True)
    return any(a and b and X in (a, b) for a, b in pairs)


def clash_any(runs_held: list[Run], run: Run) -> bool:
    return any(clash(each, run) for each in runs_held)


def check_grants(leases: Leases) -> None:
    for one, other in combinations(leases.grants, 2):
        assert one.session == other.session or not clash(one.run, other.run), "two sessions hold what conflicts"
    assert list(leases.grants) == sorted(leases.grants)
    for session in (A, B, C):
        for one, other in pairwise(lease.runs_of(leases, session)):
            assert one.last < other.first
            assert one.last + 1 < other.first or one.mode != other.mode, "neighbours are one"


def check_queue(leases: Leases) -> None:
    """Each request waits for somebody."""
    for at, request in enumerate(leases.queue):
        by_grant = clash_any([grant.run for grant in leases.grants if grant.session != request.session], request.run)
        own = lease.runs_of(leases, request.session)
        ahead = [each for each in leases.queue[:at] if each.session != request.session and clash(each.run, request.run)]
        behind = request.wait and any(not clash_any(own, each.run) for each in ahead)
        assert by_grant or behind, f"{request} waits for nothing"


def check_order(before: Leases, after: Leases, step: tuple, number: int) -> None:
    """Who was granted something passed nobody that it conflicts with, unless that one waited for it."""
    queue = list(before.queue)
    if step[0] == "acquire" and (before.queue or {grant.session for grant in before.grants} - {step[1]}):
        queue.append(Request(step[1], number, step[2], step[3], number))
    granted = [each for each in queue if each not in after.queue and not _left(each, step)]
    for request in granted:
        before_it = queue[: queue.index(request)]
        own = [grant.run for grant in before.grants if grant.session == request.session]
        own += [each.run for each in granted if each.session == request.session and each is not request]
        for other in before_it:
            if other in after.queue and other.session != request.session and clash(other.run, request.run):
                assert not request.wait or clash_any(own, other.run), f"{request} passed {other}"


def _left(request: Request, step: tuple) -> bool:
    match step:
        case ("withdraw", session, which):
            return (request.session, request.number) == (session, which)
        case ("deny", _, session, which):
            return (request.session, request.number, request.wait) == (session, which, False)
        case ("end", session):
            return request.session == session
    return False


@settings(deadline=None)
@given(steps)
def test_after_any_steps(history: list[tuple]) -> None:
    leases = Leases()
    for number, step in enumerate(history):
        before, leases = leases, run_step(leases, number, step)
        check_grants(leases)
        check_queue(leases)
        check_order(before, leases, step, number)
        for session in (A, B, C):
            old, new = modes(lease.runs_of(before, session)), modes(lease.runs_of(leases, session))
            gives_up = step[0] in ("release", "give way", "end") and step[1] == session
            assert gives_up or all(new[byte] >= old[byte] for byte in BYTES), "only its holder gives a lease up"
            assert not gives_up or all(new[byte] <= old[byte] for byte in BYTES), "giving up strengthens nothing"
    for number, session in enumerate((B, A, C)):
        leases = lease.end(leases, session, 100 + number)
    assert leases == Leases()


@settings(deadline=None)
@given(steps)
def test_when_every_holder_gives_way_the_first_gets_what_it_asked_for(history: list[tuple]) -> None:
    leases = Leases()
    for number, step in enumerate(history):
        leases = run_step(leases, number, step)
    for turn in range(len(leases.queue)):
        first = leases.queue[0]
        for session in {A, B, C} - {first.session}:
            leases = given_way(leases, session, 100 + turn)
        assert first not in leases.queue
        assert lease.covers(lease.runs_of(leases, first.session), first.run)
        if not leases.queue:
            break


@settings(deadline=None)
@given(st.lists(runs, max_size=4), runs)
def test_what_is_kept_is_counted_byte_by_byte(pieces: list[Run], wanted: Run) -> None:
    own = lease.release(Leases((Grant(A, WHOLE, 1),)), A, pieces, 2)
    held_runs = lease.runs_of(own, A)
    old = modes(pieces)
    assert modes(held_runs) == old
    given_up = modes([Run(wanted.first, wanted.last, X)])
    kept = {byte: (S if old[byte] and wanted.mode == S else 0) if given_up[byte] else old[byte] for byte in BYTES}
    assert modes(lease.yielded(held_runs, wanted)) == kept
    assert not clash_any(lease.yielded(held_runs, wanted), wanted)
    inside = [byte for byte in BYTES if wanted.first <= byte <= wanted.last]
    assert lease.covers(held_runs, wanted) == all(old[byte] >= wanted.mode for byte in inside)
