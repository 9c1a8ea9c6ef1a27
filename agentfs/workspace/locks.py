"""The lock manager: grants flock(2) and fcntl(2) locks to this mount's processes, under leases that hold across mounts.

A request waits in its file's line, first come, first served. It is granted when no other process of this mount is in its way
and the session holds the lease on what it asks for; otherwise the lease is asked for in the journal, behind whoever waits
there. A lease stays after its last lock is gone, so that locking again needs no journal. When another session asks, it is given
up as soon as no process here holds a lock in the way, and not before everything written to the file is committed.

What makes it exact:

- What State says while a request of ours for the file is under way (`asking`), or a verdict of ours about another session
  (`Committer.judging`), may be speculation: nothing is granted then. The same while a lease is being given up (`yielding`).
- The lock is entered in the table in the same step in which the lease is seen, so a recall that is already waiting finds it.
- A process that is granted a lock waits until the kernel has forgotten what others changed.
- Nobody holds a lease while waiting for another inside the daemon: giving up never depends on a request of ours.
- Requests that do not want to wait pass those that do, as on Linux. The mount that is in their way answers: it gives the lease
  up, or denies it if a process of its own holds the lock.
"""

import math
from collections.abc import Callable

import structlog
import trio

from agentfs.model.changes import Acquire, AnyChange, Deny
from agentfs.model.entry import Entry
from agentfs.model.errors import AgentfsError, Deadlock, LeaseHeld, NoLocks
from agentfs.model.ids import Ino, SessionId
from agentfs.model.lease import FLOCK, OFFSET_MAX, POSIX, Leases, Request, conflicts, covers, runs_of
from agentfs.runtime import Runtime
from agentfs.workspace.committer import Committer
from agentfs.workspace.follower import Follower
from agentfs.workspace.giving_way import GivingWay
from agentfs.workspace.heartbeat import Heartbeat
from agentfs.workspace.kernel import Kernel
from agentfs.workspace.line import NOBODY, FileLocks, Key, Waiter, is_in_the_way, name_of
from agentfs.workspace.lock_table import Lock, LockTable, WaitGraph
from agentfs.workspace.writeback import Writeback

IMPATIENT_SECONDS = 2.0
"""How long a request that does not want to wait waits for the mount in its way to answer, before it counts as held."""

WAITERS_MAX = 65_536
"""Requests that wait in one mount."""

LEASES_MAX = 4096
"""Files whose leases are kept without need."""

_log = structlog.get_logger()


