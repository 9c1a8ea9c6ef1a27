"""Entries for tests: a founded workspace with open sessions, and random transactions over few names, so that they collide."""

import stat
from collections.abc import Callable, Sequence
from random import Random
from typing import Final

from agentfs.model.changes import (
    AddReplica,
    AddSegment,
    AnyChange,
    ChunkRun,
    Collect,
    Deleted,
    Drop,
    Fold,
    Found,
    InlineRun,
    Link,
    Make,
    Misplaced,
    OpenSession,
    Origin,
    Placed,
    RemoveReplica,
    RemoveXattr,
    Rename,
    ReplicaSpec,
    Rmdir,
    SetAttr,
    SetXattr,
    Truncate,
    Unlink,
    Unneeded,
    Write,
)
from agentfs.model.entry import Entry, Transaction
from agentfs.model.extents import Chunk, digest_of
from agentfs.model.ids import NO_SESSION, ROOT_INO, Ino, Position, ReplicaId, SessionId, TxnNumber, first_ino
from agentfs.state.apply import Outcome, apply_entry
from agentfs.state.queries import missing
from agentfs.state.tables import Tables

FILE: Final = stat.S_IFREG | 0o644
DIRECTORY: Final = stat.S_IFDIR | 0o755
SYMLINK: Final = stat.S_IFLNK | 0o777

NAMES: Final = tuple(b"abcdefgh"[at : at + 1] for at in range(8))


def founding(replicas: int = 2, *, replication: str = "sync", history_seconds: int = 0) -> Entry:
    """The first entry of a workspace."""
    specs = [ReplicaSpec(ReplicaId(number), f"memory:{number}") for number in range(1, replicas + 1)]
    found = Found("w-0123", "demo", 1, replication, "close", specs, 1000, 1000, 1, 0, history_seconds)
    return Entry(NO_SESSION, 1, [Transaction(TxnNumber(1), [found])])


def opening(token: bytes) -> Entry:
    """An entry that registers a session."""
    change = OpenSession(token, "host", 7, token.decode(), 2)
    return Entry(NO_SESSION, 2, [Transaction(TxnNumber(1), [change])])


def put(tables: Tables, entry: Entry) -> list[Outcome]:
    """Apply an entry as the next one of the journal."""
    outcomes = apply_entry(tables, entry, Position(tables.position + 1))
    tables.settle()
    return outcomes


def send(tables: Tables, session: int, *changes: AnyChange) -> Outcome:
    """Apply one transaction of an open session in an entry of its own."""
    owner = SessionId(session)
    seen = tables.sessions[owner].seen if owner in tables.sessions else 0
    (outcome,) = put(tables, Entry(owner, 3, [Transaction(TxnNumber(seen + 1), list(changes))]))
    return outcome


def lacks_anything(tables: Tables) -> bool:
    """Whether any member has to be given a segment."""
    return any(missing(tables, replica).segments for replica in tables.members)


def make(ino: int, name: bytes, *, parent: int = ROOT_INO, mode: int = FILE, target: bytes = b"", time_ns: int = 10) -> Make:
    """A `Make` with the fields that most tests do not care for filled in."""
    return Make(Ino(parent), name, Ino(ino), mode, 0, 0, 0, target, time_ns)


def text(ino: int, offset: int, data: bytes, *, append: bool = False, time_ns: int = 20) -> Write:
    """A `Write` of one inline run."""
    return Write(Ino(ino), [InlineRun(offset, data)], append, time_ns)


class Made:
    """What the sessions of a test have made so far, whether it is still there or not: the newest are chosen most."""

    def __init__(self) -> None:
        self.directories: list[Ino] = [ROOT_INO]
        self.others: list[Ino] = []
        self.places: dict[tuple[Ino, bytes], Ino] = {}
        self.segments: list[bytes] = []
        self.inline: list[tuple[Ino, int, bytes]] = []
        self.chunks: list[tuple[Ino, ChunkRun]] = []

    def forget_gone(self, tables: Tables) -> None:
        """Most of what is chosen from now on is there in this State."""
        self.directories = [ino for ino in self.directories if tables.inode(ino) is not None]
        self.others = [ino for ino in self.others if tables.inode(ino) is not None]
        self.places = {place: ino for place, ino in self.places.items() if tables.dentry(*place) is not None}


