"""What an entry of another session means to whoever watches the tree: names that came, moved and went, files that changed.

It is read from the entry's changes, their outcomes, and how the rows they changed would be taken back: what stood under a name
before is known there alone.
"""

import enum
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from msgspec.structs import replace

from agentfs.model.changes import (
    RENAME_EXCHANGE,
    AnyChange,
    Link,
    Make,
    RemoveXattr,
    Rename,
    Rmdir,
    SetAttr,
    SetXattr,
    Truncate,
    Unlink,
    Write,
)
from agentfs.model.entry import Entry
from agentfs.model.ids import ROOT_INO, Ino
from agentfs.model.inode import Inode
from agentfs.state.apply import Outcome
from agentfs.state.queries import a_name_of
from agentfs.state.rows import Undo
from agentfs.state.tables import Tables

Name = tuple[Ino, bytes]
"""A name and the directory it is in."""


class Kind(enum.Enum):
    """What happened to a name, or to the file under it."""

    CREATED = "created"
    MODIFIED = "modified"
    ATTRIBUTES = "attributes"
    MOVED = "moved"
    EXCHANGED = "exchanged"
    DELETED = "deleted"


@dataclass(frozen=True, slots=True)
class Place:
    """A name, its directory, and that directory's path below the root when it happened (empty for the root)."""

    parent: Ino
    name: bytes
    path: bytes

    @property
    def key(self) -> Name:
        """The name and the directory it is in."""
        return self.parent, self.name


@dataclass(frozen=True, slots=True)
class RemoteChange:
    """One thing that happened. `to` is where a moved name went, `other` what stood there, replaced or exchanged.

    The inodes are as the entry left them, as far as they are there after it; what lost a name has the link count from before.
    """

    kind: Kind
    at: Place
    inode: Inode
    to: Place | None = None
    other: Inode | None = None

    @property
    def places(self) -> tuple[Place, ...]:
        """Every name concerned."""
        return (self.at,) if self.to is None else (self.at, self.to)


@dataclass(slots=True)
class _Step:
    kind: Kind
    ino: Ino
    at: Name | None = None
    to: Name | None = None
    other: Ino | None = None


def remote_changes(
    tables: Tables, entry: Entry, outcomes: Sequence[Outcome], undo: Undo, knows: Callable[[Ino], bool]
) -> list[RemoteChange]:
    """What happened in the directories that `knows` answers for, in order; `tables` are as the entry left them.

    Transactions that aborted, or were sent before, are nothing. Several changes of one kind to the same file are one, as long
    as its names stay. A hot path for every entry of another mount.
    """
    steps = list(_steps(entry, outcomes, undo))
    return _Rewind(tables, undo, knows).changes(steps) if steps else []


def directory_path(tables: Tables, ino: Ino) -> bytes | None:
    """A directory's path below the root, empty for the root; None when it is gone."""
    names: list[bytes] = []
    while ino != ROOT_INO:
        found = a_name_of(tables, ino)
        if found is None:
            return None
        ino, name = found
        names.append(name)
    return b"/".join(reversed(names))


# ---- forward: what each change did


def _steps(entry: Entry, outcomes: Sequence[Outcome], undo: Undo) -> Iterator[_Step]:
    seen = next((old.seen for call, (_, old) in _calls(undo, "_set_session") if old and old.session == entry.session), None)
    if seen is None:
        return
    rows = _NameRows(undo)
    # Of several changes of one kind to a file the last one counts: readers find the content of all of them.
    latest: dict[tuple[Ino, Kind], _Step] = {}
    order: dict[int, _Step] = {}
    for transaction, outcome in zip(entry.transactions, outcomes, strict=True):
        if outcome is not None or transaction.number <= seen:
            continue
        for change in transaction.changes:
            step = _step(change, rows)
            if step is None:
                continue
            if step.kind in (Kind.MODIFIED, Kind.ATTRIBUTES):
                former = latest.get((step.ino, step.kind))
                if former is not None:
                    order.pop(id(former), None)
                latest[step.ino, step.kind] = step
            else:
                for kind in (Kind.MODIFIED, Kind.ATTRIBUTES):
                    latest.pop((step.ino, kind), None)
            order[id(step)] = step
    yield from order.values()


def _step(change: AnyChange, rows: "_NameRows") -> _Step | None:
    match change:
        case Make(parent=parent, name=name, ino=ino) | Link(parent=parent, name=name, ino=ino):
            return _Step(Kind.CREATED, ino, (parent, name)) if rows.came((parent, name)) else None
        case Unlink(parent=parent, name=name) | Rmdir(parent=parent, name=name):
            gone = rows.gone((parent, name))
            return None if gone is None else _Step(Kind.DELETED, gone, (parent, name))
        case Rename():
            return rows.renamed(change)
        case Write(ino=ino) | Truncate(ino=ino):
            return _Step(Kind.MODIFIED, ino)
        case SetAttr(ino=ino) | SetXattr(ino=ino) | RemoveXattr(ino=ino):
            return _Step(Kind.ATTRIBUTES, ino)
        case _:
            return None


