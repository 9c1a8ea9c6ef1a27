"""The change feed: each kind of event, what gives none, paths as of their position, and going on from any place."""

import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from agentfs.journal.memory import MemoryJournal
from agentfs.model.changes import (
    RENAME_EXCHANGE,
    AddReplica,
    AddSegment,
    AnyChange,
    ChunkRun,
    CloseSession,
    Drop,
    Fence,
    Fold,
    Link,
    Placed,
    RemoveReplica,
    RemoveXattr,
    Rename,
    Renew,
    Rmdir,
    SetAttr,
    SetXattr,
    Truncate,
    Unlink,
)
from agentfs.model.codec import encode_entry
from agentfs.model.entry import Entry, Transaction
from agentfs.model.errors import Invalid, Stale
from agentfs.model.extents import Chunk, digest_of
from agentfs.model.ids import NO_SESSION, ROOT_INO, Ino, Position, ReplicaId, SessionId, TxnNumber, first_ino
from agentfs.state.tables import Tables, open_tables
from agentfs.workspace import feed as feed_module
from agentfs.workspace.events import Event
from agentfs.workspace.feed import BEGINNING, Place, open_feed
from tests.simulation.entries import DIRECTORY, Generator, Made, founding, make, opening, put, text

A, B, C = SessionId(1), SessionId(2), SessionId(3)
D, E, F, G = (Ino(first_ino(A) + number) for number in range(4))
SEGMENT = b"s" * 32
FOLDED = ChunkRun(0, SEGMENT, Chunk(4, 9, 7, digest_of(b"content")))
BOUND_SECONDS = 10


class Scribe:
    """Appends entries to a journal, and numbers the transactions of each session."""

    def __init__(self) -> None:
        self.journal = MemoryJournal()
        self.entries: list[Entry] = []
        self._numbers: dict[int, int] = {}

    async def append(self, entry: Entry) -> Position:
        self.entries.append(entry)
        return await self.journal.append(encode_entry(entry))

    async def send(self, session: int, *transactions: list[AnyChange]) -> Position:
        """One entry with these transactions."""
        return await self.append(self.entry(session, *transactions))

    def entry(self, session: int, *transactions: list[AnyChange]) -> Entry:
        first = self._numbers.get(session, 0) + 1
        self._numbers[session] = first + len(transactions) - 1
        numbered = [Transaction(TxnNumber(first + at), changes) for at, changes in enumerate(transactions)]
        return Entry(SessionId(session), 1000 + len(self.entries), numbered)

    async def events(self, after: Place | None = BEGINNING) -> list[Event]:
        """Everything behind that place."""
        found: list[Event] = []
        async with open_feed(self.journal, after) as feed:
            await feed.pass_over(lambda done, total: None)
            while feed.position < feed.tail:
                found += await feed.read()
        return found

    async def last(self) -> list[tuple[object, ...]]:
        """Kind and path of each event of the last entry, with the old path where there is one."""
        position = await self.journal.tail()
        return [shown(event) for event in await self.events(Place(Position(position - 1)))]


def shown(event: Event) -> tuple[object, ...]:
    what = (event.kind, event.subject_session if event.path is None else event.path)
    return what if event.old_path is None else (*what, event.old_path)


@pytest.fixture
async def scribe() -> Scribe:
    """Sessions A and B; `d/`, `d/f` with content."""
    scribe = Scribe()
    for entry in (founding(), opening(b"A"), opening(b"B")):
        await scribe.append(entry)
    await scribe.send(A, [make(D, b"d", mode=DIRECTORY)], [make(F, b"f", parent=D)], [text(F, 0, b"content")])
    return scribe


@pytest.fixture(params=[1, 1 << 20], ids=["read singly", "read together"])
def batches(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "READ_BYTES", request.param)


