"""The mirror: has the journal's entries copied into the replicas, and says up to where enough of them hold every entry.

`position` is that place: every entry up to it is in as many replicas as a put asks for. What is put next begins right behind
it, whoever appended that, so that what is acknowledged at a position can be rebuilt with all that it stands on. Other mounts
put entries too, and say in theirs how far they came.

An object is put when somebody waits for an entry in it; while it is under way, what comes meanwhile gathers for the next. What
nobody waits for is put by the mount that does the workspace's chores, within GATHER_SECONDS. Putting the same entries twice,
alone or among others, does no harm: a position has one content.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

import structlog
import trio

from agentfs.journal.contract import Journal, Record
from agentfs.journal.mirror import encode_mirrored, mirror_key, parse_mirror_key
from agentfs.model.codec import decode_entry
from agentfs.model.entry import Entry
from agentfs.model.errors import AgentfsError, NoSpace, ReadOnly, Stale, Unavailable
from agentfs.model.ids import Position, ReplicaId
from agentfs.runtime import Runtime
from agentfs.workspace.mirror_backlog import Backlog
from agentfs.workspace.mirror_holdings import Holdings

GATHER_SECONDS: Final = 2.0
"""How long entries that nobody waits for may gather."""

OBJECT_BYTES: Final = 4 << 20
"""Bytes of entries that one object holds, if it holds more than one."""

AT_ONCE_BYTES: Final = 256 << 10
"""Bytes of an object that may be written in the event loop, into replicas that take it there."""

AT_ONCE_SECONDS: Final = 10e-3
"""How long such a write may take, on the average of the last ones."""

DISTRUST_SECONDS: Final = 5.0
"""How long no object is written in the event loop after that took too long."""

RETRY_SECONDS: Final = 1.0
RETRY_MAX_SECONDS: Final = 30.0
"""How long entries that nobody waits for are left alone after a failure: twice as long after each."""

_LOOK_BACK: Final = 4
"""Entries at the journal's tail in which word of the mirror is looked for first."""

_SPEED_WEIGHT: Final = 0.2
"""What the last write counts in the average."""

_log = structlog.get_logger()


class Replicas(Protocol):
    """What the mirror wants of the replicas."""

    @property
    def reachable(self) -> bool:
        """Whether the last put reached as many replicas as it has to."""
        ...

    async def put(self, key: str, body: bytes) -> None:
        """Have enough replicas keep an object; raises why they do not, after a while."""
        ...

    def placed(self, key: str) -> list[ReplicaId]:
        """The replicas that hold a key that was put."""
        ...


Grow = Callable[[str | None, str, bytes], list[ReplicaId] | None]
"""Adds bytes to an object, or to nothing, and gives it another key, in every replica and without waiting.

Returns the replicas, or None where some need time, or refuse.
"""


@dataclass(frozen=True, slots=True)
class Growing:
    """An object that the next entries are added to, and the bytes of entries in it."""

    first: Position
    last: Position
    size: int