class _NameRows:
    """The rows of names that an entry added and removed, in order, to be taken one by one by the changes that did it."""

    def __init__(self, undo: Undo) -> None:
        self._gone: defaultdict[Name, deque[tuple[int, Ino]]] = defaultdict(deque)
        self._came: defaultdict[Name, int] = defaultdict(int)
        for number, (call, arguments) in enumerate(_calls(undo, "_insert_dentry", "_erase_dentry")):
            if call == "_insert_dentry":
                dentry = arguments[0]
                self._gone[dentry.parent, dentry.name].append((number, dentry.ino))
            else:
                self._came[arguments] += 1

    def came(self, name: Name) -> bool:
        """Take a name that was added, if it was."""
        self._came[name] -= 1
        return self._came[name] >= 0

    def gone(self, name: Name) -> Ino | None:
        """Take a name that was removed: the inode it led to."""
        rows = self._gone[name]
        return rows.popleft()[1] if rows else None

    def renamed(self, change: Rename) -> _Step | None:
        """What a rename did; nothing if both names led to the same file."""
        at, to = (change.parent, change.name), (change.new_parent, change.new_name)
        if not self._gone[at] or not self.came(to):
            return None
        number, ino = self._gone[at].popleft()
        if change.flags & RENAME_EXCHANGE:
            self.came(at)
            return _Step(Kind.EXCHANGED, ino, at, to, self.gone(to))
        # The row that a rename replaces is removed right before the one that it moves.
        replaced = self._gone[to] and self._gone[to][0][0] == number - 1
        return _Step(Kind.MOVED, ino, at, to, self.gone(to) if replaced else None)


def _calls(undo: Undo, *names: str) -> Iterator[tuple[str, tuple]]:  # type: ignore[type-arg]
    for call, arguments in undo:
        name = getattr(call, "__name__", "")
        if name in names:
            yield name, arguments


# ---- backward: where it was, and what was there


@dataclass(slots=True)
class _Rewind:
    """Goes back from State as the entry left it, so that each step sees names as they were when it happened."""

    tables: Tables
    undo: Undo
    knows: Callable[[Ino], bool]
    names: dict[Ino, Name] = field(default_factory=dict)
    links: dict[Ino, int] = field(default_factory=dict)
    paths: dict[Ino, bytes | None] = field(default_factory=dict)
    gone: dict[Ino, Inode] | None = None

    def changes(self, steps: list[_Step]) -> list[RemoteChange]:
        """The steps that concern a directory that is known, in order."""
        found = []
        for step in reversed(steps):
            change = self._change(step)
            if change is not None:
                found.append(change)
            self._take_back(step)
        return found[::-1]

    def _change(self, step: _Step) -> RemoteChange | None:
        at = step.at or self._name(step.ino)
        parents = [name[0] for name in (at, step.to) if name is not None]
        if at is None or not any(self.knows(parent) for parent in parents):
            return None
        here = self._place(at)
        there = self._place(step.to) if step.to is not None else None
        inode = self._inode(step.ino, lost=step.kind is Kind.DELETED)
        other = self._inode(step.other, lost=step.kind is Kind.MOVED) if step.other is not None else None
        if here is None or inode is None or (there is None and step.to is not None):
            return None
        return RemoteChange(step.kind, here, inode, there, other)

    def _take_back(self, step: _Step) -> None:
        if step.at is None:
            return
        if step.kind is Kind.CREATED:
            self.names.pop(step.ino, None)
            self.links[step.ino] = self._links(step.ino) - 1
            return
        self.names[step.ino] = step.at
        if step.kind is Kind.DELETED:
            self.links[step.ino] = self._links(step.ino) + 1
        elif step.to is not None and step.other is not None:
            self.names[step.other] = step.to
            self.links[step.other] = self._links(step.other) + (step.kind is Kind.MOVED)
        if any(ino is not None and self._is_dir(ino) for ino in (step.ino, step.other)):
            self.paths.clear()

    def _links(self, ino: Ino) -> int:
        inode = self.tables.inode(ino)
        return self.links.get(ino, 0 if inode is None else inode.nlink)

    def _inode(self, ino: Ino, *, lost: bool) -> Inode | None:
        inode = self.tables.inode(ino)
        if inode is None:
            if self.gone is None:
                # An inode has a row for each time it changed; the last one says how it was just before it went.
                rows = (arguments for _, arguments in _calls(self.undo, "_set_inode"))
                self.gone = {number: old for number, old in rows if old is not None}
            inode = self.gone.get(ino)
        if inode is not None and lost and not inode.is_dir:
            return replace(inode, nlink=self._links(ino) + 1)
        return inode

    def _is_dir(self, ino: Ino) -> bool:
        inode = self._inode(ino, lost=False)
        return inode is not None and inode.is_dir

    def _name(self, ino: Ino) -> Name | None:
        return self.names.get(ino) or a_name_of(self.tables, ino)

    def _place(self, name: Name) -> Place | None:
        path = self._path(name[0])
        return None if path is None else Place(*name, path)

    def _path(self, ino: Ino) -> bytes | None:
        """A directory's path below the root."""
        if ino == ROOT_INO:
            return b""
        if ino not in self.paths:
            self.paths[ino] = None
            name = self._name(ino)
            above = None if name is None else self._path(name[0])
            self.paths[ino] = None if name is None or above is None else above + b"/" * bool(above) + name[1]
        return self.paths[ino]