CASES: list[tuple[list[AnyChange], list[tuple[object, ...]]]] = [
    ([make(E, b"e", mode=DIRECTORY, parent=D)], [("created", b"d/e")]),
    ([make(E, b"e", parent=D), text(E, 0, b"new")], [("created", b"d/e"), ("modified", b"d/e")]),
    ([Link(ROOT_INO, b"l", F, 30)], [("created", b"l")]),
    ([text(F, 0, b"1"), text(F, 9, b"2"), Truncate(F, 3, 30)], [("modified", b"d/f")]),
    ([Truncate(F, 0, 30)], [("modified", b"d/f")]),
    ([SetAttr(F, 30, mode=0o600)], [("attrib", b"d/f")]),
    ([SetAttr(ROOT_INO, 30, mode=0o700)], [("attrib", b"/")]),
    (
        [text(F, 0, b"1"), SetAttr(F, 30, mtime_ns=5), SetXattr(F, b"user.x", b"", 0, 30)],
        [("modified", b"d/f"), ("attrib", b"d/f")],
    ),
    ([SetXattr(D, b"user.x", b"", 0, 30), RemoveXattr(D, b"user.x", 31)], [("attrib", b"d")]),
    ([Rename(D, b"f", ROOT_INO, b"g", 0, False, 30)], [("moved", b"g", b"d/f")]),
    ([text(F, 0, b"1"), Rename(D, b"f", D, b"g", 0, False, 30)], [("moved", b"d/g", b"d/f"), ("modified", b"d/g")]),
    ([Rename(ROOT_INO, b"d", ROOT_INO, b"e", 0, False, 30)], [("moved", b"e", b"d")]),
    ([Rename(D, b"f", D, b"f", 0, False, 30)], []),
    ([Rename(D, b"f", ROOT_INO, b"d", RENAME_EXCHANGE, False, 30)], []),
    ([Unlink(D, b"f", F, True, 30)], [("deleted", b"d/f")]),
    ([text(F, 0, b"1"), Unlink(D, b"f", F, True, 30)], [("deleted", b"d/f")]),
    ([Unlink(D, b"f", F, False, 30), Rmdir(ROOT_INO, b"d", 30)], [("deleted", b"d/f"), ("deleted", b"d")]),
    ([SetAttr(F, 30, mode=0o600), Rmdir(ROOT_INO, b"d", 30)], []),
    ([make(E, b"e"), make(G, b"d")], []),
    ([CloseSession()], [("closed", A)]),
    ([Fence(B)], [("fenced", B)]),
    ([Renew()], []),
    ([AddReplica(ReplicaId(3), "memory:3"), RemoveReplica(ReplicaId(3))], []),
    ([AddSegment(SEGMENT, 90, [ReplicaId(1)]), Fold(F, 1, [FOLDED]), Placed(SEGMENT, ReplicaId(2))], []),
]


@pytest.mark.parametrize(
    ("changes", "expected"), CASES, ids=[f"{type(case[0][-1]).__name__}-{at}" for at, case in enumerate(CASES)]
)
async def test_what_a_transaction_gives(scribe: Scribe, changes: list[AnyChange], expected: list[tuple[object, ...]]) -> None:
    await scribe.send(A, changes)
    assert await scribe.last() == expected


async def test_all_that_an_event_says(scribe: Scribe) -> None:
    position = await scribe.send(
        B, [Renew()], [text(F, 3, b"more content"), make(first_ino(B), b"s", parent=D, mode=DIRECTORY)]
    )
    created, modified = await scribe.events(Place(Position(position - 1)))
    about = {"position": position, "time_ns": 1004, "writer": "B", "session": B}
    assert created == Event(**about, index=1, kind="created", ino=first_ino(B), path=b"d/s", directory=True)
    content = {"directory": False, "version": 2, "size_bytes": 15}
    assert modified == Event(**about, index=2, kind="modified", ino=F, path=b"d/f", **content)


async def test_a_session_and_who_fenced_it(scribe: Scribe) -> None:
    await scribe.append(opening(b"B"))
    assert await scribe.last() == [], "the same registration again"
    await scribe.send(A, [Fence(B)], [Fence(B)])
    events = await scribe.events()
    assert [shown(event) for event in events if event.path is None] == [("opened", A), ("opened", B), ("fenced", B)]
    assert (events[0].writer, events[0].session, events[0].subject) == ("A", A, "A")
    assert (events[-1].writer, events[-1].session, events[-1].subject) == ("A", A, "B")


async def test_what_a_fenced_session_sent_gives_nothing(scribe: Scribe) -> None:
    await scribe.send(A, [Fence(B)])
    await scribe.send(B, [make(first_ino(B), b"late")], [text(F, 0, b"late")])
    assert await scribe.last() == []


async def test_what_was_sent_twice_is_told_once(scribe: Scribe) -> None:
    entry = scribe.entry(A, [make(E, b"e")], [text(E, 0, b"x")], [Unlink(ROOT_INO, b"e", E, False, 30)])
    await scribe.append(entry)
    assert [kind for kind, _ in await scribe.last()] == ["created", "modified", "deleted"]
    await scribe.append(entry)
    assert await scribe.last() == []


