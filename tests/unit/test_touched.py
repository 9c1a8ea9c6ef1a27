"""What an applied transaction touched: all that a kernel must be told to forget, and nothing of other files."""

from collections.abc import Callable, Iterator

import pytest
from msgspec.structs import replace

from agentfs.model.changes import (
    AddSegment,
    AnyChange,
    ChunkRun,
    Drop,
    Fold,
    Link,
    RemoveXattr,
    Rename,
    Renew,
    Rmdir,
    SetAttr,
    SetXattr,
    Truncate,
    Unlink,
)
from agentfs.model.entry import Transaction
from agentfs.model.extents import Chunk, digest_of
from agentfs.model.ids import ROOT_INO, Ino, Position, SessionId, TxnNumber, first_ino
from agentfs.model.lease import FLOCK, WHOLE, Grant, Leases
from agentfs.state.apply import apply_transaction
from agentfs.state.tables import Tables, open_tables
from agentfs.state.touched import Touched, touched
from tests.simulation.entries import DIRECTORY, founding, make, opening, put, send, text

A = SessionId(1)
SEGMENT = b"t" * 32
D, F, G, NEW = (Ino(first_ino(A) + number) for number in range(4))


@pytest.fixture
def tables() -> Iterator[Tables]:
    """`/d/`, `/f` with content and an attribute, `/d/g` empty."""
    tables = open_tables(None)
    for entry in (founding(), opening(b"A")):
        put(tables, entry)
    assert send(tables, A, make(D, b"d", mode=DIRECTORY), make(F, b"f"), make(G, b"g", parent=D)) is None
    assert send(tables, A, text(F, 0, b"content"), SetXattr(F, b"user.x", b"1", 0, 5)) is None
    assert send(tables, A, AddSegment(SEGMENT, 9, [])) is None
    yield tables
    tables.close()


CASES: list[tuple[AnyChange, Touched]] = [
    (Renew(), Touched()),
    (AddSegment(b"s" * 32, 9, []), Touched()),
    (Fold(F, 1, [ChunkRun(0, SEGMENT, Chunk(4, 8, 7, digest_of(b"content")))]), Touched()),
    (make(NEW, b"n", parent=D), Touched({(D, b"n")}, {D, NEW})),
    (Link(D, b"l", F, 30), Touched({(D, b"l")}, {D, F})),
    (Unlink(ROOT_INO, b"f", F, True, 30), Touched({(ROOT_INO, b"f")}, {ROOT_INO, F})),
    (Unlink(ROOT_INO, b"f", F, False, 30), Touched({(ROOT_INO, b"f")}, {ROOT_INO, F}, {F})),
    (Rename(ROOT_INO, b"f", D, b"h", 0, False, 30), Touched({(ROOT_INO, b"f"), (D, b"h")}, {ROOT_INO, D, F})),
    (Rename(ROOT_INO, b"f", D, b"g", 0, False, 30), Touched({(ROOT_INO, b"f"), (D, b"g")}, {ROOT_INO, D, F, G})),
    (SetAttr(F, 30, mode=0o600), Touched(set(), {F})),
    (SetXattr(F, b"user.x", b"2", 0, 30), Touched(set(), {F})),
    (RemoveXattr(F, b"user.x", 30), Touched(set(), {F})),
    (text(F, 2, b"x"), Touched(set(), {F}, {F})),
    (Truncate(F, 3, 30), Touched(set(), {F}, {F})),
    (Truncate(G, 3, 30), Touched(set(), {G}, {G})),
]


@pytest.mark.parametrize(("change", "expected"), CASES, ids=lambda each: type(each).__name__)
def test_what_a_change_touches(tables: Tables, change: AnyChange, expected: Touched) -> None:
    mark = tables.mark()
    transaction = Transaction(TxnNumber(tables.sessions[A].seen + 1), [change])
    assert apply_transaction(tables, A, transaction, Position(tables.position + 1)) is None
    assert touched(tables.cut(mark)) == expected
    assert bool(expected) == (type(change) not in (Renew, AddSegment, Fold))


def test_a_fold_that_took_place_was_one(tables: Tables) -> None:
    """Or the case above would show nothing."""
    send(tables, A, Fold(F, 1, [ChunkRun(0, SEGMENT, Chunk(4, 8, 7, digest_of(b"content")))]))
    assert [bool(extent.segment) for extent in tables.extents(F, 0, 7)] == [True]


def remove_dentry(tables: Tables) -> None:
    dentry = tables.dentry(D, b"g")
    assert dentry is not None
    tables.remove_dentry(dentry)


VERBS: dict[str, tuple[Callable[[Tables], None], Touched]] = {
    "put_dentry": (lambda tables: tables.put_dentry(D, b"n", F), Touched({(D, b"n")})),
    "remove_dentry": (remove_dentry, Touched({(D, b"g")})),
    "remove_inode": (lambda tables: tables.remove_inode(G), Touched(set(), {G})),
    "put_xattr": (lambda tables: tables.put_xattr(G, b"user.y", b""), Touched(set(), {G})),
    "put_extent": (lambda tables: tables.put_extent(replace(tables.extents(F, 0, 9)[0], ino=G)), Touched(set(), set(), {G})),
    "remove_extent": (lambda tables: tables.remove_extent(tables.extents(F, 0, 9)[0]), Touched(set(), set(), {F})),
    "put_version": (lambda tables: tables.put_version(replace(tables.versions(F)[0], ino=G)), Touched(set(), set(), {G})),
    "remove_versions": (lambda tables: tables.remove_versions(F), Touched(set(), set(), {F})),
    "put_orphan": (lambda tables: tables.put_orphan(F, A), Touched()),
    "put_leases": (lambda tables: tables.put_leases(F, FLOCK, Leases((Grant(A, WHOLE, 1),))), Touched()),
}


@pytest.mark.parametrize("verb", VERBS)
def test_what_a_verb_touches(tables: Tables, verb: str) -> None:
    change, expected = VERBS[verb]
    mark = tables.mark()
    change(tables)
    assert touched(tables.cut(mark)) == expected


def test_what_aborted_touched_nothing(tables: Tables) -> None:
    mark = tables.mark()
    transaction = Transaction(TxnNumber(9), [SetAttr(F, 30, mode=0o600), Rmdir(ROOT_INO, b"d", 30)])
    assert apply_transaction(tables, A, transaction, Position(9)) is not None
    assert not touched(tables.cut(mark))


def test_before_a_file_goes_its_rows_are_still_there(tables: Tables) -> None:
    gone: list[tuple[Ino, int]] = []
    tables.before_erase = lambda ino: gone.append((ino, len(tables.extents(ino, 0, 100))))
    send(tables, A, Unlink(ROOT_INO, b"f", F, True, 30))
    assert gone == []
    send(tables, A, Drop(F), Unlink(D, b"g", G, False, 31))
    assert gone == [(F, 1), (G, 0)]
