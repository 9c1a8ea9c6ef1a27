"""Membership: keeps a mount a member of its workspace, and brings it back under a new session when it lost its own.

A session is lost when others fence it, or when a copy of it turns up. Then no lock it granted is worth anything. What its
processes wrote to files that it had leases on must not reach the workspace: it is set aside in a recovery folder, and their
handles fail. Everything else that is pending goes out under the new session, by the rules for conflicts.
"""

import structlog
import trio

from agentfs.journal.contract import Journal
from agentfs.model.changes import Make, Truncate, Write
from agentfs.model.entry import Transaction
from agentfs.model.errors import AgentfsError
from agentfs.model.ids import Ino, first_ino
from agentfs.runtime import Runtime
from agentfs.state.touched import Touched
from agentfs.workspace.core import Core
from agentfs.workspace.heartbeat import Heartbeat
from agentfs.workspace.kernel import Kernel
from agentfs.workspace.locks import Locks
from agentfs.workspace.seat import Seat
from agentfs.workspace.session import Identity, Registration, open_next_session
from agentfs.workspace.set_aside import set_aside

RETRY_SECONDS = 1.0
"""How long until a registration that failed is tried again."""

_log = structlog.get_logger()


class Membership:
    """The membership of one mount. `run` is its task."""

    def __init__(
        self,
        core: Core,
        *,
        locks: Locks,
        heartbeat: Heartbeat,
        kernel: Kernel,
        journal: Journal,
        seat: Seat,
        identity: Identity,
        runtime: Runtime,
    ) -> None:
        self._core = core
        self._locks = locks
        self._heartbeat = heartbeat
        self._kernel = kernel
        self._journal = journal
        self._seat = seat
        self._identity = identity
        self._runtime = runtime
        self._leased: set[Ino] = set()
        self._lost = trio.Event()

    def lost(self, leased: set[Ino]) -> None:
        """The session has ended under this mount; it had leases on these files."""
        self._leased = leased
        for ino in leased & self._core.staging.files.keys():
            self._core.handles.lose(ino)
        self._locks.lost()
        self._lost.set()

    def refused(self, transaction: Transaction) -> None:
        """A transaction that was shown here did not commit: a file that it made is none, and its bytes have no place."""
        for change in transaction.changes:
            if isinstance(change, Make):
                self._core.handles.lose(change.ino)
                if change.ino in self._core.staging.files:
                    self._set_aside([change.ino])

    async def run(self) -> None:
        """Register again whenever the session is lost, until cancelled."""
        while True:
            await self._lost.wait()
            self._lost = trio.Event()
            while self._core.committer.lost:
                try:
                    await self._register()
                except AgentfsError as error:
                    # The journal is gone, or the cache directory's disk is full: nobody is kept waiting for it to change.
                    _log.error("not_registered", reason=str(error))
                    self._core.committer.refuse_pending(error)
                    await self._runtime.sleep(RETRY_SECONDS)

    async def _register(self) -> None:
        committer, journal = self._core.committer, self._journal
        self._enter(await open_next_session(committer, journal, self._runtime, self._identity))

    def _enter(self, registration: Registration) -> None:
        """Go on under the new session. There is no await in here: to everything else it is one step."""
        core, old = self._core, self._core.committer.session
        dirty = sorted(self._leased & core.staging.files.keys())
        if dirty:
            self._set_aside(dirty)
        core.committer.adopt(registration.session, self._was_locked)
        self._take_seat(registration)
        core.next_ino = first_ino(registration.session)
        self._heartbeat.registered(registration.sent)
        self._kernel.changed(Touched(inodes=set(self._leased), contents=set(self._leased)))
        self._leased = set()
        self._locks.reconsider()
        _log.warning("registered_again", session=registration.session, before=old)

    def _take_seat(self, registration: Registration) -> None:
        """From here on a recovery acts in the new session's name. It must not find what the old one had committed."""
        core = self._core
        try:
            core.staging.rewrite_log(core.committer.transactions)
            self._seat.take(registration.session)
        except AgentfsError as error:
            # The seat stays the old session's: a recovery would set aside what is staged, and send nothing twice.
            _log.error("seat_not_taken", reason=str(error), session=registration.session)

    def _set_aside(self, inos: list[Ino]) -> None:
        core = self._core
        folder = set_aside(self._seat, core.staging, core.tables, inos, core.committer.session)
        _log.error("staged_data_set_aside", folder=str(folder), session=core.committer.session, files=len(inos))
        for ino in inos:
            core.staging.discard(ino)

    def _was_locked(self, transaction: Transaction) -> bool:
        return any(isinstance(change, Write | Truncate) and change.ino in self._leased for change in transaction.changes)
