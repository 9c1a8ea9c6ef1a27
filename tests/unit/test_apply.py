"""The rules: what commits, what aborts and why, what is taken back, and that every replay comes out the same."""

from collections.abc import Iterator
from random import Random

import pytest
from msgspec.structs import replace

from agentfs.model.changes import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    AddSegment,
    AnyChange,
    ChunkRun,
    CloseSession,
    Drop,
    Fence,
    InlineRun,
    Link,
    Placed,
    RemoveXattr,
    Rename,
    Rmdir,
    SetAttr,
    SetXattr,
    Truncate,
    Unlink,
    Write,
)
from agentfs.model.entry import Entry, Transaction
from agentfs.model.errors import (
    AgentfsError,
    Corrupt,
    Exists,
    Fenced,
    Invalid,
    IsDirectory,
    NoAttribute,
    NotDirectory,
    NotEmpty,
    NotFound,
    NotPermitted,
    Stale,
    TooLarge,
    TooManyLinks,
)
from agentfs.model.extents import INLINE_MAX, Chunk
from agentfs.model.ids import ROOT_INO, Ino, Position, ReplicaId, SessionId, TxnNumber, first_ino
from agentfs.model.inode import FILE_SIZE_MAX, LINK_MAX, Inode
from agentfs.model.session import CLOSED, FENCED, OPEN
from agentfs.state.apply import apply_entry, apply_transaction
from agentfs.state.checksum import checksum
from agentfs.state.tables import Tables, open_tables
from tests.simulation.entries import DIRECTORY, SYMLINK, Generator, Made, founding, make, opening, put, send, text

A, B = SessionId(1), SessionId(2)
START = first_ino(A)
D, S, F, G, E, L, GONE = (Ino(START + number) for number in range(7))
SEGMENT, CHUNK = b"s" * 32, Chunk(8, 16, 30, b"d" * 32)


@pytest.fixture
def tables() -> Iterator[Tables]:
    """`/d/`, `/d/s/`, `/f`, `/d/g`, `/e/`, `/l` -> `f`, made by session A; session B is open too."""
    tables = open_tables(None)
    for entry in (founding(), opening(b"A"), opening(b"B")):
        put(tables, entry)
    tree: list[AnyChange] = [
        make(D, b"d", mode=DIRECTORY),
        make(S, b"s", parent=D, mode=DIRECTORY),
        make(F, b"f"),
        make(G, b"g", parent=D),
    ]
    tree += [make(E, b"e", mode=DIRECTORY), make(L, b"l", mode=SYMLINK, target=b"f")]
    assert send(tables, A, *tree) is None
    yield tables
    tables.close()


def row(tables: Tables, ino: int) -> Inode:
    found = tables.inode(Ino(ino))
    assert found is not None, f"inode {ino} is gone"
    return found


def content(tables: Tables, ino: int) -> bytes:
    """What a reader sees of a file whose extents are inline."""
    body = bytearray(row(tables, ino).size)
    for extent in tables.extents(Ino(ino), 0, len(body)):
        body[extent.offset : extent.end] = extent.data
    return bytes(body)


def ino_at(tables: Tables, parent: int, name: bytes) -> int | None:
    dentry = tables.dentry(Ino(parent), name)
    return dentry.ino if dentry else None


def rename(parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int = 0, *, keep: bool = False) -> Rename:
    return Rename(Ino(parent), name, Ino(new_parent), new_name, flags, keep, 30)


