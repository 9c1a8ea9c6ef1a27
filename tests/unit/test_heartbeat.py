"""Heartbeat and judge: until when a session is certainly alive, how it proves that, and when others may say it is dead."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random

import pytest
import trio

from agentfs.journal.memory import MemoryJournal, MemoryLog
from agentfs.model.changes import Fence, OpenSession, Renew
from agentfs.model.codec import encode_entry
from agentfs.model.entry import Entry, Transaction
from agentfs.model.errors import Unavailable
from agentfs.model.ids import NO_SESSION, SessionId, TxnNumber
from agentfs.model.session import FENCED, OPEN
from agentfs.workspace.committer import Committer
from agentfs.workspace.follower import Follower
from agentfs.workspace.heartbeat import BEATS_PER_TTL, CONFIRM_SECONDS, MARGIN, Heartbeat
from agentfs.workspace.judge import Judge
from tests.simulation.entries import founding
from tests.simulation.faults import Cable, FaultyJournal
from tests.simulation.parts import entries_of, replayed
from tests.simulation.runtime import VirtualRuntime
from tests.simulation.virtual_time import in_virtual_time

A, B = SessionId(1), SessionId(2)
TTL_SECONDS = 10.0
SAFE_SECONDS = TTL_SECONDS * (1 - MARGIN)
BEAT_SECONDS = TTL_SECONDS / BEATS_PER_TTL


@dataclass
class Member:
    """A session with its heartbeat; `lapses` are the times at which it was told that it may be dead."""

    committer: Committer
    heartbeat: Heartbeat
    judge: Judge
    cable: Cable
    lapses: list[float] = field(default_factory=list)

    def standing(self, session: SessionId) -> int:
        """What its State says of a session."""
        return self.committer.tables.sessions[session].standing


@pytest.fixture
def log() -> MemoryLog:
    """A workspace with two sessions."""
    log = MemoryLog()
    openings = [OpenSession(token, "host", 7, "", 2, round(TTL_SECONDS * 1000)) for token in (b"A", b"B")]
    entries = [founding(), *(Entry(NO_SESSION, 1, [Transaction(TxnNumber(1), [each])]) for each in openings)]
    log.payloads.extend(encode_entry(entry) for entry in entries)
    return log


@asynccontextmanager
async def member(log: MemoryLog, session: SessionId, *, beat: bool = True, judge: bool = False) -> AsyncIterator[Member]:
    cable = Cable()
    journal, runtime = FaultyJournal(MemoryJournal(log), cable), VirtualRuntime(Random(session))
    tables = replayed(log)
    committer = Committer(journal, tables, session, runtime)
    heartbeat = Heartbeat(journal, committer, runtime, ttl_seconds=TTL_SECONDS, sent=runtime.boottime())
    judging = Judge(journal, committer, runtime, interval_seconds=heartbeat.interval_seconds)
    found = Member(committer, heartbeat, judging, cable)
    heartbeat.on_lapse = lambda: found.lapses.append(trio.current_time())
    async with trio.open_nursery() as nursery:
        for task in (committer.run, Follower(journal, committer, runtime).run):
            nursery.start_soon(task)
        if beat:
            nursery.start_soon(heartbeat.run)
            nursery.start_soon(heartbeat.watch)
        if judge:
            nursery.start_soon(judging.run)
        yield found
        nursery.cancel_scope.cancel()
    tables.close()


# ---- the heartbeat


@in_virtual_time
async def test_a_session_that_beats_never_lapses_and_costs_no_entries(log: MemoryLog) -> None:
    async with member(log, A) as a:
        before = len(log.payloads)
        for _ in range(100):
            await trio.sleep(1)
            assert a.heartbeat.remaining_seconds >= SAFE_SECONDS - BEAT_SECONDS
        assert (a.lapses, len(log.payloads)) == ([], before)


@in_virtual_time
async def test_a_session_without_an_answer_lapses_before_anybody_may_judge_it(log: MemoryLog) -> None:
    async with member(log, A) as a:
        await trio.sleep(1)
        a.cable.cut = True
        await trio.sleep(SAFE_SECONDS - 1 - 0.1)
        assert not a.heartbeat.lapsed
        await trio.sleep(0.2)
        assert a.heartbeat.lapsed
        await trio.sleep(TTL_SECONDS)
        assert a.lapses


@in_virtual_time
async def test_the_time_of_a_sign_is_when_it_was_sent(log: MemoryLog) -> None:
    async with member(log, A) as a:
        await trio.sleep(BEAT_SECONDS / 2)
        gate = a.cable.held["beat"] = trio.Event()
        await trio.sleep(5)
        gate.set()
        await trio.sleep(0)
        assert a.heartbeat.remaining_seconds <= SAFE_SECONDS - 5 + BEAT_SECONDS


@in_virtual_time
async def test_a_session_that_lapsed_proves_itself_in_the_journal(log: MemoryLog) -> None:
    async with member(log, A) as a:
        a.cable.cut = True
        await trio.sleep(TTL_SECONDS)
        assert a.heartbeat.lapsed
        a.cable.cut = False
        await a.heartbeat.confirm()
        assert not a.heartbeat.lapsed
        assert any(isinstance(change, Renew) for entry in entries_of(log) for change in entry.transactions[0].changes)


@in_virtual_time
async def test_a_beat_alone_does_not_prove_that_nobody_fenced_it(log: MemoryLog) -> None:
    async with member(log, A) as a:
        a.cable.cut = True
        await trio.sleep(TTL_SECONDS)
        a.cable.cut = False
        # Its transactions go nowhere, its beats do.
        a.cable.held["append"] = trio.Event()
        await trio.sleep(3 * BEAT_SECONDS)
        assert a.heartbeat.lapsed


@in_virtual_time
async def test_who_needs_to_know_is_told_in_time(log: MemoryLog) -> None:
    async with member(log, A) as a:
        a.cable.cut = True
        await trio.sleep(TTL_SECONDS)
        began = trio.current_time()
        with pytest.raises(Unavailable):
            await a.heartbeat.confirm()
        assert trio.current_time() - began <= CONFIRM_SECONDS


@in_virtual_time
async def test_a_session_that_was_fenced_does_not_prove_itself(log: MemoryLog) -> None:
    async with member(log, A) as a:
        a.cable.cut = True
        await trio.sleep(TTL_SECONDS)
        log.payloads.append(encode_entry(Entry(NO_SESSION, 1, [Transaction(TxnNumber(1), [Fence(A)])])))
        a.cable.cut = False
        with pytest.raises(Unavailable):
            await a.heartbeat.confirm()
        assert a.heartbeat.lapsed
        assert a.committer.lost


# ---- the judge


@in_virtual_time
async def test_a_session_that_beats_is_never_judged(log: MemoryLog) -> None:
    async with member(log, A, judge=True) as a, member(log, B):
        await trio.sleep(100)
        assert a.standing(B) == OPEN


@in_virtual_time
async def test_who_is_alone_asks_for_nobodys_heartbeat(log: MemoryLog, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[float]()
    ask = MemoryJournal.beats

    async def beats(journal: MemoryJournal) -> dict[int, int]:
        asked.append(trio.current_time())
        return await ask(journal)

    monkeypatch.setattr(MemoryJournal, "beats", beats)
    async with member(log, A, judge=True) as a:
        await trio.sleep(TTL_SECONDS)
        assert asked
        while a.standing(B) == OPEN:
            await trio.sleep(0.1)
        asked.clear()
        await trio.sleep(10 * TTL_SECONDS)
        assert asked == []


@in_virtual_time
async def test_a_session_that_is_silent_is_dead_after_its_ttl_and_a_beat(log: MemoryLog) -> None:
    async with member(log, A, judge=True) as a, member(log, B) as b:
        await trio.sleep(20)
        b.cable.cut = True
        silent = trio.current_time()
        while a.standing(B) == OPEN:
            await trio.sleep(0.1)
        assert TTL_SECONDS - BEAT_SECONDS <= trio.current_time() - silent <= TTL_SECONDS + 2 * BEAT_SECONDS
        assert b.heartbeat.lapsed


@in_virtual_time
async def test_a_session_that_was_never_seen_is_dead_after_its_ttl(log: MemoryLog) -> None:
    async with member(log, A, judge=True) as a:
        await trio.sleep(TTL_SECONDS)
        assert a.standing(B) == OPEN
        await trio.sleep(3 * BEAT_SECONDS)
        assert a.standing(B) == FENCED


@in_virtual_time
async def test_a_transaction_is_a_sign_of_life(log: MemoryLog) -> None:
    async with member(log, A, judge=True) as a, member(log, B, beat=False) as b:
        for _ in range(20):
            await trio.sleep(TTL_SECONDS / 2)
            await b.committer.commit([Renew()])
        assert a.standing(B) == OPEN


@in_virtual_time
async def test_a_sign_that_the_judge_did_not_know_of_makes_its_verdict_void(log: MemoryLog) -> None:
    async with member(log, A) as a, member(log, B, beat=False) as b:
        await a.judge.look()
        await trio.sleep(TTL_SECONDS + 1)
        # The verdict is on its way, and so is the accused's transaction, which is faster.
        gate = a.cable.held["append"] = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.judge.look)
            await trio.sleep(1)
            await b.committer.commit([Renew()])
            gate.set()
        await trio.sleep(1)
        assert (a.standing(B), b.standing(B)) == (OPEN, OPEN)


@in_virtual_time
async def test_a_judge_that_was_cut_off_blames_nobody_for_it(log: MemoryLog) -> None:
    async with member(log, A, judge=True) as a, member(log, B):
        await trio.sleep(20)
        a.cable.cut = True
        await trio.sleep(50)
        a.cable.cut = False
        await trio.sleep(50)
        assert a.standing(B) == OPEN
