"""The committer: groups, speculation, rebases over foreign entries, lost answers, and a journal that refuses."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from random import Random

import pytest
import trio
import trio.testing

from agentfs.journal.contract import Journal
from agentfs.journal.memory import MemoryJournal, MemoryLog
from agentfs.model.changes import AnyChange, Fence, SetXattr, Unlink
from agentfs.model.codec import decode_entry, encode_entry
from agentfs.model.entry import Entry, Transaction
from agentfs.model.errors import AgentfsError, Exists, Fenced, NoSpace, NotFound, Unavailable
from agentfs.model.ids import ROOT_INO, Ino, Position, SessionId, TxnNumber, first_ino
from agentfs.model.inode import XATTR_SIZE_MAX
from agentfs.state.apply import apply_entry
from agentfs.state.checksum import checksum
from agentfs.state.tables import Tables, open_tables
from agentfs.workspace.committer import LINGER_SECONDS, PENDING_MAX, RETRY_SECONDS, Committer
from agentfs.workspace.pending import GROUP_TRANSACTIONS
from tests.simulation.entries import founding, make, opening, text
from tests.simulation.faults import Fault, FaultyJournal, Script
from tests.simulation.runtime import VirtualRuntime
from tests.simulation.virtual_time import in_virtual_time

A, B = SessionId(1), SessionId(2)
ONE, TWO, THREE = (Ino(first_ino(A) + number) for number in range(3))
OTHER = first_ino(B)


@pytest.fixture
def log() -> MemoryLog:
    """A journal with a workspace and two sessions."""
    log = MemoryLog()
    log.payloads.extend(encode_entry(entry) for entry in (founding(), opening(b"A"), opening(b"B")))
    return log


@pytest.fixture
def script() -> Script:
    return Script()


def replayed(log: MemoryLog) -> Tables:
    tables = open_tables(None)
    for number, payload in enumerate(log.payloads, 1):
        apply_entry(tables, decode_entry(payload), Position(number))
        tables.settle()
    return tables


def entries(log: MemoryLog) -> list[Entry]:
    """The entries behind the fixture's own."""
    return [decode_entry(payload) for payload in log.payloads[3:]]


def foreign(log: MemoryLog, *changes: AnyChange, number: int = 1) -> None:
    """Session B appends an entry that A learns of only from the journal."""
    log.payloads.append(encode_entry(Entry(B, 3, [Transaction(TxnNumber(number), list(changes))])))


def is_replay(committer: Committer, log: MemoryLog) -> bool:
    """Whether State is what a fresh replay of the whole journal gives."""
    return checksum(committer.tables) == checksum(replayed(log))


@asynccontextmanager
async def running(log: MemoryLog, script: Script, *, start: bool = True) -> AsyncIterator[Committer]:
    journal: Journal = FaultyJournal(MemoryJournal(log), script)
    committer = Committer(journal, replayed(log), A, VirtualRuntime(Random(0)))
    async with trio.open_nursery() as nursery:
        if start:
            nursery.start_soon(committer.run)
        yield committer
        nursery.cancel_scope.cancel()


async def outcome_of(act: Callable[[], Awaitable[object]]) -> type[AgentfsError] | None:
    """What an awaited operation raised."""
    try:
        await act()
    except AgentfsError as error:
        return type(error)
    return None


# ---- groups


@in_virtual_time
async def test_what_is_submitted_is_seen_at_once_and_committed_soon(log: MemoryLog, script: Script) -> None:
    async with running(log, script) as committer:
        pending = committer.submit([make(ONE, b"x")])
        assert committer.tables.inode(ONE) is not None
        assert (committer.pending, len(log.payloads)) == (1, 3)
        started = trio.current_time()
        await pending.done.wait()
        assert trio.current_time() - started == pytest.approx(LINGER_SECONDS)
        assert committer.pending == 0
        assert is_replay(committer, log)