ABORTS: list[tuple[str, AnyChange, type[AgentfsError]]] = [
    ("found twice", founding().transactions[0].changes[0], Exists),
    ("fence nobody", Fence(SessionId(9)), NotFound),
    ("make over a name", make(GONE, b"f"), Exists),
    ("make in a parent that is gone", make(GONE, b"x", parent=GONE), NotFound),
    ("make in a file", make(GONE, b"x", parent=F), NotDirectory),
    ("make in a symlink", make(GONE, b"x", parent=L), NotDirectory),
    ("link over a name", Link(ROOT_INO, b"d", F, 30), Exists),
    ("link in a parent that is gone", Link(GONE, b"x", F, 30), NotFound),
    ("link in a file", Link(G, b"x", F, 30), NotDirectory),
    ("link a directory", Link(ROOT_INO, b"x", D, 30), NotPermitted),
    ("link what is gone", Link(ROOT_INO, b"x", GONE, 30), Stale),
    ("unlink no name", Unlink(ROOT_INO, b"x", F, False, 30), NotFound),
    ("unlink another file", Unlink(ROOT_INO, b"f", G, False, 30), NotFound),
    ("unlink a directory", Unlink(ROOT_INO, b"d", D, False, 30), IsDirectory),
    ("rmdir no name", Rmdir(ROOT_INO, b"x", 30), NotFound),
    ("rmdir a file", Rmdir(ROOT_INO, b"f", 30), NotDirectory),
    ("rmdir a symlink", Rmdir(ROOT_INO, b"l", 30), NotDirectory),
    ("rmdir with entries", Rmdir(ROOT_INO, b"d", 30), NotEmpty),
    ("rename no name", rename(ROOT_INO, b"x", ROOT_INO, b"y"), NotFound),
    ("rename into what is gone", rename(ROOT_INO, b"f", GONE, b"y"), NotFound),
    ("rename into a file", rename(ROOT_INO, b"f", G, b"y"), NotDirectory),
    ("rename NOREPLACE over a name", rename(ROOT_INO, b"f", D, b"g", RENAME_NOREPLACE), Exists),
    ("rename NOREPLACE onto itself", rename(ROOT_INO, b"f", ROOT_INO, b"f", RENAME_NOREPLACE), Exists),
    ("rename a file over a directory", rename(ROOT_INO, b"f", ROOT_INO, b"e"), IsDirectory),
    ("rename a directory over a file", rename(ROOT_INO, b"e", ROOT_INO, b"f"), NotDirectory),
    ("rename over a full directory", rename(ROOT_INO, b"e", ROOT_INO, b"d"), NotEmpty),
    ("rename over an ancestor", rename(D, b"s", ROOT_INO, b"d"), NotEmpty),
    ("rename a directory into itself", rename(ROOT_INO, b"d", D, b"x"), Invalid),
    ("rename a directory below itself", rename(ROOT_INO, b"d", S, b"x"), Invalid),
    ("exchange with nothing", rename(ROOT_INO, b"f", ROOT_INO, b"x", RENAME_EXCHANGE), NotFound),
    ("exchange with what is below", rename(ROOT_INO, b"d", D, b"s", RENAME_EXCHANGE), Invalid),
    ("exchange with what is above", rename(D, b"s", ROOT_INO, b"d", RENAME_EXCHANGE), Invalid),
    ("truncate what is gone", Truncate(GONE, 0, 30), Stale),
    ("truncate a directory", Truncate(D, 0, 30), Invalid),
    ("truncate too far", Truncate(F, FILE_SIZE_MAX + 1, 30), TooLarge),
    ("write what is gone", text(GONE, 0, b"x"), Stale),
    ("write a symlink", text(L, 0, b"x"), Invalid),
    ("write too far", text(F, FILE_SIZE_MAX, b"x"), TooLarge),
    ("write an unknown segment", Write(F, [ChunkRun(0, SEGMENT, CHUNK)], False, 30), Corrupt),
    ("set attributes of what is gone", SetAttr(GONE, 30, mode=0o600), Stale),
    ("xattr CREATE over one", SetXattr(E, b"user.x", b"", 1, 30), Exists),
    ("xattr REPLACE of none", SetXattr(F, b"user.x", b"", 2, 30), NoAttribute),
    ("xattr of what is gone", SetXattr(GONE, b"user.x", b"", 0, 30), Stale),
    ("remove no xattr", RemoveXattr(F, b"user.x", 30), NoAttribute),
    ("remove an xattr of what is gone", RemoveXattr(GONE, b"user.x", 30), Stale),
]


