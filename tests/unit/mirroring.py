"""A mirror over a journal in memory and three faulty replicas, in virtual time."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from agentfs.chunks.replicated import Replicated
from agentfs.journal.contract import Record
from agentfs.journal.memory import MemoryJournal, MemoryLog
from agentfs.journal.mirror import decode_mirrored, parse_mirror_key
from agentfs.model.codec import encode_entry
from agentfs.model.entry import Entry, Transaction
from agentfs.model.ids import Position, SessionId, TxnNumber
from agentfs.workspace.mirror import Mirror
from tests.simulation.faults import FaultyJournal, Script
from tests.unit.faulty_replicas import Faulty, Replicas


class Mirroring:
    """A mirror, the replicas below it, and the journal that entries are appended to; `keeper`: it does the chores."""

    def __init__(self, replicas: Replicas, replicated: Replicated, log: MemoryLog, *, waits: bool, timeout: float) -> None:
        self.replicas = replicas
        self.replicated = replicated
        self.log = log
        self.script = Script()
        self.journal = FaultyJournal(MemoryJournal(log), self.script)
        self.keeper = False
        self.mirror = Mirror(self.journal, replicated, log.tail, replicas.runtime, waits=waits, timeout_seconds=timeout)
        self.mirror.elected = lambda: self.keeper

    def append(self, count: int = 1, *, mirrored: int = 0, size: int = 10) -> Position:
        """Append entries, of which the mirror is told; the last one's position."""
        for _ in range(count):
            entry = an_entry(self.log.tail + 1, mirrored=mirrored, size=size)
            payload = encode_entry(entry)
            self.log.payloads.append(payload)
            self.mirror.take(Record(self.log.tail, payload), entry)
        return self.log.tail


def an_entry(number: int, *, mirrored: int = 0, size: int = 10) -> Entry:
    """An entry like no other."""
    transaction = Transaction(TxnNumber(number), [])
    return Entry(SessionId(1), number * 10**9, [transaction] * max(1, size // 10), Position(mirrored))


def keys(store: Faulty) -> list[str]:
    """The keys of the mirror's objects in a replica, without what all have in common, and without the zeros in front."""
    spans = [parse_mirror_key(key) for key in store._objects]
    return [f"{span[0]}-{span[1]}" for span in sorted(span for span in spans if span is not None)]


def held(store: Faulty) -> dict[int, bytes]:
    """The entries that a replica holds, by position."""
    found: dict[int, bytes] = {}
    for key, body in store._objects.items():
        if parse_mirror_key(key) is not None:
            found.update({record.position: record.payload for record in decode_mirrored(body)})
    return found


def is_whole(store: Faulty, log: MemoryLog) -> bool:
    """Whether a replica holds every entry of the journal."""
    return held(store) == dict(enumerate(log.payloads, int(log.first)))


@asynccontextmanager
async def mirroring(
    log: MemoryLog, replication: str = "sync", *, waits: bool = True, timeout: float = 30.0, run: bool = True
) -> AsyncIterator[Mirroring]:
    """A mirror that knows of what is in the log, with its task running."""
    replicas = Replicas()
    async with replicas.open(replication, timeout_seconds=timeout) as replicated, trio.open_nursery() as nursery:
        made = Mirroring(replicas, replicated, log, waits=waits, timeout=timeout)
        if run:
            nursery.start_soon(made.mirror.run)
        yield made
        for store in replicas.all:
            store.error = store.gate = None
        nursery.cancel_scope.cancel()
