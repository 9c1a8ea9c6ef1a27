"""Giving way: answers other sessions' requests for what this one holds, and takes back requests that nobody stands behind."""

from collections.abc import Awaitable, Callable

import structlog
import trio

from agentfs.model.changes import AnyChange, Deny, Release, Withdraw
from agentfs.model.errors import AgentfsError, Fenced
from agentfs.model.lease import Leases, Request, recalls, runs_of, yielded
from agentfs.runtime import Runtime
from agentfs.workspace.committer import Committer
from agentfs.workspace.kernel import Kernel
from agentfs.workspace.line import NOBODY, FileLocks, Key
from agentfs.workspace.lock_table import Lock
from agentfs.workspace.writeback import Writeback

GIVE_WAY_SECONDS = 1.0
"""How long until a lease that could not be given up, because the file could not be committed, is tried again."""

_log = structlog.get_logger()


class GivingWay:
    """What one mount's lock manager does for the others.

    `is_owed` says whether somebody here comes before a request; `evaluate` has a file's line looked at again.
    """

    def __init__(
        self,
        *,
        committer: Committer,
        writeback: Writeback,
        kernel: Kernel,
        runtime: Runtime,
        nursery: trio.Nursery,
        is_owed: Callable[[FileLocks, Request], bool],
        evaluate: Callable[[FileLocks], None],
    ) -> None:
        self._committer = committer
        self._writeback = writeback
        self._kernel = kernel
        self._runtime = runtime
        self._nursery = nursery
        self._is_owed = is_owed
        self._evaluate = evaluate

    def if_asked(self, file: FileLocks) -> None:
        if file.asking or file.yielding or self._committer.lost:
            return
        for request in recalls(self._leases(file.key), self._committer.session):
            lock = file.table.conflicting(NOBODY, request.run)
            if lock is None and self._is_owed(file, request):
                continue
            if lock is None:
                file.yielding = True
                self._nursery.start_soon(self._give_way, file)
                return
            if not request.wait:
                self._deny(file, request, lock)

    def _deny(self, file: FileLocks, request: Request, lock: Lock) -> None:
        ino, space = file.key
        now_ns = self._runtime.now_ns()
        self._submit_quietly(Deny(ino, space, request.session, request.number, lock.run, lock.pid, now_ns))

    async def _give_way(self, file: FileLocks) -> None:
        """Commit what was written to the file, then release what others wait for and no process here holds."""
        try:
            if await self._everything_is_out(file):
                keep = held = runs_of(self._leases(file.key), self._committer.session)
                for request in recalls(self._leases(file.key), self._committer.session):
                    if file.table.conflicting(NOBODY, request.run) is None and not self._is_owed(file, request):
                        keep = yielded(keep, request.run)
                if keep != held:
                    ino, space = file.key
                    self._submit_quietly(Release(ino, space, keep, self._runtime.now_ns()))
        finally:
            file.yielding = False
        self._evaluate(file)

    async def _everything_is_out(self, file: FileLocks) -> bool:
        ino = file.key[0]
        try:
            await self._kernel.write_back(ino)
            await self._writeback.commit(ino)
        except Fenced:
            return False
        except AgentfsError as error:
            if self._committer.tables.inode(ino) is None:
                # Nothing can be owed to a file that is gone.
                return True
            _log.warning("lease_not_given_up", ino=ino, reason=str(error))
            await self._runtime.sleep(GIVE_WAY_SECONDS)
            return False
        return True

    def _submit_quietly(self, change: AnyChange) -> None:
        """Submit what no process waits for, and have it sent now."""
        try:
            pending = self._committer.submit([change])
        except AgentfsError as error:
            # Only a session that is lost refuses it, and that has nothing left to give up.
            _log.warning("lease_change_refused", change=type(change).__name__, reason=str(error))
            return
        self._nursery.start_soon(self._settle_quietly, pending.committed)
        self._committer.hurry()

    async def _settle_quietly(self, committed: Callable[[], Awaitable[None]]) -> None:
        try:
            await committed()
        except AgentfsError as error:
            _log.warning("lease_change_failed", reason=str(error))

    def withdraw_strays(self, file: FileLocks) -> None:
        """Requests in the journal's queue that nobody here waits for any longer go, and those behind them move up."""
        if file.asking or self._committer.lost:
            return
        wanted = {waiter.number for waiter in file.line}
        ino, space = file.key
        for request in self._leases(file.key).queue:
            if request.session == self._committer.session and request.number not in wanted:
                self._submit_quietly(Withdraw(ino, space, request.number, self._runtime.now_ns()))

    def give_up(self, key: Key) -> None:
        """Release all of a lease that nobody needs."""
        if not self._committer.lost:
            ino, space = key
            self._submit_quietly(Release(ino, space, [], self._runtime.now_ns()))

    def _leases(self, key: Key) -> Leases:
        return self._committer.tables.leases.get(key) or Leases()
