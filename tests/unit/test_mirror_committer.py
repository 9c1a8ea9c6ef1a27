"""The second wait: what a program is told is safe is mirrored, and the business of sessions waits for nobody."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

import pytest
import trio

from agentfs.journal.memory import MemoryJournal, MemoryLog
from agentfs.model.changes import AddReplica, AnyChange, Renew, SetXattr
from agentfs.model.codec import decode_entry, encode_entry
from agentfs.model.entry import Entry, Transaction
from agentfs.model.errors import Exists, Unavailable
from agentfs.model.ids import ROOT_INO, Ino, Position, ReplicaId, SessionId, TxnNumber, first_ino
from agentfs.state.apply import apply_entry
from agentfs.state.tables import Tables, open_tables
from agentfs.state.touched import Touched
from agentfs.workspace.committer import RETRY_SECONDS, Committer
from agentfs.workspace.mirror import Mirror
from tests.simulation.entries import founding, make, opening
from tests.simulation.faults import Fault, FaultyJournal, Script
from tests.simulation.runtime import VirtualRuntime
from tests.simulation.virtual_time import in_virtual_time
from tests.unit.faulty_replicas import Replicas, settled
from tests.unit.mirroring import is_whole, keys

A, B = SessionId(1), SessionId(2)
ONE, TWO = Ino(first_ino(A)), Ino(first_ino(A) + 1)
TIMEOUT = 5.0


class Running:
    """A committer with a mirror over three replicas."""

    def __init__(self, log: MemoryLog, script: Script, committer: Committer, mirror: Mirror, replicas: Replicas) -> None:
        self.log = log
        self.script = script
        self.committer = committer
        self.mirror = mirror
        self.replicas = replicas
        self.shown: list[Touched] = []
        committer.on_touched = self.shown.append

    def foreign(self, *changes: AnyChange, number: int = 1, mirrored: int = 0) -> None:
        """Session B appends an entry that A learns of only from the journal."""
        entry = Entry(B, 3, [Transaction(TxnNumber(number), list(changes))], Position(mirrored))
        self.log.payloads.append(encode_entry(entry))

    @property
    def last(self) -> Entry:
        """The journal's last entry."""
        return decode_entry(self.log.payloads[-1])


def replayed(log: MemoryLog) -> Tables:
    tables = open_tables(None)
    for number, payload in enumerate(log.payloads, 1):
        apply_entry(tables, decode_entry(payload), Position(number))
        tables.settle()
    return tables


@asynccontextmanager
async def running() -> AsyncIterator[Running]:
    """Session A, alone; B is open too."""
    log, script, replicas = MemoryLog(), Script(), Replicas()
    log.payloads.extend(encode_entry(entry) for entry in (founding(3), opening(b"A"), opening(b"B")))
    journal, runtime = FaultyJournal(MemoryJournal(log), script), VirtualRuntime(Random(0))
    committer = Committer(journal, replayed(log), A, runtime)
    async with replicas.open("sync", timeout_seconds=TIMEOUT) as replicated, trio.open_nursery() as nursery:
        mirror = Mirror(journal, replicated, log.tail, runtime, waits=True, timeout_seconds=TIMEOUT)
        committer.mirror = mirror
        nursery.start_soon(committer.run)
        nursery.start_soon(mirror.run)
        yield Running(log, script, committer, mirror, replicas)
        for store in replicas.all:
            store.error = store.gate = store.get_gate = None
        nursery.cancel_scope.cancel()


@in_virtual_time
async def test_what_waits_for_a_commit_waits_for_the_mirror() -> None:
    async with running() as here:
        gate = here.replicas.two.freeze()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(here.committer.commit, [make(ONE, b"x")])
            await trio.sleep(1)
            assert (len(here.log.payloads), here.mirror.position) == (4, 0)
            gate.set()
        assert here.mirror.position == 4
        assert all(is_whole(store, here.log) for store in here.replicas.all)


@in_virtual_time
async def test_the_business_of_sessions_and_replicas_does_not_wait() -> None:
    async with running() as here:
        here.replicas.two.error = Unavailable("gone")
        for change in (Renew(), AddReplica(ReplicaId(4), "memory:4")):
            began = trio.current_time()
            await here.committer.commit([change])
            assert trio.current_time() == began
        await here.committer.sync()
        assert here.mirror.position == 0


