"""State's rows: extents at their boundaries, taking back, and what a State file holds after a save, a close and a kill."""

import shutil
import sqlite3
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest

from agentfs.journal.memory import MemoryJournal, MemoryLog
from agentfs.model.changes import AddReplica, AddSegment, ChunkRun, OpenSession, Placed, RemoveReplica, Truncate, Write
from agentfs.model.codec import encode_entry
from agentfs.model.entry import Entry, Transaction
from agentfs.model.errors import Invalid
from agentfs.model.extents import Chunk, Extent
from agentfs.model.ids import NO_SESSION, ROOT_INO, Ino, Position, ReplicaId, SegmentId, SessionId, TxnNumber, first_ino
from agentfs.model.replica import Replica
from agentfs.model.session import OPEN, Session
from agentfs.state.checksum import checksum
from agentfs.state.queries import Missing, missing
from agentfs.state.schema import CONTENT, SCHEMA_VERSION
from agentfs.state.tables import Tables, open_tables
from agentfs.workspace.replay import open_state
from tests.simulation.entries import founding, make, opening, put, send, text

A = SessionId(1)
FILE = first_ino(A)


def opened(path: Path | None = None) -> Tables:
    """A State with one session and one empty file."""
    tables = open_tables(path)
    for entry in (founding(), opening(b"A")):
        put(tables, entry)
    assert send(tables, A, make(FILE, b"f")) is None
    return tables


def killed(path: Path) -> Path:
    """A copy of the State file and its log as they are on disk now: what a process that is killed now leaves."""
    copy = path.with_name("killed.sqlite")
    for suffix in ("", "-wal"):
        source = path.with_name(path.name + suffix)
        if source.exists():
            shutil.copyfile(source, copy.with_name(copy.name + suffix))
    return copy


# ---- extents


def inline(offset: int, length: int) -> Extent:
    return Extent(FILE, offset, length, b"x" * length, SegmentId(0), None, 0)


@pytest.mark.parametrize(
    ("start", "end", "offsets"),
    [
        (0, 10, []),
        (0, 11, [10]),
        (9, 10, []),
        (10, 11, [10]),
        (19, 20, [10]),
        (19, 21, [10, 20]),
        (20, 21, [20]),
        (24, 25, [20]),
        (25, 40, []),
        (25, 41, [40]),
        (49, 50, [40]),
        (50, 1000, []),
        (0, 1000, [10, 20, 40]),
        (15, 15, []),
    ],
)
def test_extents_at_their_boundaries(start: int, end: int, offsets: list[int]) -> None:
    tables = opened()
    for offset, length in ((10, 10), (20, 5), (40, 10)):
        tables.put_extent(inline(offset, length))
    # Neighbours by number must not be seen.
    tables.put_extent(Extent(Ino(FILE - 1), 5, 100, b"x" * 100, SegmentId(0), None, 0))
    tables.put_extent(Extent(Ino(FILE + 1), 5, 100, b"x" * 100, SegmentId(0), None, 0))
    touched = [extent.offset for extent in tables.extents(FILE, start, end)]
    assert [offset for offset in touched if start < end] == offsets
    tables.close()


@pytest.mark.parametrize("seed", range(6))
def test_content_is_that_of_a_byte_array(seed: int) -> None:
    random, tables, model = Random(seed), opened(), bytearray()
    for step in range(150):
        if random.random() < 0.2:
            size = random.randint(0, 300)
            assert send(tables, A, Truncate(FILE, size, 30)) is None
            model = model[:size] + bytes(max(0, size - len(model)))
        else:
            offset, data = random.randint(0, 250), random.randbytes(random.randint(1, 50))
            append = random.random() < 0.2
            assert send(tables, A, text(FILE, 0 if append else offset, data, append=append)) is None
            offset = len(model) if append else offset
            model = model + bytes(max(0, offset - len(model)))
            model[offset : offset + len(data)] = data
        start = random.randint(0, 300)
        end = random.randint(start + 1, 310)
        body = bytearray(max(0, min(end, len(model)) - start))
        for extent in tables.extents(FILE, start, min(end, len(model))) if body else []:
            assert extent.offset < end
            assert extent.end > start
            part = extent.part(start, min(end, len(model)))
            body[part.offset - start : part.end - start] = part.data
        assert body == model[start:end], f"seed {seed}, step {step}"
        inode = tables.inode(FILE)
        assert inode is not None
        assert inode.size == len(model), f"seed {seed}, step {step}"
        every = tables.extents(FILE, 0, 1 << 40)
        assert inode.allocated == sum(extent.length for extent in every) == tables.counters["bytes"]
        assert all(one.end <= two.offset for one, two in pairwise(every)), f"seed {seed}, step {step}"
    tables.close()


# ---- taking back


def test_a_cut_is_the_callers_to_take_back() -> None:
    tables = opened()
    before = checksum(tables)
    mark = tables.mark()
    tables.put_xattr(FILE, b"user.x", b"1")
    first = tables.cut(mark)
    tables.put_xattr(FILE, b"user.x", b"2")
    second = tables.cut(mark)
    tables.take_back(second)
    assert tables.xattr(FILE, b"user.x") == b"1"
    tables.take_back(first)
    assert checksum(tables) == before
    tables.close()


def test_reading_between_does_not_bring_back_what_was_taken_back() -> None:
    tables = opened()
    mark = tables.mark()
    dentry = tables.dentry(ROOT_INO, b"f")
    assert dentry is not None
    tables.remove_dentry(dentry)
    tables.remove_inode(FILE)
    assert tables.inode(FILE) is None
    assert tables.dentry(ROOT_INO, b"f") is None
    tables.flush()
    assert tables.inode(FILE) is None
    tables.revert(mark)
    assert tables.inode(FILE) is not None
    assert tables.dentry(ROOT_INO, b"f") == dentry
    tables.close()


