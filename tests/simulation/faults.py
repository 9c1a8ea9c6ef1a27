"""Faults: journals and stores that refuse, that lose an answer after doing what they were asked, and that take their time."""

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from random import Random
from typing import Final, Protocol, TypeVar

import trio

from agentfs.chunks.contract import Capacity, Check, ChunkStore, ObjectInfo
from agentfs.journal.contract import Journal, Record
from agentfs.model.errors import AgentfsError, Unavailable
from agentfs.model.ids import Position

T = TypeVar("T")

_OUT_OF_BAND: Final = frozenset(("tail", "tail_at_once", "wait", "beat", "beats", "forget_beat"))


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
class Cable:
    """A connection that a test cuts: then nothing is done, and every call fails after `patience_seconds`.

    `held` are verbs that wait for an event before they are done.
    """

    cut: bool = False
    patience_seconds: float = 0.1
    held: dict[str, trio.Event] = field(default_factory=dict)

    def next(self, verb: str) -> Fault:
        if self.cut:
            return Fault(self.patience_seconds, refused=Unavailable(f"{verb}: nobody answers"))
        return Fault(self.held.get(verb, 0.0))


@dataclass(frozen=True, slots=True)
class Outage:
    """From `start` to `end`, in virtual seconds, nothing is answered, though some of it is done.

    A call fails after `patience_seconds` at most: at once where a connection is refused, later where it is silent.
    """

    start: float
    end: float
    patience_seconds: float = 0.1

    def remaining(self) -> float:
        """Virtual seconds to its end; 0 outside of it."""
        now = trio.current_time()
        return self.end - now if self.start <= now else 0.0


@dataclass(slots=True)
class Weather:
    """Seeded faults: with these probabilities a call is refused, loses its answer, kills its session, or is slow.

    Heartbeats and looks at the tail are only slow, and cut off in an outage, or nobody would ever get to work.
    """

    random: Random
    refuse: float = 0.0
    lose: float = 0.0
    kill: float = 0.0
    slow: float = 0.0
    slow_seconds: float = 0.5
    killer: Callable[[], None] = lambda: None
    outages: list[Outage] = field(default_factory=list)

    def calm(self) -> None:
        """No more faults."""
        self.refuse = self.lose = self.kill = self.slow = 0.0
        self.outages.clear()

    def next(self, verb: str) -> Fault:
        for outage in self.outages:
            if (remaining := outage.remaining()) > 0:
                return self._cut_off(verb, min(remaining, outage.patience_seconds))
        roll, slow = self.random.random(), self.random.random() < self.slow
        seconds = self.random.random() * self.slow_seconds if slow else 0.0
        behind = self.random.random() * self.slow_seconds if slow else 0.0
        if verb in _OUT_OF_BAND:
            return Fault(seconds, behind=behind)
        if roll < self.refuse:
            return Fault(seconds, refused=Unavailable(f"{verb} was refused"))
        roll -= self.refuse
        if roll < self.lose:
            return Fault(seconds, behind=behind, lost=Unavailable(f"the answer of {verb} was lost"))
        if roll - self.lose < self.kill:
            return Fault(seconds, behind=behind, kill=self.killer)
        return Fault(seconds, behind=behind)

    def _cut_off(self, verb: str, seconds: float) -> Fault:
        unreachable = Unavailable(f"{verb}: nobody answers")
        done = self.random.random() < 0.2
        return Fault(behind=seconds, lost=unreachable) if done else Fault(seconds, refused=unreachable)


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


async def asked(faults: Faults, verb: str, ask: Callable[[], Awaitable[T]]) -> T:
    """Ask, with what befalls that."""
    fault = faults.next(verb)
    await _begin(fault)
    answer = await ask()
    await _end(fault)
    return answer


class FaultyJournal:
    """A journal with faults on what it is asked."""

    def __init__(self, journal: Journal, faults: Faults) -> None:
        self._journal = journal
        self._faults = faults

    async def append(self, payload: bytes) -> Position:
        return await self._asked("append", lambda: self._journal.append(payload))

    async def read(self, after: Position, *, limit_bytes: int = 4 << 20) -> list[Record]:
        return await self._asked("read", lambda: self._journal.read(after, limit_bytes=limit_bytes))

    async def tail(self) -> Position:
        return await self._asked("tail", self._journal.tail)

    def tail_at_once(self) -> Position | None:
        fault = self._faults.next("tail_at_once")
        return None if fault.before or fault.refused or fault.lost else self._journal.tail_at_once()

    async def wait(self, after: Position) -> None:
        # What befalls it does so when there is news: until then nobody notices whether it would come.
        await self._journal.wait(after)
        await self._asked("wait", trio.lowlevel.checkpoint)

    async def beat(self, session: int) -> None:
        await self._asked("beat", lambda: self._journal.beat(session))

    async def beats(self) -> dict[int, int]:
        return await self._asked("beats", self._journal.beats)

    async def forget_beat(self, session: int) -> None:
        await self._asked("forget_beat", lambda: self._journal.forget_beat(session))

    async def trim(self, before: Position) -> None:
        await self._journal.trim(before)

    async def pointer(self) -> bytes:
        return await self._asked("pointer", self._journal.pointer)

    async def point(self, position: Position, text: bytes) -> None:
        await self._asked("point", lambda: self._journal.point(position, text))

    async def aclose(self) -> None:
        await self._journal.aclose()

    async def _asked(self, verb: str, ask: Callable[[], Awaitable[T]]) -> T:
        return await asked(self._faults, verb, ask)


class FaultyStore:
    """A chunk store with faults on what it is asked."""

    def __init__(self, store: ChunkStore, faults: Faults) -> None:
        self._store = store
        self._faults = faults

    async def put(self, key: str, body: bytes) -> None:
        await asked(self._faults, "put", lambda: self._store.put(key, body))

    async def get(self, key: str, start: int = 0, length: int | None = None, *, check: Check | None = None) -> bytes:
        return await asked(self._faults, "get", lambda: self._store.get(key, start, length, check=check))

    async def size(self, key: str) -> int:
        return await asked(self._faults, "size", lambda: self._store.size(key))

    async def delete(self, key: str) -> None:
        await asked(self._faults, "delete", lambda: self._store.delete(key))

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        await asked(self._faults, "list", trio.lowlevel.checkpoint)
        listing = self._store.list(prefix)
        try:
            async for info in listing:
                yield info
        finally:
            if isinstance(listing, AsyncGenerator):
                await listing.aclose()

    async def capacity(self) -> Capacity | None:
        return await self._store.capacity()

    async def aclose(self) -> None:
        # The replica outlives every session that uses it.
        await trio.lowlevel.checkpoint()