@in_virtual_time
async def test_a_later_sync_waits_again_for_what_was_not_mirrored() -> None:
    async with running() as here:
        here.replicas.two.error = Unavailable("gone")
        with pytest.raises(Unavailable, match="in the journal"):
            await here.committer.commit([make(ONE, b"x")])
        with pytest.raises(Unavailable, match="in the journal"):
            await here.committer.sync()
        here.replicas.two.error = None
        # Nobody does the chores here, so that nothing is put before somebody waits.
        await trio.sleep(60)
        assert here.mirror.position == 0
        await here.committer.sync()
        assert here.mirror.position == 4


@in_virtual_time
async def test_nothing_is_taken_back_and_the_kernel_hears_what_happened_all_the_same() -> None:
    async with running() as here:
        here.replicas.two.error = Unavailable("gone")
        with pytest.raises(Unavailable):
            await here.committer.commit([make(ONE, b"x")])
        assert here.committer.tables.dentry(ROOT_INO, b"x") is not None
        assert here.committer.pending == 0
        assert (ROOT_INO, b"x") in set().union(*(each.names for each in here.shown))


@in_virtual_time
async def test_entries_say_how_far_the_mirror_is() -> None:
    async with running() as here:
        await here.committer.commit([make(ONE, b"x")])
        await here.committer.commit([make(TWO, b"y")])
        assert here.last.mirrored == 4
        here.foreign(SetXattr(ROOT_INO, b"user.a", b"1", 0, 5), mirrored=5)
        await here.committer.catch_up()
        await here.committer.commit([SetXattr(ROOT_INO, b"user.b", b"1", 0, 5)])
        assert [keys(here.replicas.one)[-1], here.last.mirrored] == ["6-7", 5]


@in_virtual_time
async def test_what_a_foreign_entry_moved_is_waited_for_where_it_came_to_stand() -> None:
    async with running() as here:
        await here.committer.commit([make(ONE, b"x")])
        here.foreign(SetXattr(ROOT_INO, b"user.a", b"1", 0, 5))
        gate = here.replicas.two.freeze()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(here.committer.commit, [make(TWO, b"y")])
            await trio.sleep(1)
            assert here.mirror.position == 4
            gate.set()
        assert here.mirror.position == 6


@in_virtual_time
async def test_what_the_rules_refuse_waits_for_no_mirror() -> None:
    async with running() as here:
        await here.committer.commit([make(ONE, b"x")])
        here.replicas.two.error = Unavailable("gone")
        began = trio.current_time()
        with pytest.raises(Exists):
            await here.committer.commit([make(TWO, b"x")])
        assert trio.current_time() == began


@in_virtual_time
async def test_what_arrived_although_it_was_given_up_is_waited_for() -> None:
    async with running() as here:
        here.script.add("append", *[Fault(lost=Unavailable("away"))] * 1000)
        with pytest.raises(Unavailable):
            await here.committer.commit([make(ONE, b"x")])
        here.script.lines.clear()
        here.replicas.two.freeze()
        await here.committer.catch_up()
        await settled()
        with pytest.raises(Unavailable, match="in the journal, and not in enough replicas"):
            await here.committer.sync()
        assert trio.current_time() > RETRY_SECONDS


@in_virtual_time
async def test_without_promises_only_a_sync_waits() -> None:
    async with running() as here:
        here.committer.promises = False
        gate = here.replicas.two.freeze()
        began = trio.current_time()
        await here.committer.commit([make(ONE, b"x")])
        assert trio.current_time() == began
        async with trio.open_nursery() as nursery:
            nursery.start_soon(here.committer.sync)
            await trio.sleep(1)
            assert here.mirror.position == 0
            gate.set()
        assert here.mirror.position == 4


@in_virtual_time
async def test_what_is_only_to_be_decided_does_not_wait() -> None:
    async with running() as here:
        here.replicas.two.freeze()
        began = trio.current_time()
        await here.committer.decide([make(ONE, b"x")])
        assert trio.current_time() == began
        with pytest.raises(Exists):
            await here.committer.decide([make(TWO, b"x")])


@in_virtual_time
async def test_only_what_this_session_wrote_is_owed() -> None:
    async with running() as here:
        here.replicas.two.freeze()
        here.foreign(make(Ino(first_ino(B)), b"theirs"))
        await here.committer.catch_up()
        pending = here.committer.submit([make(ONE, b"ours")])
        await here.committer.settled(pending)
        assert [here.committer.owes(ino) for ino in (Ino(first_ino(B)), ONE, Ino(99))] == [False, True, False]
