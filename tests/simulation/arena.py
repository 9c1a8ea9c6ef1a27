"""The arena: a directory in which all operations wait for their commit, and when each was asked for and answered."""

import stat
from collections.abc import Awaitable, Callable
from random import Random
from typing import Final

from agentfs.model.changes import RENAME_NOREPLACE
from agentfs.model.errors import AgentfsError, Exists, IsDirectory, NotFound
from agentfs.model.ids import Ino
from agentfs.workspace.workspace import Workspace
from tests.simulation.evidence import Asked, Evidence

NAMES: Final = (b"x", b"y", b"z")
FILE: Final = stat.S_IFREG | 0o644
DIRECTORY: Final = stat.S_IFDIR | 0o755


class Arena:
    """One mount's processes in the arena."""

    def __init__(self, machine: int, evidence: Evidence, workspace: Workspace, random: Random) -> None:
        self._machine = machine
        self._evidence = evidence
        self._names = workspace.names
        self._workspace = workspace
        self._random = random

    async def act(self) -> None:
        """One operation. Raises what the process is told."""
        verbs = [
            self._make,
            self._make,
            self._make_directory,
            self._rename,
            self._rename,
            self._link,
            self._unlink,
            self._rmdir,
        ]
        await self._random.choice(verbs)()

    @property
    def _arena(self) -> Ino:
        return self._evidence.arena

    def _name(self) -> bytes:
        return self._random.choice(NAMES)

    async def _make(self) -> None:
        """open(2) with O_CREAT and O_EXCL."""
        name = self._name()
        await self._asked("make", b"", name, lambda: self._names.make(self._arena, name, FILE, uid=0, gid=0, wait=True))

    async def _make_directory(self) -> None:
        name = self._name()
        await self._asked("make", b"", name, lambda: self._names.make(self._arena, name, DIRECTORY, uid=0, gid=0, wait=True))

    async def _rename(self) -> None:
        old, new = self._random.sample(NAMES, 2)
        flags = self._random.choice((0, RENAME_NOREPLACE))
        await self._asked("rename", old, new, lambda: self._names.rename(self._arena, old, self._arena, new, flags))

    async def _link(self) -> None:
        old, new = self._random.sample(NAMES, 2)

        async def link() -> None:
            inode = await self._names.find(self._arena, old, strict=True)
            if inode.is_dir:
                raise IsDirectory("a directory has one name")
            await self._names.link(inode.ino, self._arena, new)

        await self._asked("link", old, new, link)

    async def _unlink(self) -> None:
        """unlink(2) need not wait; fsync(2) of the directory does."""
        name = self._name()

        async def unlink() -> None:
            await self._names.unlink(self._arena, name)
            await self._workspace.files.sync_directory()

        await self._asked("unlink", name, b"", unlink)

    async def _rmdir(self) -> None:
        name = self._name()
        await self._asked("rmdir", name, b"", lambda: self._names.rmdir(self._arena, name))

    async def _asked(self, verb: str, old: bytes, new: bytes, operation: Callable[[], Awaitable[object]]) -> None:
        known = self._workspace._core.tables.position
        asked = Asked(self._machine, verb, old, new, begun=len(self._evidence.payloads), known=known)
        self._evidence.asked.append(asked)
        try:
            await operation()
        except Exists:
            asked.answer = "exists"
            raise
        except NotFound:
            asked.answer = "not found"
            raise
        except AgentfsError:
            asked.answer = "failed"
            raise
        else:
            asked.answer = "done"
        finally:
            if asked.answer:
                asked.ended = len(self._evidence.payloads)