@pytest.mark.parametrize(("change", "error"), [pytest.param(c, e, id=name) for name, c, e in ABORTS])
def test_abort_changes_nothing_but_the_number_seen(tables: Tables, change: AnyChange, error: type[AgentfsError]) -> None:
    send(tables, A, SetXattr(E, b"user.x", b"value", 0, 15))
    mark = tables.mark()
    position, number = Position(tables.position + 1), TxnNumber(tables.sessions[A].seen + 1)
    assert apply_entry(tables, Entry(A, 3, [Transaction(number, [])]), position) == [None]
    expected = checksum(tables)
    tables.revert(mark)
    # What the transaction did before the change that aborts must be gone too.
    before: list[AnyChange] = [make(START + 100, b"before"), text(F, 0, b"before"), change]
    (outcome,) = apply_entry(tables, Entry(A, 3, [Transaction(number, before)]), position)
    assert type(outcome) is error
    assert checksum(tables) == expected


def test_too_many_links(tables: Tables) -> None:
    tables.put_inode(replace(row(tables, F), nlink=LINK_MAX))
    assert isinstance(send(tables, A, Link(ROOT_INO, b"x", F, 30)), TooManyLinks)


# ---- sessions


def test_a_number_is_applied_once(tables: Tables) -> None:
    number = TxnNumber(tables.sessions[A].seen + 1)
    entry = Entry(A, 3, [Transaction(number, [text(F, 0, b"once", append=True)])])
    assert put(tables, entry) == [None]
    assert put(tables, entry) == [None]
    assert content(tables, F) == b"once"
    assert row(tables, F).version == 1


def test_an_aborted_number_does_not_commit_later(tables: Tables) -> None:
    number = TxnNumber(tables.sessions[A].seen + 1)
    entry = Entry(A, 3, [Transaction(number, [make(GONE, b"f")])])
    assert isinstance(put(tables, entry)[0], Exists)
    send(tables, B, Unlink(ROOT_INO, b"f", F, False, 30))
    put(tables, entry)
    assert ino_at(tables, ROOT_INO, b"f") is None


def test_registering_again_with_the_same_token_is_one_session(tables: Tables) -> None:
    put(tables, opening(b"A"))
    assert sorted(tables.sessions) == [A, B]


def test_an_unknown_session_commits_nothing(tables: Tables) -> None:
    assert isinstance(send(tables, 9, make(GONE, b"x")), Fenced)
    assert ino_at(tables, ROOT_INO, b"x") is None


@pytest.mark.parametrize(("sender", "end", "standing"), [(A, CloseSession(), CLOSED), (B, Fence(A), FENCED)])
def test_a_session_that_ended_commits_nothing_more(tables: Tables, sender: int, end: AnyChange, standing: int) -> None:
    assert send(tables, A, Unlink(ROOT_INO, b"f", F, True, 30)) is None
    assert send(tables, B, Unlink(D, b"g", G, True, 30)) is None
    assert send(tables, sender, end) is None
    assert tables.sessions[A].standing == standing
    assert tables.inode(F) is None, "its orphans go with it"
    assert tables.inode(G) is not None, "another session's orphans stay"
    assert isinstance(send(tables, A, make(GONE, b"x")), Fenced)
    assert send(tables, B, make(GONE, b"x")) is None


def test_a_fence_in_the_middle_of_an_entry_stops_what_follows(tables: Tables) -> None:
    seen = tables.sessions[A].seen
    transactions = [Transaction(TxnNumber(seen + 1), [make(GONE, b"x")]), Transaction(TxnNumber(seen + 2), [Fence(A)])]
    transactions += [Transaction(TxnNumber(seen + 3), [make(GONE + 1, b"y")])]
    outcomes = put(tables, Entry(A, 3, transactions))
    assert [type(outcome) for outcome in outcomes] == [type(None), type(None), Fenced]