def test_a_listing_goes_on_behind_its_cookie_whatever_comes_and_goes() -> None:
    tables = opened()
    for number in range(1, 6):
        send(tables, A, make(FILE + number, b"%d" % number))
    first = tables.listing(ROOT_INO, 0, 3)
    assert [dentry.name for dentry in first] == [b"f", b"1", b"2"]
    for name in (b"1", b"4"):
        dentry = tables.dentry(ROOT_INO, name)
        assert dentry is not None
        tables.remove_dentry(dentry)
    send(tables, A, make(FILE + 9, b"1"))
    assert [dentry.name for dentry in tables.listing(ROOT_INO, first[-1].cookie, 9)] == [b"3", b"5", b"1"]
    tables.close()


# ---- the file


def test_save_close_and_open_again(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    tables = opened(path)
    send(tables, A, text(FILE, 0, b"saved"))
    tables.save()
    expected, position = checksum(tables), tables.position
    tables.close()
    again = open_tables(path)
    assert (again.position, checksum(again)) == (position, expected)
    again.close()


def test_replicas_and_what_they_lack_come_back_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    tables = opened(path)
    three = OpenSession(b"C", "host", 7, "", 2, upkeep=False)
    put(tables, Entry(NO_SESSION, 2, [Transaction(TxnNumber(1), [three])]))
    name, chunk = b"s" * 32, Chunk(8, 16, 30, b"d" * 32)
    send(tables, A, AddSegment(name, 100, [ReplicaId(1)], 7), Write(FILE, [ChunkRun(0, name, chunk)], False, 30))
    send(tables, A, AddReplica(ReplicaId(3), "memory:3"), Placed(name, ReplicaId(3)), RemoveReplica(ReplicaId(1)))
    tables.save()
    replicas, sessions = tables.replicas, tables.sessions
    tables.close()
    again = open_tables(path)
    assert (again.replicas, again.sessions) == (replicas, sessions)
    assert list(again.members) == [2, 3]
    assert missing(again, ReplicaId(2)) == Missing(1, 100, 7)
    assert again.keeper() == A
    send(again, A, Placed(name, ReplicaId(2)))
    assert missing(again, ReplicaId(2)) == Missing(0, 0, None)
    again.close()


def test_close_without_save_is_the_last_save(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    tables = opened(path)
    tables.save()
    expected, position = checksum(tables), tables.position
    send(tables, A, text(FILE, 0, b"lost"))
    checksum(tables)
    tables.close()
    again = open_tables(path)
    assert (again.position, checksum(again)) == (position, expected)
    again.close()


def test_a_kill_leaves_the_last_save(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    tables = opened(path)
    tables.save()
    expected, position = checksum(tables), tables.position
    for number in range(300):
        send(tables, A, text(FILE, 0, b"x" * 20000, append=True), make(FILE + 1 + number, b"%d" % number))
        tables.flush()
    left = open_tables(killed(path))
    assert (left.position, checksum(left)) == (position, expected)
    left.close()
    tables.close()


def test_what_is_speculative_is_never_saved(tmp_path: Path) -> None:
    tables = opened(tmp_path / "state.sqlite")
    tables.put_xattr(FILE, b"user.x", b"1")
    with pytest.raises(AssertionError, match="speculative"):
        tables.save()
    tables.close()


def test_a_file_of_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    opened(path).close()
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(Invalid, match="version 99"):
        open_tables(path)


async def test_a_file_of_another_version_is_rebuilt_from_the_journal(tmp_path: Path) -> None:
    path, log = tmp_path / "state.sqlite", MemoryLog()
    journal = MemoryJournal(log)
    for entry in (founding(), opening(b"A")):
        await journal.append(encode_entry(entry))
    rebuilt = await open_state(path, journal)
    expected = checksum(rebuilt)
    rebuilt.close()
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 1")
    db.execute("ALTER TABLE sessions DROP COLUMN ttl_ms")
    db.execute("DROP TABLE leases")
    db.close()
    again = await open_state(path, journal)
    assert again.db.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
    assert (again.position, checksum(again)) == (Position(2), expected)
    again.close()


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    path.write_bytes(b"not a database" * 1000)
    with pytest.raises(Invalid):
        open_tables(path)


# ---- the checksum


def test_the_checksum_reads_every_table() -> None:
    tables = opened()
    names = tables.db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    assert {name for (name,) in names} == set(CONTENT)
    tables.close()


def test_the_checksum_sees_every_kind_of_row() -> None:
    tables = opened()
    sums = [checksum(tables)]
    tables.count("cookie", 1)
    sums.append(checksum(tables))
    tables.put_extent(inline(0, 1))
    sums.append(checksum(tables))
    tables.put_replica(Replica(ReplicaId(9), "memory:9"))
    sums.append(checksum(tables))
    tables.put_segment(b"s" * 32, 100, 7)
    sums.append(checksum(tables))
    tables.place(SegmentId(1), ReplicaId(9))
    sums.append(checksum(tables))
    tables.put_orphan(FILE, A)
    sums.append(checksum(tables))
    tables.put_session(Session(SessionId(5), b"t", "h", 1, "", 1, tables.sessions[A].seen, OPEN))
    sums.append(checksum(tables))
    assert len(set(sums)) == len(sums)
    assert tables.position == Position(3)
    tables.close()
