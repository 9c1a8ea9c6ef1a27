"""That the checkers see what is wrong: each is shown evidence of a fault, and a freeze is one."""

import trio

from agentfs.chunks.memory import MemoryStore
from agentfs.chunks.segment import segment_key
from agentfs.journal.contract import Record
from agentfs.journal.mirror import encode_mirrored, mirror_key
from agentfs.model.changes import Acquire, AddSegment, ChunkRun, InlineRun, Make, OpenSession, Unlink, Write
from agentfs.model.codec import encode_entry
from agentfs.model.entry import Entry, Transaction
from agentfs.model.extents import Chunk
from agentfs.model.ids import NO_SESSION, Ino, Position, ReplicaId, SessionId, TxnNumber, first_ino
from agentfs.model.lease import EXCLUSIVE, FLOCK, WHOLE, Run
from tests.simulation.entries import DIRECTORY, founding, make, opening
from tests.simulation.evidence import Asked, Belief, Evidence, ObservedStore
from tests.simulation.freezer import MACHINE, Freezer
from tests.simulation.invariants import counters, leases, mirror, placement, realtime
from tests.simulation.invariants.tree import content
from tests.simulation.locker import number_bytes
from tests.simulation.virtual_time import in_virtual_time

A, B = SessionId(1), SessionId(2)
ARENA, COUNTER, FILE = (Ino(first_ino(A) + number) for number in range(3))


def watched() -> Evidence:
    """A workspace with an arena and a file of counters, which sessions A and B use."""
    evidence = Evidence(0, 1, arena=ARENA, flocked=COUNTER)
    evidence.watch()
    evidence.witness.read = lambda ino: content(evidence, evidence.witness.tables, ino)
    evidence.witness.take(founding(1))
    for number in range(2):
        opened = OpenSession(b"%d" % number, f"host{number}", 7, "", 2)
        evidence.witness.take(Entry(NO_SESSION, 2, [Transaction(TxnNumber(1), [opened])]))
    send(evidence, A, make(ARENA, b"arena", mode=DIRECTORY), make(COUNTER, b"counter"), make(FILE, b"x", parent=ARENA))
    return evidence


def send(evidence: Evidence, session: SessionId, *changes: Make | Unlink | Write | Acquire) -> None:
    """An entry of a session is appended."""
    number = TxnNumber(evidence.witness.tables.sessions[session].seen + 1)
    evidence.witness.take(Entry(session, 1, [Transaction(number, list(changes))]))


def counted(value: int) -> Write:
    """A process wrote a number."""
    return Write(COUNTER, [InlineRun(0, number_bytes(value))], False, 1)


# ---- counters


def test_numbers_that_grow_are_right() -> None:
    evidence = watched()
    send(evidence, A, counted(1))
    send(evidence, B, counted(2))
    evidence.added += [(COUNTER, 0, 1), (COUNTER, 0, 2)]
    assert evidence.witness.wrong + counters.check(evidence) == []


def test_a_number_that_is_written_twice_is_seen() -> None:
    evidence = watched()
    send(evidence, A, counted(1))
    send(evidence, B, counted(1))
    evidence.added += [(COUNTER, 0, 1), (COUNTER, 0, 1)]
    assert len(evidence.witness.wrong) == 1
    assert len(counters.check(evidence)) == 1


def test_a_number_that_is_gone_is_seen() -> None:
    evidence = watched()
    send(evidence, A, counted(1))
    evidence.added += [(COUNTER, 0, 2)]
    assert len(counters.check(evidence)) == 1


# ---- locks


def believed(machine: int, first: int, last: int, *, live: bool = True) -> Belief:
    """A process believes that it holds some bytes."""
    return Belief(machine, machine, (COUNTER, FLOCK), Run(first, last, EXCLUSIVE), lambda: live)


def test_two_holders_are_seen_if_both_live() -> None:
    for other, clashes in ((believed(2, 5, 9), 1), (believed(2, 11, 12), 0), (believed(2, 5, 9, live=False), 0)):
        evidence = Evidence(0, 1)
        evidence.believe(other)
        evidence.believe(believed(1, 0, 10))
        assert len(evidence.clashes) == clashes


def test_what_is_left_at_the_end_is_seen() -> None:
    evidence = watched()
    send(evidence, A, Acquire(COUNTER, FLOCK, 1, WHOLE, True, 1))
    wrong = leases.check(evidence)
    assert len(wrong) == 3, "a lease and two sessions"


# ---- real time


def asked(verb: str, old: bytes, new: bytes, answer: str, begun: int, ended: int) -> Asked:
    """An operation of the machine whose session is A."""
    return Asked(machine=0, verb=verb, old=old, new=new, begun=begun, known=begun, ended=ended, answer=answer)


def in_arena(*operations: Asked) -> list[str]:
    """What is wrong with operations, in a journal in which entry 5 makes `y` and entry 6 removes `x`."""
    evidence = watched()
    send(evidence, A, make(FILE + 1, b"y", parent=ARENA))
    send(evidence, B, Unlink(ARENA, b"x", FILE, False, 1))
    evidence.payloads = [b""] * evidence.witness.tables.position
    evidence.asked = list(operations)
    return realtime.check(evidence)


def test_an_effect_in_between_is_right() -> None:
    assert in_arena(asked("make", b"", b"y", "done", 4, 5)) == []