def test_a_session_that_closed_in_good_order_is_not_fenced_later(tables: Tables) -> None:
    send(tables, A, CloseSession())
    assert send(tables, B, Fence(A)) is None
    assert tables.sessions[A].standing == CLOSED
    assert tables.sessions[B].standing == OPEN


# ---- names


def test_make(tables: Tables) -> None:
    before = row(tables, D)
    assert send(tables, A, make(GONE, b"x", parent=D, mode=DIRECTORY, time_ns=77)) is None
    made, parent = row(tables, GONE), row(tables, D)
    assert (made.nlink, made.parent, made.version, made.writer, made.commit) == (2, D, 0, A, tables.position)
    assert (parent.nlink, parent.mtime_ns, parent.ctime_ns) == (before.nlink + 1, 77, 77)
    assert row(tables, L).size == 1, "a symbolic link's size is its target's"


def test_an_inode_number_is_never_given_twice(tables: Tables) -> None:
    assert isinstance(send(tables, A, make(F, b"x")), Exists)


def test_link_and_unlink_count_names(tables: Tables) -> None:
    assert send(tables, A, Link(D, b"x", F, 40)) is None
    assert (row(tables, F).nlink, row(tables, F).ctime_ns, row(tables, D).mtime_ns) == (2, 40, 40)
    assert send(tables, B, Unlink(ROOT_INO, b"f", F, True, 50)) is None
    assert (row(tables, F).nlink, F in tables.orphans) == (1, False)
    assert send(tables, B, Unlink(D, b"x", F, True, 60)) is None
    assert (row(tables, F).nlink, tables.orphans[F]) == (0, B)
    assert isinstance(send(tables, B, Link(ROOT_INO, b"y", F, 70)), NotFound)


def test_only_the_owner_drops_an_orphan(tables: Tables) -> None:
    send(tables, A, text(F, 0, b"kept"), SetXattr(F, b"user.x", b"v", 0, 30))
    send(tables, A, Unlink(ROOT_INO, b"f", F, True, 30))
    assert send(tables, B, Drop(F)) is None
    assert content(tables, F) == b"kept"
    assert send(tables, A, Drop(G)) is None
    assert tables.inode(G) is not None, "a file with a name is no orphan"
    assert send(tables, A, Drop(F)) is None
    assert tables.inode(F) is None


def test_the_last_name_takes_everything_with_it(tables: Tables) -> None:
    before = checksum(tables), dict(tables.counters)
    made: list[AnyChange] = [make(GONE, b"x"), text(GONE, 0, b"body"), SetXattr(GONE, b"user.x", b"v", 0, 30)]
    assert send(tables, A, *made) is None
    assert send(tables, A, Unlink(ROOT_INO, b"x", GONE, False, 40)) is None
    tables.flush()
    for table in ("inodes", "extents", "xattrs", "versions", "orphans"):
        assert tables.db.execute(f"SELECT count(*) FROM {table} WHERE ino = ?", (GONE,)).fetchone() == (0,)
    assert (tables.counters["inodes"], tables.counters["bytes"]) == (before[1]["inodes"], before[1]["bytes"])


def test_rmdir(tables: Tables) -> None:
    links = row(tables, ROOT_INO).nlink
    assert send(tables, A, Rmdir(ROOT_INO, b"e", 40)) is None
    assert tables.inode(E) is None
    assert row(tables, ROOT_INO).nlink == links - 1
    assert isinstance(send(tables, B, make(GONE, b"x", parent=E)), NotFound)


@pytest.mark.parametrize("keep", [False, True])
def test_rename_replaces_a_file(tables: Tables, keep: bool) -> None:
    assert send(tables, B, rename(ROOT_INO, b"f", D, b"g", keep=keep)) is None
    assert ino_at(tables, ROOT_INO, b"f") is None
    assert ino_at(tables, D, b"g") == F
    assert tables.orphans == ({G: B} if keep else {})
    assert (tables.inode(G) is not None) == keep


