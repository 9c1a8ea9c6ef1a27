"""A chunk store that remembers in memory what it read last from the store behind it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from copy import copy
from typing import Final, NamedTuple, Protocol, runtime_checkable

import trio
from cachetools import LRUCache

from agentfs.chunks.contract import Capacity, Check, ChunkStore, ObjectInfo
from agentfs.model.errors import AgentfsError, Corrupt, Unavailable

_BOOKKEEPING_BYTES: Final = 256
"""What a result costs besides its bytes, roughly; so that a great many small ones are bounded too."""


@runtime_checkable
class Keeping(Protocol):
    """What a store that keeps objects near can say of them."""

    def holds(self, key: str, start: int = 0, length: int | None = None) -> bool:
        """Whether a `get` of the same would be answered from here, as far as can be told without reading."""
        ...

    async def settle(self) -> None:
        """Returns once nothing that was read or put waits to be kept."""
        ...


@asynccontextmanager
async def open_cached(store: ChunkStore, *, max_bytes: int) -> AsyncIterator["Cached"]:
    """A memory of at most `max_bytes` over `store`, which stays open at its end; reads still under way are cancelled then."""
    try:
        async with trio.open_nursery() as nursery:
            yield Cached(store, max_bytes=max_bytes, nursery=nursery)
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        # Tasks in the nursery report instead of raising, so a single exception is the caller's own and goes on as it was.
        if len(group.exceptions) == 1:
            raise group.exceptions[0] from group.exceptions[0].__cause__
        raise


class Cached:
    """Keeps the results of `get`, the least recently used going first; everything else passes through. `open_cached` makes it.

    A result is kept if it is not bigger than a quarter of `max_bytes`, and answers the same range again; an object that is kept
    whole answers every range of it. Several tasks that ask for the same at once cause one read, and so do those that ask for a
    part of an object while it is being read whole. The read runs in a task of its own: who is cancelled leaves at once; when
    nobody is left, it is cancelled. A result that is kept already is answered without letting other tasks run.

    What a check confirmed is not checked again: an object that was confirmed whole is right in every part.
    """

    def __init__(self, store: ChunkStore, *, max_bytes: int, nursery: trio.Nursery) -> None:
        self._store = store
        self._behind = store if isinstance(store, Keeping) else None
        self._max_bytes = max_bytes
        self._nursery = nursery
        self._kept: LRUCache[_Range, _Result] = LRUCache(max_bytes, getsizeof=_size_of)
        self._fetches: dict[_Slot, _Fetch] = {}

    @property
    def used_bytes(self) -> int:
        """Bytes that the kept results take, bookkeeping included."""
        return int(self._kept.currsize)

    @property
    def max_bytes(self) -> int:
        """The bound of `used_bytes`."""
        return self._max_bytes

    def holds(self, key: str, start: int = 0, length: int | None = None) -> bool:
        """Whether a `get` of the same needs no store, or only one that says itself that it holds it."""
        wanted = _Range(key, start, length)
        if wanted in self._kept:
            return True
        whole = self._kept.get(wanted.whole)
        if whole is not None and wanted.cut(whole.body) is not None:
            return True
        return self._behind is not None and self._behind.holds(key, start, length)

    async def settle(self) -> None:
        """Returns once nothing that was read or put waits to be kept by the store behind this one."""
        if self._behind is not None:
            await self._behind.settle()

    async def get(self, key: str, start: int = 0, length: int | None = None, *, check: Check | None = None) -> bytes:
        """As in the contract. A hot path."""
        wanted = _Range(key, start, length)
        body = self._recall(wanted, check)
        if body is None:
            body = await self._await_whole(wanted, checked=check is not None)
        if body is None:
            # Who checks does not rely on the fetch of one who does not.
            slot = _Slot(wanted, check is not None)
            body = await self._await(self._fetches.get(slot) or self._start(slot, check))
        return body

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
        kept, result = wanted, self._kept.get(wanted)
        if result is None:
            kept = wanted.whole
            result = self._kept.get(kept)
            if result is None:
                return None
        body = result.body if kept is wanted else wanted.cut(result.body)
        if body is None or check is None or result.checked:
            return body
        if not check(body):
            del self._kept[kept]
            return None
        if kept is wanted:
            self._kept[kept] = _Result(body, checked=True)
        return body

    async def _await_whole(self, wanted: "_Range", *, checked: bool) -> bytes | None:
        """The bytes out of the whole object, if that is being read; None if it is not, or if that did not answer."""
        fetch = self._fetches.get(_Slot(wanted.whole, checked))
        if fetch is None or wanted == wanted.whole:
            return None
        try:
            body = await self._await(fetch)
        except Corrupt:
            # A replica whose object is wrong somewhere else may well have this part of it.
            return None
        return wanted.cut(body)

    async def _await(self, fetch: "_Fetch") -> bytes:
        fetch.readers += 1
        try:
            await fetch.over.wait()
        finally:
            fetch.readers -= 1
            if not fetch.readers:
                self._give_up(fetch)
        if isinstance(fetch.outcome, AgentfsError):
            raise copy(fetch.outcome) from fetch.outcome
        return fetch.outcome

    def _start(self, slot: "_Slot", check: Check | None) -> "_Fetch":
        fetch = self._fetches[slot] = _Fetch(slot)
        self._nursery.start_soon(self._fetch, fetch, check)
        return fetch

    def _give_up(self, fetch: "_Fetch") -> None:
        """Nobody waits for the fetch any more: it ends, if it has not yet, and the next to ask begins another."""
        fetch.scope.cancel()
        if self._fetches.get(fetch.slot) is fetch:
            del self._fetches[fetch.slot]

    async def _fetch(self, fetch: "_Fetch", check: Check | None) -> None:
        wanted, checked = fetch.slot
        with fetch.scope:
            try:
                fetch.outcome = await self._store.get(wanted.key, wanted.start, wanted.length, check=check)
                self._keep(wanted, _Result(fetch.outcome, checked))
            except AgentfsError as error:
                fetch.outcome = error
        if self._fetches.get(fetch.slot) is fetch:
            del self._fetches[fetch.slot]
        fetch.over.set()

    def _keep(self, wanted: "_Range", result: "_Result") -> None:
        if _size_of(result) * 4 <= self._max_bytes:
            self._kept[wanted] = result


class _Range(NamedTuple):
    """What a `get` asks for."""

    key: str
    start: int
    length: int | None

    @property
    def whole(self) -> "_Range":
        """The whole object."""
        return _Range(self.key, 0, None)

    def cut(self, body: bytes) -> bytes | None:
        """The bytes of the range, where `body` is the whole object; None if it does not reach as far."""
        end = len(body) if self.length is None else self.start + self.length
        return body[self.start : end] if max(self.start, end) <= len(body) else None


class _Result(NamedTuple):
    """Bytes that were read, and whether a hash confirmed them."""

    body: bytes
    checked: bool


class _Slot(NamedTuple):
    """What a fetch is under way for, and whether its bytes are checked."""

    wanted: _Range
    checked: bool


class _Fetch:
    """A read that is under way, for so many readers; once it is over, its bytes or its error."""

    def __init__(self, slot: _Slot) -> None:
        self.slot = slot
        self.readers = 0
        self.scope = trio.CancelScope()
        self.over = trio.Event()
        self.outcome: bytes | AgentfsError = Unavailable(f"the read of {slot.wanted.key} was given up")


def _size_of(result: _Result) -> int:
    return len(result.body) + _BOOKKEEPING_BYTES