def test_an_effect_before_or_behind_is_seen() -> None:
    assert len(in_arena(asked("make", b"", b"y", "done", 5, 6))) == 1
    assert len(in_arena(asked("make", b"", b"y", "done", 3, 4))) == 1


def test_two_that_claim_one_effect_are_seen() -> None:
    assert len(in_arena(asked("make", b"", b"y", "done", 4, 5), asked("make", b"", b"y", "done", 4, 6))) == 1


def test_a_refusal_that_was_never_right_is_seen() -> None:
    assert in_arena(asked("make", b"", b"x", "exists", 4, 5)) == []
    assert len(in_arena(asked("make", b"", b"x", "exists", 6, 6))) == 1
    assert in_arena(asked("rename", b"x", b"z", "not found", 5, 6)) == []
    assert len(in_arena(asked("rename", b"x", b"z", "not found", 4, 5))) == 1


# ---- freezing


@in_virtual_time
async def test_a_frozen_machine_stands_still_and_goes_on() -> None:
    freezer, ticks = Freezer(), dict[int, int]()

    async def tick(machine: int) -> None:
        MACHINE.set(machine)

        async def child() -> None:
            while True:
                await trio.sleep(1)
                ticks[machine] = ticks.get(machine, 0) + 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(child)

    trio.lowlevel.add_instrument(freezer)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tick, 1)
        nursery.start_soon(tick, 2)
        await trio.sleep(10.5)
        freezer.freeze(1)
        await trio.sleep(10)
        assert ticks == {1: 10, 2: 20}
        freezer.thaw(1)
        await trio.sleep(9.25)
        # The sleep that it was in ended while it was frozen: the next one began when it was let go on.
        assert ticks == {1: 20, 2: 29}
        nursery.cancel_scope.cancel()


# ---- placement


def placed(*, known: bool = True, there: bool = True) -> Evidence:
    """A file's segment, and whether State says that the one replica holds it, and whether it does."""
    evidence = watched()
    evidence.stores[ReplicaId(1)] = MemoryStore()
    name, chunk = b"s" * 32, Chunk(4, 9, 7, b"d" * 32)
    if there:
        evidence.stores[ReplicaId(1)]._objects[segment_key(name)] = b"body"
    added = AddSegment(name, 90, [ReplicaId(1)] if known else [])
    write = Write(FILE, [ChunkRun(0, name, chunk)], False, 1)
    for entry in (founding(1), opening(b"A"), Entry(A, 1, [Transaction(TxnNumber(1), [make(FILE, b"x"), added, write])])):
        evidence.payloads.append(encode_entry(entry))
    return evidence


def test_a_segment_that_is_in_every_member_is_right() -> None:
    assert placement.check(placed()) == []


def test_a_segment_that_a_member_lacks_in_the_end_is_seen() -> None:
    assert len(placement.check(placed(known=False))) == 1
    assert len(placement.check(placed(there=False))) == 1


# ---- the mirror


def mirrored(evidence: Evidence, first: int, last: int, replica: int = 1) -> None:
    """A replica is given a run of the journal's entries."""
    number, span = ReplicaId(replica), (Position(first), Position(last))
    records = [Record(Position(at), evidence.payloads[at - 1]) for at in range(first, last + 1)]
    evidence.stores[number]._objects[mirror_key(*span)] = encode_mirrored(records)
    evidence.mirrored.append((number, span))


def journal_of_three() -> Evidence:
    """A workspace with one replica, and a file that was made in its third entry."""
    evidence = Evidence(0, 1)
    evidence.stores[ReplicaId(1)] = ObservedStore(ReplicaId(1), evidence)
    entries = [founding(1), opening(b"A"), Entry(A, 1, [Transaction(TxnNumber(1), [make(FILE, b"x")])])]
    for entry in entries:
        evidence.payloads.append(encode_entry(entry))
        evidence.witness.take(entry)
    return evidence


def test_what_is_mirrored_before_it_is_acknowledged_is_right() -> None:
    evidence = journal_of_three()
    mirrored(evidence, 2, 3)
    mirrored(evidence, 1, 2)
    evidence.promised("x", lambda change: isinstance(change, Make))
    assert mirror.check(evidence) == []


def test_what_is_acknowledged_before_it_is_mirrored_is_seen() -> None:
    evidence = journal_of_three()
    mirrored(evidence, 2, 3)
    evidence.promised("x", lambda change: isinstance(change, Make))
    mirrored(evidence, 1, 1)
    assert len(mirror.check(evidence)) == 1


def test_what_too_few_replicas_hold_is_seen() -> None:
    evidence = journal_of_three()
    mirrored(evidence, 1, 3)
    mirrored(evidence, 1, 3)
    evidence.needed = 2
    evidence.promised("x", lambda change: isinstance(change, Make))
    assert len(mirror.check(evidence)) == 1


def test_a_replica_that_lacks_an_entry_in_the_end_is_seen() -> None:
    evidence = journal_of_three()
    mirrored(evidence, 1, 1)
    mirrored(evidence, 3, 3)
    assert len(mirror.check(evidence)) == 1


def test_a_replica_that_holds_another_entry_is_seen() -> None:
    evidence = journal_of_three()
    mirrored(evidence, 1, 3)
    evidence.payloads[1] = encode_entry(opening(b"B"))
    assert len(mirror.check(evidence)) == 1
