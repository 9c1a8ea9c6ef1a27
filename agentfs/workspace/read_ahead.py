"""Read-ahead: who reads a big file from one end to the other finds the next chunks there already."""

from collections import Counter, deque
from collections.abc import Sequence
from typing import Final

from agentfs.model.errors import AgentfsError
from agentfs.model.extents import CHUNK_MAX, Extent
from agentfs.model.ids import Ino, SegmentId
from agentfs.runtime import Runtime
from agentfs.state.tables import Tables
from agentfs.workspace.chunk_memory import ChunkMemory, Fetch, Place

AHEAD_MAX: Final = 16 << 20
"""File bytes that all streams together are ahead of their readers, and a chunk each: half of the decoded chunks in memory."""

AHEAD_CHUNKS: Final = 16
"""Chunks on their way for one stream, at most."""

STREAMS_MAX: Final = 8
"""Streams that are read ahead at a time; the one that was read the longest ago makes room."""

IDLE_SECONDS: Final = 5.0
"""After so long without a read a stream leaves its share of AHEAD_MAX to the others."""

SLACK_BYTES: Final = 512 << 10
"""How far from where a stream has come to a read may be and still go on with it: the kernel's requests overtake each other."""

TRUSTED_FROM_START: Final = 256 << 10
"""Bytes read in one go from a file's start before the next chunk is fetched ahead."""

TRUSTED_ELSEWHERE: Final = 2 << 20
"""As much after a seek: records that are read whole, at random, are shorter."""

_CROWD: Final = 4
"""So many small chunks of one segment among the next ones are worth the whole segment."""


class Stream:
    """One reader of one file: where it has come to, and what is on its way for it.

    It was read in one go for `run` bytes up to `end`, which is in the file's megabyte `step`. Of those behind it, `window`
    chunks are to be fetched, and are planned up to `planned`. From a `run` of `trusted` bytes on it counts as sequential.
    `used`: when (boot time) that was last so.
    """

    __slots__ = ("ahead", "end", "planned", "run", "step", "trusted", "used", "window")

    def __init__(self) -> None:
        self.ahead: deque[Fetch] = deque()
        self.begin(0, 0)
        self.used = 0.0

    def begin(self, offset: int, end: int) -> None:
        """A read somewhere else."""
        self.run = end - offset
        self.end = self.planned = end
        self.window = self.step = 0
        self.trusted = TRUSTED_ELSEWHERE if offset else TRUSTED_FROM_START

    def continues(self, offset: int, end: int) -> bool:
        """Whether a read goes on where the stream has come to; if so, it is counted."""
        if not -SLACK_BYTES <= offset - self.end <= SLACK_BYTES:
            return False
        self.run += end - offset
        self.end = max(self.end, end)
        return True

    def widen(self) -> None:
        """Double the window for each chunk that the reader enters."""
        step = self.end // CHUNK_MAX
        if not self.window:
            self.window = 1
        elif step > self.step:
            self.window = min(self.window * 2, AHEAD_CHUNKS)
        self.step = step

    @property
    def wish(self) -> int:
        """The file offset up to which the window reaches."""
        return (self.step + 1 + self.window) * CHUNK_MAX


class ReadAhead:
    """The streams of a mount. What is fetched ahead goes to `memory`; who reads it meanwhile waits for that very fetch.

    An error is nobody's yet: it ends the stream's read-ahead, and the read that needs the chunk meets it.
    """

    def __init__(self, tables: Tables, memory: ChunkMemory, runtime: Runtime) -> None:
        self._tables = tables
        self._memory = memory
        self._runtime = runtime
        self._live: dict[Stream, None] = {}

    def note(self, stream: Stream, ino: Ino, offset: int, end: int, *, size: int) -> None:
        """A stream reads `[offset, end)` of a file that State says is `size` bytes long. A hot path."""
        if not stream.continues(offset, end):
            self.stop(stream)
            stream.begin(offset, end)
        elif stream.run >= stream.trusted:
            self._advance(stream, ino, size)

    def stop(self, stream: Stream) -> None:
        """Nothing is fetched ahead any more for a stream; what is on its way is cancelled if nobody waits for it."""
        self._live.pop(stream, None)
        while stream.ahead:
            self._memory.leave(stream.ahead.popleft())
        stream.begin(stream.end, stream.end)

    def _advance(self, stream: Stream, ino: Ino, size: int) -> None:
        stream.widen()
        if self._has_failed(stream):
            self.stop(stream)
            return
        start = max(stream.planned, stream.end)
        if start >= min(stream.wish, size) or len(stream.ahead) >= AHEAD_CHUNKS:
            return
        limit = min(stream.wish, stream.end + self._share(stream), size)
        if start < limit:
            stream.planned = self._fetch(stream, ino, start, limit)

    def _has_failed(self, stream: Stream) -> bool:
        """Forget what has arrived, and say whether something did not."""
        failed = False
        while stream.ahead and stream.ahead[0].over.is_set():
            fetch = stream.ahead.popleft()
            failed = failed or isinstance(fetch.outcome, AgentfsError)
            self._memory.leave(fetch)
        return failed

    def _share(self, stream: Stream) -> int:
        """How far ahead of its reader a stream may be, which is the most recently read one from here on."""
        stream.used = self._runtime.boottime()
        self._live.pop(stream, None)
        self._live[stream] = None
        oldest = next(iter(self._live))
        if len(self._live) > STREAMS_MAX or oldest.used < stream.used - IDLE_SECONDS:
            self.stop(oldest)
        return AHEAD_MAX // len(self._live)

    def _fetch(self, stream: Stream, ino: Ino, start: int, limit: int) -> int:
        """Have the chunks of a range fetched, as many as may be on their way; return where the next range begins."""
        extents = [extent for extent in self._tables.extents(ino, start, limit) if extent.chunk is not None]
        crowded = crowded_segments(extents)
        for extent in extents:
            assert extent.chunk is not None, "only such are left"
            if len(stream.ahead) >= AHEAD_CHUNKS:
                return extent.offset
            place = Place(self._tables.segment_name(extent.segment), extent.chunk)
            fetch = self._memory.want(place, with_segment=extent.segment in crowded)
            if fetch is not None:
                stream.ahead.append(fetch)
        return max(limit, extents[-1].end) if extents else limit


def crowded_segments(extents: Sequence[Extent]) -> set[SegmentId]:
    """The segments that hold several small chunks of what is read: files that were written bit by bit are stored like that."""
    small = Counter(extent.segment for extent in extents if extent.chunk is not None and extent.chunk.raw <= CHUNK_MAX // 4)
    return {segment for segment, count in small.items() if count >= _CROWD}
