"""The segment format: chunks of file bytes, compressed where it pays, packed into one immutable object.

A segment, in the order of its bytes:

    header   4 bytes   the ASCII characters `AFS1`
    chunks             the stored chunks, in the order they were added, with nothing between them
    index              MessagePack: an array with one element for each chunk, in the same order; each is an array of four:
                       start   (unsigned) where the stored chunk begins, counted from the segment's first byte
                       stored  (unsigned) its length in the segment, codec byte included
                       raw     (unsigned) the length of the file bytes that it decodes to, 1 to CHUNK_MAX
                       digest  (binary, 32 bytes) SHA-256 of those file bytes
    length   4 bytes   the index's length in bytes, unsigned, big-endian
    trailer  4 bytes   the ASCII characters `AFSI`

A stored chunk is one codec byte and a payload: codec 0, the file bytes themselves; codec 1, one zstd frame whose header states
the content's size. The first chunk starts at byte 4, each next one where the one before it ends, and the index where the last
one ends. A segment holds at least one chunk and is at most SEGMENT_MAX bytes long. Its name is the SHA-256 of the whole object,
from header to trailer; its key in a store is `segments/`, the first two of the name's 64 lower-case hexadecimal digits, `/`,
all 64 of them, `.seg`. So a segment can be understood and verified with nothing but its own bytes and its key.
"""

import re
from typing import Final, NamedTuple

import msgspec
import zstandard

from agentfs.model.errors import Corrupt
from agentfs.model.extents import CHUNK_MAX, DIGEST_SIZE, SEGMENT_MAX, Chunk, digest_of

_HEADER: Final = b"AFS1"
_TRAILER: Final = b"AFSI"
_LENGTH_SIZE: Final = 4
_FOOTER_SIZE: Final = _LENGTH_SIZE + len(_TRAILER)
_RAW: Final = 0
_ZSTD: Final = 1
_ZSTD_LEVEL: Final = 1

_CHUNK_INDEX_MAX: Final = 1 + 3 * 5 + 2 + DIGEST_SIZE
"""Bytes that one chunk takes in the index, at most: an array's head, three unsigned 32-bit numbers, a short binary."""

_INDEX_HEAD_MAX: Final = 5
"""Bytes of the head of the index's array, at most."""

_KEY: Final = re.compile(r"segments/([0-9a-f]{2})/(\1[0-9a-f]{62})\.seg")

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[Chunk])


class Segment(NamedTuple):
    """A finished segment: its name (32 bytes), its key in a store, and its bytes."""

    name: bytes
    key: str
    body: bytes


class SegmentBuilder:
    """Packs chunks into one segment: `add` what it `has_room` for, then `finish`, once."""

    def __init__(self) -> None:
        self._parts: list[bytes] = [_HEADER]
        self._chunks: dict[bytes, Chunk] = {}
        self._end = len(_HEADER)

    @property
    def size(self) -> int:
        """Bytes that the segment will have if it is finished now, at most."""
        return self._end + _INDEX_HEAD_MAX + len(self._chunks) * _CHUNK_INDEX_MAX + _FOOTER_SIZE

    def has_room(self, length: int) -> bool:
        """Whether a further chunk of so many file bytes fits in any case."""
        return self._fits(1 + length)

    def add(self, raw: bytes | memoryview) -> Chunk:
        """Put 1 to CHUNK_MAX file bytes behind the others; the answer says where they lie. There must be room: see `has_room`.

        The same bytes lie there once. It compresses and hashes: milliseconds for a large chunk, so not in the event loop.
        """
        assert 0 < len(raw) <= CHUNK_MAX, "a chunk holds 1 to CHUNK_MAX bytes"
        digest = digest_of(raw)
        if digest in self._chunks:
            return self._chunks[digest]
        stored = encode_chunk(raw)
        assert self._fits(len(stored)), "a chunk was added to a full segment"
        chunk = self._chunks[digest] = Chunk(self._end, len(stored), len(raw), digest)
        self._parts.append(stored)
        self._end += len(stored)
        return chunk

    def finish(self) -> Segment:
        """The segment. At least one chunk must have been added; the builder is of no use afterwards."""
        assert self._chunks, "a segment holds at least one chunk"
        index = _encoder.encode(list(self._chunks.values()))
        body = b"".join((*self._parts, index, len(index).to_bytes(_LENGTH_SIZE, "big"), _TRAILER))
        assert len(body) <= SEGMENT_MAX, "a segment is never longer than SEGMENT_MAX"
        self._parts, self._chunks = [], {}
        name = digest_of(body)
        return Segment(name, segment_key(name), body)

    def _fits(self, stored: int) -> bool:
        return self.size + _CHUNK_INDEX_MAX + stored <= SEGMENT_MAX