class Locks:
    """Every lock of one mount. Its tasks run in `nursery`."""

    def __init__(
        self,
        *,
        committer: Committer,
        writeback: Writeback,
        follower: Follower,
        heartbeat: Heartbeat,
        kernel: Kernel,
        runtime: Runtime,
        nursery: trio.Nursery,
        on_lost: Callable[[Ino], None],
    ) -> None:
        self._committer = committer
        self._follower = follower
        self._heartbeat = heartbeat
        self._kernel = kernel
        self._runtime = runtime
        self._nursery = nursery
        self._on_lost = on_lost
        self._giving = GivingWay(
            committer=committer,
            writeback=writeback,
            kernel=kernel,
            runtime=runtime,
            nursery=nursery,
            is_owed=self._is_owed,
            evaluate=self._evaluate,
        )
        self._files: dict[Key, FileLocks] = {}
        self._graph = WaitGraph()
        self._waiting = 0
        # Somebody was kept waiting because a verdict was under way: everybody is looked at when it has landed.
        self._doubted = False
        self._number = 0

    # ---- what processes ask for

    def begin(self, ino: Ino, space: int, lock: Lock, *, wait: bool) -> Waiter:
        """Take a request's place in the line; `finish` waits for the lock. Raises NoLocks."""
        if self._waiting >= WAITERS_MAX:
            raise NoLocks(f"{WAITERS_MAX} requests for locks wait already")
        file = self._file((ino, space))
        if (
            space != POSIX
            and file.table
            and any(each.owner == lock.owner and each.run != lock.run for each in file.table.locks)
        ):
            # Linux converts in two steps (flock(2)): the old lock is gone even if the new one cannot be had.
            file.table.clear_owner(lock.owner)
        waiter = Waiter(file.key, lock, wait)
        file.line.append(waiter)
        self._waiting += 1
        return waiter

    def at_once(self, waiter: Waiter) -> bool:
        """Whether a request that has just begun is decided without waiting for anything: then `finish` returns at once, too.

        A hot path: locking what this mount has locked before ends here.
        """
        if self._heartbeat.lapsed or not self._kernel.is_settled or not self._follower.is_at_tail():
            return False
        waiter.ready = True
        file = self._files[waiter.key]
        blocker = file.table.conflicting(waiter.lock.owner, waiter.lock.run)
        if blocker is None and len(file.line) == 1 and self._is_quiet(file) and self._is_covered(file, waiter):
            self._grant(file, waiter)
        else:
            self._evaluate(file)
        return waiter.done.is_set()

    async def finish(self, waiter: Waiter) -> None:
        """Return once the process has its lock, and sees everything that was done before it got it.

        Raises LeaseHeld (it did not want to wait), Deadlock, NoLocks (the journal cannot be asked). Cancelled, it leaves the
        line.
        """
        try:
            if not waiter.ready:
                await self._reach(waiter)
            if not waiter.done.is_set():
                with trio.move_on_after(math.inf if waiter.wait else IMPATIENT_SECONDS):
                    await waiter.done.wait()
        finally:
            if not waiter.done.is_set():
                self._refuse(waiter, self._unanswered(waiter))
                self._evaluate(self._file(waiter.key))
        if waiter.outcome is not None:
            raise waiter.outcome
        with trio.CancelScope(shield=True):
            await self._kernel.settled()

    async def was_granted(self, waiter: Waiter) -> bool:
        """Whether a request whose `finish` was cancelled had its lock by then: the signal came too late."""
        if waiter.outcome is not None or not waiter.done.is_set():
            return False
        await self._kernel.settled()
        return True

    async def test(self, ino: Ino, lock: Lock) -> Lock | None:
        """F_GETLK: the lock in the way of this one, or None. A process of another host has the pid 0. Raises NoLocks."""
        waiter = self.begin(ino, POSIX, lock, wait=False)
        waiter.probe = True
        try:
            await self.finish(waiter)
        except LeaseHeld:
            return waiter.blocker or Lock(NOBODY, lock.run, 0, 0)
        return None

    def unlock(self, ino: Ino, space: int, owner: int, first: int = 0, last: int = OFFSET_MAX) -> None:
        """Let go of an owner's locks on these bytes; whoever waits for them gets them at once. Raises NoLocks."""
        file = self._files.get((ino, space))
        if file is None or not file.table.clear(owner, first, last):
            return
        if self._is_quiet(file) and not file.line and len(self._files) <= LEASES_MAX and self._committer.tables.inode(ino):
            return
        self._evaluate(file)

    def closed(self, ino: Ino, handle: int) -> None:
        """The last descriptor of an open file is closed: what was locked through it as an open file description goes."""
        file = self._files.get((ino, POSIX))
        if file is not None and file.table.clear_handle(handle):
            self._evaluate(file)

    def is_locked(self, ino: Ino) -> bool:
        """Whether a process of this mount holds a lock on the file. A hot path."""
        return any((file := self._files.get((ino, space))) is not None and bool(file.table) for space in (FLOCK, POSIX))

    def held(self) -> list[tuple[Key, tuple[Lock, ...]]]:
        """The locks of this mount's processes, by file and space."""
        return [(file.key, file.table.locks) for file in self._files.values() if file.table]

    def must_confirm(self, ino: Ino) -> bool:
        """Whether the file is locked here and the session may be dead: then the lock may be another's by now. A hot path."""
        return bool(self._files) and self._heartbeat.lapsed and self.is_locked(ino)

    # ---- what happens around

    def progressed(self) -> None:
        """State has moved: grants may have come, and others may be waiting."""
        if self._doubted and not self._committer.judging:
            self._doubted = False
            self.reconsider()
        touched = self._committer.tables.touched_leases
        while touched:
            key = touched.pop()
            file = self._files.get(key)
            if file is None and self._has_part_in(key):
                file = self._file(key)
            if file is not None:
                self._evaluate(file)

    def observe(self, entry: Entry) -> None:
        """An entry of another session was applied: it may deny a request of ours."""
        for transaction in entry.transactions:
            for change in transaction.changes:
                if isinstance(change, Deny) and change.session == self._committer.session:
                    self._note_denial(change, entry.session)

    def lapsed(self) -> None:
        """The session may be dead in the eyes of others: nobody is kept waiting for what may never come."""
        for file in list(self._files.values()):
            for waiter in list(file.line):
                if waiter.ready:
                    self._refuse(waiter, NoLocks("the journal cannot be reached"))
            self._evaluate(file)

    def lost(self) -> None:
        """The session has ended under this mount: every lock is gone, and those who wait ask again under the next one."""
        for file in list(self._files.values()):
            if file.table:
                self._on_lost(file.key[0])
                file.table = LockTable()
            for waiter in file.line:
                waiter.number = None

    def reconsider(self) -> None:
        """What was in doubt is certain now: there is a session again, or a verdict has become an entry of the journal."""
        for file in list(self._files.values()):
            self._evaluate(file)

    # ---- the line

    def _file(self, key: Key) -> FileLocks:
        file = self._files.pop(key, None) or FileLocks(key)
        self._files[key] = file
        return file

    async def _reach(self, waiter: Waiter) -> None:
        try:
            await self._heartbeat.confirm()
            await self._follower.reach_tail(exact=True)
        except AgentfsError as error:
            raise NoLocks(f"the journal cannot be asked: {error}") from error
        waiter.ready = True
        if not waiter.done.is_set():
            self._evaluate(self._file(waiter.key))

    def _evaluate(self, file: FileLocks) -> None:
        """Grant what others made way for, give way to others, then grant what can be granted and ask for what is missing."""
        self._meet_others(file)
        for asked in (True, False):
            for waiter in list(file.line):
                if waiter.ready and not waiter.done.is_set() and (waiter.number is not None) is asked:
                    self._consider(file, waiter)
            self._giving.if_asked(file)
        self._giving.withdraw_strays(file)
        if not (file.table or file.line or file.asking or file.yielding):
            self._tidy(file)

    def _consider(self, file: FileLocks, waiter: Waiter) -> None:
        self._graph.stops(waiter.lock.owner, request=id(waiter))
        blocker = file.table.conflicting(waiter.lock.owner, waiter.lock.run)
        if blocker is not None and not waiter.wait:
            waiter.blocker = blocker
            self._refuse(waiter, LeaseHeld("another process holds it"))
            return
        behind = blocker is not None or (waiter.wait and self._is_behind(file, waiter))
        if behind and self._is_deadlock(file, waiter):
            self._refuse(waiter, Deadlock("each would wait for the other"))
        elif not self._is_covered(file, waiter):
            if not file.asking and not file.yielding and not self._committer.lost:
                self._ask(file, waiter)
        elif not behind:
            self._grant(file, waiter)

    def _is_behind(self, file: FileLocks, waiter: Waiter) -> bool:
        """Whether somebody who came earlier waits for what this one wants."""
        ahead = file.line[: file.line.index(waiter)]
        return any(is_in_the_way(other, waiter) and not _asked_later(other, waiter) for other in ahead)

    def _is_deadlock(self, file: FileLocks, waiter: Waiter) -> bool:
        if waiter.key[1] != POSIX:
            return False
        ahead = file.line[: file.line.index(waiter)]
        owners = {other.lock.owner for other in ahead if is_in_the_way(other, waiter)}
        owners |= {
            lock.owner for lock in file.table.locks if lock.owner != waiter.lock.owner and conflicts(lock.run, waiter.lock.run)
        }
        if self._graph.would_deadlock(waiter.lock.owner, owners):
            return True
        self._graph.waits(waiter.lock.owner, owners, request=id(waiter))
        return False

    def _is_covered(self, file: FileLocks, waiter: Waiter) -> bool:
        """Whether the session certainly holds the lease on what is asked for, and owes it to nobody who came earlier."""
        committer = self._committer
        if file.asking or file.yielding or committer.lost or self._heartbeat.lapsed:
            return False
        if committer.judging:
            self._doubted = True
            return False
        leases = self._leases(file.key)
        if not covers(runs_of(leases, self._committer.session), waiter.lock.run):
            return False
        if waiter.number is not None:
            return not self._is_queued(leases, waiter.number)
        return not waiter.wait or not any(self._is_ahead(other, waiter) for other in leases.queue)

    def _is_quiet(self, file: FileLocks) -> bool:
        """Whether no mount, this one among them, wants anything of the file in the journal. A hot path."""
        return not (file.asking or file.yielding or self._leases(file.key).queue)

    def _is_ahead(self, request: Request, waiter: Waiter) -> bool:
        foreign = request.session != self._committer.session and conflicts(request.run, waiter.lock.run)
        return foreign and name_of(request) not in waiter.before

    def _meet_others(self, file: FileLocks) -> None:
        """Requests of other sessions that are new stand behind those who wait here already for what needs no lease."""
        others = [each for each in self._leases(file.key).queue if each.session != self._committer.session]
        for request in others:
            if name_of(request) not in file.seen:
                for waiter in file.line:
                    if waiter.number is None and conflicts(request.run, waiter.lock.run):
                        waiter.before.add(name_of(request))
        file.seen = set(map(name_of, others))

    def _is_owed(self, file: FileLocks, request: Request) -> bool:
        """Whether somebody here comes before a request of another session."""
        held_up = False
        for waiter in file.line:
            if not conflicts(request.run, waiter.lock.run):
                continue
            if waiter.number is None:
                if not held_up and name_of(request) in waiter.before:
                    return True
            elif self._is_covered(file, waiter):
                return True
            else:
                held_up = True
        return False

    def _ask(self, file: FileLocks, waiter: Waiter) -> None:
        """Ask the journal for the lease, unless the request is there already or was denied."""
        if waiter.blocker is not None:
            self._refuse(waiter, LeaseHeld("a process of another mount holds it"))
            return
        if waiter.number is not None and self._is_queued(self._leases(file.key), waiter.number):
            return
        self._number = waiter.number = self._number + 1
        # From here on its place is the one that the journal gives it.
        waiter.before.clear()
        ino, space = file.key
        run, passes = waiter.lock.run, self._must_pass(file, waiter)
        self._send(file, waiter, Acquire(ino, space, waiter.number, run, waiter.wait, self._runtime.now_ns(), passes))

    def _must_pass(self, file: FileLocks, waiter: Waiter) -> bool:
        """Whether others wait for what this process holds itself: behind them it would wait for its own lock."""
        own = [lock.run for lock in file.table.locks if lock.owner == waiter.lock.owner]
        others = [each.run for each in self._leases(file.key).queue if each.session != self._committer.session]
        return any(conflicts(held, asked) for held in own for asked in others)

    def _send(self, file: FileLocks, waiter: Waiter, change: AnyChange) -> None:
        """Submit a request, which is in the session's order from here on, and see to the waiter when its fate is known."""
        try:
            pending = self._committer.submit([change])
        except AgentfsError as error:
            self._refuse(waiter, NoLocks(f"the lease cannot be asked for: {error}"))
            return
        file.asking += 1

        async def settle() -> None:
            try:
                await self._committer.settled(pending)
            except AgentfsError as error:
                self._refuse(waiter, NoLocks(f"the lease cannot be asked for: {error}"))
            finally:
                file.asking -= 1
            self._evaluate(file)

        self._nursery.start_soon(settle)

    def _grant(self, file: FileLocks, waiter: Waiter) -> None:
        try:
            if not waiter.probe:
                file.table.set(waiter.lock)
        except NoLocks as error:
            self._refuse(waiter, error)
        else:
            self._end(waiter)

    def _refuse(self, waiter: Waiter, error: AgentfsError) -> None:
        if not waiter.done.is_set():
            waiter.outcome = error
            self._end(waiter)

    def _end(self, waiter: Waiter) -> None:
        self._graph.stops(waiter.lock.owner, request=id(waiter))
        line = self._files[waiter.key].line
        if waiter in line:
            line.remove(waiter)
            self._waiting -= 1
        waiter.done.set()

    def _unanswered(self, waiter: Waiter) -> AgentfsError:
        """Why a process that did not want to wait for long is sent away."""
        if self._files[waiter.key].asking or self._heartbeat.lapsed:
            return NoLocks("the journal did not answer in time")
        return LeaseHeld("another mount has it, and did not answer in time")

    def _tidy(self, file: FileLocks) -> None:
        """Forget a file without leases; of those with idle ones, keep a bounded number."""
        if not self._holds(file.key):
            self._files.pop(file.key, None)
        elif self._committer.tables.inode(file.key[0]) is None:
            self._forget(file)
        elif len(self._files) > LEASES_MAX:
            idle = (each for each in self._files.values() if not (each.table or each.line or each.asking or each.yielding))
            self._forget(next(idle))

    def _forget(self, file: FileLocks) -> None:
        del self._files[file.key]
        self._giving.give_up(file.key)

    # ---- State

    def _leases(self, key: Key) -> Leases:
        return self._committer.tables.leases.get(key) or Leases()

    def _holds(self, key: Key) -> bool:
        return bool(runs_of(self._leases(key), self._committer.session))

    def _has_part_in(self, key: Key) -> bool:
        waiting = self._leases(key).queue
        return self._holds(key) or any(request.session == self._committer.session for request in waiting)

    def _is_queued(self, leases: Leases, number: int) -> bool:
        session = self._committer.session
        return any(request.session == session and request.number == number for request in leases.queue)

    def _note_denial(self, change: Deny, sender: SessionId) -> None:
        file = self._files.get((change.ino, change.space))
        sessions = self._committer.tables.sessions
        here = sessions[sender].host == sessions[self._committer.session].host
        for waiter in file.line if file else []:
            if waiter.number == change.number:
                waiter.blocker = Lock(NOBODY, change.held, change.pid if here else 0, 0)


def _asked_later(other: Waiter, waiter: Waiter) -> bool:
    """Whether both asked the journal, this one first: it may have come later and been ready earlier, and the journal's order
    is the one that others go by.
    """
    return other.number is not None and waiter.number is not None and waiter.number < other.number
