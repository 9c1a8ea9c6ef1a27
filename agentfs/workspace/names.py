"""Operations on names: look up, make, link, remove, rename, list."""

import stat
from collections.abc import Awaitable, Callable
from typing import TypeVar

from msgspec.structs import replace

from agentfs.model.changes import RENAME_EXCHANGE, RENAME_NOREPLACE, AnyChange, Link, Make, Rename, Rmdir, Unlink
from agentfs.model.errors import Exists, Invalid, IsDirectory, NameTooLong, NotDirectory, NotEmpty, NotFound, Stale
from agentfs.model.ids import Ino
from agentfs.model.inode import SYMLINK_MAX, Dentry, Inode
from agentfs.workspace.core import Core, check_name

T = TypeVar("T")

_DECISIONS = (Exists, NotFound, NotEmpty, NotDirectory, IsDirectory, Stale)
"""What depends on who was first."""


class Names:
    """The tree as this mount's processes see it. Names are bytes; owner and mode come from the process that asks.

    An operation that State refuses is refused once State has the journal's tail: what is in its way may be gone by then.
    """

    def __init__(self, core: Core) -> None:
        self._core = core

    def look_up(self, parent: Ino, name: bytes) -> Inode:
        """The inode under a name; `.` and `..` work. A hot path. Raises NotFound, NameTooLong."""
        dentry = self._core.tables.dentry(parent, name)
        if dentry is not None:
            return self._core.inode(dentry.ino)
        if name == b".":
            return self._core.inode(parent)
        if name == b"..":
            return self._core.inode(self._core.inode(parent).parent)
        check_name(name)
        raise NotFound("no such name")

    async def find(self, parent: Ino, name: bytes, *, strict: bool) -> Inode:
        """As `look_up`, for a process that asks: with `strict`, as names are in the journal at this call.

        A name that is missing is looked for again where the journal is known to have more. A hot path. Raises Unavailable too.
        """
        follower = self._core.follower
        if strict:
            await follower.reach_tail()
        try:
            return self.look_up(parent, name)
        except NotFound:
            if not follower.is_known_behind():
                raise
        await follower.reach_tail()
        return self.look_up(parent, name)

    async def make(
        self, parent: Ino, name: bytes, mode: int, *, uid: int, gid: int, rdev: int = 0, target: bytes = b"", wait: bool
    ) -> Inode:
        """Create an inode of the type in `mode` under a name; with `wait` return once that is committed.

        In a setgid directory it takes the directory's group, and a directory takes the bit as well (inode(7)).
        Raises Exists, NotFound, NameTooLong, ReadOnly.
        """
        core = self._core
        core.writable()
        check_name(name)
        if len(target) > SYMLINK_MAX:
            raise NameTooLong(f"a link target of {len(target)} bytes")
        up = core.tables.inode(parent)
        if up is not None and up.mode & stat.S_ISGID:
            gid = up.gid
            mode |= stat.S_ISGID if stat.S_ISDIR(mode) else 0
        # With others about, a name that seems free may be theirs: then their file is opened, as on a local disk.
        wait = wait or core.tables.has_company(core.committer.session)
        # That a file was made is for its close to promise.
        send = self._submit_soon if not wait else core.committer.decide if stat.S_ISREG(mode) else core.committer.commit

        async def attempt() -> Inode:
            # Numbers belong to the session that sends them: those of a lost one may be taken by a copy of it.
            await core.committer.throttle()
            ino = core.new_ino()
            change = Make(parent, name, ino, mode, uid, gid, rdev, target, core.runtime.now_ns())
            await send([change])
            return core.inode(ino)

        return await self._decided(attempt)

    async def link(self, ino: Ino, parent: Ino, name: bytes) -> Inode:
        """link(2): another name, committed on return. Raises Exists, NotFound, NotPermitted, TooManyLinks."""
        self._core.writable()
        check_name(name)
        change = Link(parent, name, ino, self._core.runtime.now_ns())
        await self._decided(lambda: self._core.committer.commit([change]))
        return self._core.inode(ino)

    async def unlink(self, parent: Ino, name: bytes) -> None:
        """unlink(2). An open file stays readable and writable through its handles. Raises NotFound, IsDirectory."""
        self._core.writable()
        await self._decided(lambda: self._unlink(parent, name))

    async def _unlink(self, parent: Ino, name: bytes) -> None:
        core = self._core
        if core.tables.has_company(core.committer.session):
            # What others did before this call is what is removed, although it does not wait for the journal afterwards.
            await core.follower.reach_tail()
        inode = self.look_up(parent, name)
        await self._submit_soon([Unlink(parent, name, inode.ino, core.handles.is_open(inode.ino), core.runtime.now_ns())])
        self._gone(inode)

    async def rmdir(self, parent: Ino, name: bytes) -> None:
        """rmdir(2), committed on return. Raises NotFound, NotDirectory, NotEmpty, Invalid."""
        core = self._core
        core.writable()
        if name == b".":
            raise Invalid("`.` cannot be removed")
        await self._decided(lambda: self._rmdir(parent, name))

    async def _rmdir(self, parent: Ino, name: bytes) -> None:
        inode = self.look_up(parent, name)
        await self._core.committer.commit([Rmdir(parent, name, self._core.runtime.now_ns())])
        self._gone(inode)

    async def rename(self, parent: Ino, name: bytes, new_parent: Ino, new_name: bytes, flags: int) -> None:
        """rename(2) and renameat2(2) with NOREPLACE or EXCHANGE, committed on return.

        Raises NotFound, Exists, IsDirectory, NotDirectory, NotEmpty, Invalid.
        """
        core = self._core
        core.writable()
        check_name(new_name)
        if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE) or flags == RENAME_NOREPLACE | RENAME_EXCHANGE:
            raise Invalid(f"rename flags {flags:#x} are not known")
        await self._decided(lambda: self._rename(parent, name, new_parent, new_name, flags))

    async def _rename(self, parent: Ino, name: bytes, new_parent: Ino, new_name: bytes, flags: int) -> None:
        core = self._core
        replaced = core.tables.dentry(new_parent, new_name)
        target = core.inode(replaced.ino) if replaced else None
        keep = target is not None and core.handles.is_open(target.ino)
        if target is not None:
            core.replacing(target)
        try:
            await core.committer.commit([Rename(parent, name, new_parent, new_name, flags, keep, core.runtime.now_ns())])
        finally:
            if target is not None and not core.is_gone(target.ino):
                core.replaced.pop(target.ino, None)
        if target is not None:
            self._gone(target)

    def listing(self, parent: Ino, after: int, limit: int) -> list[tuple[Dentry, Inode]]:
        """Up to `limit` entries of a directory behind the cookie `after`, without `.` and `..`.

        An entry that is there from the first call to the last is listed exactly once, whatever happens around it.
        """
        core = self._core
        return [(dentry, core.inode(dentry.ino)) for dentry in core.tables.listing(parent, after, limit)]

    async def open_directory(self, ino: Ino, *, strict: bool) -> int:
        """A handle for listing a directory; with `strict`, as it is in the journal at this call.

        Raises NotDirectory, Stale, and with `strict` Unavailable.
        """
        if strict:
            await self._core.follower.reach_tail()
        if not self._core.inode(ino).is_dir:
            raise NotDirectory("not a directory")
        return self._core.handles.open(ino).number

    async def _decided(self, attempt: Callable[[], Awaitable[T]]) -> T:
        before = self._core.tables.position
        try:
            return await attempt()
        except _DECISIONS:
            await self._core.follower.reach_tail(exact=True)
            if self._core.tables.position == before:
                raise
        return await attempt()

    async def _submit_soon(self, changes: list[AnyChange]) -> None:
        await self._core.committer.throttle()
        self._core.committer.submit(changes)

    def _gone(self, before: Inode) -> None:
        """After a removal: what the kernel may still ask about an inode that is gone, and what was staged of it."""
        core = self._core
        if core.tables.inode(before.ino) is None:
            core.ghosts[before.ino] = replace(before, nlink=0)
            core.staging.discard(before.ino)
