"""Leases in State: what the changes do, what ends with a session, and that rows, file and checksum follow."""

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from agentfs.model.changes import Acquire, AnyChange, CloseSession, Deny, Fence, OpenSession, Release, Renew, Withdraw
from agentfs.model.entry import Entry, Transaction
from agentfs.model.errors import Busy, Exists, Fenced, Invalid, NoLocks
from agentfs.model.ids import NO_SESSION, Ino, Position, SessionId, TxnNumber
from agentfs.model.lease import EXCLUSIVE, FLOCK, OFFSET_MAX, POSIX, RUNS_MAX, SHARED, WHOLE, Leases, Run, covers, runs_of
from agentfs.model.session import FENCED, OPEN
from agentfs.state.apply import apply_transaction
from agentfs.state.checksum import checksum
from agentfs.state.queries import leased
from agentfs.state.tables import Tables, open_tables
from agentfs.workspace.fsck_rules import check_rules
from tests.simulation.entries import founding, opening, put, send

A, B, C = (SessionId(number) for number in (1, 2, 3))
FILE, OTHER = Ino(1 << 32), Ino((1 << 32) + 1)
READ = Run(0, OFFSET_MAX, SHARED)


def fill(tables: Tables) -> Tables:
    for entry in (founding(), opening(b"A"), opening(b"B"), opening(b"C")):
        put(tables, entry)
    return tables


@pytest.fixture
def tables() -> Iterator[Tables]:
    """Three open sessions."""
    tables = fill(open_tables(None))
    yield tables
    assert check_rules(tables) == []
    tables.close()


def acquire(number: int, run: Run = WHOLE, *, ino: Ino = FILE, space: int = FLOCK, wait: bool = True) -> Acquire:
    return Acquire(ino, space, number, run, wait, 100 + number)


def release(*keep: Run, ino: Ino = FILE, space: int = FLOCK) -> Release:
    return Release(ino, space, list(keep), 200)


def holds(tables: Tables, session: SessionId, run: Run = WHOLE, *, ino: Ino = FILE, space: int = FLOCK) -> bool:
    return covers(runs_of(tables.leases.get((ino, space), Leases()), session), run)


def test_a_lease_goes_from_one_session_to_the_next(tables: Tables) -> None:
    for number, session in enumerate((A, B, C)):
        assert send(tables, session, acquire(number)) is None
    assert [holds(tables, session) for session in (A, B, C)] == [True, False, False]
    assert send(tables, A, release()) is None
    assert [holds(tables, session) for session in (A, B, C)] == [False, True, False]
    assert send(tables, B, release(READ)) is None
    assert [holds(tables, session, READ) for session in (A, B, C)] == [False, True, False]
    assert send(tables, B, release()) is None
    assert holds(tables, C)
    assert send(tables, C, release()) is None
    assert tables.leases == {}


def test_files_and_spaces_do_not_see_each_other(tables: Tables) -> None:
    send(tables, A, acquire(1))
    send(tables, B, acquire(1, space=POSIX), acquire(2, ino=OTHER))
    assert holds(tables, A)
    assert holds(tables, B, space=POSIX)
    assert holds(tables, B, ino=OTHER)
    assert leased(tables, B) == [(FILE, POSIX), (OTHER, FLOCK)]


def test_who_does_not_want_to_wait_is_denied(tables: Tables) -> None:
    send(tables, A, acquire(1))
    send(tables, B, acquire(5, wait=False))
    assert [request.number for request in tables.leases[FILE, FLOCK].queue] == [5]
    assert send(tables, A, Deny(FILE, FLOCK, B, 5, WHOLE, 4711, 300)) is None
    assert tables.leases[FILE, FLOCK].queue == ()
    assert send(tables, A, Deny(FILE, FLOCK, B, 5, WHOLE, 4711, 301)) is None
    assert holds(tables, A)


def test_who_gave_up_waiting_gets_nothing(tables: Tables) -> None:
    send(tables, A, acquire(1))
    send(tables, B, acquire(5))
    send(tables, C, acquire(9))
    assert send(tables, B, Withdraw(FILE, FLOCK, 5, 300)) is None
    send(tables, A, release())
    assert holds(tables, C)


@pytest.mark.parametrize("ending", [Fence(A, 300), Fence(A, 300, TxnNumber(2)), CloseSession()])
def test_what_a_session_held_and_asked_for_ends_with_it(tables: Tables, ending: Fence | CloseSession) -> None:
    send(tables, A, acquire(1), acquire(2, ino=OTHER, space=POSIX))
    send(tables, B, acquire(1, ino=Ino(9)))
    send(tables, A, acquire(3, ino=Ino(9)))
    send(tables, B, acquire(2))
    assert send(tables, A if isinstance(ending, CloseSession) else C, ending) is None
    assert leased(tables, A) == []
    assert holds(tables, B)
    assert not tables.leases[Ino(9), FLOCK].queue
    assert (OTHER, POSIX) not in tables.leases
    assert isinstance(send(tables, A, acquire(4)), Fenced)


def test_a_sign_of_life_stops_a_fence_that_did_not_know_of_it(tables: Tables) -> None:
    send(tables, A, acquire(1))
    seen = tables.sessions[A].seen
    assert send(tables, A, Renew()) is None
    assert isinstance(send(tables, B, Fence(A, 300, seen)), Busy)
    assert tables.sessions[A].standing == OPEN
    assert holds(tables, A)
    assert send(tables, B, Fence(A, 300, TxnNumber(seen + 1))) is None
    assert tables.sessions[A].standing == FENCED
    assert send(tables, B, Fence(A, 301, seen)) is None


