"""Compaction: chunks that lie in small segments, or in segments that are mostly dead, move together into full ones.

A file over 32 KiB that is closed by itself is a segment of its own: one request to put it, and one whenever it is read. So once
there are SEGMENTS_MIN segments that are small, or as many bytes dead as fill one, their chunks are moved in the order of the
inodes: what was made together is read together. What was partly overwritten is cut to what files still need. To whoever reads
the files nothing changes; the old segments are needed by no file afterwards, which is what collection is for.
"""

from collections.abc import Collection, Iterator, Sequence
from functools import partial
from itertools import groupby
from operator import attrgetter
from typing import Final, NamedTuple

import structlog
import trio
from cachetools import TTLCache

from agentfs.chunks.segment import decode_chunk, segment_key
from agentfs.model.changes import AnyChange, ChunkRun, Fold, Origin
from agentfs.model.errors import AgentfsError, Corrupt, NotFound
from agentfs.model.extents import CHUNK_MAX, SEGMENT_MAX, Chunk, Extent, digest_of
from agentfs.model.ids import Ino, SegmentId
from agentfs.runtime import Runtime
from agentfs.state.queries import Compactable, chunked, compactable
from agentfs.workspace.chunk_memory import Chunks
from agentfs.workspace.committer import Committer
from agentfs.workspace.folding import BODY_COST, STEP_EXTENTS, cold_version
from agentfs.workspace.packer import RAW_MAX, ChunkAt, Packer, Piece

SEGMENTS_MIN: Final = 16
"""Segments that are left alone; less than half as many are not worth a new one. So each byte is moved a few times only."""

DEAD_BYTES: Final = SEGMENT_MAX
"""Bytes of sparse segments that no file needs, likewise."""

STORED_BYTES: Final = SEGMENT_MAX - CHUNK_MAX
"""Stored bytes moved at once, BODY_COST more for each chunk: with one more chunk they still fit into one segment."""

RAW_BYTES: Final = RAW_MAX - CHUNK_MAX
"""File bytes moved at once."""

GAP_BYTES: Final = 256 << 10
"""Bytes between two chunks of a segment, up to which they are read together: a request costs about as much."""

READS_MAX: Final = 4
"""Segments read at once."""

LOOK_EXTENTS: Final = 256
"""Extents read from State at once: about a millisecond."""

REST_SECONDS: Final = 15.0
REST_MAX_SECONDS: Final = 3600.0
"""How long it rests when nothing of what could be moved was worth it, or cold: twice as long each time."""

LOST_SECONDS: Final = 600.0
"""How long a segment is left alone that no replica has whole."""

_LOST_MAX: Final = 4096
_START: Final = (Ino(0), 0)

_log = structlog.get_logger()


class _Source(NamedTuple):
    """An extent that is to be moved, and the version of its file."""

    extent: Extent
    chunk: Chunk
    version: int


class _Read(NamedTuple):
    """An extent that is to be moved, and its chunk as stored."""

    source: _Source
    stored: bytes

    @property
    def piece(self) -> Piece:
        """The bytes that the file needs of it."""
        return Piece(self.source.extent.length, partial(_decoded, self))


