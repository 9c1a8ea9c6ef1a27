"""What an entry means to watchers: every change of names in order, with the paths of its time, and nothing else."""

from collections.abc import Iterator
from random import Random

import pytest

from agentfs.model.changes import (
    RENAME_EXCHANGE,
    AddSegment,
    AnyChange,
    ChunkRun,
    Fold,
    Link,
    Rename,
    Rmdir,
    SetAttr,
    SetXattr,
    Truncate,
    Unlink,
)
from agentfs.model.entry import Entry, Transaction
from agentfs.model.extents import Chunk, digest_of
from agentfs.model.ids import ROOT_INO, Ino, Position, ReplicaId, SessionId, TxnNumber, first_ino
from agentfs.state.apply import apply_entry
from agentfs.state.tables import Tables, open_tables
from agentfs.workspace.remote_changes import Kind, RemoteChange, directory_path, remote_changes
from tests.simulation.entries import DIRECTORY, Generator, Made, founding, make, opening, put, send, text

A = SessionId(1)
D, E, F, G, NEW, NEWER = (Ino(first_ino(A) + number) for number in range(6))
ROOT = ROOT_INO

Row = tuple[str, str] | tuple[str, str, str]


@pytest.fixture
def tables() -> Iterator[Tables]:
    """`/d/`, `/d/e/`, `/f` with content, `/d/g`."""
    tables = open_tables(None)
    for entry in (founding(), opening(b"A"), opening(b"B")):
        put(tables, entry)
    made = (make(D, b"d", mode=DIRECTORY), make(E, b"e", parent=D, mode=DIRECTORY), make(F, b"f"), make(G, b"g", parent=D))
    assert send(tables, A, *made) is None
    assert send(tables, A, text(F, 0, b"content")) is None
    yield tables
    tables.close()


def derive(tables: Tables, transactions: list[list[AnyChange]], *, known: set[Ino] | None = None) -> list[RemoteChange]:
    """Apply one entry of session A, and say what it means."""
    seen = tables.sessions[A].seen
    numbered = [Transaction(TxnNumber(seen + 1 + number), changes) for number, changes in enumerate(transactions)]
    return apply(tables, Entry(A, 3, numbered), known=known)


def apply(tables: Tables, entry: Entry, *, known: set[Ino] | None = None) -> list[RemoteChange]:
    mark = tables.mark()
    outcomes = apply_entry(tables, entry, Position(tables.position + 1))
    undo = tables.cut(mark)
    tables.settle()
    return remote_changes(tables, entry, outcomes, undo, lambda ino: known is None or ino in known)


def rows(changes: list[RemoteChange]) -> list[Row]:
    return [
        (change.kind.value, *(str(b"/".join((place.path, place.name)), "ascii") for place in change.places))
        for change in changes
    ]


def moving(parent: Ino, name: bytes, target: Ino, new_name: bytes, flags: int = 0) -> Rename:
    return Rename(parent, name, target, new_name, flags, False, 30)


