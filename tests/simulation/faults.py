"""Faults: journals and stores that refuse, that lose an answer after doing what they were asked, and that take their time."""

from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from random import Random
from typing import Protocol

import trio

from agentfs.chunks.contract import Capacity, Check, ChunkStore, ObjectInfo
from agentfs.journal.contract import Journal, Record
from agentfs.model.errors import AgentfsError, Unavailable
from agentfs.model.ids import Position


@dataclass(frozen=True, slots=True)
class Fault:
    """What befalls one call: a wait, an error, then the call itself, another wait, a kill, and the loss of its answer."""

    before: trio.Event | float = 0.0
    refused: AgentfsError | None = None
    behind: trio.Event | float = 0.0
    kill: Callable[[], None] | None = None
    lost: AgentfsError | None = None


NONE = Fault()


class Faults(Protocol):
    """Where faults come from."""

    def next(self, verb: str) -> Fault:
        """What befalls the next call of `verb`."""
        ...


@dataclass(slots=True)
class Script:
    """Faults that a test lines up, per verb; none where it is at its end."""

    lines: dict[str, deque[Fault]] = field(default_factory=dict)

    def add(self, verb: str, *faults: Fault) -> None:
        """Line up faults behind those that are lined up already."""
        self.lines.setdefault(verb, deque()).extend(faults)

    def next(self, verb: str) -> Fault:
        line = self.lines.get(verb)
        return line.popleft() if line else NONE


@dataclass(slots=True)
class Weather:
    """Seeded faults: with these probabilities a call is refused, loses its answer, kills its session, or is slow."""

    random: Random
    refuse: float = 0.0
    lose: float = 0.0
    kill: float = 0.0
    slow: float = 0.0
    slow_seconds: float = 0.5
    killer: Callable[[], None] = lambda: None
    outages: list[tuple[float, float]] = field(default_factory=list)
    """Virtual seconds from when to when nothing is answered, though some of it is done."""

    def calm(self) -> None:
        """No more faults."""
        self.refuse = self.lose = self.kill = self.slow = 0.0
        self.outages.clear()

    def next(self, verb: str) -> Fault:
        now = trio.current_time()
        if any(start <= now < end for start, end in self.outages):
            unreachable = Unavailable(f"{verb}: nobody answers")
            return Fault(0.1, lost=unreachable) if self.random.random() < 0.2 else Fault(0.1, refused=unreachable)
        roll, slow = self.random.random(), self.random.random() < self.slow
        seconds = self.random.random() * self.slow_seconds if slow else 0.0
        behind = self.random.random() * self.slow_seconds if slow else 0.0
        if roll < self.refuse:
            return Fault(seconds, refused=Unavailable(f"{verb} was refused"))
        roll -= self.refuse
        if roll < self.lose:
            return Fault(seconds, behind=behind, lost=Unavailable(f"the answer of {verb} was lost"))
        if roll - self.lose < self.kill:
            return Fault(seconds, behind=behind, kill=self.killer)
        return Fault(seconds, behind=behind)


async def _wait(what: trio.Event | float) -> None:
    if isinstance(what, trio.Event):
        await what.wait()
    elif what:
        await trio.sleep(what)


async def _begin(fault: Fault) -> None:
    await _wait(fault.before)
    if fault.refused is not None:
        raise fault.refused


async def _end(fault: Fault) -> None:
    await _wait(fault.behind)
    if fault.kill is not None:
        fault.kill()
        await trio.lowlevel.checkpoint()
    if fault.lost is not None:
        raise fault.lost


class FaultyJournal:
    """A journal with faults on what it is asked to append and to read."""

    def __init__(self, journal: Journal, faults: Faults) -> None:
        self._journal = journal
        self._faults = faults

    async def append(self, payload: bytes) -> Position:
        fault = self._faults.next("append")
        await _begin(fault)
        position = await self._journal.append(payload)
        await _end(fault)
        return position

    async def read(self, after: Position, *, limit_bytes: int = 4 << 20) -> list[Record]:
        fault = self._faults.next("read")
        await _begin(fault)
        records = await self._journal.read(after, limit_bytes=limit_bytes)
        await _end(fault)
        return records

    async def tail(self) -> Position:
        return await self._journal.tail()

    async def wait(self, after: Position) -> None:
        await self._journal.wait(after)

    async def beat(self, session: int) -> None:
        await self._journal.beat(session)

    async def beats(self) -> dict[int, int]:
        return await self._journal.beats()

    async def forget_beat(self, session: int) -> None:
        await self._journal.forget_beat(session)

    async def trim(self, before: Position) -> None:
        await self._journal.trim(before)

    async def aclose(self) -> None:
        await self._journal.aclose()


class FaultyStore:
    """A chunk store with faults on puts and gets."""

    def __init__(self, store: ChunkStore, faults: Faults) -> None:
        self._store = store
        self._faults = faults

    async def put(self, key: str, body: bytes) -> None:
        fault = self._faults.next("put")
        await _begin(fault)
        await self._store.put(key, body)
        await _end(fault)

    async def get(self, key: str, start: int = 0, length: int | None = None, *, check: Check | None = None) -> bytes:
        fault = self._faults.next("get")
        await _begin(fault)
        body = await self._store.get(key, start, length, check=check)
        await _end(fault)
        return body

    async def size(self, key: str) -> int:
        return await self._store.size(key)

    def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        return self._store.list(prefix)

    async def delete(self, key: str) -> None:
        await self._store.delete(key)

    async def capacity(self) -> Capacity | None:
        return await self._store.capacity()

    async def aclose(self) -> None:
        # The replica outlives every session that uses it.
        await trio.lowlevel.checkpoint()