async def test_a_replaced_file_is_deleted_first(scribe: Scribe) -> None:
    await scribe.send(A, [make(G, b"g"), text(G, 0, b"longer content")])
    position = await scribe.send(A, [Rename(ROOT_INO, b"g", D, b"f", 0, True, 30)])
    deleted, moved = await scribe.events(Place(Position(position - 1)))
    assert (deleted.kind, deleted.path, deleted.ino, deleted.size_bytes) == ("deleted", b"d/f", F, 7)
    assert (moved.kind, moved.path, moved.old_path, moved.ino, moved.size_bytes) == ("moved", b"d/f", b"g", G, 14)
    # What is open still can be written to and dropped, but it is in the tree no more.
    await scribe.send(A, [text(F, 0, b"x"), SetAttr(F, 31, mode=0o600)], [Drop(F)])
    assert await scribe.last() == []


async def test_exchanged_names(scribe: Scribe) -> None:
    await scribe.send(A, [make(G, b"g")])
    await scribe.send(A, [Rename(ROOT_INO, b"g", D, b"f", RENAME_EXCHANGE, False, 30)])
    assert await scribe.last() == [("moved", b"d/f", b"g"), ("moved", b"g", b"d/f")]
    assert all(event.exchange for event in (await scribe.events())[-2:])


async def test_paths_are_those_of_their_position(scribe: Scribe) -> None:
    await scribe.send(A, [make(E, b"e", parent=D, mode=DIRECTORY)], [make(G, b"g", parent=E)])
    await scribe.send(A, [Rename(ROOT_INO, b"d", ROOT_INO, b"x", 0, False, 30)], [text(G, 0, b"1")])
    await scribe.send(A, [Rename(D, b"e", ROOT_INO, b"y", 0, False, 31), text(G, 0, b"2")])
    expected = [
        ("created", b"d/e/g"),
        ("moved", b"x", b"d"),
        ("modified", b"x/e/g"),
        ("moved", b"y", b"x/e"),
        ("modified", b"y/g"),
    ]
    assert [shown(event) for event in await scribe.events()][-5:] == expected


async def test_a_file_with_several_names_is_told_by_the_oldest(scribe: Scribe) -> None:
    await scribe.send(A, [Link(ROOT_INO, b"a", F, 30)], [text(F, 0, b"1")])
    assert await scribe.last() == [("created", b"a"), ("modified", b"d/f")]
    await scribe.send(A, [Unlink(D, b"f", F, True, 30)], [text(F, 0, b"2")])
    assert await scribe.last() == [("deleted", b"d/f"), ("modified", b"a")]


# ---- the reader


@pytest.mark.usefixtures("batches")
async def test_going_on_from_any_place_gives_exactly_the_rest(scribe: Scribe) -> None:
    await scribe.send(
        A, [make(E, b"e")], [text(E, 0, b"1"), SetAttr(E, 5, mode=0o600)], [Rename(D, b"f", ROOT_INO, b"e", 0, False, 9)]
    )
    await scribe.send(A, [Renew()])
    await scribe.send(B, [Fence(A)], [Unlink(ROOT_INO, b"e", F, False, 9)])
    events = await scribe.events()
    assert len(events) == 12
    for at, event in enumerate(events):
        assert await scribe.events(Place(event.position, event.index)) == events[at + 1 :]
        assert await scribe.events(Place(event.position)) == [each for each in events if each.position > event.position]
        assert await scribe.events(Place(event.position, 0)) == [each for each in events if each.position >= event.position]


@pytest.mark.usefixtures("batches")
async def test_following_from_the_end(scribe: Scribe) -> None:
    found: list[Event] = []
    with trio.fail_after(BOUND_SECONDS):
        async with open_feed(scribe.journal, None) as feed, trio.open_nursery() as nursery:
            following = trio.Event()

            async def follow() -> None:
                while True:
                    found.extend(await feed.read())
                    following.set()
                    if len(found) == 30:
                        return
                    await feed.wait()

            await feed.pass_over(lambda done, total: None)
            nursery.start_soon(follow)
            await following.wait()
            for number in range(30):
                await scribe.send(A, [text(F, number, b"x")])
    assert [event.version for event in found] == list(range(2, 32))


async def test_a_place_that_is_not_reached(scribe: Scribe) -> None:
    assert await scribe.events(Place(Position(4))) == []
    with pytest.raises(Invalid, match=r"position 5 .* ends at 4"):
        await scribe.events(Place(Position(5), 0))


