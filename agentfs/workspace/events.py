"""Events: what the transactions of an entry did to names, files and sessions, told as to somebody who watches the tree."""

import stat
from collections.abc import Callable
from typing import Any, Final, Literal

import msgspec
from msgspec.structs import replace

from agentfs.model.changes import (
    RENAME_EXCHANGE,
    AnyChange,
    CloseSession,
    Fence,
    Link,
    Make,
    OpenSession,
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
from agentfs.model.ids import NO_SESSION, ROOT_INO, Ino, Position, SessionId
from agentfs.model.inode import Inode
from agentfs.model.session import OPEN
from agentfs.state.apply import RULES, advance, apply_transaction
from agentfs.state.step import Step
from agentfs.state.tables import Tables

Kind = Literal["created", "modified", "attrib", "moved", "deleted", "opened", "closed", "fenced"]


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that a committed transaction did; docs/format.md has what each kind means.

    `index` counts the events of one entry from 1. `time_ns` is the wall clock of whoever sent the entry, `writer` and
    `session` are who it was. Paths lead from the workspace's root and are `/` for that itself. `version` and `size_bytes` are a
    regular file's, once the whole transaction is applied. `subject` is whose session was opened, closed or fenced.
    """

    position: Position
    index: int = 0
    time_ns: int
    kind: Kind
    writer: str
    session: SessionId
    ino: Ino | None = None
    path: bytes | None = None
    old_path: bytes | None = None
    directory: bool | None = None
    exchange: bool = False
    version: int | None = None
    size_bytes: int | None = None
    subject: str | None = None
    subject_session: SessionId | None = None


def events_of(tables: Tables, entry: Entry, position: Position) -> list[Event]:
    """Apply the entry at `position`, which must be the next one; return what it did, in order.

    What the rules refuse, and what was sent twice, gives none. Slower than `apply_entry`: what commits is applied three times.
    """
    assert position == tables.position + 1, f"entry {position} cannot follow {tables.position}"
    found = [event for transaction in entry.transactions for event in _apply(tables, entry, transaction, position)]
    advance(tables, position)
    return [replace(event, index=index) for index, event in enumerate(found, start=1)]


def _apply(tables: Tables, entry: Entry, transaction: Transaction, position: Position) -> list[Event]:
    before = tables.mark()
    outcome = apply_transaction(tables, entry.session, transaction, position)
    ignored = tables.mark() == before
    if outcome is not None or ignored or _LOOKS.keys().isdisjoint(map(type, transaction.changes)):
        return []
    # It commits, so each of its changes can be made singly; what a change is about must be looked at in front of it.
    tables.revert(before)
    look = _Look(tables, entry, position)
    step = Step(tables, entry.session, position)
    for change in transaction.changes:
        look.before(change)
        RULES[type(change)](step, change)
    tables.revert(before)
    apply_transaction(tables, entry.session, transaction, position)
    return look.finish()


class _Look:
    """A transaction of which it is known that it commits, looked at change by change."""

    def __init__(self, tables: Tables, entry: Entry, position: Position) -> None:
        sender = tables.sessions.get(entry.session)
        self.tables = tables
        self.session = entry.session
        self._writer = sender.writer if sender else ""
        self._time_ns = entry.time_ns
        self._position = position
        self._events: list[Event] = []
        # One event a file, however many of the changes are about it.
        self.modified: dict[Ino, None] = {}
        self.attributes: dict[Ino, None] = {}

    def before(self, change: AnyChange) -> None:
        """Take down what `change`, which is to be applied next, is about."""
        if type(change) in _LOOKS:
            _LOOKS[type(change)](self, change)

    def finish(self) -> list[Event]:
        """The events, now that the whole transaction is applied."""
        for ino in self.modified:
            self._add_by_inode("modified", ino)
        for ino in self.attributes:
            self._add_by_inode("attrib", ino)
        return [self._as_committed(event) for event in self._events]

    def add(self, kind: Kind, **fields: Any) -> None:
        """One more event; `writer` is the sender unless it is given."""
        by = {"writer": self._writer, "session": self.session}
        self._events.append(Event(position=self._position, time_ns=self._time_ns, kind=kind, **{**by, **fields}))

    def add_of(self, kind: Kind, inode: Inode, path: bytes, **fields: Any) -> None:
        """One more event about an inode that is there in front of the change."""
        content = {"version": inode.version, "size_bytes": inode.size} if inode.is_file else {}
        self.add(kind, ino=inode.ino, path=path, directory=inode.is_dir, **content, **fields)

    def inode_at(self, parent: Ino, name: bytes) -> Inode | None:
        """What stands under a name."""
        dentry = self.tables.dentry(parent, name)
        return self.tables.inode(dentry.ino) if dentry else None

    def path(self, parent: Ino, name: bytes) -> bytes:
        """The path of a name in a directory."""
        parts = [name]
        while parent != ROOT_INO:
            found = _oldest_name(self.tables, parent)
            assert found is not None, "a directory that holds names has one"
            parent, name = found
            parts.append(name)
        return b"/".join(reversed(parts))

    def _add_by_inode(self, kind: Kind, ino: Ino) -> None:
        """What has no name any more, because it was removed while open, is not in the tree that is told of."""
        inode = self.tables.inode(ino)
        if inode is None:
            return
        if ino == ROOT_INO:
            self.add_of(kind, inode, b"/")
        elif found := _oldest_name(self.tables, ino):
            self.add_of(kind, inode, self.path(*found))

    def _as_committed(self, event: Event) -> Event:
        inode = self.tables.inode(event.ino) if event.ino is not None else None
        if inode is None or not inode.is_file:
            return event
        return replace(event, version=inode.version, size_bytes=inode.size)


def _oldest_name(tables: Tables, ino: Ino) -> tuple[Ino, bytes] | None:
    """The name of an inode that it has had for longest, as (directory, name)."""
    query = "SELECT parent, name FROM dentries WHERE ino = ? ORDER BY cookie LIMIT 1"
    row = tables.db.execute(query, (ino,)).fetchone()
    return (Ino(row[0]), bytes(row[1])) if row else None


def _make(look: _Look, change: Make) -> None:
    # The inode is not there yet: the transaction's end fills in what it then holds.
    path, directory = look.path(change.parent, change.name), stat.S_ISDIR(change.mode)
    look.add("created", ino=change.ino, path=path, directory=directory)


def _link(look: _Look, change: Link) -> None:
    inode = look.tables.inode(change.ino)
    assert inode is not None, "only what is there is linked"
    look.add_of("created", inode, look.path(change.parent, change.name))


def _remove(look: _Look, change: Unlink | Rmdir) -> None:
    inode = look.inode_at(change.parent, change.name)
    assert inode is not None, "only what is there is removed"
    look.add_of("deleted", inode, look.path(change.parent, change.name))


def _rename(look: _Look, change: Rename) -> None:
    source, target = look.inode_at(change.parent, change.name), look.inode_at(change.new_parent, change.new_name)
    assert source is not None, "only what is there is renamed"
    if target is not None and target.ino == source.ino:
        return
    old, new = look.path(change.parent, change.name), look.path(change.new_parent, change.new_name)
    exchange = bool(change.flags & RENAME_EXCHANGE)
    if target is not None and not exchange:
        look.add_of("deleted", target, new)
    look.add_of("moved", source, new, old_path=old, exchange=exchange)
    if target is not None and exchange:
        look.add_of("moved", target, old, old_path=new, exchange=True)


def _change_content(look: _Look, change: Write | Truncate) -> None:
    look.modified[change.ino] = None


def _change_attributes(look: _Look, change: SetAttr | SetXattr | RemoveXattr) -> None:
    look.attributes[change.ino] = None


def _open_session(look: _Look, change: OpenSession) -> None:
    if any(session.token == change.token for session in look.tables.sessions.values()):
        return
    number = SessionId(look.tables.counters["session"] + 1)
    writer = change.label or f"{change.host}:{change.pid}"
    sender = {"writer": writer, "session": number} if look.session == NO_SESSION else {}
    look.add("opened", subject=writer, subject_session=number, **sender)


def _close_session(look: _Look, change: CloseSession) -> None:
    _end(look, "closed", look.session)


def _fence(look: _Look, change: Fence) -> None:
    _end(look, "fenced", change.session)


def _end(look: _Look, kind: Kind, number: SessionId) -> None:
    session = look.tables.sessions[number]
    if session.standing == OPEN:
        look.add(kind, subject=session.writer, subject_session=number)


_LOOKS: Final[dict[type[AnyChange], Callable[[_Look, Any], None]]] = {
    Make: _make,
    Link: _link,
    Unlink: _remove,
    Rmdir: _remove,
    Rename: _rename,
    Truncate: _change_content,
    Write: _change_content,
    SetAttr: _change_attributes,
    SetXattr: _change_attributes,
    RemoveXattr: _change_attributes,
    OpenSession: _open_session,
    CloseSession: _close_session,
    Fence: _fence,
}
"""What is taken down in front of each kind of change; the others are no events."""