def test_rename_moves_a_directory(tables: Tables) -> None:
    root, other = row(tables, ROOT_INO).nlink, row(tables, E).nlink
    assert send(tables, A, rename(ROOT_INO, b"d", E, b"x")) is None
    assert (row(tables, ROOT_INO).nlink, row(tables, E).nlink) == (root - 1, other + 1)
    assert row(tables, D).parent == E
    assert isinstance(send(tables, A, rename(ROOT_INO, b"e", S, b"y")), Invalid)


def test_rename_replaces_an_empty_directory(tables: Tables) -> None:
    links = row(tables, ROOT_INO).nlink
    assert send(tables, A, rename(ROOT_INO, b"d", ROOT_INO, b"e", keep=True)) is None
    assert (ino_at(tables, ROOT_INO, b"e"), ino_at(tables, ROOT_INO, b"d")) == (D, None)
    assert tables.inode(E) is None
    assert row(tables, ROOT_INO).nlink == links - 1
    assert tables.orphans == {}


def test_rename_of_two_names_of_one_file_does_nothing(tables: Tables) -> None:
    send(tables, A, Link(D, b"x", F, 40))
    assert send(tables, A, rename(ROOT_INO, b"f", D, b"x")) is None
    assert (ino_at(tables, ROOT_INO, b"f"), ino_at(tables, D, b"x"), row(tables, F).nlink) == (F, F, 2)


def test_rename_moves_what_stands_there_by_now(tables: Tables) -> None:
    send(tables, B, Unlink(ROOT_INO, b"f", F, False, 30), make(first_ino(B), b"f"))
    assert send(tables, A, rename(ROOT_INO, b"f", E, b"f")) is None
    assert ino_at(tables, E, b"f") == first_ino(B)


def test_exchange_a_file_and_a_directory(tables: Tables) -> None:
    root, below = row(tables, ROOT_INO).nlink, row(tables, D).nlink
    assert send(tables, A, rename(ROOT_INO, b"e", D, b"g", RENAME_EXCHANGE)) is None
    assert (ino_at(tables, ROOT_INO, b"e"), ino_at(tables, D, b"g")) == (G, E)
    assert (row(tables, E).parent, row(tables, G).parent) == (D, 0)
    assert (row(tables, ROOT_INO).nlink, row(tables, D).nlink) == (root - 1, below + 1)


# ---- content


def test_writes_cover_each_other(tables: Tables) -> None:
    assert send(tables, A, text(F, 0, b"0123456789")) is None
    assert send(tables, B, text(F, 3, b"xyz")) is None
    assert send(tables, A, text(F, 12, b"!", time_ns=99)) is None
    file = row(tables, F)
    assert content(tables, F) == b"012xyz6789\0\0!"
    assert (file.size, file.allocated, file.version, file.mtime_ns, file.ctime_ns, file.writer) == (13, 11, 3, 99, 99, A)
    assert [(each.version, each.size, each.session) for each in tables.versions(F)] == [(1, 10, A), (2, 10, B), (3, 13, A)]


def test_appends_go_to_the_end_at_apply_time(tables: Tables) -> None:
    for session, data in ((A, b"one"), (B, b"two"), (A, b"three")):
        send(tables, session, text(F, 0, data, append=True))
    assert content(tables, F) == b"onetwothree"


def test_appends_of_several_runs_count_from_one_end(tables: Tables) -> None:
    send(tables, A, text(F, 0, b"head"))
    send(tables, A, Write(F, [InlineRun(0, b"ab"), InlineRun(4, b"cd")], True, 30))
    assert content(tables, F) == b"headab\0\0cd"


