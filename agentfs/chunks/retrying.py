"""A chunk store that asks the store behind it again, a bounded number of times, when asking again may help."""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Final, TypeVar

from agentfs.chunks.contract import Capacity, Check, ChunkStore, ObjectInfo
from agentfs.model.errors import Unavailable
from agentfs.runtime import Runtime

T = TypeVar("T")

ATTEMPTS_MAX: Final = 5
DEADLINE_SECONDS: Final = 8.0
"""No attempt begins this long after the first: whoever has another replica is better served there."""

FIRST_DELAY_SECONDS: Final = 0.1
DELAY_MAX_SECONDS: Final = 2.0


class Retrying:
    """Asks again after Unavailable, and after nothing else.

    The delays double and are spread by jitter, so that many clients do not come back together. Where the store said how long
    it wants to be left alone, none is shorter; if that is past the deadline, the error goes to the caller at once.
    """

    def __init__(self, store: ChunkStore, *, runtime: Runtime) -> None:
        self._store = store
        self._runtime = runtime

    @property
    def store(self) -> ChunkStore:
        """The store behind it."""
        return self._store

    async def put(self, key: str, body: bytes) -> None:
        await self._persist(lambda: self._store.put(key, body))

    async def get(self, key: str, start: int = 0, length: int | None = None, *, check: Check | None = None) -> bytes:
        return await self._persist(lambda: self._store.get(key, start, length, check=check))

    async def size(self, key: str) -> int:
        return await self._persist(lambda: self._store.size(key))

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """As in the contract. After an error it is listed from the beginning, and what was yielded is passed over.

        The attempts are counted anew whenever a listing came further than the one before.
        """
        last, patience = "", _Patience(self._runtime)
        while True:
            listing = self._store.list(prefix)
            try:
                async for info in listing:
                    if info.key > last:
                        yield info
                        last, patience = info.key, _Patience(self._runtime)
            except Unavailable as error:
                await patience.wait_after(error)
            else:
                return
            finally:
                # A caller may stop in the middle, and a generator that nobody closes is closed at the collector's leisure.
                if isinstance(listing, AsyncGenerator):
                    await listing.aclose()

    async def delete(self, key: str) -> None:
        await self._persist(lambda: self._store.delete(key))

    async def capacity(self) -> Capacity | None:
        return await self._persist(self._store.capacity)

    async def aclose(self) -> None:
        await self._store.aclose()

    async def _persist(self, ask: Callable[[], Awaitable[T]]) -> T:
        patience = _Patience(self._runtime)
        while True:
            try:
                return await ask()
            except Unavailable as error:
                await patience.wait_after(error)


class _Patience:
    """How often one thing is tried yet, and how long it is waited in between."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._deadline = runtime.boottime() + DEADLINE_SECONDS
        self._attempts = 1
        self._delay_seconds = FIRST_DELAY_SECONDS

    async def wait_after(self, error: Unavailable) -> None:
        """Wait until it may be tried again; raise `error` if it may not."""
        delay = max(self._delay_seconds * (0.5 + self._runtime.jitter()), error.retry_after_seconds or 0.0)
        if self._attempts == ATTEMPTS_MAX or self._runtime.boottime() + delay >= self._deadline:
            raise error
        self._attempts += 1
        self._delay_seconds = min(2 * self._delay_seconds, DELAY_MAX_SECONDS)
        await self._runtime.sleep(delay)
