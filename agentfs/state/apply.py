"""The rules, once: how an entry changes State. Deterministic: no clock, no randomness, no I/O beyond the rows.

Each transaction commits whole or aborts with the error that its caller gets. The rules are those of the man pages of
rename(2), link(2), unlink(2), rmdir(2), truncate(2), setxattr(2) and of inode(7) for time stamps. A hot path: every
operation of a mount passes here twice at most (scripts/bench).
"""

import stat
from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from agentfs.model.changes import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    AddSegment,
    AnyChange,
    CloseSession,
    Drop,
    Fence,
    Found,
    InlineRun,
    Link,
    Make,
    OpenSession,
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
from agentfs.model.extents import INLINE_MAX, Extent
from agentfs.model.ids import NO_SESSION, ROOT_INO, Ino, Position, SegmentId, SessionId, TxnNumber
from agentfs.model.inode import FILE_SIZE_MAX, LINK_MAX, Dentry, FileVersion, Inode
from agentfs.model.session import CLOSED, FENCED, OPEN, Session
from agentfs.state.tables import Tables

XATTR_CREATE = 1
XATTR_REPLACE = 2

Outcome = AgentfsError | None
"""Why a transaction aborted, or None: it committed."""

EVERYTHING = FILE_SIZE_MAX
"""An offset that no byte of any file is behind."""


def apply_entry(tables: Tables, entry: Entry, position: Position) -> list[Outcome]:
    """Apply the entry that stands at `position`, which must be the next one; return each transaction's outcome."""
    assert position == tables.position + 1, f"entry {position} cannot follow {tables.position}"
    outcomes = [apply_transaction(tables, entry.session, transaction, position) for transaction in entry.transactions]
    advance(tables, position)
    return outcomes


def advance(tables: Tables, position: Position) -> None:
    """Say that the entry at `position` is applied: its transactions were, one by one."""
    tables.count("position", position - tables.position)


def apply_transaction(tables: Tables, session: SessionId, transaction: Transaction, position: Position) -> Outcome:
    """Apply one transaction of the entry at `position`. Its row changes can be taken back through `tables.mark()`."""
    sender = tables.sessions.get(session)
    if session != NO_SESSION:
        if sender is None or sender.standing != OPEN:
            return Fenced(f"session {session} is not open")
        if transaction.number <= sender.seen:
            return None
        tables.put_session(replace(sender, seen=transaction.number))
    mark = tables.mark()
    step = _Step(tables, session, position)
    try:
        for change in transaction.changes:
            _RULES[type(change)](step, change)
    except AgentfsError as error:
        tables.revert(mark)
        return error
    step.count_versions()
    return None


class _Step:
    """A transaction being applied: the rows, who asks, and which files' content it has changed so far."""

    __slots__ = ("changed", "position", "session", "tables")

    def __init__(self, tables: Tables, session: SessionId, position: Position) -> None:
        self.tables = tables
        self.session = session
        self.position = position
        self.changed: dict[Ino, int] = {}

    def inode(self, ino: Ino) -> Inode:
        """The inode, which must be there."""
        found = self.tables.inode(ino)
        if found is None:
            raise Stale(f"inode {ino} is gone")
        return found

    def directory(self, ino: Ino) -> Inode:
        """A directory that can take names."""
        found = self.tables.inode(ino)
        if found is None or found.nlink == 0:
            raise NotFound("the directory is gone")
        if not found.is_dir:
            raise NotDirectory("not a directory")
        return found

    def dentry(self, parent: Ino, name: bytes) -> Dentry:
        """The name, which must be there."""
        found = self.tables.dentry(parent, name)
        if found is None:
            raise NotFound("no such name")
        return found

    def update(self, inode: Inode, **fields: Any) -> Inode:
        """Replace an inode's fields, and say who did it at which position."""
        new = replace(inode, commit=self.position, writer=self.session, **fields)
        self.tables.put_inode(new)
        return new

    def touch_directory(self, ino: Ino, time_ns: int, links: int = 0) -> None:
        """A name in the directory changed: its times, and its link count if a subdirectory came or went."""
        found = self.directory(ino)
        self.update(found, mtime_ns=time_ns, ctime_ns=time_ns, nlink=found.nlink + links)

    def count_versions(self) -> None:
        """One more version for each file whose content the transaction changed, however many of its changes did."""
        for ino, time_ns in self.changed.items():
            inode = self.tables.inode(ino)
            if inode is None:
                continue
            self.update(inode, version=inode.version + 1)
            version = FileVersion(ino, inode.version + 1, self.position, time_ns, inode.size, self.session)
            self.tables.put_version(version)


# ---- the workspace and its sessions


