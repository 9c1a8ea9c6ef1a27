"""Reading a file's bytes: staged ones first, then what State's extents name, holes as zeros."""

from typing import Protocol

import structlog
from cachetools import LRUCache

from agentfs.chunks.contract import ChunkStore
from agentfs.chunks.segment import decode_chunk, segment_key
from agentfs.model.errors import AgentfsError, Corrupt, Unavailable
from agentfs.model.extents import Chunk, Extent
from agentfs.model.ids import Ino
from agentfs.model.inode import Inode
from agentfs.state.tables import Tables
from agentfs.workspace.paths import path_of
from agentfs.workspace.staging import Staging

DECODED_MAX = 32 << 20
"""Bytes of decoded chunks kept in memory: a sequential reader asks for each chunk several times."""

_log = structlog.get_logger()


class Removed(Protocol):
    """A file that State has no more, and that is open still."""

    @property
    def inode(self) -> Inode:
        """Its attributes."""
        ...

    @property
    def extents(self) -> list[Extent]:
        """Where its bytes are, in file order."""
        ...


class Reader:
    """Reads files of one workspace."""

    def __init__(self, tables: Tables, staging: Staging, chunks: ChunkStore) -> None:
        self._tables = tables
        self._staging = staging
        self._chunks = chunks
        self._decoded: LRUCache[bytes, bytes] = LRUCache(DECODED_MAX, getsizeof=len)

    @property
    def decoded_bytes(self) -> int:
        """Bytes of decoded chunks in memory."""
        return int(self._decoded.currsize)

    async def read(self, ino: Ino, offset: int, length: int, *, removed: Removed | None = None) -> bytes:
        """Up to `length` bytes of a file from `offset`: fewer at its end; of one that is gone from State, what `removed` says.

        A hot path.

        Raises Corrupt or Unavailable where a chunk cannot be had from any replica.
        """
        file = self._staging.files.get(ino)
        inode = removed.inode if removed is not None else self._tables.inode(ino)
        size = file.size if file else inode.size if inode else 0
        end = min(offset + length, size)
        if offset >= end:
            return b""
        shown = min(end, inode.size if inode else 0)
        if file is not None and file.cut is not None:
            shown = min(shown, file.cut)
        extents = self._extents(ino, offset, shown, removed) if offset < shown else []
        staged = file.pieces(offset, end) if file is not None else []
        if end == shown and len(extents) == 1 and not staged and extents[0].offset <= offset and extents[0].end >= end:
            return await self._bytes(extents[0].part(offset, end))
        return await self._assemble(extents, staged, offset, end, shown)

    def _extents(self, ino: Ino, start: int, end: int, removed: Removed | None) -> list[Extent]:
        if removed is None:
            return self._tables.extents(ino, start, end)
        return [extent for extent in removed.extents if extent.offset < end and extent.end > start]

    async def _assemble(
        self, extents: list[Extent], staged: list[tuple[int, bytes]], offset: int, end: int, shown: int
    ) -> bytes:
        body = bytearray(end - offset)
        for extent in extents:
            part = extent.part(offset, shown)
            body[part.offset - offset : part.end - offset] = await self._bytes(part)
        for start, piece in staged:
            body[start - offset : start - offset + len(piece)] = piece
        return bytes(body)

    async def _bytes(self, extent: Extent) -> bytes:
        if extent.chunk is None:
            return extent.data
        raw = await self._chunk(extent, extent.chunk)
        return raw[extent.skip : extent.skip + extent.length]

    async def _chunk(self, extent: Extent, chunk: Chunk) -> bytes:
        kept = self._decoded.get(chunk.digest)
        if kept is not None:
            return kept
        key = segment_key(self._tables.segment_name(extent.segment))
        try:
            raw = await self._fetch(key, chunk)
        except AgentfsError as error:
            # What a person needs to find the damage: which file, which bytes, which object; `replicated` logged which replica.
            path = path_of(self._tables, extent.ino)
            _log.error("read_failed", path=path, offset=extent.offset, length=extent.length, segment=key, reason=str(error))
            if isinstance(error, Unavailable):
                raise
            # Whatever is wrong with the object, the file and its name are there: a reader must not be told that they are not.
            raise Corrupt(f"{path}: {error}") from error
        self._decoded[chunk.digest] = raw
        return raw

    async def _fetch(self, key: str, chunk: Chunk) -> bytes:
        decoded: list[bytes] = []

        def is_right(stored: bytes) -> bool:
            try:
                decoded[:] = [decode_chunk(stored, chunk)]
            except Corrupt:
                return False
            return True

        stored = await self._chunks.get(key, chunk.start, chunk.stored, check=is_right)
        # The bytes may have come from a cache that had checked them for another reader.
        return decoded[0] if decoded else decode_chunk(stored, chunk)