class Compaction:
    """A chore of upkeep: only one session of a workspace does it. It reads through `chunks`, so mostly what is held here."""

    def __init__(self, committer: Committer, packer: Packer, chunks: Chunks, runtime: Runtime) -> None:
        self._committer = committer
        self._packer = packer
        self._chunks = chunks
        self._runtime = runtime
        self._segments: dict[SegmentId, Compactable] = {}
        self._after = _START
        self._moved = False
        self._rest_seconds = REST_SECONDS
        self._not_before = 0.0
        self._lost: TTLCache[bytes, None] = TTLCache(_LOST_MAX, LOST_SECONDS, timer=runtime.boottime)

    async def run_once(self) -> bool:
        """Move up to STORED_BYTES, if it is time for it; whether there is more to do.

        Raises why segments could not be read, put or named: then it is done again another time.
        """
        if not self._segments and not self._begin():
            return False
        sources = await self._gather()
        if self._is_worthwhile({source.extent.segment for source in sources}, SEGMENTS_MIN // 2):
            self._moved = await self._move(sources) or self._moved
        if self._after != _START:
            return True
        self._segments = {}
        if self._moved:
            self._rest_seconds = REST_SECONDS
        else:
            self._not_before = self._runtime.boottime() + self._rest_seconds
            self._rest_seconds = min(self._rest_seconds * 2, REST_MAX_SECONDS)
        return self._moved

    def _begin(self) -> bool:
        """Begin a pass over all extents, if there is enough to do."""
        if self._runtime.boottime() < self._not_before:
            return False
        found = [each for each in compactable(self._committer.tables) if each.name not in self._lost]
        self._segments = {each.segment: each for each in found}
        if not self._is_worthwhile(self._segments, SEGMENTS_MIN):
            self._segments = {}
        self._after, self._moved = _START, False
        return bool(self._segments)

    def _is_worthwhile(self, segments: Collection[SegmentId], least: int) -> bool:
        found = [self._segments[segment] for segment in segments]
        return len(found) >= least or sum(each.size - each.live for each in found) >= DEAD_BYTES

    async def _gather(self) -> list[_Source]:
        """The next cold extents that are to be moved, as many as go together; it begins where it ended the last time."""
        sources: list[_Source] = []
        stored, raw = STORED_BYTES, RAW_BYTES
        while found := chunked(self._committer.tables, self._after, LOOK_EXTENTS):
            for ino, extents in groupby(found, attrgetter("ino")):
                version = cold_version(self._committer.tables, ino, self._runtime.now_ns())
                for extent in extents:
                    if extent.segment in self._segments and extent.chunk is not None and version is not None:
                        stored -= extent.chunk.stored + BODY_COST
                        raw -= extent.length
                        if stored < 0 or raw < 0:
                            return sources
                        sources.append(_Source(extent, extent.chunk, version))
                    self._after = (ino, extent.offset)
            await trio.lowlevel.checkpoint()
        self._after = _START
        return sources

    # ---- moving

    async def _move(self, sources: Sequence[_Source]) -> bool:
        """Move what can be read; whether anything could."""
        reads = await self._read(sources)
        found = await self._packer.place([read.piece for read in reads])
        for start in range(0, len(reads), STEP_EXTENTS):
            end = start + STEP_EXTENTS
            await self._committer.commit(list(_describe(reads[start:end], found[start:end])))
        return bool(reads)

    async def _read(self, sources: Sequence[_Source]) -> list[_Read]:
        """The stored chunks of what is to be moved, in its order; a segment that no replica has whole is passed over."""
        of_segment: dict[SegmentId, list[_Source]] = {}
        for source in sources:
            of_segment.setdefault(source.extent.segment, []).append(source)
        bodies: dict[tuple[SegmentId, int], bytes] = {}
        failures: list[AgentfsError] = []
        slots = trio.CapacityLimiter(READS_MAX)

        async def read(segment: Compactable, chunks: list[Chunk]) -> None:
            async with slots:
                if failures:
                    return
                try:
                    for start, stored in await self._read_chunks(segment, chunks):
                        bodies[segment.segment, start] = stored
                except (NotFound, Corrupt) as error:
                    _log.error("segment_lost", segment=segment.name.hex(), reason=str(error))
                    self._lost[segment.name] = None
                except AgentfsError as error:
                    failures.append(error)

        async with trio.open_nursery() as nursery:
            for number, wanted in of_segment.items():
                nursery.start_soon(read, self._segments[number], [source.chunk for source in wanted])
        if failures:
            raise failures[0]
        places = ((source, (source.extent.segment, source.chunk.start)) for source in sources)
        return [_Read(source, bodies[place]) for source, place in places if place in bodies]

    async def _read_chunks(self, segment: Compactable, chunks: list[Chunk]) -> list[tuple[int, bytes]]:
        """Chunks of a segment as stored, with where they begin: from all of it where about half is needed, else in runs."""
        key = segment_key(segment.name)
        chunks = sorted({chunk.start: chunk for chunk in chunks}.values(), key=attrgetter("start"))
        if sum(chunk.stored for chunk in chunks) * 2 >= segment.size:
            body = await self._chunks.get(key, check=lambda body: digest_of(body) == segment.name)
            return [(chunk.start, body[chunk.start : chunk.start + chunk.stored]) for chunk in chunks]
        found = []
        for run in _runs(chunks):
            first, last = run[0].start, run[-1].start + run[-1].stored
            body = await self._chunks.get(key, first, last - first, check=partial(_are_right, run, first))
            found += [(chunk.start, body[chunk.start - first : chunk.start - first + chunk.stored]) for chunk in run]
        return found


def _runs(chunks: Sequence[Chunk]) -> Iterator[list[Chunk]]:
    """Chunks in the order of their places, cut where it is far from one to the next."""
    run: list[Chunk] = []
    for chunk in chunks:
        if run and chunk.start - (run[-1].start + run[-1].stored) > GAP_BYTES:
            yield run
            run = []
        run.append(chunk)
    yield run


def _are_right(chunks: Sequence[Chunk], first: int, body: bytes) -> bool:
    """Whether the bytes of a segment from `first` on hold these chunks."""
    try:
        for chunk in chunks:
            decode_chunk(body[chunk.start - first : chunk.start - first + chunk.stored], chunk)
    except Corrupt:
        return False
    return True


def _decoded(read: _Read) -> bytes:
    extent = read.source.extent
    return decode_chunk(read.stored, read.source.chunk)[extent.skip : extent.skip + extent.length]


def _describe(reads: Sequence[_Read], found: Sequence[ChunkAt]) -> Iterator[AnyChange]:
    """The changes that say where the bytes are now."""
    for placement in dict.fromkeys(at.placement for at in found):
        yield placement.naming()
    pairs = zip((read.source for read in reads), found, strict=True)
    for (ino, version), group in groupby(pairs, lambda pair: (pair[0].extent.ino, pair[0].version)):
        moved = list(group)
        runs = [ChunkRun(source.extent.offset, at.placement.name, at.chunk) for source, at in moved]
        yield Fold(ino, version, runs, [Origin(source.chunk.digest, source.extent.skip) for source, _ in moved])
