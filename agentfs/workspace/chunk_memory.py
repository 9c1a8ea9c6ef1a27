"""Decoded chunks in memory: fetched once for all who want the same one, and checked against the hash that State has of them."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import copy
from typing import Final, NamedTuple, Protocol

import trio
from cachetools import LRUCache

from agentfs.chunks.contract import Check
from agentfs.chunks.segment import decode_chunk, segment_key
from agentfs.model.errors import AgentfsError, Corrupt, Unavailable
from agentfs.model.extents import Chunk, digest_of
from agentfs.runtime import Runtime

DECODED_AT_ONCE: Final = 128 << 10
"""A chunk of at most so many bytes is decoded in the event loop: in 140 µs, about what the hop to a thread takes."""

TOGETHER_MAX: Final = 16
"""Chunks fetched side by side for one read."""

BROUGHT_MAX: Final = 1024
"""Segments remembered as brought: 8 GiB of them."""

BROUGHT_AGAIN: Final = 8
"""Chunks of a segment that was brought and is held no more, before it is worth being brought again."""


class Chunks(Protocol):
    """A chunk store that keeps what it has read: see `chunks.contract` and `chunks.cached`."""

    async def get(self, key: str, start: int = 0, length: int | None = None, *, check: Check | None = None) -> bytes:
        """The bytes `[start, start + length)` of an object, to its end without `length`."""
        ...

    def holds(self, key: str, start: int = 0, length: int | None = None) -> bool:
        """Whether `get` would answer without asking a replica, as far as can be told without reading."""
        ...

    async def settle(self) -> None:
        """Returns once what was read is kept."""
        ...


class Place(NamedTuple):
    """Where a chunk is: in the segment of this name. State's own number of a segment may change while it is being read."""

    segment: bytes
    chunk: Chunk

    @property
    def key(self) -> str:
        """The segment's key."""
        return segment_key(self.segment)


class Fetch:
    """A chunk on its way, `wanted` by so many. Once it is over: its bytes, or its error."""

    __slots__ = ("outcome", "over", "place", "scope", "wanted")

    def __init__(self, place: Place) -> None:
        self.place = place
        self.wanted = 0
        self.scope = trio.CancelScope()
        self.over = trio.Event()
        self.outcome: bytes | AgentfsError = Unavailable("the read was given up")