@in_virtual_time
async def test_what_is_waited_for_does_not_linger(log: MemoryLog, script: Script) -> None:
    async with running(log, script) as committer:
        started = trio.current_time()
        await committer.commit([make(ONE, b"x")])
        assert trio.current_time() == started


@in_virtual_time
async def test_transactions_share_an_entry(log: MemoryLog, script: Script) -> None:
    async with running(log, script) as committer:
        for number in range(5):
            committer.submit([make(ONE + number, b"%d" % number)])
        await committer.sync()
        assert [[txn.number for txn in entry.transactions] for entry in entries(log)] == [[1, 2, 3, 4, 5]]
        assert is_replay(committer, log)


@in_virtual_time
async def test_what_comes_while_an_entry_is_under_way_goes_with_the_next(log: MemoryLog, script: Script) -> None:
    gate = trio.Event()
    script.add("append", Fault(behind=gate))
    async with running(log, script) as committer:
        first = committer.submit([make(ONE, b"x")])
        await trio.sleep(1)
        second = committer.submit([make(TWO, b"y")])
        assert not first.done.is_set()
        gate.set()
        await committer.settled(second)
        assert [len(entry.transactions) for entry in entries(log)] == [1, 1]
        assert is_replay(committer, log)


@in_virtual_time
async def test_a_group_is_bounded_and_the_rest_follows_at_once(log: MemoryLog, script: Script) -> None:
    async with running(log, script) as committer:
        for number in range(GROUP_TRANSACTIONS + 10):
            last = committer.submit([make(ONE + number, b"%d" % number)])
        await committer.settled(last)
        assert [len(entry.transactions) for entry in entries(log)] == [GROUP_TRANSACTIONS, 10]
        assert is_replay(committer, log)


@in_virtual_time
async def test_an_entry_can_always_be_read_back(log: MemoryLog, script: Script) -> None:
    """Attributes are content too: a group of the largest ones must stay within what an entry may decode to."""
    async with running(log, script) as committer:
        await committer.commit([make(ONE, b"x")])
        for number in range(GROUP_TRANSACTIONS):
            committer.submit([SetXattr(ONE, b"user.%d" % number, bytes(XATTR_SIZE_MAX), 0, 10)])
        await committer.sync()
    assert sum(len(entry.transactions) for entry in entries(log)) == GROUP_TRANSACTIONS + 1


@in_virtual_time
async def test_throttle_waits_while_too_much_is_pending(log: MemoryLog, script: Script) -> None:
    gate = trio.Event()
    script.add("append", Fault(before=gate))
    async with running(log, script) as committer:
        first = committer.submit([make(ONE, b"x")])
        await trio.sleep(1)
        for _ in range(PENDING_MAX):
            await committer.throttle()
            committer.submit([SetXattr(ONE, b"user.x", b"v", 0, 10)])
        with trio.move_on_after(5) as scope:
            await committer.throttle()
        assert scope.cancelled_caught
        gate.set()
        await committer.throttle()
        assert first.done.is_set()
        await committer.sync()
        assert is_replay(committer, log)


# ---- rules, and rebases


@in_virtual_time
async def test_what_the_rules_refuse_never_happened(log: MemoryLog, script: Script) -> None:
    async with running(log, script) as committer:
        await committer.commit([make(ONE, b"x")])
        before = checksum(committer.tables)
        with pytest.raises(Exists):
            committer.submit([make(TWO, b"y"), make(THREE, b"x")])
        assert (checksum(committer.tables), committer.pending) == (before, 0)
        await committer.commit([make(TWO, b"y")])
        assert [txn.number for entry in entries(log) for txn in entry.transactions] == [1, 2]


@in_virtual_time
async def test_a_foreign_entry_in_front_is_rebased_over(log: MemoryLog, script: Script) -> None:
    async with running(log, script) as committer:
        pending = committer.submit([make(ONE, b"mine")])
        foreign(log, make(OTHER, b"theirs"))
        await pending.committed()
        assert committer.tables.dentry(ROOT_INO, b"theirs") is not None
        assert is_replay(committer, log)