def test_a_session_says_how_long_it_may_be_silent(tables: Tables) -> None:
    assert put(tables, Entry(NO_SESSION, 3, [Transaction(TxnNumber(1), [OpenSession(b"D", "h", 1, "", 2, 1500)])])) == [None]
    assert (tables.sessions[A].ttl_ms, tables.sessions[SessionId(4)].ttl_ms) == (10_000, 1500)
    (outcome,) = put(tables, Entry(NO_SESSION, 3, [Transaction(TxnNumber(1), [OpenSession(b"E", "h", 1, "", 2, 0)])]))
    assert isinstance(outcome, Invalid)


def test_what_makes_no_sense_aborts(tables: Tables) -> None:
    send(tables, A, acquire(1))
    send(tables, B, acquire(1))
    before = checksum(tables)
    mark = tables.mark()
    for change, error in (
        (acquire(2, space=2), Invalid),
        (acquire(2, Run(3, 2, EXCLUSIVE)), Invalid),
        (acquire(1), Exists),
        (release(*[READ] * (RUNS_MAX + 1)), NoLocks),
    ):
        outcome = apply_transaction(tables, B, Transaction(TxnNumber(tables.sessions[B].seen + 1), [change]), Position(9))
        assert isinstance(outcome, error), change
    nobody = apply_transaction(tables, NO_SESSION, Transaction(TxnNumber(1), [acquire(1)]), Position(9))
    assert isinstance(nobody, Fenced)
    suicide = Transaction(TxnNumber(9), [CloseSession(), acquire(1, ino=OTHER)])
    assert isinstance(apply_transaction(tables, C, suicide, Position(9)), Fenced)
    tables.revert(mark)
    assert checksum(tables) == before


def test_every_change_of_leases_is_reported_to_who_drains_them(tables: Tables) -> None:
    tables.touched_leases.clear()
    mark = tables.mark()
    apply_transaction(tables, A, Transaction(TxnNumber(1), [acquire(1)]), Position(9))
    assert tables.touched_leases == {(FILE, FLOCK)}
    tables.touched_leases.clear()
    tables.revert(mark)
    assert tables.touched_leases == {(FILE, FLOCK)}
    assert tables.leases == {}
    tables.touched_leases.clear()
    send(tables, A, release(ino=OTHER))
    assert tables.touched_leases == set()


def test_leases_are_in_the_file_and_in_the_checksum(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    tables = fill(open_tables(path))
    empty = checksum(tables)
    send(tables, A, acquire(1))
    send(tables, B, acquire(2, Run(5, 7, SHARED), wait=False))
    send(tables, A, acquire(3, ino=OTHER))
    tables.flush()
    send(tables, A, release(ino=OTHER))
    tables.save()
    expected, leases = checksum(tables), dict(tables.leases)
    assert expected != empty
    tables.close()
    again = open_tables(path)
    assert again.leases == leases
    assert checksum(again) == expected
    again.db.execute("UPDATE leases SET body = x'c1'")
    again.db.execute("COMMIT")
    again.db.close()
    with pytest.raises(Invalid, match="not an intact State"):
        open_tables(path)


def random_change(random: Random, tables: Tables, number: int) -> AnyChange:
    ino, space = random.choice((FILE, OTHER)), random.choice((FLOCK, POSIX, POSIX))
    first = random.randint(0, 5)
    run = Run(first, random.choice((first, first + 2, OFFSET_MAX)), random.choice((SHARED, EXCLUSIVE)))
    match random.randint(0, 9):
        case 0:
            return Withdraw(ino, space, random.randint(0, number), number)
        case 1:
            return Deny(ino, space, random.choice((A, B, C)), random.randint(0, number), run, 7, number)
        case 2 | 3 | 4:
            return Release(ino, space, [run] * random.randint(0, 2), number)
        case 5 if random.random() < 0.2:
            return Fence(random.choice((A, B, C)), number, TxnNumber(number))
    return Acquire(ino, space, number, run, random.random() < 0.7, number)


@pytest.mark.parametrize("seed", range(8))
def test_taking_back_restores_all_and_every_replay_is_the_same(seed: int) -> None:
    random, tables, again = Random(seed), fill(open_tables(None)), fill(open_tables(None))
    committed = 0
    for number in range(1, 150):
        session = random.choice((A, B, C))
        changes = [random_change(random, tables, number) for _ in range(random.choice((1, 1, 2)))]
        transaction = Transaction(TxnNumber(number), changes)
        before, mark = checksum(tables), tables.mark()
        leases = dict(tables.leases)
        apply_transaction(tables, session, transaction, Position(tables.position + 1))
        tables.revert(mark)
        assert checksum(tables) == before, f"seed {seed}, step {number}"
        assert tables.leases == leases
        for each in (tables, again):
            (outcome,) = put(each, Entry(session, number, [transaction]))
        committed += outcome is None
        assert check_rules(tables) == [], f"seed {seed}, step {number}"
    assert committed > 30
    assert checksum(tables) == checksum(again)
    tables.close()
    again.close()