def test_many_appends_are_few_rows_but_no_row_grows_past_the_inline_bound(tables: Tables) -> None:
    for _ in range(40):
        send(tables, A, text(F, 0, b"x" * (INLINE_MAX // 16), append=True))
    extents = tables.extents(F, 0, row(tables, F).size)
    assert [extent.length for extent in extents] == [INLINE_MAX, INLINE_MAX, INLINE_MAX // 2]


def test_truncate_down_and_up_reads_zeros(tables: Tables) -> None:
    send(tables, A, text(F, 0, b"0123456789"))
    send(tables, A, Truncate(F, 4, 30))
    send(tables, A, Truncate(F, 8, 40))
    assert content(tables, F) == b"0123\0\0\0\0"
    assert (row(tables, F).allocated, row(tables, F).version) == (4, 3)


def test_a_transaction_is_one_version_however_much_it_changes(tables: Tables) -> None:
    send(tables, A, Truncate(F, 0, 30), text(F, 0, b"a"), text(F, 1, b"b"), text(G, 0, b"c"))
    assert (row(tables, F).version, row(tables, G).version) == (1, 1)
    assert [each.size for each in tables.versions(F)] == [2]


def test_a_write_over_part_of_a_chunk_keeps_the_rest_of_it(tables: Tables) -> None:
    placed: list[AnyChange] = [AddSegment(SEGMENT, 100, [ReplicaId(1)]), Write(F, [ChunkRun(0, SEGMENT, CHUNK)], False, 30)]
    assert send(tables, A, *placed) is None
    send(tables, A, text(F, 10, b"inline"))
    shape = [(each.offset, each.length, each.skip, bool(each.segment)) for each in tables.extents(F, 0, 30)]
    assert shape == [(0, 10, 0, True), (10, 6, 0, False), (16, 14, 16, True)]
    assert row(tables, F).allocated == 30


def test_placed_is_noted_once_and_only_for_known_segments(tables: Tables) -> None:
    send(tables, A, AddSegment(SEGMENT, 100, [ReplicaId(1)]))
    for replica in (1, 2, 2):
        assert send(tables, A, Placed(SEGMENT, ReplicaId(replica))) is None
    assert send(tables, A, Placed(b"unknown", ReplicaId(1))) is None
    segment = tables.segment_id(SEGMENT)
    assert tables.db.execute("SELECT * FROM placed ORDER BY replica").fetchall() == [(segment, 1), (segment, 2)]


# ---- attributes


def test_set_attr_sets_what_it_names(tables: Tables) -> None:
    before = row(tables, F)
    send(tables, B, SetAttr(F, 50, mode=0o4711, gid=5, mtime_ns=9))
    after = row(tables, F)
    assert after.mode == 0o104711
    assert (after.uid, after.gid, after.atime_ns, after.mtime_ns, after.ctime_ns) == (before.uid, 5, before.atime_ns, 9, 50)
    assert (after.version, after.writer) == (0, B)


def test_xattrs_are_counted(tables: Tables) -> None:
    for flags in (0, 0, 2):
        assert send(tables, A, SetXattr(F, b"user.x", b"%d" % flags, flags, 50)) is None
    assert send(tables, A, SetXattr(F, b"user.y", b"", 1, 60)) is None
    assert (row(tables, F).xattrs, row(tables, F).ctime_ns) == (2, 60)
    assert (tables.xattr(F, b"user.x"), tables.xattr(F, b"user.y")) == (b"2", b"")
    assert send(tables, A, RemoveXattr(F, b"user.x", 70)) is None
    assert (row(tables, F).xattrs, tables.xattr_names(F)) == (1, [b"user.y"])


def test_a_write_committed_after_a_chmod_does_not_turn_ctime_back(tables: Tables) -> None:
    send(tables, A, SetAttr(F, 500, mode=0o600))
    send(tables, A, text(F, 0, b"x", time_ns=400))
    assert (row(tables, F).mtime_ns, row(tables, F).ctime_ns) == (400, 500)


# ---- taking back, and replaying


def history(seed: int, length: int) -> list[Entry]:
    """A random journal of two sessions."""
    random, made = Random(seed), Made()
    generators = {session: Generator(random, session, made) for session in (A, B)}
    numbers = dict.fromkeys(generators, 0)
    entries = [founding(), opening(b"A"), opening(b"B")]
    tables = replayed(entries)
    for _ in range(length):
        session = random.choice((A, B))
        transactions = []
        for _ in range(random.randint(1, 4)):
            numbers[session] += 1
            transactions.append(generators[session].transaction(numbers[session]))
        entries.append(Entry(session, 3, transactions))
        put(tables, entries[-1])
        made.forget_gone(tables)
    tables.close()
    return entries


def assert_true_to_themselves(tables: Tables) -> None:
    """What is kept beside the rows that it follows from is what follows from them."""
    db = tables.db
    uses = dict(db.execute("SELECT segment, count(*) FROM extents WHERE segment GROUP BY segment"))
    assert dict(db.execute("SELECT segment, uses FROM segments WHERE uses != 0")) == uses
    live: dict[int, int] = {}
    for segment, stored, length, raw in db.execute("SELECT segment, stored, length, raw FROM extents WHERE segment"):
        live[segment] = live.get(segment, 0) + stored * length // raw
    assert dict(db.execute("SELECT segment, live FROM segments WHERE live")) == {n: each for n, each in live.items() if each}
    assert db.execute("SELECT count(*) FROM collected JOIN segments USING (name)").fetchone() == (0,)
    held = set(db.execute("SELECT segment, replica FROM placed"))
    assert {replica for _, replica in held} <= tables.members.keys()
    sizes = dict(db.execute("SELECT segment, size FROM segments"))
    lacking = {(n, segment, sizes[segment]) for segment in uses for n in tables.members if (segment, n) not in held}
    assert set(db.execute("SELECT * FROM lacking")) == lacking
    (inline,) = db.execute("SELECT coalesce(sum(length), 0) FROM extents WHERE segment = 0").fetchone()
    assert tables.counters["inline"] == inline


def replayed(entries: list[Entry]) -> Tables:
    tables = open_tables(None)
    for entry in entries:
        put(tables, entry)
    return tables


@pytest.mark.parametrize("seed", range(12))
def test_two_replays_are_the_same(seed: int) -> None:
    entries = history(seed, 60)
    one, two = open_tables(None), open_tables(None)
    committed = 0
    for number, entry in enumerate(entries):
        first, second = put(one, entry), put(two, entry)
        committed += first.count(None)
        assert [type(outcome) for outcome in first] == [type(outcome) for outcome in second], f"seed {seed}"
        if number % 7 == 0:
            # When rows are written behind must make no difference.
            one.flush()
    assert checksum(one) == checksum(two), f"seed {seed}"
    assert committed > 60, "the generated transactions must not all abort"
    assert_true_to_themselves(one)


@pytest.mark.parametrize("seed", range(12))
def test_taking_back_leaves_nothing(seed: int) -> None:
    entries = history(seed, 60)
    tables = replayed(entries[:3])
    for entry in entries[3:]:
        before = checksum(tables)
        mark = tables.mark()
        for transaction in entry.transactions:
            apply_transaction(tables, entry.session, transaction, Position(tables.position + 1))
        assert_true_to_themselves(tables)
        tables.revert(mark)
        assert_true_to_themselves(tables)
        assert checksum(tables) == before, f"seed {seed}, position {tables.position + 1}"
        put(tables, entry)
    assert checksum(tables) == checksum(replayed(entries)), f"seed {seed}"


@pytest.mark.parametrize("seed", range(12))
def test_a_rebase_is_a_fresh_replay(seed: int) -> None:
    """A's transactions are speculated, B's entry lands in front: taken back, applied, redone."""
    entries = history(seed, 60)
    tables = replayed(entries[:3])
    order = entries[:3]
    waiting: list[Entry] = []
    for entry in entries[3:]:
        if entry.session == A:
            waiting.append(entry)
            continue
        undos = []
        for mine in waiting:
            for transaction in mine.transactions:
                mark = tables.mark()
                apply_transaction(tables, A, transaction, Position(tables.position + 1))
                undos.append(tables.cut(mark))
        for undo in reversed(undos):
            tables.take_back(undo)
        for each in (entry, *waiting):
            put(tables, each)
            order.append(each)
        waiting = []
        assert checksum(tables) == checksum(replayed(order)), f"seed {seed}, position {tables.position}"
