"""A process that uses locks: it adds one to numbers under a lock, looks at them under a shared one, tries, and gives up."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

import msgspec
import trio

from agentfs.model.errors import Fenced, LeaseHeld
from agentfs.model.ids import Ino
from agentfs.model.lease import EXCLUSIVE, FLOCK, POSIX, SHARED, WHOLE, Run
from agentfs.workspace.lock_table import Lock
from agentfs.workspace.set_aside import CONTENTS, SetAsideFile
from agentfs.workspace.workspace import Workspace
from tests.simulation.evidence import Belief, Evidence
from tests.simulation.witness import NUMBER_BYTES, numbers_of

SLOTS: Final = 4
"""Numbers in the file that is locked in parts."""

ANSWER_SECONDS: Final = 60.0
"""How long a request that does not want to wait may take, with a journal that is silent for ten seconds a call."""

RECOVER_SECONDS: Final = 200.0


@dataclass(frozen=True, slots=True)
class Place:
    """Numbers `first` to `last` of a file, and the space in which they are locked."""

    ino: Ino
    space: int
    first: int
    last: int

    def run(self, mode: int) -> Run:
        """The bytes to lock. flock(2) locks know the whole file only."""
        if self.space == FLOCK:
            return Run(WHOLE.first, WHOLE.last, mode)
        return Run(self.first * NUMBER_BYTES, (self.last + 1) * NUMBER_BYTES - 1, mode)


class Locker:
    """The lock users of one mount. Each call is a process of its own, with an open file of its own."""

    def __init__(self, machine: int, evidence: Evidence, workspace: Workspace, random: Random) -> None:
        self._machine = machine
        self._evidence = evidence
        self._workspace = workspace
        self._random = random

    def places(self) -> list[Place]:
        """Every number that is counted under a lock."""
        evidence = self._evidence
        return [
            Place(evidence.flocked, FLOCK, 0, 0),
            *(Place(evidence.ranged, POSIX, slot, slot) for slot in range(SLOTS)),
        ]

    def some_place(self) -> Place:
        """One number, or several next to each other."""
        if self._random.random() < 0.5:
            return Place(self._evidence.flocked, FLOCK, 0, 0)
        first = self._random.randrange(SLOTS)
        return Place(self._evidence.ranged, POSIX, first, self._random.randint(first, min(first + 2, SLOTS - 1)))

    async def add_one(self, place: Place, *, wait: bool = True, patience_seconds: float = 60.0) -> bool:
        """Lock, read, add one, write, unlock: whether all of it succeeded. False where the lock could not be had in time.

        Raises what a process would get instead.
        """
        async with self._opened(place.ino) as handle:
            owner = self._evidence.new_owner()
            if not await self._lock(place, EXCLUSIVE, owner, handle, wait=wait, patience_seconds=patience_seconds):
                return False
            async with self._believed(place, EXCLUSIVE, owner, handle):
                await self._add(place, handle)
            return True

    async def _add(self, place: Place, handle: int) -> None:
        files = self._workspace.files
        values = await self._values(place, handle)
        if self._random.random() < 0.3:
            await trio.sleep(self._random.choice((0.0, 0.2, 1.0)))
        cache = self._workspace._cache
        data = b"".join(number_bytes(value + 1) for value in values)
        await files.write(handle, place.first * NUMBER_BYTES, data)
        try:
            # Either close(2) waits for the commit, or letting go of the lock does.
            await (files.flush(handle) if self._random.random() < 0.5 else files.sync_file(place.ino))
        except Fenced:
            await self._expect_in_recovery_folder(cache, place, data)
            raise
        for slot, value in enumerate(values, place.first):
            self._evidence.added.append((place.ino, slot, value + 1))
        self._evidence.acknowledged += 1
        self._evidence.wrote(place.ino, place.first * NUMBER_BYTES, data)

    async def look(self, place: Place) -> None:
        """Read twice under a shared lock: nobody writes in between as long as the session lives."""
        async with self._opened(place.ino) as handle:
            owner = self._evidence.new_owner()
            if not await self._lock(place, SHARED, owner, handle, wait=True, patience_seconds=20.0):
                return
            async with self._believed(place, SHARED, owner, handle) as belief:
                one = await self._values(place, handle)
                await trio.sleep(self._random.choice((0.0, 0.3, 2.0)))
                await self._workspace._core.follower.reach_tail()
                two = await self._values(place, handle)
                if one != two and belief.is_live():
                    self._evidence.misread.append(
                        f"actor {self._machine} read {one}, then {two} of {place} under a shared lock"
                    )

    async def _values(self, place: Place, handle: int) -> list[int]:
        count = place.last - place.first + 1
        body = await self._workspace.files.read(handle, place.first * NUMBER_BYTES, count * NUMBER_BYTES)
        return (numbers_of(body) + [0] * count)[:count]

    async def _lock(self, place: Place, mode: int, owner: int, handle: int, *, wait: bool, patience_seconds: float) -> bool:
        lock = Lock(owner, place.run(mode), 100 + self._machine, handle)
        locks, evidence = self._workspace.locks, self._evidence
        times, asked = evidence.freezer.times[self._machine], trio.current_time()
        waiter = locks.begin(place.ino, place.space, lock, wait=wait)
        with trio.move_on_after(patience_seconds):
            try:
                await locks.finish(waiter)
            except LeaseHeld:
                return False
            finally:
                took = trio.current_time() - asked
                if not wait and took > ANSWER_SECONDS and evidence.freezer.times[self._machine] == times:
                    evidence.late.append(f"actor {self._machine} waited {took} seconds for a lock it did not want to wait for")
            return True
        return False

    @asynccontextmanager
    async def _opened(self, ino: Ino) -> AsyncIterator[int]:
        handle = await self._workspace.files.open(ino, os.O_RDWR)
        try:
            yield handle.number
        finally:
            self._workspace.locks.closed(ino, handle.number)
            self._workspace.files.release(handle.number)

    @asynccontextmanager
    async def _believed(self, place: Place, mode: int, owner: int, handle: int) -> AsyncIterator[Belief]:
        """While a process has its lock. Then what it wrote is committed before it hears that the lock is gone."""
        workspace, evidence = self._workspace, self._evidence
        committer, heartbeat = workspace._core.committer, workspace._heartbeat
        session = committer.session

        def is_live() -> bool:
            still_ours = committer.session == session and not committer.lost
            return still_ours and not heartbeat.lapsed and evidence.witness.is_open(session)

        belief = Belief(self._machine, owner, (place.ino, place.space), place.run(mode), is_live)
        evidence.believe(belief)
        try:
            yield belief
        finally:
            evidence.beliefs.remove(belief)
            run = belief.run
            workspace.locks.unlock(place.ino, place.space, owner, run.first, run.last)
        if workspace.files.is_owed(place.ino):
            await workspace.files.sync_file(place.ino)

    async def _expect_in_recovery_folder(self, cache: Path, place: Place, data: bytes) -> None:
        """The session was lost with the lock: once there is another one, what was written lies where a person finds it.

        Or it was committed before that, and whoever wrote it is not told so.
        """
        committer, offset = self._workspace._core.committer, place.first * NUMBER_BYTES
        with trio.move_on_after(RECOVER_SECONDS):
            while committer.lost:
                await trio.sleep(0.5)
            found = any(is_set_aside(folder, place.ino, offset, data) for folder in cache.glob("recovered-*"))
            if not found and not self._evidence.witness.has_written(place.ino, offset, data):
                self._evidence.stranded.append(f"actor {self._machine} wrote {data!r} under a lock it lost: no folder has it")


def number_bytes(value: int) -> bytes:
    """A number as it is in a file."""
    return b"%015d\n" % value


def is_set_aside(folder: Path, ino: Ino, offset: int, data: bytes) -> bool:
    """Whether a recovery folder has these bytes of a file."""
    contents = folder / CONTENTS
    if not contents.exists():
        return False
    files = [file for file in msgspec.json.decode(contents.read_bytes(), type=list[SetAsideFile]) if file.inode == ino]
    pieces = [piece.file for file in files for piece in file.pieces if piece.file]
    return any((folder / piece).read_bytes()[offset : offset + len(data)] == data for piece in pieces)
