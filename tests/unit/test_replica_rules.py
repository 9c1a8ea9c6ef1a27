"""The rules for replicas: who may come and go, who holds which segment, what each lacks, and what folding does."""

from collections.abc import Iterator

import pytest

from agentfs.model.changes import (
    REPLICA_MAX,
    AddReplica,
    AddSegment,
    AnyChange,
    ChunkRun,
    Fold,
    Found,
    Misplaced,
    Origin,
    Placed,
    RemoveReplica,
    ReplicaSpec,
    Truncate,
    Unlink,
    Write,
)
from agentfs.model.entry import Entry, Transaction
from agentfs.model.errors import AgentfsError, Corrupt, Exists, Invalid, NotFound, Unavailable
from agentfs.model.extents import FOLD_MIN, INLINE_MAX, Chunk, digest_of
from agentfs.model.ids import NO_SESSION, ROOT_INO, Ino, Position, ReplicaId, SegmentId, SessionId, TxnNumber, first_ino
from agentfs.model.inode import Inode
from agentfs.model.replica import MEMBER, REMOVED, Replica
from agentfs.state.apply import apply_transaction
from agentfs.state.checksum import checksum
from agentfs.state.queries import Missing, foldable, lacking, missing
from agentfs.state.tables import Tables, open_tables
from tests.simulation.entries import founding, lacks_anything, make, opening, put, send, text

A = SessionId(1)
F, G = (Ino(first_ino(A) + number) for number in range(2))
ONE, TWO, THREE = ReplicaId(1), ReplicaId(2), ReplicaId(3)
S, T, U = b"s" * 32, b"t" * 32, b"u" * 32
CHUNK = Chunk(8, 16, 30, b"d" * 32)


@pytest.fixture
def tables() -> Iterator[Tables]:
    """A workspace with replicas 1 and 2 and the files `f` and `g`."""
    tables = open_tables(None)
    for entry in (founding(2), opening(b"A")):
        put(tables, entry)
    assert send(tables, A, make(F, b"f"), make(G, b"g")) is None
    yield tables
    tables.close()


def write(ino: Ino, segment: bytes, offset: int = 0) -> Write:
    return Write(ino, [ChunkRun(offset, segment, CHUNK)], False, 30)


def store(tables: Tables, ino: Ino, segment: bytes, *replicas: ReplicaId, size: int = 100, time_ns: int = 0) -> None:
    """A file's first bytes are put in a segment."""
    assert send(tables, A, AddSegment(segment, size, list(replicas), time_ns), write(ino, segment)) is None


def lacks(tables: Tables, replica: ReplicaId) -> list[bytes]:
    return [each.name for each in lacking(tables, replica, SegmentId(0), 100)]


def row(tables: Tables, ino: Ino) -> Inode:
    found = tables.inode(ino)
    assert found is not None
    return found


# ---- members


def test_the_first_members_are_those_the_workspace_was_founded_with(tables: Tables) -> None:
    assert tables.replicas == {ONE: Replica(ONE, "memory:1", MEMBER), TWO: Replica(TWO, "memory:2", MEMBER)}
    assert tables.members == tables.replicas


def test_a_replica_comes_and_lacks_everything_that_is_in_use(tables: Tables) -> None:
    store(tables, F, S, ONE, TWO)
    send(tables, A, AddSegment(T, 50, [ONE]))
    assert send(tables, A, AddReplica(THREE, "memory:3")) is None
    assert tables.members[THREE].url == "memory:3"
    assert lacks(tables, THREE) == [S]
    assert lacks(tables, ONE) == lacks(tables, TWO) == []


REFUSED: list[tuple[str, AnyChange, type[AgentfsError]]] = [
    ("a number that a member has", AddReplica(ONE, "memory:9"), Exists),
    ("a URL that a member has", AddReplica(THREE, "memory:1"), Exists),
    ("number zero", AddReplica(ReplicaId(0), "memory:9"), Invalid),
    ("a number that is too high", AddReplica(ReplicaId(REPLICA_MAX + 1), "memory:9"), Invalid),
    ("removing nobody", RemoveReplica(THREE), NotFound),
]