def segment_key(name: bytes) -> str:
    """The key under which every store keeps the segment of this name."""
    digits = name.hex()
    return f"segments/{digits[:2]}/{digits}.seg"


def segment_name(key: str) -> bytes | None:
    """The name of the segment kept under `key`; None if the key is not a segment's."""
    match = _KEY.fullmatch(key)
    return bytes.fromhex(match[2]) if match else None


def encode_chunk(raw: bytes | memoryview) -> bytes:
    """The stored form of file bytes: compressed if that saves at least a sixteenth. Any thread may call it."""
    # A compressor must not be shared between threads, and a new one costs microseconds.
    packed = zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(raw)
    if (1 + len(packed)) * 16 <= len(raw) * 15:
        return bytes((_ZSTD,)) + packed
    return b"".join((bytes((_RAW,)), raw))


def decode_chunk(stored: bytes | memoryview, chunk: Chunk) -> bytes:
    """The file bytes of a stored chunk. Any thread may call it; it never makes more than `chunk.raw` bytes.

    Raises Corrupt if they are not the bytes that `chunk` describes.
    """
    if len(stored) != chunk.stored or len(stored) < 1:
        raise Corrupt(f"a stored chunk has {len(stored)} bytes instead of {chunk.stored}")
    payload = memoryview(stored)[1:]
    if stored[0] == _RAW:
        raw = bytes(payload)
    elif stored[0] == _ZSTD:
        raw = _decompress(payload, chunk.raw)
    else:
        raise Corrupt(f"a stored chunk has the unknown codec {stored[0]}")
    if len(raw) != chunk.raw or digest_of(raw) != chunk.digest:
        raise Corrupt("a chunk's bytes are not what their hash says")
    return raw


def parse_segment(body: bytes | memoryview) -> list[Chunk]:
    """The chunks that a segment says it holds, in order.

    Raises Corrupt if the bytes are not shaped like a segment. Whether the contents are right is told by the hash of `body`,
    which is the segment's name, and chunk by chunk by `decode_chunk`.
    """
    view = memoryview(body)
    index_end = len(view) - _FOOTER_SIZE
    if not len(_HEADER) <= index_end <= SEGMENT_MAX - _FOOTER_SIZE or bytes(view[: len(_HEADER)]) != _HEADER:
        raise Corrupt("not a segment")
    if bytes(view[index_end + _LENGTH_SIZE :]) != _TRAILER:
        raise Corrupt("a segment's end is missing")
    index_start = index_end - int.from_bytes(view[index_end : index_end + _LENGTH_SIZE], "big")
    if index_start < len(_HEADER):
        raise Corrupt("a segment's index is longer than the segment")
    try:
        chunks = _decoder.decode(view[index_start:index_end])
    except msgspec.DecodeError as error:
        raise Corrupt(f"a segment's index is damaged: {error}") from error
    _check_layout(chunks, index_start)
    return chunks


def _check_layout(chunks: list[Chunk], index_start: int) -> None:
    end = len(_HEADER)
    for chunk in chunks:
        sound = chunk.start == end and chunk.stored > 0 and 0 < chunk.raw <= CHUNK_MAX and len(chunk.digest) == DIGEST_SIZE
        if not sound:
            raise Corrupt(f"a segment's index makes no sense at byte {end}")
        end += chunk.stored
    if not chunks or end != index_start:
        raise Corrupt("a segment's chunks do not fill it")


def _decompress(payload: memoryview, raw: int) -> bytes:
    try:
        # zstandard allocates what the frame's header claims, whatever bound it is given, so the claim is looked at first.
        if zstandard.get_frame_parameters(payload).content_size != raw:
            raise Corrupt("a chunk's compressed bytes claim another length than its description")
        return zstandard.ZstdDecompressor().decompress(payload, max_output_size=raw, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise Corrupt(f"a chunk's compressed bytes are damaged: {error}") from error
