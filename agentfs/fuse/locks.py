"""Lock requests of the kernel: decode, one call of the workspace, answer.

They do not run in pyfuse3's tasks, of which there is a bounded number: a process may wait for its lock for ever.
"""

import errno
import fcntl
from typing import Final

import trio

from agentfs.fuse import companion
from agentfs.fuse.companion import LockRequest
from agentfs.fuse.errno import errno_of
from agentfs.model.errors import AgentfsError
from agentfs.model.ids import Ino
from agentfs.model.lease import EXCLUSIVE, FLOCK, POSIX, SHARED, Run
from agentfs.workspace.files import Files
from agentfs.workspace.line import Waiter
from agentfs.workspace.lock_table import Lock
from agentfs.workspace.locks import Locks

_MODES: Final = {fcntl.F_RDLCK: SHARED, fcntl.F_WRLCK: EXCLUSIVE}
_KINDS: Final = {mode: kind for kind, mode in _MODES.items()}


class LockRequests:
    """What the companion calls. Its tasks run in `nursery`, and end with it."""

    def __init__(self, locks: Locks, files: Files, nursery: trio.Nursery) -> None:
        self._locks = locks
        self._files = files
        self._nursery = nursery
        self._scopes: dict[int, trio.CancelScope] = {}
        self._started = 0

    def has_started(self) -> bool:
        """Whether a request waits for its task to get its first turn. A hot path."""
        return self._started > 0

    def lock(self, request: LockRequest) -> None:
        """Take or change a lock, or let go of one. It gets its place in the line here, in the order of arrival."""
        space = FLOCK if request.flock else POSIX
        ino = Ino(request.ino)
        try:
            if request.kind == fcntl.F_UNLCK:
                self._locks.unlock(ino, space, _owner_of(request), request.first, request.last)
                self._after_unlock(request)
                return
            self._files.check(request.handle)
            waiter = self._locks.begin(ino, space, _lock_of(request), wait=request.wait)
        except AgentfsError as error:
            companion.answer(request.token, errno_of(error))
            return
        if self._locks.at_once(waiter):
            companion.answer(request.token, errno_of(waiter.outcome) if waiter.outcome else 0)
            return
        scope = trio.CancelScope()
        if request.wait:
            self._scopes[request.token] = scope
        self._started += 1
        self._nursery.start_soon(self._finish, request.token, waiter, scope)

    def test(self, request: LockRequest) -> None:
        """Say which lock is in the way of this one."""
        self._nursery.start_soon(self._test, request)

    def interrupted(self, token: int) -> None:
        """A signal came for a process that waits."""
        scope = self._scopes.get(token)
        if scope is not None:
            scope.cancel()

    async def _finish(self, token: int, waiter: Waiter, scope: trio.CancelScope) -> None:
        self._started -= 1
        error = 0
        try:
            with scope:
                await self._locks.finish(waiter)
            if scope.cancelled_caught:
                error = 0 if await self._locks.was_granted(waiter) else errno.EINTR
        except AgentfsError as refused:
            error = errno_of(refused)
        finally:
            self._scopes.pop(token, None)
        companion.answer(token, error)

    def _after_unlock(self, request: LockRequest) -> None:
        """What was written under the lock is committed before its holder hears that it is gone."""
        if self._files.is_owed(Ino(request.ino)):
            self._nursery.start_soon(self._commit, request.token, Ino(request.ino))
        else:
            companion.answer(request.token, 0)

    async def _commit(self, token: int, ino: Ino) -> None:
        error = 0
        try:
            await self._files.sync_file(ino)
        except AgentfsError as failed:
            error = errno_of(failed)
        companion.answer(token, error)

    async def _test(self, request: LockRequest) -> None:
        try:
            found = await self._locks.test(Ino(request.ino), _lock_of(request))
        except AgentfsError as error:
            companion.answer(request.token, errno_of(error))
            return
        if found is None:
            companion.answer_test(request.token, fcntl.F_UNLCK, request.first, request.last, 0)
            return
        companion.answer_test(request.token, _KINDS[found.run.mode], found.run.first, found.run.last, found.pid)


def _lock_of(request: LockRequest) -> Lock:
    run = Run(request.first, request.last, _MODES[request.kind])
    return Lock(_owner_of(request), run, request.pid, request.handle)


def _owner_of(request: LockRequest) -> int:
    """Who owns the lock: for fcntl(2) the process, for flock(2) the open file, whose handle is never given to another one."""
    return request.handle if request.flock else request.owner
