"""Each kind of damage is found and named, and a sound workspace has none."""

import fcntl
import json
import os
import random
import shutil
import sqlite3
import stat
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from agentfs.chunks.memory import MemoryStore
from agentfs.chunks.segment import Segment, SegmentBuilder, segment_key
from agentfs.cli.failures import DAMAGED
from agentfs.cli.main import main
from agentfs.journal.memory import MemoryJournal, MemoryLog
from agentfs.journal.sqlite import create_sqlite_journal, open_sqlite_journal
from agentfs.model.changes import (
    AddReplica,
    AddSegment,
    AnyChange,
    ChunkRun,
    Found,
    InlineRun,
    Link,
    Make,
    OpenSession,
    Placed,
    RemoveReplica,
    ReplicaSpec,
    SetXattr,
    Unlink,
    Write,
)
from agentfs.model.codec import encode_entry
from agentfs.model.entry import Entry, Transaction
from agentfs.model.errors import Invalid
from agentfs.model.ids import NO_SESSION, ROOT_INO, Ino, Position, ReplicaId, SessionId, TxnNumber
from agentfs.model.replica import Replica
from agentfs.runtime import SystemRuntime
from agentfs.state.tables import Tables, open_tables
from agentfs.workspace.fetching import fetch_chosen
from agentfs.workspace.findings import Finding
from agentfs.workspace.fsck import Checked, Report, check_workspace
from agentfs.workspace.fsck_rules import check_rules
from agentfs.workspace.replay import replay
from agentfs.workspace.storage import Opened

WORKSPACE = "6f3d0a4e-8f3c-4f0e-9d5b-0a3f0a4e8f3c"
ME = SessionId(1)
ONE, TWO, THREE = ReplicaId(1), ReplicaId(2), ReplicaId(3)
DIR, FILE, SMALL, SUB, ORPHAN = Ino(100), Ino(101), Ino(102), Ino(103), Ino(104)
NAMES = {DIR: b"d", FILE: b"victim", SMALL: b"small", SUB: b"sub", ORPHAN: b"gone"}


@contextmanager
def silent(title: str, unit: str) -> Iterator[Report]:
    yield lambda done, total: None


def make(ino: Ino, kind: int, parent: Ino) -> Make:
    return Make(parent, NAMES[ino], ino, kind | 0o644, 0, 0, 0, b"", 5)


def segment_of(*raws: bytes) -> tuple[Segment, list[ChunkRun]]:
    builder = SegmentBuilder()
    chunks = [builder.add(raw) for raw in raws]
    segment = builder.finish()
    starts = [sum(chunk.raw for chunk in chunks[:index]) for index in range(len(chunks))]
    return segment, [ChunkRun(start, segment.name, chunk) for start, chunk in zip(starts, chunks, strict=True)]


