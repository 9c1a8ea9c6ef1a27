"""FUSE requests: decode, one call of the workspace, encode."""

import os
import stat
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

import pyfuse3
from pyfuse3 import EntryAttributes, FileInfo, ReaddirToken, RequestContext, SetattrFields, StatvfsData

from agentfs.chunks.contract import Capacity
from agentfs.fuse import companion
from agentfs.fuse.attributes import BLOCK_SIZE, Presentation
from agentfs.fuse.errno import errno_of
from agentfs.fuse.invalidate import Invalidator
from agentfs.model.errors import AgentfsError, Exists, NotFound
from agentfs.model.ids import Ino
from agentfs.model.inode import NAME_MAX, Inode
from agentfs.model.lease import FLOCK, POSIX
from agentfs.workspace.workspace import Workspace

_LISTING_BATCH = 256
_FREE_INODES = 1 << 32
"""Inodes have no bound of their own; what statfs(2) says is free."""

_UNBOUNDED = Capacity(total=1 << 50, free=1 << 50)

P = ParamSpec("P")
T = TypeVar("T")


def _answering(
    operation: Callable[Concatenate["Operations", P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate["Operations", P], Coroutine[Any, Any, T]]:
    """Answer errors with their errno. Anything else is a bug: it goes on, and closes the mount."""

    async def answer(self: "Operations", /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await operation(self, *args, **kwargs)
        except AgentfsError as error:
            raise pyfuse3.FUSEError(errno_of(error)) from None

    return answer


class Operations(pyfuse3.Operations):
    """What pyfuse3 calls, one method a request. All of it is a hot path."""

    supports_dot_lookup = True
    enable_writeback_cache = False
    enable_acl = False

    def __init__(self, workspace: Workspace, presentation: Presentation, invalidator: Invalidator) -> None:
        super().__init__()
        self._workspace = workspace
        self._locks = workspace.locks
        self._invalidator = invalidator
        self._no_entry = presentation.no_entry
        self._strict = presentation.strict
        self._names = workspace.names
        self._files = workspace.files
        self._attributes = workspace.attributes
        self._present = presentation.entry

    def _entry(self, inode: Inode) -> EntryAttributes:
        entry = self._present(inode)
        if self._files.is_staged(inode.ino) or self._invalidator.is_changing(inode.ino):
            # How much of it is no hole is known once it is committed, and more of others' changes may be on its way.
            entry.attr_timeout = 0.0
        return entry

    def _told(self, parent: int, name: bytes, entry: EntryAttributes) -> EntryAttributes:
        """The kernel is to be told that a name leads to `entry`, or nowhere. A hot path."""
        return entry

    def _untold(self, entry: EntryAttributes) -> None:
        """The kernel was not told after all."""

    # ---- names

    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        try:
            inode = await self._names.find(Ino(parent_inode), name, strict=self._strict)
            return self._told(parent_inode, name, self._entry(inode))
        except NotFound:
            return self._told(parent_inode, name, self._no_entry())
        except AgentfsError as error:
            raise pyfuse3.FUSEError(errno_of(error)) from None

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        self._workspace.forget([Ino(ino) for ino, _ in inode_list])

    @_answering
    async def mknod(self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext) -> EntryAttributes:
        return await self._make(parent_inode, name, mode, ctx, rdev=rdev, wait=True)

    @_answering
    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        return await self._make(parent_inode, name, mode, ctx, wait=True)

    @_answering
    async def symlink(self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext) -> EntryAttributes:
        return await self._make(parent_inode, name, stat.S_IFLNK | 0o777, ctx, target=target, wait=True)

    async def _make(self, parent: int, name: bytes, mode: int, ctx: RequestContext, **more: Any) -> EntryAttributes:
        inode = await self._names.make(Ino(parent), name, mode, uid=ctx.uid, gid=ctx.gid, **more)
        return self._told(parent, name, self._entry(inode))

    @_answering
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        exclusive = bool(flags & os.O_EXCL)
        try:
            entry = await self._make(parent_inode, name, stat.S_IFREG | mode, ctx, wait=exclusive)
            flags &= ~os.O_TRUNC
        except Exists:
            # The kernel's knowledge was old: open what is there, as open(2) without O_EXCL does.
            if exclusive:
                raise
            entry = self._told(parent_inode, name, self._entry(self._names.look_up(Ino(parent_inode), name)))
        handle = self._files.open_known(Ino(entry.st_ino), flags)
        return FileInfo(fh=handle.number), entry

    @_answering
    async def link(self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext) -> EntryAttributes:
        linked = await self._names.link(Ino(inode), Ino(new_parent_inode), new_name)
        return self._told(new_parent_inode, new_name, self._entry(linked))

    @_answering
    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        await self._names.unlink(Ino(parent_inode), name)

    @_answering
    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        await self._names.rmdir(Ino(parent_inode), name)

    @_answering
    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        await self._names.rename(Ino(parent_inode_old), name_old, Ino(parent_inode_new), name_new, flags)

    @_answering
    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        return self._attributes.get(Ino(inode)).target

    # ---- directories

    @_answering
    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        return await self._names.open_directory(Ino(inode), strict=self._strict)

    @_answering
    async def readdir(self, fh: int, start_id: int, token: ReaddirToken) -> None:
        ino = self._files.ino_of(fh)
        # The kernel takes no reference to these two, which are therefore never forgotten either.
        for place, name in enumerate((b".", b".."), start=1):
            if start_id < place:
                entry = self._entry(self._names.look_up(ino, name))
                if not pyfuse3.readdir_reply(token, name, entry, place):
                    return
        after = max(0, start_id - 2)
        while batch := self._names.listing(ino, after, _LISTING_BATCH):
            for dentry, inode in batch:
                entry = self._told(ino, dentry.name, self._entry(inode))
                if not pyfuse3.readdir_reply(token, dentry.name, entry, dentry.cookie + 2):
                    self._untold(entry)
                    return
            after = batch[-1][0].cookie

    @_answering
    async def releasedir(self, fh: int) -> None:
        self._files.release(fh)

    @_answering
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        await self._files.sync_directory()

    # ---- content

    @_answering
    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        handle = await self._files.open(Ino(inode), flags)
        if not self._invalidator.is_changing(handle.ino):
            return FileInfo(fh=handle.number, keep_cache=True)
        # The kernel forgets the pages as it opens the file; the size, by which it cuts reads short, it has to be told.
        self._invalidator.refresh_attributes(handle.ino)
        return FileInfo(fh=handle.number, keep_cache=False)

    @_answering
    async def read(self, fh: int, off: int, size: int) -> bytes:
        return await self._files.read(fh, off, size)

    @_answering
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        return await self._files.write(fh, off, buf)

    @_answering
    async def flush(self, fh: int) -> None:
        # Closing any of its descriptors of a file ends a process's fcntl locks on it (fcntl(2)), if the close succeeds or not.
        owner, ino = companion.flush_owner(), self._files.ino_of(fh)
        try:
            await self._files.flush(fh)
        finally:
            self._locks.unlock(ino, POSIX, owner)

    @_answering
    async def fsync(self, fh: int, datasync: bool) -> None:
        await self._files.sync(fh)

    @_answering
    async def release(self, fh: int) -> None:
        # The kernel's number for the owner of a flock may be another open file's by now (decision 9): the handle is not.
        ino = self._files.ino_of(fh)
        self._locks.unlock(ino, FLOCK, fh)
        self._locks.closed(ino, fh)
        self._files.release(fh)

    # ---- attributes

    @_answering
    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        return self._entry(self._attributes.get(Ino(inode)))

    @_answering
    async def setattr(
        self, inode: int, attr: EntryAttributes, fields: SetattrFields, fh: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        ino = Ino(inode)
        if fields.update_size:
            self._files.truncate(ino, attr.st_size)
        given = (
            ("mode", fields.update_mode, attr.st_mode),
            ("uid", fields.update_uid, attr.st_uid),
            ("gid", fields.update_gid, attr.st_gid),
            ("atime_ns", fields.update_atime, attr.st_atime_ns),
            ("mtime_ns", fields.update_mtime, attr.st_mtime_ns),
        )
        wanted = {name: value for name, update, value in given if update}
        if wanted or not fields.update_size:
            await self._attributes.set(ino, **wanted)
        if fields.update_size:
            await self._files.close_truncated(ino)
        return self._entry(self._attributes.get(ino))

    @_answering
    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        return await self._attributes.get_xattr(Ino(inode), name)

    @_answering
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        await self._attributes.set_xattr(Ino(inode), name, value)

    @_answering
    async def listxattr(self, inode: int, ctx: RequestContext) -> Sequence[bytes]:
        return self._attributes.list_xattrs(Ino(inode))

    @_answering
    async def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        await self._attributes.remove_xattr(Ino(inode), name)

    # ---- the whole

    @_answering
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        capacity = await self._workspace.capacity() or _UNBOUNDED
        data = StatvfsData()
        data.f_bsize = data.f_frsize = BLOCK_SIZE
        data.f_blocks = capacity.total // BLOCK_SIZE
        data.f_bfree = data.f_bavail = capacity.free // BLOCK_SIZE
        data.f_files = self._workspace.inode_count + _FREE_INODES
        data.f_ffree = data.f_favail = _FREE_INODES
        data.f_namemax = NAME_MAX
        return data
