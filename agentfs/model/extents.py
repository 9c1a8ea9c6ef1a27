"""Extents: runs of a file's bytes and where they are; and the chunks that segments hold."""

import hashlib

import msgspec

from agentfs.model.ids import Ino, SegmentId

CHUNK_MAX = 1 << 20
"""Raw bytes in a chunk, at most."""

SEGMENT_MAX = 8 << 20
"""Bytes in a segment, at most."""

INLINE_MAX = 32 << 10
"""Raw bytes of a file's body that travel inside an entry, at most."""

FOLD_MIN = 256
"""Bytes of an inline extent from which on it is worth a chunk of a segment: State's row about one is about as large."""

DIGEST_SIZE = 32


def digest_of(raw: bytes | memoryview) -> bytes:
    """The hash that names a segment and checks a chunk: SHA-256, which most processors compute in hardware."""
    return hashlib.sha256(raw).digest()


class Chunk(msgspec.Struct, frozen=True, array_like=True):
    """Where a chunk lies in a segment: `stored` bytes at `start`, that decode to `raw` bytes whose hash is `digest`."""

    start: int
    stored: int
    raw: int
    digest: bytes


class Extent(msgspec.Struct, frozen=True):
    """One row of State's `extents`: `length` bytes of file `ino` at `offset`.

    Inline when `segment` is 0: `data` holds the bytes. Otherwise they are `chunk`'s raw bytes from `skip` on.
    """

    ino: Ino
    offset: int
    length: int
    data: bytes
    segment: SegmentId
    chunk: Chunk | None
    skip: int

    @property
    def end(self) -> int:
        """The file offset behind the last byte."""
        return self.offset + self.length

    def part(self, start: int, end: int) -> "Extent":
        """The piece of this extent that lies in `[start, end)` of the file; the two must overlap."""
        low, high = max(start, self.offset), min(end, self.end)
        assert low < high, "the piece of an extent must not be empty"
        cut = low - self.offset
        data = self.data[cut : cut + high - low] if not self.segment else b""
        return Extent(self.ino, low, high - low, data, self.segment, self.chunk, self.skip + cut if self.segment else 0)