async def test_a_trimmed_journal(scribe: Scribe) -> None:
    await scribe.journal.trim(Position(3))
    with pytest.raises(Stale, match="trimmed up to position 2"):
        await scribe.events(Place(Position(3)))


async def test_nothing_is_left_on_disk(scribe: Scribe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even while it is read: it may be killed at any moment."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(feed_module, "BEHIND_MAX", 10)
    await scribe.send(A, *([make(G + number, b"%d" % number)] for number in range(3000)))
    async with open_feed(scribe.journal, BEGINNING) as feed:
        assert len(await feed.read()) > 3000
        assert os.listdir(tmp_path) == []
    assert os.listdir(tmp_path) == []


# ---- against State


class Watcher:
    """Keeps a tree by what docs/format.md says of events, and nothing else: what the paths lead to."""

    def __init__(self) -> None:
        self.tree: dict[bytes, Ino] = {}
        self.versions: dict[Ino, int] = {}
        self._exchanged = False

    def learn(self, event: Event) -> None:
        match event:
            case Event(kind="created", path=bytes(path), ino=int(ino)):
                assert path not in self.tree
                self.tree[path] = Ino(ino)
            case Event(kind="deleted", path=bytes(path)):
                assert self.tree.pop(path) == event.ino
            case Event(kind="moved", exchange=True) if self._exchanged:
                self._exchanged = False
            case Event(kind="moved", path=bytes(path), old_path=bytes(old_path), exchange=exchange):
                there = self._take(path)
                assert bool(there) == exchange
                self._give(path, self._take(old_path))
                self._give(old_path, there)
                self._exchanged = exchange
            case Event(kind="modified", path=bytes(path), ino=int(ino), version=int(version)):
                assert self.tree[path] == ino
                assert version > self.versions.get(Ino(ino), 0), "a version is told once"
                self.versions[Ino(ino)] = version
            case Event(kind="attrib", path=bytes(path)):
                assert path == b"/" or self.tree[path] == event.ino
            case _:
                assert event.path is None

    def _take(self, path: bytes) -> dict[bytes, Ino]:
        below = {each: ino for each, ino in self.tree.items() if each == path or each.startswith(path + b"/")}
        for each in below:
            del self.tree[each]
        return {each.removeprefix(path): ino for each, ino in below.items()}

    def _give(self, path: bytes, below: dict[bytes, Ino]) -> None:
        self.tree |= {path + rest: ino for rest, ino in below.items()}


def tree_of(tables: Tables, parent: Ino = ROOT_INO, prefix: bytes = b"") -> Iterator[tuple[bytes, Ino]]:
    for dentry in tables.listing(parent, 0, 1_000_000):
        yield prefix + dentry.name, dentry.ino
        inode = tables.inode(dentry.ino)
        assert inode is not None
        if inode.is_dir:
            yield from tree_of(tables, dentry.ino, prefix + dentry.name + b"/")


@pytest.mark.parametrize("seed", range(8))
async def test_whoever_keeps_a_tree_by_the_events_has_that_of_state(seed: int) -> None:
    chance, scribe, made = random.Random(seed), Scribe(), Made()
    for entry in (founding(), opening(b"A"), opening(b"B"), opening(b"C")):
        await scribe.append(entry)
    tables = open_tables(None)
    for entry in scribe.entries:
        put(tables, entry)
    sessions = {session: Generator(chance, session, made) for session in (A, B, C)}
    trees = [dict[bytes, Ino]()] * len(scribe.entries)
    for _ in range(300):
        session = chance.choice((A, B, C))
        changes = [sessions[session].transaction(0).changes for _ in range(chance.randint(1, 4))]
        again = chance.random() < 0.1 and len(scribe.entries) > 10
        entry = chance.choice(scribe.entries[4:]) if again else scribe.entry(session, *changes)
        await scribe.append(entry)
        put(tables, entry)
        made.forget_gone(tables)
        trees.append(dict(tree_of(tables)))
    await scribe.send(NO_SESSION, [Fence(C)])

    watcher, events = Watcher(), await scribe.events()
    for position, tree in enumerate(trees, start=1):
        while events and events[0].position == position:
            watcher.learn(events.pop(0))
        assert watcher.tree == tree, f"at position {position}"
    for path, ino in watcher.tree.items():
        inode = tables.inode(ino)
        assert inode is not None
        assert watcher.versions.get(ino, 0) == inode.version, path
    assert [event.kind for event in events] == ["fenced"]
