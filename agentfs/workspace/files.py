"""Operations on open files: open, read, write, truncate, flush, sync, close."""

import os

from agentfs.model.changes import Drop
from agentfs.model.errors import BadHandle, Invalid, IsDirectory, Stale, TooLarge
from agentfs.model.ids import Ino
from agentfs.model.inode import FILE_SIZE_MAX
from agentfs.workspace.core import Core
from agentfs.workspace.handles import Handle
from agentfs.workspace.read_ahead import Stream


class Files:
    """Content as this mount's processes see it. Offsets and lengths are bytes."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._streams: dict[int, Stream] = {}

    async def open(self, ino: Ino, flags: int) -> Handle:
        """open(2) of an inode that exists; O_TRUNC empties it. What any mount has closed before is what will be read.

        Raises Stale for a file that was removed: its name has to be looked up again. One that a rename here replaced is opened
        as it was, for whoever had its name before. Raises IsDirectory, ReadOnly, Unavailable.
        """
        await self._core.follower.reach_tail()
        await self._core.committer.registered()
        if self._core.is_gone(ino):
            left = self._core.replaced.get(ino)
            if left is None:
                raise Stale("the file was removed or replaced")
            self._core.remains[ino] = left
        return self.open_known(ino, flags)

    def open_known(self, ino: Ino, flags: int) -> Handle:
        """As `open`, for an inode that State is known to be right about."""
        core = self._core
        inode = core.inode(ino)
        if inode.is_dir:
            raise IsDirectory("a directory")
        writable = flags & os.O_ACCMODE != os.O_RDONLY
        if writable:
            core.writable()
        if flags & os.O_TRUNC:
            core.writable()
            core.staging.truncate(ino, 0, size=inode.size, now_ns=core.runtime.now_ns())
        return core.handles.open(ino, writable=writable, append=bool(flags & os.O_APPEND))

    def is_staged(self, ino: Ino) -> bool:
        """Whether something of the file is not committed. A hot path."""
        return ino in self._core.staging.files

    def is_owed(self, ino: Ino) -> bool:
        """Whether something that was written here to the file is not committed, or is not mirrored yet. A hot path."""
        return ino in self._core.staging.files or self._core.committer.owes(ino)

    def ino_of(self, number: int) -> Ino:
        """The inode that a handle is open on, lost or not. Raises BadHandle."""
        return self._core.handles.ino_of(number)

    def check(self, number: int) -> None:
        """Raise BadHandle or Fenced for a handle that is of no use any more."""
        self._core.handles.get(number)

    async def read(self, number: int, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`: fewer at the end of the file. A hot path.

        Raises BadHandle, Fenced, Corrupt, Unavailable.
        """
        ino = self._core.handles.get(number).ino
        if self._core.must_confirm(ino):
            await self._core.confirm(number)
        left = self._core.remains.get(ino)
        stream = self._streams.get(number)
        if stream is None:
            stream = self._streams[number] = Stream()
        return await self._core.reader.read(ino, offset, length, removed=left, stream=stream)

    async def write(self, number: int, offset: int, data: bytes) -> int:
        """Stage a write, and wait where much of the file is staged already. A hot path. Raises BadHandle, NoSpace, ReadOnly."""
        core = self._core
        handle = core.handles.get(number)
        if not handle.writable:
            raise BadHandle("not open for writing")
        core.writable()
        if core.must_confirm(handle.ino):
            await core.confirm(number)
        if offset + len(data) > FILE_SIZE_MAX:
            raise TooLarge("the file would be too large")
        file = core.staging.files.get(handle.ino)
        size = file.size if file is not None else core.inode(handle.ino).size
        now_ns = core.runtime.now_ns()
        taken = core.staging.write(handle.ino, offset, data, size=size, now_ns=now_ns, append=handle.append)
        await core.writeback.bound(handle.ino)
        return taken

    def truncate(self, ino: Ino, size: int) -> None:
        """truncate(2), ftruncate(2): nothing happens when the size is that already. Raises Stale, Invalid, NoSpace."""
        core = self._core
        core.writable()
        inode = core.inode(ino)
        if inode.is_dir:
            raise IsDirectory("a directory")
        if not inode.is_file:
            raise Invalid("not a regular file")
        if size != inode.size:
            core.staging.truncate(ino, size, size=inode.size, now_ns=core.runtime.now_ns())

    async def close_truncated(self, ino: Ino) -> None:
        """After truncate(2) of a file that nobody has open, no close will follow: commit it as that would. Raises why not."""
        if self._core.wait_for_close and not self._core.handles.is_open(ino):
            await self._commit(ino)

    async def flush(self, number: int) -> None:
        """What close(2) waits for: with durability `close`, that everything written is committed. Raises why it is not."""
        handle = self._core.handles.get(number)
        if handle.writable and (self._core.wait_for_close or self._core.is_locked(handle.ino)):
            await self._commit(handle.ino)
            # What was written through it may have been set aside meanwhile.
            self.check(number)

    async def sync(self, number: int) -> None:
        """fsync(2): what was written, and every operation before it, is committed on return. Raises why it is not."""
        await self._commit(self._core.handles.get(number).ino)
        self.check(number)

    async def sync_file(self, ino: Ino) -> None:
        """What letting go of a lock waits for: that what was written to the file is committed. Raises why it is not."""
        core = self._core
        await core.writeback.commit(ino)
        inode = core.tables.inode(ino)
        if inode is not None:
            await core.committer.mirrored(min(inode.commit, core.tables.position))

    async def sync_directory(self) -> None:
        """fsync(2) of a directory: every operation on names before it is committed on return."""
        await self._core.committer.sync()

    async def _commit(self, ino: Ino) -> None:
        await self._core.writeback.commit(ino)
        await self._core.committer.sync()

    def release(self, number: int) -> None:
        """Forget a handle. With the last one an inode without names goes."""
        core = self._core
        handle = core.handles.close(number)
        stream = self._streams.pop(number, None)
        if stream is not None:
            core.reader.end(stream)
        if core.handles.is_open(handle.ino):
            return
        core.closed(handle.ino)
        if not core.committer.lost and core.tables.orphans.get(handle.ino) == core.committer.session:
            core.staging.discard(handle.ino)
            core.committer.submit([Drop(handle.ino)])
