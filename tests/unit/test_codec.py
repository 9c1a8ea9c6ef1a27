"""Entries come back from their bytes as they were, and damaged bytes are refused with an error that says so."""

import struct
import zlib
from typing import get_args

import msgspec
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from agentfs.model.changes import (
    LEASE_TTL_MS,
    Acquire,
    AddReplica,
    AddSegment,
    AnyChange,
    Change,
    ChunkRun,
    CloseSession,
    Collect,
    Deleted,
    Deny,
    Drop,
    Fence,
    Fold,
    Found,
    InlineRun,
    Link,
    Make,
    Misplaced,
    OpenSession,
    Origin,
    Placed,
    Recovered,
    Release,
    RemoveReplica,
    RemoveXattr,
    Rename,
    Renew,
    ReplicaSpec,
    Rmdir,
    SetAttr,
    SetXattr,
    Truncate,
    Unlink,
    Unneeded,
    Withdraw,
    Write,
)
from agentfs.model.codec import FORMAT, decode_entry, encode_entry
from agentfs.model.entry import Entry, Transaction
from agentfs.model.errors import Corrupt, Invalid
from agentfs.model.extents import INLINE_MAX, Chunk
from agentfs.model.ids import Ino, Position, ReplicaId, SessionId, TxnNumber
from agentfs.model.lease import EXCLUSIVE, FLOCK, POSIX, SHARED, WHOLE, Run

INO = Ino((7 << 32) | 5)
PARENT = Ino(1)
NAME = b"caf\xc3\xa9 \xff\n"
TIME = 1_790_000_000_123_456_789
DIGEST = bytes(range(32))
CHUNK = Chunk(start=4096, stored=900, raw=1 << 20, digest=DIGEST)

CHANGES: list[AnyChange] = [
    Found(
        "0123",
        "demo",
        1,
        "quorum",
        "close",
        [ReplicaSpec(ReplicaId(1), "file:///a"), ReplicaSpec(ReplicaId(2), "b")],
        0,
        0,
        TIME,
    ),
    OpenSession(b"token", "host", 4711, "label é", TIME),
    CloseSession(),
    OpenSession(b"token", "host", 4711, "label é", TIME, 500),
    OpenSession(b"token", "host", 4711, "label é", TIME, 500, upkeep=False),
    Found("0123", "demo", 1, "quorum", "close", [], 0, 0, TIME, write_quorum=2),
    Fence(SessionId(3)),
    Fence(SessionId(3), TIME, TxnNumber(9)),
    Recovered("5f", [ReplicaSpec(ReplicaId(1), "file:replicas/1")], TIME),
    Renew(),
    Acquire(INO, FLOCK, 1, WHOLE, True, TIME),
    Withdraw(INO, FLOCK, 1, TIME),
    Release(INO, POSIX, [Run(0, 0, SHARED), Run(7, 9, EXCLUSIVE)], TIME),
    Deny(INO, POSIX, SessionId(3), 2, WHOLE, 4711, TIME),
    Make(PARENT, NAME, INO, 0o120777, 1000, 1000, 0, b"../target", TIME),
    Link(PARENT, NAME, INO, TIME),
    Unlink(PARENT, NAME, INO, True, TIME),
    Rmdir(PARENT, NAME, TIME),
    Rename(PARENT, NAME, PARENT, b"new", 2, True, TIME),
    Drop(INO),
    Truncate(INO, (1 << 63) - 1, TIME),
    Write(INO, [InlineRun(0, b"inline"), InlineRun(9, b""), ChunkRun(1 << 40, DIGEST, CHUNK)], False, TIME),
    Write(INO, [], True, TIME),
    SetAttr(INO, TIME, mode=0o644),
    SetAttr(INO, TIME, uid=0, gid=0, atime_ns=-1, mtime_ns=TIME),
    SetXattr(INO, b"user.name", b"\x00value", 1, TIME),
    RemoveXattr(INO, b"user.name", TIME),
    AddSegment(DIGEST, 8 << 20, [ReplicaId(1), ReplicaId(2)]),
    AddSegment(DIGEST, 8 << 20, [], TIME),
    Placed(DIGEST, ReplicaId(2)),
    Misplaced(DIGEST, ReplicaId(2)),
    AddReplica(ReplicaId(255), "s3://bucket/prefix?region=x"),
    RemoveReplica(ReplicaId(2)),
    RemoveReplica(ReplicaId(2), force=True),
    Fold(INO, 7, [ChunkRun(0, DIGEST, CHUNK), ChunkRun(1 << 40, DIGEST, CHUNK)]),
    Fold(INO, 7, [ChunkRun(0, DIGEST, CHUNK)], [Origin(DIGEST, 4096)]),
    AddSegment(DIGEST, 8 << 20, [], TIME, Position(9)),
    Unneeded([DIGEST], TIME),
    Collect([DIGEST], TIME),
    Deleted([DIGEST]),
]


