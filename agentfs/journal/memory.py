"""A journal in this process's memory, for tests and simulations."""

import trio

from agentfs.journal.contract import FIRST, Record, check_pointer
from agentfs.model.errors import Stale, Unavailable
from agentfs.model.ids import Position


class MemoryLog:
    """What the journals of several sessions share: the entries from `first` on, and the heartbeats."""

    def __init__(self, first: Position = FIRST) -> None:
        self.first = first
        self.payloads: list[bytes] = []
        self.pointer = (Position(0), b"")
        self.counts: dict[int, int] = {}
        self.news = trio.Event()

    @property
    def tail(self) -> Position:
        """The last entry's position, or the one in front of the first if there is none."""
        return Position(self.first + len(self.payloads) - 1)

    def wake(self) -> None:
        """Let every waiter look again; who comes later waits for the next time."""
        self.news.set()
        self.news = trio.Event()


class MemoryJournal:
    """The contract of `Journal` on a `MemoryLog`. Journals given the same log are sessions of the same workspace."""

    def __init__(self, log: MemoryLog | None = None) -> None:
        self._log = MemoryLog() if log is None else log
        self._closed = False

    async def append(self, payload: bytes) -> Position:
        await self._step()
        self._log.payloads.append(bytes(payload))
        self._log.wake()
        return self._log.tail

    async def read(self, after: Position, *, limit_bytes: int = 4 << 20) -> list[Record]:
        await self._step()
        if after < self._log.first - 1:
            raise Stale(f"the journal was trimmed up to position {self._log.first - 1}, asked for what follows {after}")
        records: list[Record] = []
        size = 0
        for position in range(after + 1, self._log.tail + 1):
            payload = self._log.payloads[position - self._log.first]
            size += len(payload)
            if records and size > limit_bytes:
                break
            records.append(Record(Position(position), payload))
        return records

    async def tail(self) -> Position:
        await self._step()
        return self._log.tail

    def tail_at_once(self) -> Position | None:
        return None if self._closed else self._log.tail

    async def wait(self, after: Position) -> None:
        await self._step()
        while self._log.tail <= after:
            await self._log.news.wait()
            self._refuse_when_closed()

    async def beat(self, session: int) -> None:
        await self._step()
        self._log.counts[session] = self._log.counts.get(session, 0) + 1

    async def beats(self) -> dict[int, int]:
        await self._step()
        return dict(self._log.counts)

    async def forget_beat(self, session: int) -> None:
        await self._step()
        self._log.counts.pop(session, None)

    async def trim(self, before: Position) -> None:
        await self._step()
        first = Position(min(before, self._log.tail))
        if first > self._log.first:
            del self._log.payloads[: first - self._log.first]
            self._log.first = first

    async def pointer(self) -> bytes:
        await self._step()
        return self._log.pointer[1]

    async def point(self, position: Position, text: bytes) -> None:
        check_pointer(text)
        await self._step()
        if position >= self._log.pointer[0]:
            self._log.pointer = (position, bytes(text))

    async def aclose(self) -> None:
        self._closed = True
        self._log.wake()

    async def _step(self) -> None:
        # Other tasks run, and cancellation strikes, before an operation takes effect and never after it.
        await trio.lowlevel.checkpoint()
        self._refuse_when_closed()

    def _refuse_when_closed(self) -> None:
        if self._closed:
            raise Unavailable("the journal is closed")