def _found(step: _Step, change: Found) -> None:
    if step.tables.found is not None:
        raise Exists("the workspace has its first entry already")
    step.tables.put_found(change)
    step.tables.put_inode(
        Inode(
            ino=ROOT_INO,
            mode=stat.S_IFDIR | 0o755,
            nlink=2,
            uid=change.uid,
            gid=change.gid,
            rdev=0,
            size=0,
            allocated=0,
            atime_ns=change.time_ns,
            mtime_ns=change.time_ns,
            ctime_ns=change.time_ns,
            version=0,
            commit=step.position,
            writer=NO_SESSION,
            parent=ROOT_INO,
            xattrs=0,
            target=b"",
        )
    )


def _open_session(step: _Step, change: OpenSession) -> None:
    # The token makes sending the same registration again harmless.
    if any(session.token == change.token for session in step.tables.sessions.values()):
        return
    number = SessionId(step.tables.count("session", 1))
    opened = (change.token, change.host, change.pid, change.label, change.time_ns)
    step.tables.put_session(Session(number, *opened, TxnNumber(0), OPEN))


def _close_session(step: _Step, change: CloseSession) -> None:
    _end_session(step, step.session, CLOSED)


def _fence(step: _Step, change: Fence) -> None:
    if change.session not in step.tables.sessions:
        raise NotFound(f"no session {change.session}")
    _end_session(step, change.session, FENCED)


def _end_session(step: _Step, number: SessionId, standing: int) -> None:
    session = step.tables.sessions[number]
    if session.standing != OPEN:
        return
    step.tables.put_session(replace(session, standing=standing))
    for ino in sorted(ino for ino, owner in step.tables.orphans.items() if owner == number):
        _erase(step, ino)


# ---- names


def _make(step: _Step, change: Make) -> None:
    tables = step.tables
    parent = step.directory(change.parent)
    if tables.dentry(change.parent, change.name) is not None:
        raise Exists("the name is taken")
    assert tables.inode(change.ino) is None, f"inode number {change.ino} is given twice"
    is_dir = stat.S_ISDIR(change.mode)
    links, up = (2, change.parent) if is_dir else (1, Ino(0))
    now = change.time_ns
    inode = Inode(
        ino=change.ino,
        mode=change.mode,
        nlink=links,
        uid=change.uid,
        gid=change.gid,
        rdev=change.rdev,
        size=len(change.target),
        allocated=0,
        atime_ns=now,
        mtime_ns=now,
        ctime_ns=now,
        version=0,
        commit=step.position,
        writer=step.session,
        parent=up,
        xattrs=0,
        target=change.target,
    )
    tables.put_inode(inode)
    tables.put_dentry(change.parent, change.name, change.ino)
    step.update(parent, mtime_ns=now, ctime_ns=now, nlink=parent.nlink + is_dir)


def _link(step: _Step, change: Link) -> None:
    inode = step.inode(change.ino)
    if inode.is_dir:
        raise NotPermitted("a directory has one name")
    if inode.nlink == 0:
        raise NotFound("the file has no name left")
    if inode.nlink >= LINK_MAX:
        raise TooManyLinks("the file has too many names")
    parent = step.directory(change.parent)
    if step.tables.dentry(change.parent, change.name) is not None:
        raise Exists("the name is taken")
    step.tables.put_dentry(change.parent, change.name, change.ino)
    step.update(inode, nlink=inode.nlink + 1, ctime_ns=change.time_ns)
    step.update(parent, mtime_ns=change.time_ns, ctime_ns=change.time_ns)


def _unlink(step: _Step, change: Unlink) -> None:
    dentry = step.dentry(change.parent, change.name)
    if dentry.ino != change.ino:
        raise NotFound("another file stands under the name by now")
    if step.inode(dentry.ino).is_dir:
        raise IsDirectory("a directory")
    step.tables.remove_dentry(dentry)
    step.touch_directory(change.parent, change.time_ns)
    _lose_name(step, dentry.ino, change.time_ns, keep=change.keep)


def _rmdir(step: _Step, change: Rmdir) -> None:
    dentry = step.dentry(change.parent, change.name)
    inode = step.inode(dentry.ino)
    if not inode.is_dir:
        raise NotDirectory("not a directory")
    if not step.tables.is_empty(dentry.ino):
        raise NotEmpty("the directory has entries")
    step.tables.remove_dentry(dentry)
    step.touch_directory(change.parent, change.time_ns, links=-1)
    _lose_name(step, dentry.ino, change.time_ns, keep=False)