@dataclass
class World:
    """A workspace of memory: `d/victim` of two chunks in one segment, `d/small` (also `link`) inline, `d/sub`, an orphan."""

    cache: Path
    replication: str = "sync"
    placed: tuple[ReplicaId, ...] = (ONE, TWO)
    log: MemoryLog = field(default_factory=MemoryLog)
    stores: dict[ReplicaId, MemoryStore] = field(default_factory=lambda: {ONE: MemoryStore(), TWO: MemoryStore()})
    numbers: int = 0

    def __post_init__(self) -> None:
        self.segment, self.runs = segment_of(*(random.Random(seed).randbytes(5000) for seed in (1, 2)))
        self.key = self.segment.key

    @property
    def journal(self) -> MemoryJournal:
        return MemoryJournal(self.log)

    async def send(self, *changes: AnyChange, session: SessionId = ME) -> None:
        self.numbers += session != NO_SESSION
        await self.journal.append(encode_entry(Entry(session, 1, [Transaction(TxnNumber(self.numbers), list(changes))])))

    async def fill(self) -> "World":
        places = [ReplicaSpec(replica, f"file:///r{replica}") for replica in self.stores]
        found = Found(WORKSPACE, "demo", 1, self.replication, "close", places, 0, 0, 1)
        await self.send(found, session=NO_SESSION)
        await self.send(OpenSession(b"token", "host", 7, "", 2), session=NO_SESSION)
        await self.send(make(DIR, stat.S_IFDIR, ROOT_INO))
        await self.send(make(FILE, stat.S_IFREG, DIR), make(SMALL, stat.S_IFREG, DIR), make(SUB, stat.S_IFDIR, DIR))
        for replica in self.placed:
            await self.stores[replica].put(self.key, self.segment.body)
        added = AddSegment(self.segment.name, len(self.segment.body), list(self.placed))
        await self.send(added, Write(FILE, list(self.runs), False, 6))
        await self.send(Write(SMALL, [InlineRun(0, b"small"), InlineRun(10, b"after a hole")], False, 6))
        await self.send(Link(ROOT_INO, b"link", SMALL, 7), SetXattr(SMALL, b"user.x", b"y", 0, 7))
        await self.send(make(ORPHAN, stat.S_IFREG, DIR), Unlink(DIR, NAMES[ORPHAN], ORPHAN, True, 8))
        return self

    async def check(self, **others: object) -> list[Finding]:
        return (await self.checked(**others)).findings

    async def checked(self, **others: object) -> Checked:
        async def open_stores(members: Mapping[ReplicaId, Replica]) -> dict[ReplicaId, MemoryStore]:
            return {number: self.stores[number] for number in members if number in self.stores}

        def open_store(replica: Replica) -> Opened:
            return Opened(self.stores[replica.replica])

        runtime = SystemRuntime()
        fetch = partial(fetch_chosen, open_store=open_store, runtime=runtime)
        arguments = {"workspace": WORKSPACE, "journal": self.journal, "open_stores": open_stores, "fetch": fetch, **others}
        return await check_workspace(cache_dir=self.cache, runtime=runtime, stage=silent, **arguments)  # type: ignore[arg-type]

    async def state(self, path: Path | None, until: int | None = None) -> Tables:
        """The State at a position; saved, if it is in a file."""
        tables = open_tables(path)
        await replay(tables, self.journal, None if until is None else Position(until))
        if path is not None:
            tables.save()
        return tables

    async def seat(self, number: int, until: int | None = None) -> Path:
        """A State file that a mount left in a seat."""
        path = self.cache / WORKSPACE / str(number) / "state.sqlite"
        path.parent.mkdir(parents=True)
        path.with_name("lock").touch()
        (await self.state(path, until)).close()
        return path


@pytest.fixture
async def world(tmp_path: Path) -> World:
    return await World(tmp_path / "cache").fill()


def only(findings: list[Finding], kind: str, *parts: str) -> None:
    """There is one finding, a fault of that kind, and it names these."""
    assert [(each.kind, each.severity) for each in findings] == [(kind, "fault")], findings
    assert_named(findings[0], *parts)


def assert_named(finding: Finding, *parts: str) -> None:
    assert all(part in finding.message for part in parts), finding.message
    assert "\n" not in finding.message


async def test_a_sound_workspace(world: World) -> None:
    for number, until in enumerate((None, 5, 0)):
        await world.seat(number, until)
    checked = await world.checked()
    assert checked == Checked([], entries=world.log.tail, states=3)


# The journal.


async def test_an_entry_that_does_not_decode(world: World) -> None:
    await world.seat(0)
    good = world.log.payloads[4]
    world.log.payloads[4] = good[:-1] + bytes([good[-1] ^ 1])
    world.log.payloads[6] = b"nonsense"
    first, second, *rest = await world.check()
    assert_named(first, "entry 5:", "checksum")
    assert_named(second, "entry 7:", "not a journal entry")
    assert {first.kind, second.kind} == {"journal"}
    assert [each.severity for each in rest] == ["note", "note"]
    assert_named(rest[0], "position 4")


async def test_an_entry_that_cannot_be_applied(world: World) -> None:
    await world.send(AddSegment(b"s" * 32, 1 << 63, []))
    fault, note = await world.check()
    only([fault], "journal", f"entry {world.log.tail}:", "too large")
    assert note.severity == "note"


async def test_a_newer_format_is_not_damage(world: World) -> None:
    world.log.payloads[4] = world.log.payloads[4][:3] + b"c" + world.log.payloads[4][4:]
    with pytest.raises(Invalid, match="upgrade"):
        await world.check()


async def test_a_journal_without_its_beginning(world: World) -> None:
    await world.journal.trim(Position(4))
    findings = await world.check()
    assert_named(findings[0], "entries 1 to 3", "trimmed")
    assert findings[-1].kind == "journal"
    assert "founding" in findings[-1].message


