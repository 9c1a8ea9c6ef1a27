"""Reading a file's bytes: staged ones first, then what State's extents name, holes as zeros."""

from typing import Final, Protocol

import structlog
import trio

from agentfs.model.errors import AgentfsError, Corrupt, Unavailable
from agentfs.model.extents import Extent
from agentfs.model.ids import Ino
from agentfs.model.inode import Inode
from agentfs.runtime import Runtime
from agentfs.state.tables import Tables
from agentfs.workspace.chunk_memory import ChunkMemory, Chunks, Place
from agentfs.workspace.paths import path_of
from agentfs.workspace.read_ahead import ReadAhead, Stream, crowded_segments
from agentfs.workspace.staging import Staging

DECODED_MAX: Final = 32 << 20
"""Bytes of decoded chunks kept in memory: a sequential reader asks for each chunk several times."""

SMALL_FILE_MAX: Final = 256 << 10
"""A file of at most so many bytes brings its whole segment: files that were written together are read together."""

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
    """Reads files of one workspace. What it fetches runs in `nursery`, for all who wait for it."""

    def __init__(self, tables: Tables, staging: Staging, chunks: Chunks, runtime: Runtime, nursery: trio.Nursery) -> None:
        self._tables = tables
        self._staging = staging
        self.memory = ChunkMemory(chunks, runtime, nursery, max_bytes=DECODED_MAX)
        self._read_ahead = ReadAhead(tables, self.memory, runtime)

    @property
    def decoded_bytes(self) -> int:
        """Bytes of decoded chunks in memory."""
        return self.memory.used_bytes

    async def read(
        self, ino: Ino, offset: int, length: int, *, removed: Removed | None = None, stream: Stream | None = None
    ) -> bytes:
        """Up to `length` bytes of a file from `offset`: fewer at its end; of one that is gone from State, what `removed` says.

        What is read as one `stream`, until that is ended, is read ahead while it is sequential. A hot path.

        Raises Corrupt or Unavailable where a chunk cannot be had from any replica.
        """
        file = self._staging.files.get(ino)
        inode = removed.inode if removed is not None else self._tables.inode(ino)
        stored = inode.size if inode else 0
        end = min(offset + length, file.size if file else stored)
        if offset >= end:
            return b""
        shown = min(end, stored)
        if file is not None and file.cut is not None:
            shown = min(shown, file.cut)
        small = stored <= SMALL_FILE_MAX
        if stream is not None and not small and removed is None and offset < shown:
            self._read_ahead.note(stream, ino, offset, shown, size=stored)
        extents = self._extents(ino, offset, shown, removed) if offset < shown else []
        staged = file.pieces(offset, end) if file is not None else []
        if end == shown and len(extents) == 1 and not staged and extents[0].offset <= offset and extents[0].end >= end:
            extent = extents[0].part(offset, end)
            if extent.chunk is None:
                return extent.data
            kept = self.memory.kept(extent.chunk.digest)
            if kept is not None:
                return kept[extent.skip : extent.skip + extent.length]
            place = Place(self._tables.segment_name(extent.segment), extent.chunk)
            return await self._bytes(extent, place, with_segment=small)
        return await self._assemble(extents, staged, offset, end, shown, small=small)

    def end(self, stream: Stream) -> None:
        """A stream is read no further: what is being fetched for it alone is cancelled."""
        self._read_ahead.stop(stream)

    def _extents(self, ino: Ino, start: int, end: int, removed: Removed | None) -> list[Extent]:
        if removed is None:
            return self._tables.extents(ino, start, end)
        return [extent for extent in removed.extents if extent.offset < end and extent.end > start]

    async def _assemble(
        self, extents: list[Extent], staged: list[tuple[int, bytes]], offset: int, end: int, shown: int, *, small: bool
    ) -> bytes:
        body = bytearray(end - offset)
        parts = [extent.part(offset, shown) for extent in extents]
        # Before anything is waited for: State's numbers of segments may be others afterwards.
        names = {segment: self._tables.segment_name(segment) for segment in {part.segment for part in parts if part.segment}}
        places = {part.offset: Place(names[part.segment], part.chunk) for part in parts if part.chunk is not None}
        bringing = names.keys() if small else crowded_segments(parts)
        with self.memory.wanting((places[part.offset], part.segment in bringing) for part in parts if part.segment):
            for part in parts:
                place = places.get(part.offset)
                piece = part.data if place is None else await self._bytes(part, place, with_segment=part.segment in bringing)
                body[part.offset - offset : part.end - offset] = piece
        for start, piece in staged:
            body[start - offset : start - offset + len(piece)] = piece
        return bytes(body)

    async def _bytes(self, extent: Extent, place: Place, *, with_segment: bool) -> bytes:
        raw = self.memory.kept(place.chunk.digest)
        if raw is None:
            raw = await self._fetched(extent, place, with_segment=with_segment)
        return raw[extent.skip : extent.skip + extent.length]

    async def _fetched(self, extent: Extent, place: Place, *, with_segment: bool) -> bytes:
        try:
            return await self.memory.get(place, with_segment=with_segment)
        except AgentfsError as error:
            # What a person needs to find the damage: which file, which bytes, which object; `replicated` logged which replica.
            path = path_of(self._tables, extent.ino)
            _log.error(
                "read_failed", path=path, offset=extent.offset, length=extent.length, segment=place.key, reason=str(error)
            )
            if isinstance(error, Unavailable):
                raise
            # Whatever is wrong with the object, the file and its name are there: a reader must not be told that they are not.
            raise Corrupt(f"{path}: {error}") from error