class Generator:
    """Random transactions of one session: most commit, some abort. `made` is shared by the sessions of a test."""

    def __init__(self, random: Random, session: SessionId, made: Made) -> None:
        self._random = random
        self._made = made
        self._next = first_ino(session)
        self._time_ns = int(session)

    def transaction(self, number: int) -> Transaction:
        """One to three steps."""
        count = self._random.choice((1, 1, 1, 1, 2, 3))
        changes = [change for _ in range(count) for change in self._changes()]
        return Transaction(TxnNumber(number), changes)

    def _changes(self) -> Sequence[AnyChange]:
        kinds: list[Callable[[], Sequence[AnyChange]]] = [self._make] * 6 + [self._write] * 5 + [self._chunks] * 3
        kinds += [self._truncate, self._truncate, self._link, self._unlink, self._unlink, self._rmdir, self._rename]
        kinds += [self._rename, self._drop, self._set_attr, self._set_xattr, self._set_xattr, self._remove_xattr, self._placed]
        kinds += [self._placed, self._misplaced, self._fold, self._fold, self._add_replica, self._remove_replica]
        kinds += [self._compact, self._collect]
        self._time_ns += 10
        return self._random.choice(kinds)()

    def _directory(self) -> Ino:
        return self._random.choice([ROOT_INO, *self._made.directories[-4:]])

    def _ino(self) -> Ino:
        if self._random.random() < 0.05 or not self._made.others:
            return self._directory()
        return self._random.choice(self._made.others[-6:])

    def _name(self) -> bytes:
        return self._random.choice(NAMES)

    def _place(self) -> tuple[Ino, bytes]:
        """A name that was made, or any."""
        if self._made.places and self._random.random() < 0.8:
            return self._random.choice(list(self._made.places))
        return self._directory(), self._name()

    def _make(self) -> Sequence[AnyChange]:
        ino, parent, name = self._next, self._directory(), self._name()
        self._next = Ino(ino + 1)
        mode = self._random.choice((FILE, FILE, FILE, DIRECTORY, SYMLINK))
        (self._made.directories if mode == DIRECTORY else self._made.others).append(ino)
        self._made.places[parent, name] = ino
        target = b"there" if mode == SYMLINK else b""
        return [make(ino, name, parent=parent, mode=mode, target=target, time_ns=self._time_ns)]

    def _write(self) -> Sequence[AnyChange]:
        data = self._random.randbytes(self._random.randint(1, 40))
        ino, offset = self._ino(), self._random.randint(0, 60)
        self._made.inline.append((ino, offset, data))
        return [text(ino, offset, data, append=self._random.random() < 0.4, time_ns=self._time_ns)]

    def _chunks(self) -> Sequence[AnyChange]:
        raw = self._random.randbytes(16)
        name, chunk = digest_of(raw), Chunk(8, 16, 30, raw * 2)
        self._made.segments.append(name)
        run = ChunkRun(self._random.randint(0, 60), name, chunk)
        ino = self._ino()
        self._made.chunks.append((ino, run))
        known = AddSegment(name, 100, [ReplicaId(1)], self._time_ns, self._since())
        return [known, Write(ino, [run], False, self._time_ns)]

    def _fold(self) -> Sequence[AnyChange]:
        if not self._made.inline:
            return []
        ino, offset, data = self._random.choice(self._made.inline[-4:])
        name, chunk = digest_of(b"folded" + data), Chunk(8, 16, len(data), digest_of(data))
        self._made.segments.append(name)
        fold = Fold(ino, self._random.randint(1, 4), [ChunkRun(offset, name, chunk)])
        return [AddSegment(name, 100, [ReplicaId(1), self._replica()]), fold]

    def _compact(self) -> Sequence[AnyChange]:
        if not self._made.chunks:
            return []
        ino, old = self._random.choice(self._made.chunks[-4:])
        raw = self._random.choice((old.length, old.length, 7))
        name, chunk = digest_of(b"moved" + old.segment), Chunk(8, 16, raw, digest_of(b"moved"))
        self._made.segments.append(name)
        origin = Origin(old.chunk.digest, self._random.choice((0, 0, 0, 5)))
        fold = Fold(ino, self._random.randint(1, 4), [ChunkRun(old.offset, name, chunk)], [origin])
        return [AddSegment(name, 100, [ReplicaId(1), self._replica()], self._time_ns, self._since()), fold]

    def _collect(self) -> Sequence[AnyChange]:
        names = self._random.sample([b"unknown", *self._made.segments], 1 + len(self._made.segments) // 2)
        kinds: list[AnyChange] = [Unneeded(names, self._time_ns), Collect(names, self._time_ns + 20), Deleted(names)]
        return self._random.choice((kinds, kinds[:1], kinds[1:2], kinds[2:]))

    def _since(self) -> Position:
        return Position(self._random.choice((0, *[1 << 30] * 9)))

    def _replica(self) -> ReplicaId:
        return ReplicaId(self._random.randint(1, 4))

    def _placed(self) -> Sequence[AnyChange]:
        name = self._random.choice([b"unknown", *self._made.segments])
        return [Placed(name, self._replica())]

    def _misplaced(self) -> Sequence[AnyChange]:
        name = self._random.choice([b"unknown", *self._made.segments])
        return [Misplaced(name, self._replica())]

    def _add_replica(self) -> Sequence[AnyChange]:
        number = ReplicaId(self._random.randint(1, 9))
        return [AddReplica(number, f"memory:{number}")]

    def _remove_replica(self) -> Sequence[AnyChange]:
        return [RemoveReplica(ReplicaId(self._random.randint(2, 9)), self._random.random() < 0.5)]

    def _truncate(self) -> Sequence[AnyChange]:
        return [Truncate(self._ino(), self._random.randint(0, 100), self._time_ns)]

    def _link(self) -> Sequence[AnyChange]:
        return [Link(self._directory(), self._name(), self._ino(), self._time_ns)]

    def _unlink(self) -> Sequence[AnyChange]:
        parent, name = self._place()
        ino = self._made.places.get((parent, name), ROOT_INO)
        return [Unlink(parent, name, ino, self._random.random() < 0.5, self._time_ns)]

    def _rmdir(self) -> Sequence[AnyChange]:
        return [Rmdir(*self._place(), self._time_ns)]

    def _rename(self) -> Sequence[AnyChange]:
        flags, keep = self._random.choice((0, 0, 1, 2)), self._random.random() < 0.5
        return [Rename(*self._place(), self._directory(), self._name(), flags, keep, self._time_ns)]

    def _drop(self) -> Sequence[AnyChange]:
        return [Drop(self._ino())]

    def _set_attr(self) -> Sequence[AnyChange]:
        return [SetAttr(self._ino(), self._time_ns, mode=self._random.choice((None, 0o600)), uid=7, mtime_ns=5)]

    def _set_xattr(self) -> Sequence[AnyChange]:
        return [SetXattr(self._ino(), self._name(), b"value", self._random.choice((0, 0, 1, 2)), self._time_ns)]

    def _remove_xattr(self) -> Sequence[AnyChange]:
        return [RemoveXattr(self._ino(), self._name(), self._time_ns)]