@in_virtual_time
async def test_the_loser_of_a_race_is_told(log: MemoryLog, script: Script) -> None:
    async with running(log, script) as committer:
        pending = committer.submit([make(ONE, b"x")])
        foreign(log, make(OTHER, b"x"))
        with pytest.raises(Exists):
            await committer.settled(pending)
        assert committer.tables.dentry(ROOT_INO, b"x").ino == OTHER  # type: ignore[union-attr]
        assert is_replay(committer, log)


@in_virtual_time
async def test_what_builds_on_a_loser_loses_too(log: MemoryLog, script: Script) -> None:
    gate, withdrawn = trio.Event(), list[int]()
    script.add("append", Fault(before=gate))
    async with running(log, script) as committer:
        committer.on_withdraw = withdrawn.append
        first = committer.submit([make(ONE, b"d", mode=0o040755)])
        await trio.sleep(1)
        second, third = committer.submit([make(TWO, b"x", parent=ONE)]), committer.submit([make(THREE, b"y")])
        foreign(log, make(OTHER, b"d"))
        gate.set()
        assert await outcome_of(first.committed) is Exists
        assert await outcome_of(second.committed) is NotFound
        assert await outcome_of(third.committed) is None
        assert withdrawn == [1, 2]
        assert is_replay(committer, log)


@in_virtual_time
async def test_a_rebase_by_another_task_does_not_hide_an_abort(log: MemoryLog, script: Script) -> None:
    """While an entry is under way, `catch_up` learns of a foreign one that makes it abort: its waiter must be told."""
    gate = trio.Event()
    script.add("append", Fault(before=gate))
    async with running(log, script) as committer:
        pending = committer.submit([make(ONE, b"x")])
        await trio.sleep(1)
        foreign(log, make(OTHER, b"x"))
        await committer.catch_up()
        gate.set()
        assert await outcome_of(pending.committed) is Exists
        assert is_replay(committer, log)


@in_virtual_time
async def test_catching_up_twice_at_once_is_no_fault(log: MemoryLog, script: Script) -> None:
    gate = trio.Event()
    async with running(log, script, start=False) as committer:
        foreign(log, make(OTHER, b"x"))
        script.add("read", Fault(behind=gate))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(committer.catch_up, Position(4))
            await trio.testing.wait_all_tasks_blocked()
            await committer.catch_up(Position(4))
            gate.set()
        assert is_replay(committer, log)


@in_virtual_time
async def test_saving_while_something_is_pending_saves_what_is_committed(log: MemoryLog, script: Script) -> None:
    gate = trio.Event()
    script.add("append", Fault(before=gate))
    async with running(log, script) as committer:
        first = committer.submit([make(ONE, b"x")])
        await trio.sleep(1)
        committer.submit([make(TWO, b"y")])
        before = checksum(committer.tables)
        committer.save()
        assert checksum(committer.tables) == before
        gate.set()
        await first.committed()
        await committer.sync()
        assert is_replay(committer, log)


# ---- lost answers


@in_virtual_time
async def test_a_lost_answer_commits_once(log: MemoryLog, script: Script) -> None:
    script.add(
        "append", Fault(lost=Unavailable("lost")), Fault(refused=Unavailable("refused")), Fault(lost=Unavailable("lost"))
    )
    async with running(log, script) as committer:
        await committer.commit([make(ONE, b"x")])
        script.add("append", *[Fault(lost=Unavailable("lost"))] * 3)
        await committer.commit([text(ONE, 0, b"once", append=True)])
        inode = committer.tables.inode(ONE)
        assert inode is not None
        assert (inode.size, inode.version) == (4, 1)
        assert is_replay(committer, log)