class Mirror:
    """One mount's part in the mirror. `run` is its task; the rest is called from the same event loop.

    `waits`: whoever waits for a commit waits for the mirror too. Without it, as over a journal that is itself replicated, the
    mirror follows behind. `timeout_seconds`: how long somebody waits.
    """

    def __init__(
        self, journal: Journal, replicas: Replicas, tail: Position, runtime: Runtime, *, waits: bool, timeout_seconds: float
    ) -> None:
        self.position = Position(0)
        self.holdings = Holdings()
        # Whether the workspace's chores are this mount's.
        self.elected: Callable[[], bool] = lambda: False
        self.grow: Grow = lambda old, new, body: None
        self.read_only_when_unreachable = False
        self._journal = journal
        self._replicas = replicas
        self._runtime = runtime
        self._waits = waits
        self._timeout_seconds = timeout_seconds
        self._backlog = Backlog(tail)
        self._begun = False
        self._putting = False
        self._waiters: list[_Waiter] = []
        self._wanted = trio.Event()
        self._pause_seconds = RETRY_SECONDS
        self._not_before = 0.0
        self._growing: Growing | None = None
        self._average_seconds = 0.0
        self._trusted_from = 0.0
        # The last entry of an object that could not be put: it is tried again as it was, so that nobody holds it twice.
        self._stuck: Position | None = None

    @property
    def tail(self) -> Position:
        """The last entry that this mount knows of."""
        return self._backlog.tail

    def take(self, record: Record, entry: Entry) -> None:
        """An entry is in the journal, and all before it were taken. A hot path."""
        self._backlog.take(record, entry.time_ns, keep=self._waits or self.elected())
        if entry.mirrored > self.position:
            self._advance(entry.mirrored)

    def owes(self, position: Position) -> bool:
        """Whether somebody who wants the entry at `position` to be safe has to wait. A hot path."""
        return self._waits and position > self.position

    async def reach(self, position: Position) -> None:
        """Return once enough replicas hold every entry up to `position`, at once where nobody has to wait for that. A hot path.

        Raises NoSpace, and Unavailable or, where the mount says so, ReadOnly after `timeout_seconds`. The entries are in the
        journal all the same, and their copies are put as soon as that can be done.
        """
        if not self.owes(position) or self._put_now(position):
            return
        waiter = _Waiter(position)
        self._waiters.append(waiter)
        self._wanted.set()
        try:
            with trio.move_on_after(self._timeout_seconds):
                await waiter.done.wait()
        finally:
            self._waiters.remove(waiter)
        if position > self.position:
            raise self._waiters_error(waiter.error or Unavailable(f"no answer in {self._timeout_seconds:g} s"))

    @property
    def is_finisher(self) -> bool:
        """Whether it is for this mount to leave nothing behind that is not mirrored, and that can be expected to succeed."""
        return self._replicas.reachable and (self._waits or self.elected())

    async def finish(self) -> None:
        """Have everything put that this mount knows of, before it ends. Raises as `reach` does."""
        self._waits = True
        await self.reach(self.tail)

    def wake(self) -> None:
        """A replica is there again."""
        self._pause_seconds, self._not_before = RETRY_SECONDS, 0.0
        self._wanted.set()

    def straggled(self, key: str, replica: ReplicaId) -> None:
        """A replica holds an object now that it did not acknowledge in time."""
        run = parse_mirror_key(key)
        if run is not None:
            self.holdings.given(replica, run)

    def enough_hold(self, position: Position) -> None:
        """As many replicas as a put asks for were found to hold every entry up to `position`."""
        if position > self.position:
            self._advance(position)

    def lag_seconds(self, position: Position) -> float | None:
        """How old the first entry behind `position` is, 0 if there is none; None if that was too long ago to be known."""
        if position >= self.tail:
            return 0.0
        time_ns = self._backlog.time_behind(position)
        return None if time_ns is None else max(0, self._runtime.now_ns() - time_ns) / 1e9

    # ---- putting

    async def run(self) -> None:
        """Put what is waited for, and what has gathered, until cancelled."""
        await self._begin()
        while True:
            await self._wait_for_work()
            # What comes while this is put gathers for the next time.
            gathered = self.tail
            while self._is_due(gathered) and await self._put_next():
                pass

    async def _wait_for_work(self) -> None:
        with trio.move_on_after(GATHER_SECONDS):
            await self._wanted.wait()
        self._wanted = trio.Event()

    def _is_due(self, gathered: Position) -> bool:
        """Whether somebody waits, or entries up to `gathered` are to be put that nobody waits for."""
        if any(waiter.position > self.position and not waiter.done.is_set() for waiter in self._waiters):
            return True
        rested = self._runtime.boottime() >= self._not_before
        return rested and self.position < gathered and self._replicas.reachable and self.elected()

    def _put_now(self, position: Position) -> bool:
        """Put everything behind the mirror's position in this very step, if that can be done; whether that was enough."""
        if not self._begun or self._putting or self._runtime.boottime() < self._trusted_from:
            return False
        records = self._backlog.behind(self.position, limit_bytes=AT_ONCE_BYTES)
        size = sum(len(record.payload) for record in records)
        if not records or records[-1].position < position or size > AT_ONCE_BYTES:
            return False
        began = self._runtime.boottime()
        done = self._write_now(records, size)
        now = self._runtime.boottime()
        # A single stall says nothing about the disk.
        taken = min(now - began, 2 * AT_ONCE_SECONDS)
        self._average_seconds += (taken - self._average_seconds) * _SPEED_WEIGHT
        if self._average_seconds > AT_ONCE_SECONDS:
            self._average_seconds, self._trusted_from = 0.0, now + DISTRUST_SECONDS
        return done

    def _write_now(self, records: list[Record], size: int) -> bool:
        """Make the object grow that the last entries were written to, or begin another."""
        first, last, old, grown = records[0].position, records[-1].position, None, self._growing
        if grown is not None and grown.last + 1 == first and grown.size + size <= OBJECT_BYTES:
            old, first, size = mirror_key(grown.first, grown.last), grown.first, grown.size + size
        holders = self.grow(old, mirror_key(first, last), encode_mirrored(records))
        if holders is None:
            self._growing = None
            return False
        self._growing = Growing(first, last, size)
        self._put((first, last), holders)
        return True

    async def _put_next(self) -> bool:
        """Put the entries that follow the mirror's position; whether there may be more to put at once."""
        if self._put_now(self.tail):
            return True
        self._putting = True
        last = self.tail
        try:
            records = await self._next_records()
            if not records:
                return False
            last = records[-1].position
            key = mirror_key(records[0].position, last)
            await self._replicas.put(key, encode_mirrored(records))
        except AgentfsError as error:
            self._failed(last, error)
            return False
        else:
            self._put((records[0].position, last), self._replicas.placed(key))
            return True
        finally:
            self._putting = False

    async def _next_records(self) -> list[Record]:
        after = self.position
        records = self._backlog.behind(after, limit_bytes=OBJECT_BYTES)
        if not records:
            try:
                records = await self._journal.read(after, limit_bytes=OBJECT_BYTES)
            except Stale:
                # Trimmed, for a checkpoint stands in for it: who would need these entries has that.
                self._advance(await trimmed_until(self._journal, after, self.tail))
                records = await self._journal.read(self.position, limit_bytes=OBJECT_BYTES)
        if self._stuck is not None and records and records[0].position <= self._stuck:
            records = [record for record in records if record.position <= self._stuck]
        return records

    def _put(self, run: tuple[Position, Position], holders: list[ReplicaId]) -> None:
        self._pause_seconds, self._not_before, self._stuck = RETRY_SECONDS, 0.0, None
        for replica in holders:
            self.holdings.given(replica, run)
        if run[1] > self.position:
            self._advance(run[1])

    def _failed(self, last: Position, error: AgentfsError) -> None:
        self._stuck = last
        waiting = [waiter for waiter in self._waiters if not waiter.done.is_set()]
        # Whose entry was in it is told now. The others have a try before them, or until their time is up, if one may succeed.
        for waiter in waiting:
            waiter.error = error
            if waiter.position <= last or not isinstance(error, Unavailable):
                waiter.done.set()
        now = self._runtime.boottime()
        if now >= self._not_before:
            lacks = self.tail - self.position
            _log.warning("not_mirrored", entries=lacks, reason=str(error), retry_seconds=self._pause_seconds)
            self._not_before = now + self._pause_seconds
            self._pause_seconds = min(2 * self._pause_seconds, RETRY_MAX_SECONDS)

    def _advance(self, position: Position) -> None:
        self.position = position
        self._backlog.forget(position)
        for waiter in self._waiters:
            if waiter.position <= position:
                waiter.done.set()

    def _waiters_error(self, error: AgentfsError) -> AgentfsError:
        """What somebody is told who waited in vain: a full replica is ENOSPC; its permissions are not the file's."""
        if isinstance(error, NoSpace):
            return error
        reason = f"it is in the journal, and not in enough replicas: {error}"
        return ReadOnly(reason) if self.read_only_when_unreachable else Unavailable(reason)

    # ---- beginning

    async def _begin(self) -> None:
        """Learn from the last entries how far the mirror is."""
        while not self._begun:
            try:
                await self._look_back()
                self._begun = True
            except AgentfsError as error:
                _log.warning("mirror_not_begun", reason=str(error), retry_seconds=RETRY_SECONDS)
                await self._runtime.sleep(RETRY_SECONDS)

    async def _look_back(self) -> None:
        """Whoever wrote the last entries knew how far the mirror was; where none did, all of the journal is still to be put."""
        tail, count = self.tail, _LOOK_BACK
        while self.position == 0:
            after = Position(max(0, tail - count))
            try:
                await self._hear(after, tail)
            except Stale:
                self._advance(await trimmed_until(self._journal, after, tail))
            if after == 0:
                return
            count *= 4

    async def _hear(self, after: Position, tail: Position) -> None:
        while after < tail and (records := await self._journal.read(after)):
            for record in records:
                heard = decode_entry(record.payload).mirrored
                if heard > self.position:
                    self._advance(heard)
            after = records[-1].position


async def trimmed_until(journal: Journal, low: Position, high: Position) -> Position:
    """The last entry that the journal has forgotten, where what follows `low` is trimmed and what follows `high` is not."""
    while high - low > 1:
        middle = Position((low + high) // 2)
        try:
            await journal.read(middle, limit_bytes=1)
            high = middle
        except Stale:
            low = middle
    return high


class _Waiter:
    """Somebody who waits for an entry to be in enough replicas; `error` is why it is not yet."""

    __slots__ = ("done", "error", "position")

    def __init__(self, position: Position) -> None:
        self.position = position
        self.error: AgentfsError | None = None
        self.done = trio.Event()