CASES: list[tuple[str, list[AnyChange], list[Row]]] = [
    ("a file", [make(NEW, b"n"), text(NEW, 0, b"x")], [("created", "/n"), ("modified", "/n")]),
    ("a directory, and in it", [make(NEW, b"n", mode=DIRECTORY), make(NEWER, b"m", parent=NEW)],
     [("created", "/n"), ("created", "n/m")]),
    ("one write of several", [Truncate(F, 0, 30), text(F, 0, b"x"), Truncate(F, 9, 30)], [("modified", "/f")]),
    ("attributes", [SetAttr(F, 30, mode=0o600), SetXattr(F, b"user.x", b"1", 0, 30)], [("attributes", "/f")]),
    ("a write on both sides of a move", [text(F, 0, b"x"), moving(ROOT, b"f", D, b"h"), text(F, 0, b"y")],
     [("modified", "/f"), ("moved", "/f", "d/h"), ("modified", "d/h")]),
    ("a move onto a file", [moving(ROOT, b"f", D, b"g")], [("moved", "/f", "d/g")]),
    ("an exchange", [moving(ROOT, b"f", D, b"g", RENAME_EXCHANGE)], [("exchanged", "/f", "d/g")]),
    ("a moved directory", [make(NEW, b"x", parent=E), moving(ROOT, b"d", ROOT, b"c"), make(NEWER, b"y", parent=E)],
     [("created", "d/e/x"), ("moved", "/d", "/c"), ("created", "c/e/y")]),
    ("made and removed", [make(NEW, b"n"), text(NEW, 0, b"x"), Unlink(ROOT, b"n", NEW, False, 30)],
     [("created", "/n"), ("modified", "/n"), ("deleted", "/n")]),
    ("a tree removed", [Unlink(D, b"g", G, False, 30), Rmdir(D, b"e", 30), Rmdir(ROOT, b"d", 30)],
     [("deleted", "d/g"), ("deleted", "d/e"), ("deleted", "/d")]),
    ("a second name", [Link(D, b"l", F, 30), Unlink(ROOT, b"f", F, False, 30)], [("created", "d/l"), ("deleted", "/f")]),
    ("a move onto the same file", [Link(ROOT, b"l", F, 30), moving(ROOT, b"f", ROOT, b"l")], [("created", "/l")]),
    ("a name used again", [Unlink(ROOT, b"f", F, False, 30), make(NEW, b"f")], [("deleted", "/f"), ("created", "/f")]),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
@pytest.mark.parametrize("together", [True, False], ids=["one transaction", "one each"])
def test_what_changes_mean(tables: Tables, changes: list[AnyChange], expected: list[Row], together: bool) -> None:
    assert rows(derive(tables, [changes] if together else [[change] for change in changes])) == expected


def test_what_aborted_or_came_twice_is_nothing(tables: Tables) -> None:
    assert rows(derive(tables, [[make(NEW, b"n"), make(NEWER, b"f")], [make(NEW, b"m")]])) == [("created", "/m")]
    again = Entry(A, 3, [Transaction(tables.sessions[A].seen, [make(NEW, b"m")])])
    assert rows(apply(tables, again)) == []


def test_where_bytes_are_is_nothing_to_watchers(tables: Tables) -> None:
    folded = ChunkRun(0, b"s" * 32, Chunk(4, 9, 7, digest_of(b"content")))
    assert rows(derive(tables, [[AddSegment(b"s" * 32, 90, [ReplicaId(1)]), Fold(F, 1, [folded])]])) == []
    assert [extent.chunk for extent in tables.extents(F, 0, 7)] == [folded.chunk]


def test_only_known_directories_count(tables: Tables) -> None:
    changes: list[list[AnyChange]] = [[make(NEW, b"n")], [make(NEWER, b"m", parent=D)], [text(F, 0, b"x")]]
    assert rows(derive(tables, changes, known={D})) == [("created", "d/m")]
    moves: list[list[AnyChange]] = [[moving(D, b"g", ROOT, b"out")], [moving(ROOT, b"f", ROOT, b"f2")]]
    assert rows(derive(tables, moves, known={D})) == [("moved", "d/g", "/out")]


def test_what_loses_a_name_has_the_links_from_before(tables: Tables) -> None:
    changes = derive(tables, [[Link(D, b"l", F, 30)], [Unlink(ROOT, b"f", F, False, 30)], [Unlink(D, b"l", F, False, 30)]])
    assert [change.inode.nlink for change in changes[1:]] == [2, 1]
    (moved,) = derive(tables, [[make(NEW, b"n"), moving(ROOT, b"n", D, b"g")]])[1:]
    assert moved.other is not None
    assert (moved.other.ino, moved.other.nlink) == (G, 1)


# ---- every name, whatever happens


Tree = dict[tuple[Ino, bytes], Ino]


def names(tables: Tables) -> Tree:
    return {(parent, bytes(name)): ino for parent, name, ino in tables.db.execute("SELECT parent, name, ino FROM dentries")}


def follow(tree: Tree, change: RemoteChange) -> None:
    """What a watcher believes after a change, if it could be told before."""
    match change.kind:
        case Kind.CREATED:
            assert change.at.key not in tree
            tree[change.at.key] = change.inode.ino
        case Kind.DELETED:
            assert tree.pop(change.at.key) == change.inode.ino
        case Kind.MOVED:
            assert change.to is not None
            assert tree.get(change.to.key) == (change.other.ino if change.other else None)
            tree[change.to.key] = tree.pop(change.at.key)
        case Kind.EXCHANGED:
            assert change.to is not None
            tree[change.at.key], tree[change.to.key] = tree[change.to.key], tree[change.at.key]


def path_in(tree: Tree, directory: Ino) -> bytes:
    parts: list[bytes] = []
    where = {ino: name for name, ino in tree.items()}
    while directory != ROOT_INO:
        directory, name = where[directory]
        parts.append(name)
    return b"/".join(reversed(parts))


@pytest.mark.parametrize("seed", range(20))
def test_following_changes_gives_the_tree(tables: Tables, seed: int) -> None:
    generator = Generator(Random(seed), SessionId(2), Made())
    tree, number = names(tables), 0
    for _ in range(60):
        count = Random(seed * 1000 + number).randrange(1, 6)
        transactions = [generator.transaction(number + 1 + each) for each in range(count)]
        number += count
        for change in apply(tables, Entry(SessionId(2), 3, transactions)):
            for place in change.places:
                assert place.path == path_in(tree, place.parent)
            follow(tree, change)
        assert tree == names(tables)
        directories = {ino for ino in tree.values() if (inode := tables.inode(ino)) is not None and inode.is_dir}
        assert all(directory_path(tables, ino) == path_in(tree, ino) for ino in directories)
