"""FUSE requests where remote changes are replayed: those of the replaying thread are acknowledged, and do nothing.

What it looks up is answered with what stood there before the change that it does again; the answers hold for no time, so that
whoever looks next is told what State says. Nothing of it reaches State, staging or the journal.
"""

import contextlib
import errno
import os
from collections.abc import Sequence

import pyfuse3
from msgspec.structs import replace
from pyfuse3 import EntryAttributes, FileInfo, RequestContext, SetattrFields

from agentfs.fuse.attributes import Presentation
from agentfs.fuse.invalidate import Invalidator
from agentfs.fuse.operations import Operations
from agentfs.fuse.redo import EXECUTABLE
from agentfs.fuse.replay import Item, Replay
from agentfs.model.errors import NotFound, Stale
from agentfs.model.ids import Ino
from agentfs.model.inode import Inode
from agentfs.workspace.remote_changes import Kind
from agentfs.workspace.workspace import Workspace

_HANDLE = 0
"""What the thread has open, whatever it is: no handle of a process has this number."""


class ReplayedOperations(Operations):
    """`Operations`, and the answers to one thread that is not to be believed."""

    def __init__(self, workspace: Workspace, presentation: Presentation, invalidator: Invalidator, replay: Replay) -> None:
        super().__init__(workspace, presentation, invalidator)
        self._replay = replay

    def _told(self, parent: int, name: bytes, entry: EntryAttributes) -> EntryAttributes:
        return self._replay.told(parent, name, entry)

    def _untold(self, entry: EntryAttributes) -> None:
        self._replay.forgotten([(entry.st_ino, 1)])

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        self._replay.forgotten(inode_list)
        await super().forget(inode_list)

    # ---- names

    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        if ctx.pid != self._replay.thread:
            return await super().lookup(parent_inode, name, ctx)
        self._replay.recognised = True
        inode = self._before(Ino(parent_inode), name, self._replay.current())
        if inode is None:
            entry = self._no_entry()
            entry.entry_timeout = 0.0
            return entry
        return self._told(parent_inode, name, self._passing(inode))

    def _before(self, parent: Ino, name: bytes, item: Item | None) -> Inode | None:
        """What stood there before what the thread is doing, and before all that it is still to do."""
        change = item.change if item is not None else None
        if item is not None and change is not None and any(place.key == (parent, name) for place in change.places):
            inode = item.before((parent, name))
            return None if inode is None else self._shown(inode, lost=inode is change.other or change.kind is Kind.DELETED)
        queued, inode = self._replay.before((parent, name))
        if queued:
            return None if inode is None else self._shown(inode, lost=False)
        try:
            return self._names.look_up(parent, name)
        except (NotFound, Stale):
            return None

    def _shown(self, inode: Inode, *, lost: bool) -> Inode:
        """An inode as it is now, or as it last was. One that is about to lose a name still has it."""
        try:
            now = self._attributes.get(inode.ino)
        except Stale:
            return inode
        return replace(now, nlink=inode.nlink) if lost or not now.nlink else now

    def _passing(self, inode: Inode) -> EntryAttributes:
        entry = self._present(inode)
        entry.entry_timeout = entry.attr_timeout = 0.0
        return entry

    def _made(self, parent: int, name: bytes) -> EntryAttributes:
        item = self._replay.current()
        change = item.change if item is not None else None
        if change is None or change.kind is not Kind.CREATED or change.at.key != (parent, name):
            raise pyfuse3.FUSEError(errno.EIO)
        return self._told(parent, name, self._passing(self._shown(change.inode, lost=False)))

    async def mknod(self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext) -> EntryAttributes:
        if ctx.pid != self._replay.thread:
            return await super().mknod(parent_inode, name, mode, rdev, ctx)
        return self._made(parent_inode, name)

    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        if ctx.pid != self._replay.thread:
            return await super().mkdir(parent_inode, name, mode, ctx)
        return self._made(parent_inode, name)

    async def symlink(self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext) -> EntryAttributes:
        if ctx.pid != self._replay.thread:
            return await super().symlink(parent_inode, name, target, ctx)
        return self._made(parent_inode, name)

    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        if ctx.pid != self._replay.thread:
            await super().unlink(parent_inode, name, ctx)

    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        if ctx.pid != self._replay.thread:
            await super().rmdir(parent_inode, name, ctx)

    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        if ctx.pid != self._replay.thread:
            await super().rename(parent_inode_old, name_old, parent_inode_new, name_new, flags, ctx)

    # ---- open files

    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        if ctx.pid != self._replay.thread:
            await self._replay.written.wait_ended(Ino(inode))
            return await super().open(inode, flags, ctx)
        if flags & os.O_ACCMODE != os.O_RDONLY:
            self._open_for_writing(Ino(inode))
        return FileInfo(fh=_HANDLE, keep_cache=True)

    def _open_for_writing(self, ino: Ino) -> None:
        """Not what has become a program since it was written: somebody may be running it."""
        with contextlib.suppress(Stale):
            if self._attributes.get(ino).mode & EXECUTABLE:
                raise pyfuse3.FUSEError(errno.EACCES)
        self._replay.written.began(ino)

    async def flush(self, fh: int) -> None:
        if fh != _HANDLE:
            await super().flush(fh)

    async def release(self, fh: int) -> None:
        if fh != _HANDLE:
            await super().release(fh)

    # ---- attributes

    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        if ctx.pid != self._replay.thread:
            return await super().getattr(inode, ctx)
        return await self._attributes_of(inode, ctx)

    async def setattr(
        self, inode: int, attr: EntryAttributes, fields: SetattrFields, fh: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        if ctx.pid != self._replay.thread:
            return await super().setattr(inode, attr, fields, fh, ctx)
        return await self._attributes_of(inode, ctx)

    async def _attributes_of(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        """The attributes as they are, also of a file that is gone by now."""
        item = self._replay.current()
        change = item.change if item is not None else None
        for each in (change.inode, change.other) if change is not None else ():
            if each is not None and each.ino == inode:
                return self._passing(self._shown(each, lost=True))
        return await super().getattr(inode, ctx)
