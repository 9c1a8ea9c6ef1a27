"""A chunk store that keeps on the local disk what it read last from the store behind it: the edge cache."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

import trio

from agentfs.chunks.contract import Capacity, Check, ChunkStore, ObjectInfo
from agentfs.chunks.edge_bound import MIN_BYTES
from agentfs.chunks.edge_files import EdgeFiles, Piece
from agentfs.chunks.edge_keeper import Keeper
from agentfs.chunks.segment import segment_name
from agentfs.model.errors import Invalid, Unavailable
from agentfs.runtime import Runtime

IN_PLACE_BYTES: Final = 64 << 10
"""A checked read of so many bytes, that are in memory, is done in the event loop: 10 µs, where a thread costs 150."""

CLOSE_SECONDS: Final = 5.0
"""How long the end waits for what is still to be written to the disk."""


class EdgeStatus(NamedTuple):
    """What an edge cache did since it was opened, and how full it is."""

    directory: str
    hits: int
    misses: int
    hit_bytes: int
    fetched_bytes: int
    used_bytes: int
    max_bytes: int
    trouble: str
    """Why nothing is kept at the moment, "" if it is."""


@asynccontextmanager
async def open_edge_cache(
    store: ChunkStore, directory: Path, *, max_bytes: int, runtime: Runtime, offline: bool = False
) -> AsyncIterator["EdgeCache"]:
    """A cache of at most `max_bytes` in `directory`, which others may use too, over `store`, which stays open at its end.

    With `offline` the store is never asked. Raises Invalid for a bound under MIN_BYTES; a disk that refuses is no error: reads
    go on without it.
    """
    if max_bytes < MIN_BYTES:
        raise Invalid(f"the cache's size must be at least {MIN_BYTES >> 20} MiB")
    files = EdgeFiles(directory)
    keeper = Keeper(files, max_bytes=max_bytes, runtime=runtime)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keeper.run)
            yield EdgeCache(store, files, keeper, max_bytes=max_bytes, runtime=runtime, offline=offline)
            with trio.move_on_after(CLOSE_SECONDS):
                await keeper.settle()
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        # Tasks in the nursery report instead of raising, so a single exception is the caller's own and goes on as it was.
        if len(group.exceptions) == 1:
            raise group.exceptions[0] from group.exceptions[0].__cause__
        raise


class EdgeCache:
    """The contract of a chunk store; `open_edge_cache` makes it.

    It keeps segments that were got or put whole, and parts of them that a check confirmed. Their names say what is in them, so
    that everybody may share them; other objects pass through. A segment that is kept whole answers every range of it. What was
    kept is confirmed each time it is read, by the caller's check or by the file itself; wrong bytes are removed and fetched
    again. Several tasks that ask for the same at once are the business of the cache in front of this one.
    """

    def __init__(
        self, store: ChunkStore, files: EdgeFiles, keeper: Keeper, *, max_bytes: int, runtime: Runtime, offline: bool
    ) -> None:
        self._store = store
        self._files = files
        self._keeper = keeper
        self._max_bytes = max_bytes
        self._runtime = runtime
        self._offline = offline
        self._hits = self._misses = self._hit_bytes = self._fetched_bytes = 0

    @property
    def used_bytes(self) -> int:
        """Bytes that the directory takes, about."""
        return self._keeper.used_bytes

    @property
    def max_bytes(self) -> int:
        """The bound of `used_bytes`."""
        return self._max_bytes

    @property
    def status(self) -> EdgeStatus:
        """What it did, and how full it is."""
        return EdgeStatus(
            directory=str(self._files.directory),
            hits=self._hits,
            misses=self._misses,
            hit_bytes=self._hit_bytes,
            fetched_bytes=self._fetched_bytes,
            used_bytes=self.used_bytes,
            max_bytes=self._max_bytes,
            trouble=self._keeper.trouble,
        )

    def holds(self, key: str, start: int = 0, length: int | None = None) -> bool:
        """Whether a `get` of the same finds a file; its bytes are not looked at. One or two stat(2); any thread may ask."""
        name = segment_name(key)
        return name is not None and self._files.holds(Piece(name, start, length))

    async def settle(self) -> None:
        """Returns once nothing that was got or put waits to be written to the disk."""
        await self._keeper.settle()

    async def get(self, key: str, start: int = 0, length: int | None = None, *, check: Check | None = None) -> bytes:
        """As in the contract. A hot path. Offline, what is not kept is Unavailable."""
        name = segment_name(key)
        if name is None:
            return await self._behind(key).get(key, start, length, check=check)
        piece = Piece(name, start, length)
        body = await self._recall(piece, check)
        if body is not None:
            self._hits += 1
            self._hit_bytes += len(body)
            return body
        self._misses += 1
        body = await self._behind(key).get(key, start, length, check=check)
        self._fetched_bytes += len(body)
        # Of a part that nothing confirmed nobody could tell later whether it is right.
        if piece.whole or (check is not None and length is not None):
            self._keeper.keep(piece, body)
        return body

    async def put(self, key: str, body: bytes) -> None:
        await self._behind(key).put(key, body)
        name = segment_name(key)
        if name is not None:
            self._keeper.keep(Piece(name), body)

    async def size(self, key: str) -> int:
        return await self._behind(key).size(key)

    def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        return self._behind(f"a listing of {prefix!r}").list(prefix)

    async def delete(self, key: str) -> None:
        try:
            await self._behind(key).delete(key)
        finally:
            name = segment_name(key)
            if name is not None:
                await self._keeper.forget(name)

    async def capacity(self) -> Capacity | None:
        return await self._behind("what the replicas can hold").capacity()

    async def aclose(self) -> None:
        await self._store.aclose()

    def _behind(self, wanted: str) -> ChunkStore:
        if self._offline:
            raise Unavailable(f"this mount is offline, and {wanted} is not in its cache")
        return self._store

    async def _recall(self, piece: Piece, check: Check | None) -> bytes | None:
        now_ns = self._runtime.now_ns()
        if check is not None and piece.length is not None and piece.length <= IN_PLACE_BYTES:
            with suppress(BlockingIOError):
                return self._files.read(piece, check, now_ns, True)
        elif not self._files.holds(piece):
            return None
        return await self._runtime.in_thread(self._files.read, piece, check, now_ns)