@in_virtual_time
async def test_a_lost_answer_with_a_foreign_entry_behind_it(log: MemoryLog, script: Script) -> None:
    gate = trio.Event()
    script.add("append", Fault(behind=gate, lost=Unavailable("lost")))
    async with running(log, script) as committer:
        pending = committer.submit([make(ONE, b"x")])
        await trio.sleep(1)
        foreign(log, Unlink(ROOT_INO, b"x", ONE, False, 30), make(OTHER, b"x"))
        gate.set()
        assert await outcome_of(pending.committed) is None
        assert committer.tables.dentry(ROOT_INO, b"x").ino == OTHER  # type: ignore[union-attr]
        assert is_replay(committer, log)


@in_virtual_time
async def test_a_read_that_fails_once_does_not_fail_what_is_in_the_journal(log: MemoryLog, script: Script) -> None:
    async with running(log, script) as committer:
        pending = committer.submit([make(ONE, b"x")])
        foreign(log, make(OTHER, b"y"))
        script.add("read", Fault(refused=Unavailable("refused")))
        assert await outcome_of(pending.committed) is None
        assert is_replay(committer, log)


@in_virtual_time
async def test_what_was_given_up_and_is_in_the_journal_after_all_is_seen_with_the_next(log: MemoryLog, script: Script) -> None:
    script.add("append", Fault(lost=Unavailable("lost")), *[Fault(refused=Unavailable("refused"))] * 200)
    async with running(log, script) as committer:
        with pytest.raises(Unavailable):
            await committer.commit([make(ONE, b"x")])
        script.lines.clear()
        await committer.commit([make(TWO, b"y")])
        assert is_replay(committer, log)


# ---- a journal that refuses


@in_virtual_time
async def test_an_unreachable_journal_fails_everything_pending_and_leaves_state_as_it_was(
    log: MemoryLog, script: Script
) -> None:
    withdrawn = list[int]()
    script.add("append", *[Fault(refused=Unavailable("refused"))] * 200)
    async with running(log, script) as committer:
        committer.on_withdraw = withdrawn.append
        before, started = checksum(committer.tables), trio.current_time()
        first = committer.submit([make(ONE, b"x")])
        await trio.sleep(1)
        second = committer.submit([make(TWO, b"y", parent=ROOT_INO)])
        assert await outcome_of(first.committed) is Unavailable
        assert await outcome_of(second.committed) is Unavailable
        assert trio.current_time() - started <= RETRY_SECONDS + LINGER_SECONDS
        # The first was sent, and may have arrived: only what never left is withdrawn.
        assert (checksum(committer.tables), committer.pending, withdrawn) == (before, 0, [2])
        script.lines.clear()
        await committer.commit([make(THREE, b"x")])
        assert is_replay(committer, log)


@in_virtual_time
async def test_a_full_journal_fails_what_is_pending_at_once(log: MemoryLog, script: Script) -> None:
    script.add("append", Fault(refused=NoSpace("full")))
    async with running(log, script) as committer:
        before, started = checksum(committer.tables), trio.current_time()
        committer.submit([make(ONE, b"x")])
        with pytest.raises(NoSpace):
            await committer.sync()
        assert trio.current_time() == started
        assert (checksum(committer.tables), committer.pending) == (before, 0)


@in_virtual_time
async def test_a_staging_log_that_is_full_refuses_and_nothing_happened(log: MemoryLog, script: Script) -> None:
    def full(transaction: Transaction) -> None:
        raise NoSpace("full")

    async with running(log, script) as committer:
        before, write_log = checksum(committer.tables), committer.on_submit
        committer.on_submit = full
        with pytest.raises(NoSpace):
            committer.submit([make(ONE, b"x")])
        assert (checksum(committer.tables), committer.pending) == (before, 0)
        committer.on_submit = write_log
        await committer.commit([make(TWO, b"y")])
        assert committer.tables.dentry(ROOT_INO, b"x") is None
        assert is_replay(committer, log)