def _lose_name(step: _Step, ino: Ino, time_ns: int, *, keep: bool) -> None:
    """An inode loses a name (a directory: its only one) and with the last one itself, unless it is to be kept as an orphan."""
    inode = step.inode(ino)
    links = 0 if inode.is_dir else inode.nlink - 1
    if links == 0 and not keep:
        _erase(step, ino)
        return
    step.update(inode, nlink=links, ctime_ns=time_ns)
    if links == 0:
        step.tables.put_orphan(ino, step.session)


def _erase(step: _Step, ino: Ino) -> None:
    tables = step.tables
    inode = step.inode(ino)
    if inode.allocated:
        _cut(step, ino, 0, EVERYTHING)
    if inode.xattrs:
        for name in tables.xattr_names(ino):
            tables.put_xattr(ino, name, None)
    if inode.version:
        tables.remove_versions(ino)
    if ino in tables.orphans:
        tables.put_orphan(ino, None)
    tables.remove_inode(ino)


def _drop(step: _Step, change: Drop) -> None:
    if step.tables.orphans.get(change.ino) == step.session:
        _erase(step, change.ino)


def _rename(step: _Step, change: Rename) -> None:
    source = step.dentry(change.parent, change.name)
    step.directory(change.new_parent)
    target = step.tables.dentry(change.new_parent, change.new_name)
    moved = step.inode(source.ino)
    if change.flags & RENAME_EXCHANGE:
        if target is None:
            raise NotFound("no such name to exchange with")
        _exchange(step, change, source, target)
        return
    if target is not None and change.flags & RENAME_NOREPLACE:
        raise Exists("the name is taken")
    _refuse_cycle(step, moved, change.new_parent)
    if target is not None:
        if target.ino == source.ino:
            return
        _refuse_replacing(step, moved, step.inode(target.ino))
        step.tables.remove_dentry(target)
        if moved.is_dir:
            step.touch_directory(change.new_parent, change.time_ns, links=-1)
        _lose_name(step, target.ino, change.time_ns, keep=change.keep and not moved.is_dir)
    step.tables.remove_dentry(source)
    step.tables.put_dentry(change.new_parent, change.new_name, source.ino)
    step.touch_directory(change.parent, change.time_ns, links=-moved.is_dir)
    step.touch_directory(change.new_parent, change.time_ns, links=moved.is_dir)
    up = change.new_parent if moved.is_dir else Ino(0)
    step.update(step.inode(source.ino), ctime_ns=change.time_ns, parent=up)


def _exchange(step: _Step, change: Rename, source: Dentry, target: Dentry) -> None:
    if source.ino == target.ino:
        return
    moved, other = step.inode(source.ino), step.inode(target.ino)
    _refuse_cycle(step, moved, change.new_parent)
    _refuse_cycle(step, other, change.parent)
    step.tables.remove_dentry(source)
    step.tables.remove_dentry(target)
    step.tables.put_dentry(source.parent, source.name, target.ino)
    step.tables.put_dentry(target.parent, target.name, source.ino)
    links = moved.is_dir - other.is_dir
    step.touch_directory(change.parent, change.time_ns, links=-links)
    step.touch_directory(change.new_parent, change.time_ns, links=links)
    for inode, up in ((moved, target.parent), (other, source.parent)):
        # The parents' rows were just written, and one of the two may be a parent itself.
        now = step.inode(inode.ino)
        step.update(now, ctime_ns=change.time_ns, parent=up if inode.is_dir else Ino(0))


def _refuse_cycle(step: _Step, moved: Inode, new_parent: Ino) -> None:
    if not moved.is_dir:
        return
    ino = new_parent
    while ino != ROOT_INO:
        if ino == moved.ino:
            raise Invalid("a directory cannot move into itself")
        ino = step.inode(ino).parent
    if moved.ino == ROOT_INO:
        raise Invalid("the root directory cannot move")


def _refuse_replacing(step: _Step, moved: Inode, target: Inode) -> None:
    if moved.is_dir and not target.is_dir:
        raise NotDirectory("a directory cannot replace a file")
    if target.is_dir and not moved.is_dir:
        raise IsDirectory("a file cannot replace a directory")
    if target.is_dir and not step.tables.is_empty(target.ino):
        raise NotEmpty("the directory to replace has entries")


# ---- content


def _file(step: _Step, ino: Ino) -> Inode:
    inode = step.inode(ino)
    if not inode.is_file:
        raise Invalid("not a regular file")
    return inode


def _truncate(step: _Step, change: Truncate) -> None:
    inode = _file(step, change.ino)
    if change.size > FILE_SIZE_MAX:
        raise TooLarge("the file would be too large")
    freed = _cut(step, change.ino, change.size, EVERYTHING) if change.size < inode.size and inode.allocated else 0
    step.update(inode, size=change.size, allocated=inode.allocated - freed, **_written(inode, change.time_ns))
    step.changed[change.ino] = change.time_ns