def entry_of(*changes: AnyChange) -> Entry:
    return Entry(SessionId(7), TIME, [Transaction(TxnNumber(1), []), Transaction(TxnNumber(2), list(changes))])


HEADER = struct.Struct(">3sBBI")
"""Magic, format, packing, CRC-32 of the body: docs/format.md."""

FORMAT_PLACE = 3

RAW, ZSTD = 0, 1


def sealed(packing: int, body: bytes) -> bytes:
    """A payload whose header is right for `body`, so that the checksum does not hide what is wrong with it."""
    return HEADER.pack(b"AFE", FORMAT, packing, zlib.crc32(body)) + body


SMALL = encode_entry(entry_of(*CHANGES[2:5]))
PACKED = encode_entry(entry_of(*CHANGES))


def decodes_or_is_refused(payload: bytes) -> None:
    """Bytes that nobody damaged but that are no entry may happen to look like one; no other error may come of them."""
    try:
        entry = decode_entry(payload)
    except (Corrupt, Invalid):
        return
    assert isinstance(entry, Entry)


def test_the_samples_are_complete() -> None:
    assert {type(change) for change in CHANGES} == set(get_args(AnyChange)) == set(Change.__subclasses__())
    assert SMALL[4] == 0
    assert PACKED[4] == 1


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: type(change).__name__)
def test_every_change_comes_back(change: AnyChange) -> None:
    entry = entry_of(change)
    decoded = decode_entry(encode_entry(entry))
    assert decoded == entry
    assert type(decoded.transactions[1].changes[0]) is type(change)


def test_an_entry_of_everything_comes_back() -> None:
    assert decode_entry(PACKED) == entry_of(*CHANGES)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, (1 << 63) - 1), st.binary(max_size=2000)), max_size=8))
def test_inline_bytes_come_back(runs: list[tuple[int, bytes]]) -> None:
    entry = entry_of(Write(INO, [InlineRun(offset, data) for offset, data in runs], False, TIME))
    assert decode_entry(encode_entry(entry)) == entry


def test_entries_from_before_leases_had_a_ttl_say_the_default() -> None:
    """Byte for byte as they were written then: `open` of five fields, `fence` of one."""
    opening: list[object] = ["open", b"token", "host", 4711, "", TIME]
    body = msgspec.msgpack.encode([0, TIME, [[1, [opening, ["fence", 3]]]]])
    changes = decode_entry(sealed(RAW, body)).transactions[0].changes
    assert changes == [OpenSession(b"token", "host", 4711, "", TIME, LEASE_TTL_MS), Fence(SessionId(3), 0, None)]


def test_entries_from_before_replicas_came_and_went_say_the_defaults() -> None:
    """Byte for byte as they were written then: `found` of nine fields, `open` of six, `segment` of three."""
    found: list[object] = ["found", "0123", "demo", 1, "sync", "close", [[1, "file:a"]], 0, 0, TIME]
    opening: list[object] = ["open", b"token", "host", 4711, "", TIME, 500]
    segment: list[object] = ["segment", DIGEST, 900, [1, 2]]
    body = msgspec.msgpack.encode([0, TIME, [[1, [found, opening, segment]]]])
    payload = HEADER.pack(b"AFE", 2, RAW, zlib.crc32(body)) + body
    specs = [ReplicaSpec(ReplicaId(1), "file:a")]
    assert decode_entry(payload).transactions[0].changes == [
        Found("0123", "demo", 1, "sync", "close", specs, 0, 0, TIME, write_quorum=0),
        OpenSession(b"token", "host", 4711, "", TIME, 500, upkeep=True),
        AddSegment(DIGEST, 900, [ReplicaId(1), ReplicaId(2)], time_ns=0),
    ]