@pytest.mark.parametrize(("change", "error"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_what_is_refused(tables: Tables, change: AnyChange, error: type[AgentfsError]) -> None:
    before = checksum(tables)
    assert isinstance(send(tables, A, change), error)
    send(tables, A)
    assert len(tables.replicas) == 2
    assert checksum(tables) != before, "only the sender's number has grown"


def test_the_highest_number_can_be_given(tables: Tables) -> None:
    assert send(tables, A, AddReplica(ReplicaId(REPLICA_MAX), "memory:9")) is None


def test_a_removed_replica_counts_no_more_and_its_number_is_never_given_again(tables: Tables) -> None:
    store(tables, F, S, ONE, TWO)
    assert send(tables, A, RemoveReplica(TWO)) is None
    assert tables.replicas[TWO] == Replica(TWO, "memory:2", REMOVED)
    assert list(tables.members) == [ONE]
    assert tables.holders(S) == [ONE]
    assert lacks(tables, TWO) == []
    assert isinstance(send(tables, A, AddReplica(TWO, "memory:9")), Exists)
    assert isinstance(send(tables, A, RemoveReplica(TWO)), NotFound)
    # Its place is free again, under another number.
    assert send(tables, A, AddReplica(THREE, "memory:2")) is None
    assert lacks(tables, THREE) == [S]


def test_the_last_member_stays_even_by_force(tables: Tables) -> None:
    assert send(tables, A, RemoveReplica(ONE)) is None
    for force in (False, True):
        assert isinstance(send(tables, A, RemoveReplica(TWO, force)), Invalid)


def test_who_alone_holds_what_files_need_goes_by_force_only(tables: Tables) -> None:
    store(tables, F, S, ONE)
    refusal = send(tables, A, RemoveReplica(ONE))
    assert isinstance(refusal, Invalid)
    assert "1 segments" in str(refusal)
    assert send(tables, A, Placed(S, TWO), RemoveReplica(ONE)) is None
    assert tables.holders(S) == [TWO]


def test_by_force_what_nobody_else_holds_is_lacking_everywhere(tables: Tables) -> None:
    store(tables, F, S, ONE)
    assert send(tables, A, RemoveReplica(ONE, force=True)) is None
    assert (tables.holders(S), lacks(tables, TWO)) == ([], [S])


def test_what_no_file_needs_does_not_hold_a_replica_back(tables: Tables) -> None:
    store(tables, F, S, ONE)
    send(tables, A, Unlink(ROOT_INO, b"f", F, False, 40))
    assert send(tables, A, RemoveReplica(ONE)) is None


def test_members_are_told_of_when_they_come_go_and_are_taken_back(tables: Tables) -> None:
    seen: list[list[ReplicaId]] = []
    tables.on_replicas = lambda: seen.append(list(tables.members))
    mark = tables.mark()
    transaction = Transaction(TxnNumber(9), [AddReplica(THREE, "memory:3")])
    assert apply_transaction(tables, A, transaction, Position(9)) is None
    tables.revert(mark)
    assert seen == [[ONE, TWO, THREE], [ONE, TWO]]


def test_a_journal_that_names_a_member_twice_at_its_founding_can_be_read() -> None:
    tables = open_tables(None)
    specs = [ReplicaSpec(ONE, "a"), ReplicaSpec(ONE, "b")]
    found = Found("w", "demo", 1, "sync", "close", specs, 0, 0, 1)
    put(tables, Entry(NO_SESSION, 1, [Transaction(TxnNumber(1), [found])]))
    assert tables.members == {ONE: Replica(ONE, "b")}
    tables.close()


# ---- who holds which


@pytest.mark.parametrize("stranger", [ReplicaId(0), THREE])
def test_who_is_no_member_holds_nothing(tables: Tables, stranger: ReplicaId) -> None:
    store(tables, F, S, ONE, stranger)
    assert send(tables, A, Placed(S, stranger), Misplaced(S, stranger)) is None
    assert tables.holders(S) == [ONE]


def test_who_was_removed_holds_nothing(tables: Tables) -> None:
    send(tables, A, RemoveReplica(TWO))
    store(tables, F, S, ONE, TWO)
    assert send(tables, A, Placed(S, TWO)) is None
    assert tables.holders(S) == [ONE]


def test_what_was_put_in_replicas_that_are_gone_is_not_committed(tables: Tables) -> None:
    """Two mounts: one has put a segment in replica 2, and names it just behind the other's removal of that replica."""
    send(tables, A, RemoveReplica(TWO))
    assert isinstance(send(tables, A, AddSegment(S, 100, [TWO]), write(F, S)), Unavailable)
    assert (row(tables, F).size, tables.segment_id(S)) == (0, None)
    store(tables, F, S, ONE, TWO)
    # Where another holds it by now there is no harm.
    assert send(tables, A, AddSegment(S, 100, [TWO]), write(G, S)) is None


def test_misplaced_takes_back_placed(tables: Tables) -> None:
    store(tables, F, S, ONE, TWO)
    for _ in range(2):
        assert send(tables, A, Misplaced(S, TWO), Misplaced(b"unknown", TWO)) is None
        assert (tables.holders(S), lacks(tables, TWO)) == ([ONE], [S])
    send(tables, A, Placed(S, TWO))
    assert (tables.holders(S), lacks(tables, TWO)) == ([ONE, TWO], [])


def test_only_what_files_need_is_missing(tables: Tables) -> None:
    send(tables, A, AddSegment(S, 100, [ONE]))
    assert not lacks_anything(tables)
    send(tables, A, write(F, S), write(G, S))
    assert lacks_anything(tables)
    send(tables, A, Unlink(ROOT_INO, b"f", F, False, 40))
    assert lacks(tables, TWO) == [S]
    send(tables, A, Truncate(G, 7, 40))
    assert lacks(tables, TWO) == [S], "a part of it is in use still"
    send(tables, A, Truncate(G, 0, 40))
    assert not lacks_anything(tables)
    send(tables, A, write(G, S))
    assert lacks(tables, TWO) == [S]


def test_a_part_that_is_overwritten_leaves_the_rest_in_use(tables: Tables) -> None:
    store(tables, F, S, ONE)
    send(tables, A, text(F, 10, b"inline"))
    assert lacks(tables, TWO) == [S]
    send(tables, A, text(F, 0, b"x" * 30))
    assert not lacks_anything(tables)


def test_missing_counts_bytes_and_says_since_when(tables: Tables) -> None:
    assert missing(tables, TWO) == Missing(0, 0, None)
    store(tables, F, S, ONE, size=100, time_ns=700)
    store(tables, G, T, ONE, size=50, time_ns=800)
    assert missing(tables, ONE) == Missing(0, 0, None)
    assert missing(tables, TWO) == Missing(2, 150, 700)
    send(tables, A, Placed(S, TWO))
    assert missing(tables, TWO) == Missing(1, 50, 800)


def test_nobody_knows_how_old_a_segment_of_an_earlier_program_is(tables: Tables) -> None:
    store(tables, F, S, ONE)
    assert missing(tables, TWO) == Missing(1, 100, None)


def test_a_segment_is_as_old_as_it_was_when_it_became_known(tables: Tables) -> None:
    store(tables, F, S, ONE, time_ns=700)
    store(tables, G, S, ONE, time_ns=900)
    assert missing(tables, TWO).since_ns == 700


def test_lacking_goes_on_where_it_was(tables: Tables) -> None:
    for number in range(5):
        name = bytes([number]) * 32
        send(tables, A, AddSegment(name, number, [ONE]), write(F, name, offset=number * 100))
    first = lacking(tables, TWO, SegmentId(0), 3)
    rest = lacking(tables, TWO, first[-1].segment, 3)
    assert [(each.name[0], each.size) for each in (*first, *rest)] == [(number, number) for number in range(5)]


# ---- folding


def chunk_of(data: bytes) -> Chunk:
    return Chunk(8, 16, len(data), digest_of(data))


def shape(tables: Tables, ino: Ino) -> list[tuple[int, int, bool]]:
    """Offset and length of a file's extents, and whether they are in a segment."""
    return [(each.offset, each.length, bool(each.segment)) for each in tables.extents(ino, 0, 1 << 40)]


def fold(ino: Ino, version: int, *runs: tuple[int, bytes]) -> list[AnyChange]:
    return [AddSegment(S, 100, [ONE]), Fold(ino, version, [ChunkRun(offset, S, chunk_of(data)) for offset, data in runs])]


def test_folding_moves_bytes_and_changes_nothing_else(tables: Tables) -> None:
    send(tables, A, text(F, 0, b"first"), text(F, 100, b"second"))
    before = row(tables, F)
    assert tables.counters["inline"] == 11
    assert send(tables, A, *fold(F, 1, (0, b"first"), (100, b"second"))) is None
    assert shape(tables, F) == [(0, 5, True), (100, 6, True)]
    assert [each.chunk for each in tables.extents(F, 0, 200)] == [chunk_of(b"first"), chunk_of(b"second")]
    assert row(tables, F) == before
    assert len(tables.versions(F)) == 1
    assert (tables.counters["inline"], tables.counters["bytes"]) == (0, 11)
    assert lacks(tables, TWO) == [S]


NO_FOLDS: list[tuple[str, int, int, bytes]] = [
    ("another version", 2, 0, b"first"),
    ("bytes that are not there", 1, 50, b"first"),
    ("another beginning", 1, 1, b"irst"),
    ("another end", 1, 0, b"firs"),
    ("other bytes", 1, 0, b"FIRST"),
]


@pytest.mark.parametrize(("version", "offset", "data"), [case[1:] for case in NO_FOLDS], ids=[case[0] for case in NO_FOLDS])
def test_a_fold_of_what_is_not_so_any_more_does_nothing(tables: Tables, version: int, offset: int, data: bytes) -> None:
    send(tables, A, text(F, 0, b"first"))
    assert send(tables, A, *fold(F, version, (offset, data))) is None
    assert shape(tables, F) == [(0, 5, False)]
    assert tables.counters["inline"] == 5
    assert not lacks_anything(tables)


def test_a_fold_of_what_is_gone_or_folded_does_nothing(tables: Tables) -> None:
    send(tables, A, text(F, 0, b"first"))
    for _ in range(2):
        assert send(tables, A, *fold(F, 1, (0, b"first"))) is None
    assert shape(tables, F) == [(0, 5, True)]
    send(tables, A, Unlink(ROOT_INO, b"f", F, False, 40))
    assert send(tables, A, *fold(F, 1, (0, b"first"))) is None
    assert tables.inode(F) is None


def test_a_fold_of_some_runs_is_of_those_that_are_so(tables: Tables) -> None:
    send(tables, A, text(F, 0, b"first"), text(F, 100, b"second"))
    send(tables, A, *fold(F, 1, (0, b"other"), (100, b"second")))
    assert shape(tables, F) == [(0, 5, False), (100, 6, True)]


def test_a_fold_into_a_segment_that_is_not_known_aborts(tables: Tables) -> None:
    send(tables, A, text(F, 0, b"first"))
    assert isinstance(send(tables, A, *fold(F, 1, (0, b"first"))[1:]), Corrupt)


def test_folding_is_taken_back_without_a_trace(tables: Tables) -> None:
    send(tables, A, text(F, 0, b"first"))
    before, mark = checksum(tables), tables.mark()
    transaction = Transaction(TxnNumber(9), fold(F, 1, (0, b"first")))
    assert apply_transaction(tables, A, transaction, Position(9)) is None
    assert tables.counters["inline"] == 0
    tables.revert(mark)
    assert checksum(tables) == before


def test_what_is_folded_can_be_overwritten_in_part(tables: Tables) -> None:
    send(tables, A, text(F, 0, b"0123456789"))
    send(tables, A, *fold(F, 1, (0, b"0123456789")))
    send(tables, A, text(F, 4, b"xx"))
    assert shape(tables, F) == [(0, 4, True), (4, 2, False), (6, 4, True)]
    assert tables.counters["inline"] == 2


# ---- compaction


WHOLE = Chunk(4, 11, 10, digest_of(b"0123456789"))


def chunked(tables: Tables) -> None:
    """A file of one chunk, which lies in the segment T."""
    send(tables, A, AddSegment(T, 5000, [ONE]), Write(F, [ChunkRun(0, T, WHOLE)], False, 20))


def move(offset: int, data: bytes, digest: bytes, skip: int, *, version: int = 1) -> list[AnyChange]:
    run = ChunkRun(offset, S, chunk_of(data))
    return [AddSegment(S, 100, [ONE]), Fold(F, version, [run], [Origin(digest, skip)])]


def segment_sizes(tables: Tables) -> dict[bytes, tuple[int, int]]:
    """How often each segment is used, and how many bytes of it are needed."""
    return {name: (uses, live) for name, uses, live in tables.db.execute("SELECT name, uses, live FROM segments")}


def test_a_chunk_moves_to_another_segment_and_nothing_else_changes(tables: Tables) -> None:
    chunked(tables)
    before = row(tables, F)
    assert segment_sizes(tables)[T] == (1, 11)
    assert send(tables, A, *move(0, b"0123456789", WHOLE.digest, 0)) is None
    (extent,) = tables.extents(F, 0, 100)
    assert (extent.chunk, tables.segment_name(extent.segment)) == (chunk_of(b"0123456789"), S)
    assert (row(tables, F), len(tables.versions(F))) == (before, 1)
    assert segment_sizes(tables) == {S: (1, 16), T: (0, 0)}
    assert lacks(tables, TWO) == [S]


def test_a_part_of_a_chunk_moves_as_a_chunk_of_its_own(tables: Tables) -> None:
    chunked(tables)
    send(tables, A, text(F, 0, b"xxx"))
    assert segment_sizes(tables)[T] == (1, 11 * 7 // 10)
    assert send(tables, A, *move(3, b"3456789", WHOLE.digest, 3, version=2)) is None
    assert [(each.offset, each.length, each.skip) for each in tables.extents(F, 0, 100)] == [(0, 3, 0), (3, 7, 0)]
    assert segment_sizes(tables) == {S: (1, 16), T: (0, 0)}


@pytest.mark.parametrize(
    "changes",
    [
        move(0, b"0123456789", digest_of(b"other"), 0),
        move(0, b"0123456789", WHOLE.digest, 1),
        move(0, b"012345678", WHOLE.digest, 0),
        move(1, b"123456789", WHOLE.digest, 1),
        move(0, b"0123456789", WHOLE.digest, 0, version=2),
        fold(F, 1, (0, b"0123456789")),
    ],
    ids=["another chunk", "another part of it", "shorter", "another place", "another version", "bytes that were inline"],
)
def test_a_move_of_what_is_not_so_any_more_does_nothing(tables: Tables, changes: list[AnyChange]) -> None:
    chunked(tables)
    before = tables.extents(F, 0, 100)
    assert send(tables, A, *changes) is None
    assert tables.extents(F, 0, 100) == before


def test_inline_bytes_are_not_moved_as_a_chunk(tables: Tables) -> None:
    send(tables, A, text(F, 0, b"0123456789"))
    assert send(tables, A, *move(0, b"0123456789", WHOLE.digest, 0)) is None
    assert shape(tables, F) == [(0, 10, False)]


def test_a_move_with_too_few_origins_is_refused(tables: Tables) -> None:
    chunked(tables)
    runs = [ChunkRun(0, T, WHOLE), ChunkRun(10, T, WHOLE)]
    assert isinstance(send(tables, A, Fold(F, 1, runs, [Origin(WHOLE.digest, 0)])), Invalid)


def test_a_move_is_taken_back_without_a_trace(tables: Tables) -> None:
    chunked(tables)
    before, mark = checksum(tables), tables.mark()
    transaction = Transaction(TxnNumber(9), move(0, b"0123456789", WHOLE.digest, 0))
    assert apply_transaction(tables, A, transaction, Position(9)) is None
    tables.revert(mark)
    assert checksum(tables) == before


def test_inline_bytes_are_counted_through_cuts(tables: Tables) -> None:
    send(tables, A, text(F, 0, b"0123456789"), text(G, 5, b"abc"))
    send(tables, A, text(F, 4, b"xx"), Truncate(F, 5, 40))
    assert tables.counters["inline"] == 8
    send(tables, A, Unlink(ROOT_INO, b"f", F, False, 40))
    assert tables.counters["inline"] == 3


def test_foldable_names_what_is_large_enough_in_order_and_goes_on(tables: Tables) -> None:
    send(tables, A, text(F, 0, b"x" * INLINE_MAX), text(F, INLINE_MAX, b"y" * FOLD_MIN), text(G, 0, b"z" * (FOLD_MIN - 1)))
    send(tables, A, text(G, 1000, b"z" * FOLD_MIN))
    first = foldable(tables, (Ino(0), 0), 2)
    assert [(each.ino, each.offset, each.length) for each in first] == [(F, 0, INLINE_MAX), (F, INLINE_MAX, FOLD_MIN)]
    rest = foldable(tables, (first[-1].ino, first[-1].offset), 2)
    assert [(each.ino, each.offset, each.data) for each in rest] == [(G, 1000, b"z" * FOLD_MIN)]