class ChunkMemory:
    """Chunks as file bytes, at most `max_bytes` of them, the least recently used going first."""

    def __init__(self, chunks: Chunks, runtime: Runtime, nursery: trio.Nursery, *, max_bytes: int) -> None:
        self._chunks = chunks
        self._runtime = runtime
        self._nursery = nursery
        self._kept: LRUCache[bytes, bytes] = LRUCache(max_bytes, getsizeof=len)
        self._fetches: dict[Place, Fetch] = {}
        self._brought: LRUCache[bytes, int] = LRUCache(BROUGHT_MAX)

    @property
    def used_bytes(self) -> int:
        """Bytes of decoded chunks in memory."""
        return int(self._kept.currsize)

    def kept(self, digest: bytes) -> bytes | None:
        """A chunk's bytes, if they are in memory. A hot path."""
        return self._kept.get(digest)

    def holds(self, place: Place) -> bool:
        """Whether a chunk can be had without asking a replica."""
        return place.chunk.digest in self._kept or self._chunks.holds(place.key, place.chunk.start, place.chunk.stored)

    async def get(self, place: Place, *, with_segment: bool) -> bytes:
        """A chunk's bytes. `with_segment`: where it is not held, its whole segment is fetched, and held from then on.

        A hot path. Raises NotFound, Corrupt, Unavailable, Denied.
        """
        chunk = place.chunk
        kept = self._kept.get(chunk.digest)
        if kept is not None:
            return kept
        fetch = self._fetches.get(place)
        if fetch is None and chunk.raw <= DECODED_AT_ONCE and self._chunks.holds(place.key, chunk.start, chunk.stored):
            # Next to nothing is left to do, which would cost less than a task to share it.
            raw = self._kept[chunk.digest] = await self._part(place)
            return raw
        return await self._await(fetch or self._start(place, with_segment=with_segment))

    def want(self, place: Place, *, with_segment: bool) -> Fetch | None:
        """Have a chunk fetched, until whoever asked calls `leave`. None if it is in memory, or as good as that."""
        chunk = place.chunk
        if chunk.digest in self._kept:
            return None
        fetch = self._fetches.get(place)
        if fetch is None:
            if chunk.raw <= DECODED_AT_ONCE and self._chunks.holds(place.key, chunk.start, chunk.stored):
                return None
            fetch = self._start(place, with_segment=with_segment)
        fetch.wanted += 1
        return fetch

    def leave(self, fetch: Fetch) -> None:
        """One wants it no more; when nobody does, it is cancelled."""
        fetch.wanted -= 1
        if not fetch.wanted:
            fetch.scope.cancel()
            self._forget(fetch)

    @contextmanager
    def wanting(self, wanted: Iterable[tuple[Place, bool]]) -> Iterator[None]:
        """Have chunks, each with its segment or without, fetched side by side while the block gets one after the other."""
        fetches: list[Fetch] = []
        for place, with_segment in wanted:
            fetch = self.want(place, with_segment=with_segment)
            if fetch is not None:
                fetches.append(fetch)
            if len(fetches) == TOGETHER_MAX:
                break
        try:
            yield
        finally:
            for fetch in fetches:
                self.leave(fetch)

    # ---- fetching

    async def _await(self, fetch: Fetch) -> bytes:
        fetch.wanted += 1
        try:
            await fetch.over.wait()
        finally:
            self.leave(fetch)
        if isinstance(fetch.outcome, AgentfsError):
            raise copy(fetch.outcome) from fetch.outcome
        return fetch.outcome

    def _start(self, place: Place, *, with_segment: bool) -> Fetch:
        fetch = self._fetches[place] = Fetch(place)
        self._nursery.start_soon(self._fetch, fetch, with_segment)
        return fetch

    async def _fetch(self, fetch: Fetch, with_segment: bool) -> None:
        place = fetch.place
        try:
            with fetch.scope:
                try:
                    raw = await (self._brought_along(place) if with_segment else self._part(place))
                    fetch.outcome = self._kept[place.chunk.digest] = raw
                except AgentfsError as error:
                    fetch.outcome = error
        finally:
            self._forget(fetch)
            fetch.over.set()

    def _forget(self, fetch: Fetch) -> None:
        """The next to ask begins another."""
        if self._fetches.get(fetch.place) is fetch:
            del self._fetches[fetch.place]

    async def _brought_along(self, place: Place) -> bytes:
        """A chunk out of its whole segment, which is fetched for the sake of what else will be read of it."""
        start, end = place.chunk.start, place.chunk.start + place.chunk.stored
        if self._chunks.holds(place.key, start, place.chunk.stored) or not self._is_worth_bringing(place.segment):
            return await self._part(place)
        try:
            body = await self._chunks.get(place.key, check=lambda body: digest_of(body) == place.segment)
        except Corrupt:
            # Each copy is damaged somewhere, or cut short: this chunk may still be whole in one of them.
            return await self._part(place)
        except AgentfsError:
            self._brought.pop(place.segment, None)
            raise
        return await self._decoded(body[start:end], place.chunk)

    def _is_worth_bringing(self, segment: bytes) -> bool:
        """Whether to fetch a whole segment that is not held: not where that was done and it was pushed out since.

        Else random readers of more than the memory holds would fetch megabytes for each small file.
        """
        missed = self._brought.get(segment, BROUGHT_AGAIN)
        self._brought[segment] = 0 if missed >= BROUGHT_AGAIN else missed + 1
        return missed >= BROUGHT_AGAIN

    async def _part(self, place: Place) -> bytes:
        """A chunk by its own bytes."""
        chunk = place.chunk
        decoded: list[bytes] = []

        def is_right(stored: bytes) -> bool:
            try:
                decoded[:] = [decode_chunk(stored, chunk)]
            except Corrupt:
                return False
            return True

        stored = await self._chunks.get(place.key, chunk.start, chunk.stored, check=is_right)
        # The bytes may have come from a cache that had checked them for another reader.
        return decoded[0] if decoded else await self._decoded(stored, chunk)

    async def _decoded(self, stored: bytes, chunk: Chunk) -> bytes:
        if chunk.raw <= DECODED_AT_ONCE:
            return decode_chunk(stored, chunk)
        return await self._runtime.in_thread(decode_chunk, stored, chunk)