async def test_an_empty_journal(tmp_path: Path) -> None:
    only(await World(tmp_path).check(), "journal", "founding")


async def test_the_journal_of_another_workspace(world: World) -> None:
    only(await world.check(workspace="another"), "journal", WORKSPACE, "another")


async def test_a_gap_in_an_sqlite_journal(world: World, tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    create_sqlite_journal(path)
    runtime = SystemRuntime()
    async with open_sqlite_journal(path, runtime=runtime) as journal:
        for payload in world.log.payloads:
            await journal.append(payload)
        assert await world.check(journal=journal) == []
        with closing(sqlite3.connect(path)) as db, db:
            db.execute("DELETE FROM entries WHERE position = 6")
        fault, note = await world.check(journal=journal)
    only([fault], "journal", "6")
    assert note.severity == "note"


# State files.


def spoil(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        assert db.execute(statement).rowcount


async def test_a_state_file_that_differs(world: World) -> None:
    await world.seat(0)
    path = await world.seat(1, 6)
    spoil(path, f"UPDATE inodes SET size = size + 1 WHERE ino = {FILE}")
    only(await world.check(), "state", str(path), "position 6")


async def test_a_state_file_ahead_of_the_journal(world: World) -> None:
    path = await world.seat(0)
    world.log.payloads.pop()
    only(await world.check(), "state", str(path), f"position {world.log.tail + 1}", f"ends at {world.log.tail}")


async def test_a_state_file_that_is_none(world: World) -> None:
    path = await world.seat(0)
    path.write_bytes(b"garbage " * 1000)
    only(await world.check(), "state", str(path), "damaged")


async def test_a_state_file_of_another_version_is_no_fault(world: World) -> None:
    path = await world.seat(0)
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 99")
    (note,) = await world.check()
    assert note.severity == "note"
    assert_named(note, str(path), "99")


async def test_a_state_file_in_use_is_left_alone(world: World) -> None:
    path = await world.seat(0)
    spoil(path, "UPDATE inodes SET size = size + 1")
    with path.with_name("lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert await world.checked() == Checked([], world.log.tail, 0)
    assert len(await world.check()) == 1


async def test_what_a_killed_mount_left_is_read_and_not_changed(world: World) -> None:
    """A State file whose last changes are still in its WAL, as after kill -9."""
    path = await world.seat(0, 3)
    tables = await world.state(path)
    kept = path.with_name("kept")
    kept.mkdir()
    for part in path.parent.glob("state.sqlite*"):
        shutil.copy(part, kept)
    tables.close()
    for part in kept.iterdir():
        shutil.copy(part, path.parent)
    assert path.with_name("state.sqlite-wal").stat().st_size
    shutil.rmtree(kept)
    before = {part.name: part.read_bytes() for part in path.parent.iterdir()}
    assert await world.checked() == Checked([], world.log.tail, 1)
    assert {part.name: part.read_bytes() for part in path.parent.iterdir()} == before


# Rules: each statement breaks one of them in a State that nothing else is wrong with.

BROKEN = [
    (f"DELETE FROM inodes WHERE ino = {ROOT_INO}", "no root directory"),
    (f"DELETE FROM inodes WHERE ino = {SUB}", f"d (inode {DIR}): its name sub leads to inode {SUB}"),
    (f"INSERT INTO dentries VALUES ({SMALL}, x'78', {SMALL}, 1)", "holds the name x and is no directory"),
    (f"UPDATE inodes SET nlink = 3 WHERE ino = {SMALL}", "has 2 names, its link count says 3"),
    (f"UPDATE inodes SET nlink = 7 WHERE ino = {DIR}", f"d (inode {DIR}) has 1 subdirectories, its link count says 7"),
    (f"INSERT INTO dentries VALUES ({ROOT_INO}, x'78', {SUB}, 99)", "is a directory with 2 names"),
    (f"UPDATE inodes SET parent = {ROOT_INO} WHERE ino = {SUB}", "its parent is said to be inode 1"),
    (f"UPDATE inodes SET parent = {DIR} WHERE ino = {FILE}", f"d/victim (inode {FILE}) has its name in inode {DIR}"),
    (f"UPDATE dentries SET parent = {SUB} WHERE ino = {DIR}", f"inode {FILE}) cannot be reached"),
    ("DELETE FROM orphans", f"inode {ORPHAN}) has no name and is nobody's orphan"),
    (f"INSERT INTO orphans VALUES ({FILE}, {ME})", "is an orphan and has a name"),
    ("UPDATE orphans SET session = 9", "the orphan of session 9"),
    ("UPDATE sessions SET standing = 1", "the orphan of session 1"),
    (f"UPDATE extents SET ino = {SUB} WHERE ino = {FILE}", "holds bytes from 0 to 5000 and is no file"),
    (f'UPDATE extents SET "offset" = 4 WHERE ino = {SMALL} AND "offset" = 10', "from 0 to 5 overlap with those from 4"),
    (f"UPDATE inodes SET size = 9999 WHERE ino = {FILE}", "d/victim", "from 5000 to 10000 are behind its end at 9999"),
    (f'UPDATE extents SET skip = 1 WHERE ino = {FILE} AND "offset" = 0', "from 0 to 5000 are not in what is said to hold them"),
    (f"UPDATE extents SET data = x'00' WHERE ino = {SMALL} AND \"offset\" = 0", "from 0 to 5 are not in what is said"),
    ("DELETE FROM segments", "d/victim", "segment number 1, which is not known"),
    (f"UPDATE inodes SET allocated = 1 WHERE ino = {SMALL}", "has 17 bytes allocated, it says 1"),
    ("DELETE FROM xattrs", "has 0 extended attributes, it says 1"),
    ("INSERT INTO xattrs VALUES (999, x'61', x'62')", "inode 999 (inode 999) has the extended attribute a"),
    (f"UPDATE inodes SET version = 5 WHERE ino = {SMALL}", "has 1 versions on record, it says 5"),
    ("INSERT INTO versions VALUES (999, 1, 1, 1, 1, 1)", "inode 999 (inode 999) has 1 versions on record"),
    ("UPDATE counters SET value = 99 WHERE name = 'inodes'", "there are 6 inodes, the counter says 99"),
    ("UPDATE counters SET value = 1 WHERE name = 'bytes'", "10017 bytes are allocated, the counter says 1"),
    ("UPDATE counters SET value = 1 WHERE name = 'cookie'", "the counter cookie is at 1"),
    ("UPDATE segments SET size = 0", "is said to have 0 bytes"),
    ("INSERT INTO placed VALUES (9, 1)", "replica 1 is said to hold segment number 9"),
    ("INSERT INTO placed VALUES (1, 9)", "replica 9 is said to hold segment number 1, and is no member"),
    ("UPDATE segments SET uses = 1", "segment number 1 is said to be in use 1 times, it is 2 times"),
    ("DELETE FROM placed WHERE replica = 2", "replica 2 lacks segment number 1"),
    ("INSERT INTO lacking VALUES (2, 1, 1)", "replica 2 is said to lack segment number 1"),
    ("UPDATE replicas SET standing = 1 WHERE replica = 2", "replica 2 is said to hold segment number 1, and is no member"),
    ("UPDATE counters SET value = 1 WHERE name = 'inline'", "17 bytes are inline, the counter says 1"),
]


async def test_a_sound_state_breaks_no_rule(world: World) -> None:
    assert check_rules(await world.state(None)) == []


@pytest.mark.parametrize(
    ("statement", "parts"), [(statement, parts) for statement, *parts in BROKEN], ids=lambda each: str(each)[:60]
)
async def test_a_broken_rule(world: World, tmp_path: Path, statement: str, parts: list[str]) -> None:
    (await world.state(tmp_path / "state")).close()
    spoil(tmp_path / "state", statement)
    tables = open_tables(tmp_path / "state")
    findings = check_rules(tables)
    tables.close()
    assert {(each.kind, each.severity) for each in findings} == {("rule", "fault")}
    named = [each for each in findings if all(part in each.message for part in parts)]
    assert named, findings
    assert_named(named[0], f"position {world.log.tail}")


async def test_names_that_run_in_a_circle(world: World, tmp_path: Path) -> None:
    (await world.state(tmp_path / "state")).close()
    spoil(tmp_path / "state", f"UPDATE dentries SET parent = {SUB} WHERE ino = {DIR}")
    tables = open_tables(tmp_path / "state")
    unreached = [each for each in check_rules(tables) if "cannot be reached" in each.message]
    tables.close()
    assert len(unreached) == 3


async def test_a_thousand_faults_of_a_kind_are_not_all_listed(world: World) -> None:
    tables = await world.state(None)
    tables.flush()
    tables.db.executemany("INSERT INTO xattrs VALUES (?, x'61', x'62')", [(ino,) for ino in range(1000, 2000)])
    assert len(check_rules(tables)) == 101


# Chunks.


async def put_anew(store: MemoryStore, key: str, body: bytes) -> None:
    await store.delete(key)
    await store.put(key, body)


def flipped(body: bytes, at: int) -> bytes:
    return body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]


async def test_a_missing_segment(world: World) -> None:
    await world.stores[TWO].delete(world.key)
    only(await world.check(), "missing", "replica 2 at file:///r2", world.key, "d/victim")


async def test_a_damaged_chunk(world: World) -> None:
    await put_anew(world.stores[ONE], world.key, flipped(world.segment.body, world.runs[1].chunk.start + 100))
    only(await world.check(), "damaged", "replica 1", world.key, "bytes 5000 to 10000 of d/victim")


async def test_damage_that_no_file_feels(world: World) -> None:
    await put_anew(world.stores[ONE], world.key, flipped(world.segment.body, len(world.segment.body) - 1))
    only(await world.check(), "damaged", "replica 1", world.key, "every chunk in use is right")


@pytest.mark.parametrize("change", [-1, 1], ids=["shorter", "longer"])
async def test_a_segment_of_another_length(world: World, change: int) -> None:
    body = world.segment.body[:-1] if change < 0 else world.segment.body + b"x"
    await put_anew(world.stores[TWO], world.key, body)
    only(await world.check(), "damaged", "replica 2", world.key)


async def test_a_segment_that_no_replica_has(world: World) -> None:
    for store in world.stores.values():
        await store.delete(world.key)
    findings = await world.check()
    assert [each.kind for each in findings] == ["missing", "missing", "lost"]
    assert_named(findings[-1], world.key, "d/victim")


async def test_a_right_segment_without_the_chunk_that_state_says(world: World) -> None:
    segment, runs = segment_of(b"one")
    wrong = ChunkRun(20_000, segment.name, world.runs[0].chunk)
    for store in world.stores.values():
        await store.put(segment.key, segment.body)
    await world.send(AddSegment(segment.name, len(segment.body), [ONE, TWO]), Write(FILE, [*runs, wrong], False, 9))
    findings = await world.check()
    assert [each.kind for each in findings] == ["damaged", "damaged", "lost"]
    assert_named(findings[0], segment.key, "bytes 20000 to 25000 of d/victim")


async def test_sync_needs_every_replica(tmp_path: Path) -> None:
    world = await World(tmp_path, placed=(TWO,)).fill()
    only(await world.check(), "missing", "replica 1", "lacks 1 segments", "sync replication needs all")


async def test_a_replica_that_came_is_checked_and_said_to_lack_what_it_lacks(world: World) -> None:
    world.stores[THREE] = MemoryStore()
    await world.send(AddReplica(THREE, "file:///r3"))
    only(await world.check(), "missing", "replica 3 at file:///r3", "lacks 1 segments", "sync replication needs all")
    await world.stores[THREE].put(world.key, world.segment.body)
    await world.send(Placed(world.segment.name, THREE))
    assert await world.check() == []
    await put_anew(world.stores[THREE], world.key, flipped(world.segment.body, 50))
    assert_named((await world.check())[0], "replica 3", world.key, "damaged")


async def test_a_replica_that_was_removed_is_not_looked_at(world: World) -> None:
    await world.stores[TWO].delete(world.key)
    await world.send(RemoveReplica(TWO))
    assert await world.check() == []


async def test_async_lets_a_replica_lag(tmp_path: Path) -> None:
    world = await World(tmp_path, replication="async", placed=(TWO,)).fill()
    (note,) = await world.check()
    assert note.severity == "note"
    assert_named(note, "replica 1", "lacks 1 segments", str(len(world.segment.body)))


async def test_quorum_needs_more_than_half(tmp_path: Path) -> None:
    world = await World(tmp_path, replication="quorum", placed=(TWO,)).fill()
    fault, note = await world.check()
    only([fault], "missing", world.key, "quorum replication needs 2 of 2")
    assert note.severity == "note"


async def test_objects_that_no_entry_names_are_a_note(world: World) -> None:
    segment, _ = segment_of(b"left over")
    await world.stores[ONE].put(segment.key, segment.body)
    await world.stores[ONE].put("segments/stray", b"123")
    (note,) = await world.check()
    assert (note.kind, note.severity) == ("unknown", "note")
    assert_named(note, "replica 1", "2 objects", str(len(segment.body) + 3))


async def test_a_segment_that_no_file_needs_any_more_may_be_gone(world: World) -> None:
    await world.send(Unlink(DIR, NAMES[FILE], FILE, False, 9))
    await world.stores[ONE].delete(world.key)
    assert await world.check() == []


async def test_a_replica_that_is_not_given(world: World) -> None:
    del world.stores[ONE]
    only(await world.check(), "replica", "replica 1 at file:///r1")


async def test_names_with_line_breaks_stay_on_one_line(world: World) -> None:
    await world.send(Link(ROOT_INO, b"a\nb\xff", FILE, 9), Unlink(DIR, NAMES[FILE], FILE, False, 9))
    await world.stores[TWO].delete(world.key)
    only(await world.check(), "missing", r"a\nb\xff")


async def test_many_missing_segments_are_counted(world: World) -> None:
    runs: list[InlineRun | ChunkRun] = []
    changes: list[AnyChange] = []
    for number in range(150):
        segment, (run,) = segment_of(b"%d" % number)
        changes.append(AddSegment(segment.name, len(segment.body), [ONE, TWO]))
        await world.stores[TWO].put(segment_key(segment.name), segment.body)
        runs.append(ChunkRun(20_000 + 10 * number, segment.name, run.chunk))
    await world.send(*changes, Write(FILE, runs, False, 9))
    findings = await world.check()
    assert len(findings) == 101
    assert_named(findings[-1], "replica 1", "50 more")


async def test_entries_that_come_meanwhile_are_left_for_the_next_time(world: World) -> None:
    """A mount that writes on: what it appends once the check has begun is not looked at."""

    class Busy(MemoryJournal):
        async def read(self, after: Position, *, limit_bytes: int = 4 << 20) -> list[object]:  # type: ignore[override]
            await world.send(SetXattr(SMALL, os.urandom(4).hex().encode(), b"", 0, 9))
            return await super().read(after, limit_bytes=limit_bytes)  # type: ignore[return-value]

    tail = world.log.tail
    assert await world.checked(journal=Busy(world.log)) == Checked([], tail, 0)
    assert world.log.tail > tail


# The command.


def run(root: Path, *options: str) -> int:
    return main(["fsck", "demo", "--root", str(root), "--cache-dir", str(root / "cache"), *options])


def test_the_command_says_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["create", "demo", "--root", str(tmp_path)]) == 0
    assert run(tmp_path) == 0
    assert "workspace demo: no fault found" in capsys.readouterr().out
    (tmp_path / "demo/replicas/2/agentfs-replica.json").unlink()
    assert run(tmp_path) == DAMAGED
    assert "✗ replica 2 at file:replicas/2: it has no agentfs-replica.json" in capsys.readouterr().out
    assert run(tmp_path, "--json") == DAMAGED
    *_, fault, result = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (fault["event"], fault["kind"]) == ("fault", "replica")
    assert (result["event"], result["workspace"], result["faults"], result["entries"]) == ("checked", "demo", 1, 1)


def test_the_command_refuses_a_replica_of_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["create", "demo", "--root", str(tmp_path)]) == 0
    shutil.copy(tmp_path / "demo/replicas/2/agentfs-replica.json", tmp_path / "demo/replicas/1")
    assert run(tmp_path) == DAMAGED
    assert "replica 1 at file:replicas/1: it is replica 2 of workspace demo" in capsys.readouterr().out


def test_the_command_names_a_replica_that_is_gone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["create", "demo", "--root", str(tmp_path)]) == 0
    shutil.rmtree(tmp_path / "demo/replicas/1")
    capsys.readouterr()
    assert run(tmp_path) == DAMAGED
    assert [line[:11] for line in capsys.readouterr().out.splitlines()] == ["✗ replica 1", "workspace d"]