# ---- fences


async def next_session(committer: Committer, log: MemoryLog, *, refused: bool = False) -> None:
    """Register a session and go on under it, as membership does."""
    log.payloads.append(encode_entry(opening(b"C")))
    await committer.catch_up()
    committer.adopt(SessionId(3), lambda transaction: refused)


@in_virtual_time
async def test_a_fenced_session_commits_nothing_and_says_so(log: MemoryLog, script: Script) -> None:
    async with running(log, script) as committer:
        await committer.commit([make(ONE, b"x")])
        pending = committer.submit([Unlink(ROOT_INO, b"x", ONE, False, 30)])
        foreign(log, Fence(A))
        await trio.sleep(100)
        assert committer.lost
        assert not pending.done.is_set()
        assert committer.tables.dentry(ROOT_INO, b"x") is not None
        with pytest.raises(Fenced):
            committer.submit([make(TWO, b"y")])
        assert is_replay(committer, log)
        await next_session(committer, log, refused=True)
        assert await outcome_of(pending.committed) is Fenced
        assert is_replay(committer, log)


@in_virtual_time
async def test_what_a_fence_stopped_goes_out_under_the_next_session(log: MemoryLog, script: Script) -> None:
    async with running(log, script) as committer:
        committer.submit([make(ONE, b"x")])
        second = committer.submit([make(TWO, b"y")])
        foreign(log, Fence(A), make(OTHER, b"x"))
        await trio.sleep(100)
        await next_session(committer, log)
        assert await outcome_of(second.committed) is None
        assert committer.tables.dentry(ROOT_INO, b"x").ino == OTHER  # type: ignore[union-attr]
        assert entries(log)[-1].session == SessionId(3)
        assert is_replay(committer, log)


@in_virtual_time
async def test_a_copy_of_the_session_is_noticed_and_nothing_pending_is_dropped(log: MemoryLog, script: Script) -> None:
    lost = list[set[Ino]]()
    async with running(log, script) as committer:
        committer.on_lost = lost.append
        pending = committer.submit([make(ONE, b"mine")])
        log.payloads.append(encode_entry(Entry(A, 3, [Transaction(TxnNumber(1), [make(TWO, b"the copy's")])])))
        await trio.sleep(100)
        assert (committer.lost, lost, pending.done.is_set()) == (True, [set()], False)
        await next_session(committer, log)
        assert await outcome_of(pending.committed) is None
        assert committer.tables.dentry(ROOT_INO, b"the copy's") is not None
        assert is_replay(committer, log)


@in_virtual_time
async def test_what_lands_late_under_a_session_that_a_copy_took_is_applied(log: MemoryLog, script: Script) -> None:
    gate = trio.Event()
    script.add("append", Fault(before=gate))
    async with running(log, script) as committer:
        for ino, name in ((ONE, b"one"), (TWO, b"two")):
            committer.submit([make(ino, name)])
        await trio.sleep(1)
        log.payloads.append(encode_entry(Entry(A, 3, [Transaction(TxnNumber(1), [make(THREE, b"the copy's")])])))
        await committer.catch_up()
        await next_session(committer, log)
        gate.set()
        await trio.sleep(10)
        await committer.catch_up()
        assert is_replay(committer, log)


@in_virtual_time
async def test_sync_does_not_report_success_for_what_a_fence_stopped(log: MemoryLog, script: Script) -> None:
    async with running(log, script) as committer:
        committer.submit([make(ONE, b"x")])
        foreign(log, Fence(A))
        with trio.move_on_after(100) as scope:
            await committer.sync()
        assert scope.cancelled_caught
        async with trio.open_nursery() as nursery:

            async def refused() -> None:
                assert await outcome_of(committer.sync) is Unavailable

            nursery.start_soon(refused)
            await trio.testing.wait_all_tasks_blocked()
            committer.refuse_pending(Unavailable("no session can be had"))