def test_bytes_that_do_not_compress_are_kept_as_they_are() -> None:
    noise = zstandard.ZstdCompressor().compress(bytes(range(256))) + b"".join(
        struct.pack(">Q", pow(3, n, (1 << 61) - 1) * 7 % (1 << 64)) for n in range(1, INLINE_MAX // 8)
    )
    payload = encode_entry(entry_of(Write(INO, [InlineRun(0, noise)], False, TIME)))
    assert payload[4] == 0
    assert len(payload) < len(noise) + 200


def test_bytes_that_compress_are_packed() -> None:
    assert len(encode_entry(entry_of(Write(INO, [InlineRun(0, bytes(INLINE_MAX))], False, TIME)))) < 300


FLIPS = (0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80, 0xFF)


@pytest.mark.parametrize("payload", [SMALL, PACKED], ids=["raw", "packed"])
def test_damage_at_any_byte_is_refused(payload: bytes) -> None:
    for place in range(len(payload)):
        for flip in FLIPS:
            damaged = bytearray(payload)
            damaged[place] ^= flip
            if place == FORMAT_PLACE and 1 <= damaged[place] <= FORMAT:
                # Formats that are read differ in what an entry may hold, not in how it is read.
                assert decode_entry(bytes(damaged)) == decode_entry(payload)
                continue
            with pytest.raises((Corrupt, Invalid)):
                decode_entry(bytes(damaged))


@pytest.mark.parametrize("payload", [SMALL, PACKED], ids=["raw", "packed"])
def test_damage_under_a_right_checksum_is_refused(payload: bytes) -> None:
    packing, body = payload[4], payload[HEADER.size :]
    for place in range(len(body)):
        for flip in FLIPS:
            damaged = bytearray(body)
            damaged[place] ^= flip
            decodes_or_is_refused(sealed(packing, bytes(damaged)))


@pytest.mark.parametrize("payload", [SMALL, PACKED], ids=["raw", "packed"])
def test_an_entry_cut_short_is_corrupt(payload: bytes) -> None:
    for size in range(len(payload)):
        with pytest.raises(Corrupt):
            decode_entry(payload[:size])


@pytest.mark.parametrize("payload", [SMALL, PACKED], ids=["raw", "packed"])
def test_bytes_behind_an_entry_are_corrupt(payload: bytes) -> None:
    for tail in (b"\x00", b"\xc0", payload):
        with pytest.raises(Corrupt):
            decode_entry(payload + tail)
        with pytest.raises(Corrupt):
            decode_entry(sealed(payload[4], payload[HEADER.size :] + tail))


@pytest.mark.parametrize("payload", [SMALL, PACKED], ids=["raw", "packed"])
def test_a_newer_format_asks_for_an_upgrade(payload: bytes) -> None:
    for newer in range(FORMAT + 1, 256):
        with pytest.raises(Invalid, match="upgrade agentfs"):
            decode_entry(payload[:3] + bytes((newer,)) + payload[4:])


def test_another_packing_is_corrupt() -> None:
    for packing in range(2, 256):
        with pytest.raises(Corrupt):
            decode_entry(sealed(packing, SMALL[HEADER.size :]))


@settings(deadline=None)
@given(st.binary(max_size=64))
def test_arbitrary_bytes_are_refused(body: bytes) -> None:
    decodes_or_is_refused(body)
    decodes_or_is_refused(sealed(RAW, body))
    decodes_or_is_refused(sealed(ZSTD, body))
    decodes_or_is_refused(sealed(ZSTD, zstandard.ZstdCompressor().compress(body)))


def test_deep_nesting_is_corrupt() -> None:
    # An entry with one more field than this program knows, which it skips.
    with pytest.raises(Corrupt):
        decode_entry(sealed(RAW, b"\x94" + SMALL[HEADER.size + 1 :] + b"\x91" * 100_000 + b"\xc0"))


def test_a_claim_of_too_many_bytes_is_corrupt() -> None:
    # A zstd frame of one segment that states a content size of 2**40 bytes, of which almost nothing follows.
    with pytest.raises(Corrupt):
        decode_entry(sealed(ZSTD, struct.pack("<IBQ", 0xFD2FB528, 0xE0, 1 << 40) + b"\x01\x00\x00"))


def test_bytes_that_unpack_to_too_much_are_corrupt() -> None:
    bomb = zstandard.ZstdCompressor(write_content_size=False).compress(msgspec.msgpack.encode(bytes(65 << 20)))
    with pytest.raises(Corrupt):
        decode_entry(sealed(ZSTD, bomb))
    bomb = zstandard.ZstdCompressor().compress(msgspec.msgpack.encode(bytes(65 << 20)))
    with pytest.raises(Corrupt):
        decode_entry(sealed(ZSTD, bomb))
