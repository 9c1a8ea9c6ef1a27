"""A transaction being applied: what the rules for its changes share."""

from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from agentfs.model.changes import AnyChange
from agentfs.model.errors import NotDirectory, NotFound, Stale
from agentfs.model.ids import Ino, Position, SessionId
from agentfs.model.inode import Dentry, FileVersion, Inode
from agentfs.state.tables import Tables


class Step:
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


Rules = dict[type[AnyChange], Callable[[Step, Any], None]]
"""What to do for each kind of change; a rule raises why the transaction aborts."""
