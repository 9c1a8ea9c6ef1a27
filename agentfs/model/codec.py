"""How an entry becomes bytes: MessagePack, zstd where it pays, a magic and a format number before it (docs/format.md)."""

import struct
import zlib

import msgspec
import zstandard

from agentfs.model.entry import Entry
from agentfs.model.errors import Corrupt, Invalid

FORMAT = 4
"""The newest format this program reads and the one it writes.

2 has leases, 3 replicas that come and go, and folding, 4 the mirror in the replicas, recovery from it, and compaction.
"""

ENTRY_MAX = 64 << 20
"""Bytes that an entry may decode to; a larger claim is damage, not data."""

_MAGIC = b"AFE"
_HEADER = struct.Struct(">3sBBI")
"""Magic, format, packing, CRC-32 of the body."""

_RAW, _ZSTD = 0, 1
_COMPRESS_FROM = 512

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Entry)
_compressor = zstandard.ZstdCompressor(level=1)
_decompressor = zstandard.ZstdDecompressor()


def encode_entry(entry: Entry) -> bytes:
    """The bytes that the journal keeps for `entry`."""
    plain = _encoder.encode(entry)
    packing, body = _RAW, plain
    if len(plain) >= _COMPRESS_FROM:
        packed = _compressor.compress(plain)
        if len(packed) < len(plain):
            packing, body = _ZSTD, packed
    return _HEADER.pack(_MAGIC, FORMAT, packing, zlib.crc32(body)) + body


def decode_entry(payload: bytes) -> Entry:
    """The entry that `encode_entry` made these bytes of.

    Raises Invalid for a newer format and Corrupt for anything that is not an entry.
    """
    if len(payload) < _HEADER.size or payload[:3] != _MAGIC:
        raise Corrupt("not a journal entry")
    _, entry_format, packing, crc = _HEADER.unpack_from(payload)
    if entry_format > FORMAT:
        raise Invalid(f"the journal is in format {entry_format}, this program reads up to {FORMAT}: upgrade agentfs")
    body = payload[_HEADER.size :]
    if zlib.crc32(body) != crc or packing > _ZSTD or entry_format < 1:
        raise Corrupt("damaged journal entry: its checksum is wrong")
    try:
        return _decoder.decode(_unpack(body) if packing == _ZSTD else body)
    except (zstandard.ZstdError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Corrupt(f"damaged journal entry: {error}") from error


def _unpack(body: bytes) -> bytes:
    # The frame names its own size, which is believed only up to what an entry may be.
    if not 0 <= zstandard.frame_content_size(body) <= ENTRY_MAX:
        raise Corrupt("damaged journal entry: it claims to be too large")
    return _decompressor.decompress(body, allow_extra_data=False)
