"""The journal's copy in a replica: the names and the bytes of the objects that hold runs of its entries (docs/format.md).

An object is one frame or several, one behind the other: in a directory beside the journal it grows by a frame with each commit
and takes another name then. So it may hold more than its name says, and end in a frame that was never finished.
"""

import re
import struct
import zlib
from collections.abc import Sequence
from typing import Final

import msgspec

from agentfs.journal.contract import Record
from agentfs.model.errors import Corrupt
from agentfs.model.ids import Position

MIRROR_PREFIX: Final = "mirror/"
"""What the keys of all such objects begin with."""

_MAGIC: Final = b"AFM1"
_HEADER: Final = struct.Struct(">4sII")
"""Magic, CRC-32 of the frame's body, its length in bytes."""

MIRRORED_MIN: Final = _HEADER.size + 1
"""Bytes that the smallest object has; what is smaller was never written to its end."""

_KEY: Final = re.compile(r"mirror/([0-9a-f]{16})-([0-9a-f]{16})")

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[tuple[int, bytes]])


def mirror_key(first: Position, last: Position) -> str:
    """The key of the object that holds the entries from `first` to `last`, both included."""
    return f"{MIRROR_PREFIX}{first:016x}-{last:016x}"


def parse_mirror_key(key: str) -> tuple[Position, Position] | None:
    """The first and the last position that a key says its object holds; None for a key of anything else."""
    match = _KEY.fullmatch(key)
    if match is None:
        return None
    first, last = (int(text, 16) for text in match.groups())
    return (Position(first), Position(last)) if 0 < first <= last else None


def encode_mirrored(records: Sequence[Record]) -> bytes:
    """A frame that holds these entries, which must follow one another: an object, or the next part of one."""
    assert records, "an object holds an entry at least"
    assert records[-1].position - records[0].position == len(records) - 1, "a run of entries has no gap"
    body = _encoder.encode(records)
    return _HEADER.pack(_MAGIC, zlib.crc32(body), len(body)) + body


def decode_mirrored(body: bytes) -> list[Record]:
    """The entries in an object, in order, without a gap and each once, as far as its frames are whole.

    Raises Corrupt if not even the first one is. Whoever wants to know whether something is missing compares the last entry with
    the key.
    """
    records: list[Record] = []
    at = 0
    while at < len(body):
        try:
            frame, at = _decode_frame(body, at)
        except Corrupt:
            if not records:
                raise
            break
        following = records[-1].position + 1 if records else frame[0].position
        if frame[0].position > following:
            break
        # Two that made the object grow at the same time may both have added the same entries.
        records += [record for record in frame if record.position >= following]
    if not records:
        raise Corrupt("an empty copy of journal entries")
    return records


def _decode_frame(body: bytes, at: int) -> tuple[list[Record], int]:
    """The entries in the frame that begins at `at`, and where it ends."""
    start = at + _HEADER.size
    if len(body) < start or body[at : at + len(_MAGIC)] != _MAGIC:
        raise Corrupt("not a copy of journal entries")
    _, crc, length = _HEADER.unpack_from(body, at)
    packed = memoryview(body)[start : start + length]
    if len(packed) < length or zlib.crc32(packed) != crc:
        raise Corrupt("damaged copy of journal entries: its checksum is wrong")
    try:
        records = [Record(Position(position), payload) for position, payload in _decoder.decode(packed)]
    except msgspec.DecodeError as error:
        raise Corrupt(f"damaged copy of journal entries: {error}") from error
    first = records[0].position if records else 0
    if first < 1 or [record.position for record in records] != list(range(first, first + len(records))):
        raise Corrupt("damaged copy of journal entries: its positions do not follow one another")
    return records, start + length
