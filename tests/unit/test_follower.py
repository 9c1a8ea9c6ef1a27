"""The follower: what others append arrives, what `reach_tail` promises, and a journal that does not answer."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random

import pytest
import trio

from agentfs.journal.memory import MemoryJournal, MemoryLog
from agentfs.model.changes import AnyChange
from agentfs.model.codec import encode_entry
from agentfs.model.entry import Entry, Transaction
from agentfs.model.errors import Exists, Unavailable
from agentfs.model.ids import ROOT_INO, SessionId, TxnNumber, first_ino
from agentfs.state.checksum import checksum
from agentfs.workspace.committer import Committer
from agentfs.workspace.follower import PAUSE_MAX_SECONDS, Follower
from tests.simulation.entries import founding, make, opening
from tests.simulation.faults import Fault, Faults, FaultyJournal
from tests.simulation.parts import replayed
from tests.simulation.runtime import VirtualRuntime
from tests.simulation.virtual_time import in_virtual_time

A, B = SessionId(1), SessionId(2)
MINE, THEIRS = first_ino(A), first_ino(B)


@dataclass
class Line:
    """A connection whose calls take `slow_seconds` each, and are counted; it can be cut."""

    slow_seconds: float = 0.0
    cut: bool = False
    asked: dict[str, int] = field(default_factory=dict)

    def next(self, verb: str) -> Fault:
        self.asked[verb] = self.asked.get(verb, 0) + 1
        return Fault(self.slow_seconds, refused=Unavailable("nobody answers") if self.cut else None)


@dataclass
class Following:
    """A follower of session A, and the log that session B writes to."""

    log: MemoryLog
    line: Line
    committer: Committer
    follower: Follower
    foreign: int = 0

    async def append(self, *changes: AnyChange) -> None:
        """Session B appends an entry."""
        self.foreign += 1
        entry = Entry(B, 3, [Transaction(TxnNumber(self.foreign), list(changes))])
        await MemoryJournal(self.log).append(encode_entry(entry))

    def has(self, name: bytes) -> bool:
        """Whether A's State has a name."""
        return self.committer.tables.dentry(ROOT_INO, name) is not None


@asynccontextmanager
async def following(*, run: bool = True, staleness_seconds: float = 0.0) -> AsyncIterator[Following]:
    log, line = MemoryLog(), Line()
    log.payloads.extend(encode_entry(entry) for entry in (founding(), opening(b"A"), opening(b"B")))
    faults: Faults = line
    journal, runtime = FaultyJournal(MemoryJournal(log), faults), VirtualRuntime(Random(0))
    tables = replayed(log)
    committer = Committer(journal, tables, A, runtime)
    follower = Follower(journal, committer, runtime, staleness_seconds=staleness_seconds)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(committer.run)
        if run:
            nursery.start_soon(follower.run)
        yield Following(log, line, committer, follower)
        nursery.cancel_scope.cancel()
    tables.close()


@in_virtual_time
async def test_what_others_append_arrives_by_itself() -> None:
    async with following() as a:
        await a.append(make(THEIRS, b"theirs"))
        await trio.sleep(0.1)
        assert a.has(b"theirs")
        assert checksum(a.committer.tables) == checksum(replayed(a.log))


@in_virtual_time
async def test_nothing_is_asked_while_nothing_happens() -> None:
    async with following() as a:
        await trio.sleep(1)
        before = dict(a.line.asked)
        await trio.sleep(1000)
        assert a.line.asked == before


@in_virtual_time
async def test_what_is_pending_is_put_behind_what_others_did() -> None:
    async with following() as a:
        mine = a.committer.submit([make(MINE, b"same")])
        await a.append(make(THEIRS, b"same"))
        with pytest.raises(Exists):
            await a.committer.settled(mine)
        dentry = a.committer.tables.dentry(ROOT_INO, b"same")
        assert dentry is not None
        assert dentry.ino == THEIRS


@in_virtual_time
async def test_a_journal_that_comes_back_is_followed_again() -> None:
    async with following() as a:
        a.line.cut = True
        await a.append(make(THEIRS, b"theirs"))
        await trio.sleep(100)
        assert not a.has(b"theirs")
        a.line.cut = False
        await trio.sleep(PAUSE_MAX_SECONDS)
        assert a.has(b"theirs")


@in_virtual_time
async def test_reaching_the_tail_takes_in_what_was_there_when_it_was_asked() -> None:
    async with following(run=False) as a:
        await a.append(make(THEIRS, b"theirs"))
        await a.follower.reach_tail()
        assert a.has(b"theirs")


@in_virtual_time
async def test_those_who_come_during_a_look_share_the_next_one() -> None:
    async with following(run=False) as a, trio.open_nursery() as nursery:
        a.line.slow_seconds = 1.0
        nursery.start_soon(a.follower.reach_tail)
        await trio.sleep(0.5)
        # The look under way asked for the tail already: it may miss this.
        await a.append(make(THEIRS, b"theirs"))
        seen = []

        async def reach() -> None:
            await a.follower.reach_tail()
            seen.append(a.has(b"theirs"))

        for _ in range(20):
            nursery.start_soon(reach)
        await trio.sleep(10)
        assert seen == [True] * 20
        assert a.line.asked["tail"] == 2


@in_virtual_time
async def test_a_look_that_is_cancelled_is_not_relied_on() -> None:
    async with following(run=False) as a:
        a.line.slow_seconds = 1.0
        await a.append(make(THEIRS, b"theirs"))
        with trio.move_on_after(0.5) as scope:
            await a.follower.reach_tail()
        assert scope.cancelled_caught
        await a.follower.reach_tail()
        assert a.has(b"theirs")


@in_virtual_time
async def test_what_may_be_stale_need_not_be_asked_for_and_what_is_exact_is() -> None:
    async with following(run=False, staleness_seconds=5.0) as a:
        await a.follower.reach_tail()
        await a.append(make(THEIRS, b"theirs"))
        await a.follower.reach_tail()
        assert not a.has(b"theirs")
        await a.follower.reach_tail(exact=True)
        assert a.has(b"theirs")
        await a.append(make(THEIRS + 1, b"later"))
        await trio.sleep(6)
        await a.follower.reach_tail()
        assert a.has(b"later")


@in_virtual_time
async def test_without_a_journal_the_tail_cannot_be_reached() -> None:
    async with following() as a:
        a.line.cut = True
        with pytest.raises(Unavailable):
            await a.follower.reach_tail()
