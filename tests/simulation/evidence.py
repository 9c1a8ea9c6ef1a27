"""What a simulation leaves for the invariants to look at."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from agentfs.chunks.memory import MemoryStore
from agentfs.chunks.segment import decode_chunk, segment_key
from agentfs.journal.mirror import parse_mirror_key
from agentfs.model.changes import AddSegment, AnyChange, ChunkRun, InlineRun, Write
from agentfs.model.codec import decode_entry
from agentfs.model.entry import Entry
from agentfs.model.extents import Chunk
from agentfs.model.ids import ROOT_INO, Ino, Position, ReplicaId, SessionId
from agentfs.model.lease import Run, conflicts
from tests.simulation.faults import Cable
from tests.simulation.freezer import Freezer
from tests.simulation.witness import Witness, has


@dataclass
class Counter:
    """A file, or a part of one, that only one actor writes: ever larger numbers, all of it each time."""

    written: int = 0
    acknowledged: int = 0


@dataclass(eq=False, slots=True)
class Belief:
    """A process that was granted a lock and has not let go of it. `is_live`: as far as its mount can tell, it is its own."""

    machine: int
    owner: int
    key: tuple[Ino, int]
    run: Run
    is_live: Callable[[], bool]


@dataclass(slots=True)
class Asked:
    """An operation on a name of the arena, or from `old` to `new`: the journal's length when it began and when it was answered.

    `known` is how much of the journal its mount had applied when it began. `answer` is empty as long as there is none: its
    machine was killed.
    """

    machine: int
    verb: str
    old: bytes
    new: bytes
    begun: int
    known: int
    ended: int = -1
    answer: str = ""


@dataclass(frozen=True, slots=True)
class Promise:
    """Something that a process was told is safe: the change that did it, and how many objects of the mirror there were then."""

    what: str
    is_kept_by: Callable[[AnyChange], bool]
    puts: int


class ObservedStore(MemoryStore):
    """A replica that shows each object of the mirror to the evidence at the moment it holds it."""

    def __init__(self, replica: ReplicaId, evidence: "Evidence") -> None:
        super().__init__()
        self._replica = replica
        self._evidence = evidence

    async def put(self, key: str, body: bytes) -> None:
        await super().put(key, body)
        self._show(key)

    def grow(self, old: str | None, new: str, body: bytes) -> bool:
        """What a directory beside the journal can do."""
        if old is not None and old not in self._objects:
            return False
        self._objects[new] = (self._objects.pop(old) if old is not None else b"") + body
        self._show(new)
        return True

    def _show(self, key: str) -> None:
        span = parse_mirror_key(key)
        if span is not None:
            self._evidence.mirrored.append((self._replica, span))


@dataclass
class Evidence:
    """The replicas and what connects them, what was in them when each entry was appended, and what the actors were told.

    `records` were appended to the ledger: True once a close or an fsync said that they are safe. `made` and `removed` are names
    that one actor alone uses, as it was told. `states` are checksums of mounts at the positions they had reached,
    `misread` what a mount showed and should not have.

    `added` are the numbers that processes wrote under locks and were told are safe, by file and place. `clashes` are locks that
    two processes held at once, `late` what took too long, `unsettled` mounts that were not at the tail when all was quiet,
    `stranded` what is neither in the workspace nor in a recovery folder. `mirrored` are the replicas and runs of the journal's
    entries that they were given, in order, and `promises` what processes were told is safe; `beside`: replicas are directories
    beside the journal. `asked` are the operations in the arena, `copied` the sessions that two machines used.
    """

    seed: int
    needed: int
    stores: dict[ReplicaId, ObservedStore] = field(default_factory=dict)
    beside: bool = False
    mirrored: list[tuple[ReplicaId, tuple[Position, Position]]] = field(default_factory=list)
    promises: list[Promise] = field(default_factory=list)
    cables: defaultdict[ReplicaId, Cable] = field(default_factory=lambda: defaultdict(Cable))
    payloads: list[bytes] = field(default_factory=list)
    short: list[str] = field(default_factory=list)
    objects: dict[bytes, bytes] = field(default_factory=dict)
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
    witness: Witness = field(default_factory=Witness)
    freezer: Freezer = field(default_factory=Freezer)
    flocked: Ino = ROOT_INO
    ranged: Ino = ROOT_INO
    arena: Ino = ROOT_INO
    added: list[tuple[Ino, int, int]] = field(default_factory=list)
    beliefs: list[Belief] = field(default_factory=list)
    clashes: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    stranded: list[str] = field(default_factory=list)
    unsettled: list[str] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    copied: set[SessionId] = field(default_factory=set)
    copies: int = 0
    owners: int = 0
    operations: int = 0
    acknowledged: int = 0
    crashes: int = 0
    fences: int = 0

    @property
    def entries(self) -> list[Entry]:
        """The journal, from position 1 on."""
        return [decode_entry(payload) for payload in self.payloads]

    def promised(self, what: str, is_kept_by: Callable[[AnyChange], bool]) -> None:
        """A process was told just now that something is safe."""
        self.promises.append(Promise(what, is_kept_by, len(self.mirrored)))

    def wrote(self, ino: Ino, offset: int, data: bytes) -> None:
        """A process was told just now that what it wrote at a place, or appended, is safe."""

        def is_kept_by(change: AnyChange) -> bool:
            runs = change.runs if isinstance(change, Write) and change.ino == ino else []
            return any(isinstance(run, InlineRun) and has(run, offset, data) for run in runs)

        self.promised(f"{data!r} in file {ino}", is_kept_by)

    def fetch(self, segment: bytes, chunk: Chunk) -> bytes:
        """A chunk's bytes from the first replica that has its segment."""
        key = segment_key(segment)
        body = next(store._objects[key] for store in self.stores.values() if key in store._objects)
        return decode_chunk(body[chunk.start : chunk.start + chunk.stored], chunk)

    def recall(self, segment: bytes, chunk: Chunk) -> bytes:
        """A chunk's bytes as they were when an entry named its segment, which may have been collected since."""
        return decode_chunk(self.objects[segment][chunk.start : chunk.start + chunk.stored], chunk)

    def watch(self) -> None:
        """Tell the witness what to look at."""
        self.witness.arena = self.arena
        self.witness.counters = {self.flocked, self.ranged}

    def new_owner(self) -> int:
        """A lock owner that nobody was before."""
        self.owners += 1
        return self.owners

    def believe(self, belief: Belief) -> None:
        """Note that a process has a lock, and what is wrong with that."""
        if belief.is_live():
            self.clashes += [
                f"entry {len(self.payloads)}: actor {belief.machine} is given {belief.run} of {belief.key}, "
                f"actor {other.machine} has {other.run}"
                for other in self.beliefs
                if other.key == belief.key and conflicts(other.run, belief.run) and other.is_live()
            ]
        self.beliefs.append(belief)

    def appended(self, position: Position, payload: bytes) -> None:
        """Look, at the moment an entry enters the journal, what it does, and where the segments are that it names."""
        entry = decode_entry(payload)
        self.witness.take(entry)
        for transaction in entry.transactions:
            for change in transaction.changes:
                names = [change.name] if isinstance(change, AddSegment) else []
                if isinstance(change, Write):
                    names = [run.segment for run in change.runs if isinstance(run, ChunkRun)]
                late = (entry.session, transaction.number) in self.witness.late
                for name in names:
                    bodies = [
                        each._objects[segment_key(name)] for each in self.stores.values() if segment_key(name) in each._objects
                    ]
                    if bodies:
                        self.objects[name] = bodies[0]
                    held = len(bodies)
                    if held < self.needed and not late:
                        self.short.append(f"entry {position} names a segment that {held} of {self.needed} replicas held")