def _write(step: _Step, change: Write) -> None:
    inode = _file(step, change.ino)
    base = inode.size if change.append else 0
    size, allocated = inode.size, inode.allocated
    for run in change.runs:
        start, end = base + run.offset, base + run.offset + run.length
        if end > FILE_SIZE_MAX:
            raise TooLarge("the file would be too large")
        if start < size and allocated:
            allocated -= _cut(step, change.ino, start, end)
        if isinstance(run, InlineRun):
            _put_inline(step, change.ino, start, run.data)
        else:
            segment = step.tables.segment_id(run.segment)
            if segment is None:
                raise Corrupt(f"segment {run.segment.hex()} is not known")
            step.tables.put_extent(Extent(change.ino, start, run.length, b"", segment, run.chunk, 0))
        allocated += run.length
        size = max(size, end)
    step.update(inode, size=size, allocated=allocated, **_written(inode, change.time_ns))
    step.changed[change.ino] = change.time_ns


def _written(inode: Inode, time_ns: int) -> dict[str, int]:
    """The times of a write that was made at `time_ns` and is committed now, perhaps after a later chmod."""
    return {"mtime_ns": time_ns, "ctime_ns": max(time_ns, inode.ctime_ns)}


def _put_inline(step: _Step, ino: Ino, start: int, data: bytes) -> None:
    """Add an inline extent; one that ends where it begins grows instead, so that a log of many appends stays few rows."""
    before = step.tables.extents(ino, start - 1, start) if start else []
    if before and not before[0].segment and before[0].end == start and before[0].length + len(data) <= INLINE_MAX:
        step.tables.remove_extent(before[0])
        start, data = before[0].offset, before[0].data + data
    step.tables.put_extent(Extent(ino, start, len(data), data, SegmentId(0), None, 0))


def _cut(step: _Step, ino: Ino, start: int, end: int) -> int:
    """Take the file's bytes in `[start, end)` out of its extents; return how many there were."""
    freed = 0
    for extent in step.tables.extents(ino, start, end):
        step.tables.remove_extent(extent)
        freed += min(end, extent.end) - max(start, extent.offset)
        if extent.offset < start:
            step.tables.put_extent(extent.part(extent.offset, start))
        if extent.end > end:
            step.tables.put_extent(extent.part(end, extent.end))
    return freed


def _add_segment(step: _Step, change: AddSegment) -> None:
    segment = step.tables.segment_id(change.name)
    if segment is None:
        segment = step.tables.put_segment(change.name, change.size)
    for replica in change.replicas:
        step.tables.place(segment, replica)


def _placed(step: _Step, change: Placed) -> None:
    segment = step.tables.segment_id(change.name)
    if segment is not None:
        step.tables.place(segment, change.replica)


# ---- attributes


def _set_attr(step: _Step, change: SetAttr) -> None:
    inode = step.inode(change.ino)
    fields: dict[str, int] = {"ctime_ns": change.time_ns}
    if change.mode is not None:
        fields["mode"] = stat.S_IFMT(inode.mode) | change.mode
    for name in ("uid", "gid", "atime_ns", "mtime_ns"):
        value = getattr(change, name)
        if value is not None:
            fields[name] = value
    step.update(inode, **fields)


def _set_xattr(step: _Step, change: SetXattr) -> None:
    inode = step.inode(change.ino)
    there = inode.xattrs and step.tables.xattr(change.ino, change.name) is not None
    if there and change.flags & XATTR_CREATE:
        raise Exists("the attribute exists")
    if not there and change.flags & XATTR_REPLACE:
        raise NoAttribute("no such attribute")
    step.tables.put_xattr(change.ino, change.name, change.value)
    step.update(inode, xattrs=inode.xattrs + (not there), ctime_ns=change.time_ns)


def _remove_xattr(step: _Step, change: RemoveXattr) -> None:
    inode = step.inode(change.ino)
    if step.tables.xattr(change.ino, change.name) is None:
        raise NoAttribute("no such attribute")
    step.tables.put_xattr(change.ino, change.name, None)
    step.update(inode, xattrs=inode.xattrs - 1, ctime_ns=change.time_ns)


_RULES: dict[type[AnyChange], Callable[[_Step, Any], None]] = {
    Found: _found,
    OpenSession: _open_session,
    CloseSession: _close_session,
    Fence: _fence,
    Make: _make,
    Link: _link,
    Unlink: _unlink,
    Rmdir: _rmdir,
    Rename: _rename,
    Drop: _drop,
    Truncate: _truncate,
    Write: _write,
    SetAttr: _set_attr,
    SetXattr: _set_xattr,
    RemoveXattr: _remove_xattr,
    AddSegment: _add_segment,
    Placed: _placed,
}
