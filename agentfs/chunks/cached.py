"""A chunk store that remembers in memory what it read last from the store behind it."""

from collections.abc import AsyncIterator
from typing import Final, NamedTuple

import trio
from cachetools import LRUCache

from agentfs.chunks.contract import Capacity, Check, ChunkStore, ObjectInfo
from agentfs.model.errors import AgentfsError

_BOOKKEEPING_BYTES: Final = 256
"""What a result costs besides its bytes, roughly; so that a great many small ones are bounded too."""


class Cached:
    """Keeps the results of `get`, the least recently used going first; everything else passes through.

    A result is kept for the same key, start and length, if it is not bigger than a quarter of `max_bytes`. Several tasks that
    ask for the same at once cause one read. A result that is kept already is answered without letting other tasks run.
    """

    def __init__(self, store: ChunkStore, *, max_bytes: int) -> None:
        self._store = store
        self._max_bytes = max_bytes
        self._kept: LRUCache[_Range, _Result] = LRUCache(max_bytes, getsizeof=_size_of)
        self._fetches: dict[tuple[_Range, bool], _Fetch] = {}

    @property
    def used_bytes(self) -> int:
        """Bytes that the kept results take, bookkeeping included."""
        return int(self._kept.currsize)

    @property
    def max_bytes(self) -> int:
        """The bound of `used_bytes`."""
        return self._max_bytes

    async def get(self, key: str, start: int = 0, length: int | None = None, *, check: Check | None = None) -> bytes:
        wanted = _Range(key, start, length)
        while True:
            body = self._recall(wanted, check)
            if body is not None:
                return body
            # Who checks does not rely on the fetch of one who does not.
            fetch = self._fetches.get((wanted, check is not None))
            if fetch is None:
                return await self._fetch(wanted, check)
            await fetch.over.wait()
            if fetch.body is not None:
                return fetch.body
            if fetch.error is not None:
                raise type(fetch.error)(*fetch.error.args) from fetch.error
            # The task that fetched was cancelled: the first to come here takes over.

    async def put(self, key: str, body: bytes) -> None:
        await self._store.put(key, body)

    async def size(self, key: str) -> int:
        return await self._store.size(key)

    def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        return self._store.list(prefix)

    async def delete(self, key: str) -> None:
        try:
            await self._store.delete(key)
        finally:
            for kept in [kept for kept in self._kept if kept.key == key]:
                del self._kept[kept]

    async def capacity(self) -> Capacity | None:
        return await self._store.capacity()

    async def aclose(self) -> None:
        self._kept.clear()
        await self._store.aclose()

    def _recall(self, wanted: "_Range", check: Check | None) -> bytes | None:
        """The bytes as kept; None if they are not, or if they were kept unchecked and `check` refuses them."""
        result = self._kept.get(wanted)
        if result is None:
            return None
        if check is not None and not result.checked:
            if not check(result.body):
                del self._kept[wanted]
                return None
            self._kept[wanted] = _Result(result.body, checked=True)
        return result.body

    async def _fetch(self, wanted: "_Range", check: Check | None) -> bytes:
        slot = wanted, check is not None
        fetch = self._fetches[slot] = _Fetch()
        try:
            fetch.body = await self._store.get(wanted.key, wanted.start, wanted.length, check=check)
        except AgentfsError as error:
            fetch.error = error
            raise
        finally:
            del self._fetches[slot]
            fetch.over.set()
        self._keep(wanted, _Result(fetch.body, checked=check is not None))
        return fetch.body

    def _keep(self, wanted: "_Range", result: "_Result") -> None:
        if _size_of(result) * 4 <= self._max_bytes:
            self._kept[wanted] = result


class _Range(NamedTuple):
    """What a `get` asks for."""

    key: str
    start: int
    length: int | None


class _Result(NamedTuple):
    """Bytes that were read, and whether a hash confirmed them."""

    body: bytes
    checked: bool


class _Fetch:
    """A read that is under way. Once it is over: its bytes, or its error, or neither if the reader was cancelled."""

    def __init__(self) -> None:
        self.over = trio.Event()
        self.body: bytes | None = None
        self.error: AgentfsError | None = None


def _size_of(result: _Result) -> int:
    return len(result.body) + _BOOKKEEPING_BYTES
