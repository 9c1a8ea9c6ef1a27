"""What a simulation leaves for the invariants to look at."""

from collections import defaultdict
from dataclasses import dataclass, field

from agentfs.chunks.memory import MemoryStore
from agentfs.chunks.segment import decode_chunk, segment_key
from agentfs.model.changes import AddSegment, ChunkRun, Write
from agentfs.model.codec import decode_entry
from agentfs.model.entry import Entry
from agentfs.model.extents import Chunk
from agentfs.model.ids import ROOT_INO, Ino, Position, ReplicaId


@dataclass
class Counter:
    """A file, or a part of one, that only one actor writes: ever larger numbers, all of it each time."""

    written: int = 0
    acknowledged: int = 0


@dataclass
class Evidence:
    """The replicas, what was in them when each entry was appended, and what the actors were told.

    `records` were appended to the ledger: True once a close or an fsync said that they are safe. `made` and `removed` are names
    that one actor alone uses, as it was told. `states` are checksums of mounts at the positions they had reached,
    `misread` what a mount showed and should not have.
    """

    seed: int
    needed: int
    stores: dict[ReplicaId, MemoryStore] = field(default_factory=dict)
    payloads: list[bytes] = field(default_factory=list)
    short: list[str] = field(default_factory=list)
    misread: list[str] = field(default_factory=list)
    ledger: Ino = ROOT_INO
    records: dict[bytes, bool] = field(default_factory=dict)
    slots: Ino = ROOT_INO
    counters: defaultdict[int, Counter] = field(default_factory=lambda: defaultdict(Counter))
    large: dict[int, Ino] = field(default_factory=dict)
    large_counters: defaultdict[int, Counter] = field(default_factory=lambda: defaultdict(Counter))
    made: set[bytes] = field(default_factory=set)
    removed: set[bytes] = field(default_factory=set)
    states: list[tuple[Position, str, int]] = field(default_factory=list)
    operations: int = 0
    acknowledged: int = 0
    crashes: int = 0
    fences: int = 0

    @property
    def entries(self) -> list[Entry]:
        """The journal, from position 1 on."""
        return [decode_entry(payload) for payload in self.payloads]

    def fetch(self, segment: bytes, chunk: Chunk) -> bytes:
        """A chunk's bytes from the first replica that has its segment."""
        key = segment_key(segment)
        body = next(store._objects[key] for store in self.stores.values() if key in store._objects)
        return decode_chunk(body[chunk.start : chunk.start + chunk.stored], chunk)

    def appended(self, position: Position, payload: bytes) -> None:
        """Look, at the moment an entry enters the journal, where the segments are that it names."""
        for transaction in decode_entry(payload).transactions:
            for change in transaction.changes:
                names = [change.name] if isinstance(change, AddSegment) else []
                if isinstance(change, Write):
                    names = [run.segment for run in change.runs if isinstance(run, ChunkRun)]
                for name in names:
                    held = sum(segment_key(name) in store._objects for store in self.stores.values())
                    if held < self.needed:
                        self.short.append(f"entry {position} names a segment that {held} of {self.needed} replicas held")
