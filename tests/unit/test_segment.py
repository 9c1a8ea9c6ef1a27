"""Segments: what goes in comes out, in any thread; what is damaged is Corrupt, never wrong bytes."""

import hashlib
import random
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from agentfs.chunks.segment import (
    Segment,
    SegmentBuilder,
    decode_chunk,
    encode_chunk,
    parse_segment,
    segment_key,
    segment_name,
)
from agentfs.model.errors import Corrupt
from agentfs.model.extents import CHUNK_MAX, SEGMENT_MAX, Chunk, digest_of


def noise(count: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(count)


def described(raw: bytes, stored: bytes) -> Chunk:
    return Chunk(4, len(stored), len(raw), digest_of(raw))


def built(*raws: bytes) -> tuple[Segment, list[Chunk]]:
    builder = SegmentBuilder()
    chunks = [builder.add(raw) for raw in raws]
    return builder.finish(), chunks


def with_index(chunks: list[Chunk], stored: bytes) -> bytes:
    index = msgspec.msgpack.encode(chunks)
    return b"AFS1" + stored + index + len(index).to_bytes(4, "big") + b"AFSI"


@settings(deadline=None, max_examples=50)
@given(st.lists(st.binary(min_size=1, max_size=3000), min_size=1, max_size=20))
def test_what_goes_in_comes_out(raws: list[bytes]) -> None:
    segment, chunks = built(*raws)
    assert parse_segment(segment.body) == list(dict.fromkeys(chunks))
    assert [decode_chunk(segment.body[c.start : c.start + c.stored], c) for c in chunks] == raws


def test_the_bytes_are_as_documented() -> None:
    segment, (first, second) = built(b"abc", b"x" * 1000)
    assert segment.body[:4] == b"AFS1"
    assert segment.body[4:8] == b"\x00abc"
    assert (first.start, first.stored, first.raw) == (4, 4, 3)
    assert (second.start, second.raw) == (8, 1000)
    assert first.digest == hashlib.sha256(b"abc").digest()
    assert segment.body[8] == 1
    index_start = second.start + second.stored
    assert zstandard.ZstdDecompressor().decompress(segment.body[9:index_start]) == b"x" * 1000
    assert segment.body[-4:] == b"AFSI"
    assert int.from_bytes(segment.body[-8:-4], "big") == len(segment.body) - 8 - index_start
    assert msgspec.msgpack.decode(segment.body[index_start:-8])[0] == [4, 4, 3, first.digest]


def test_a_segment_is_named_by_its_bytes() -> None:
    segment, _ = built(b"abc")
    digits = hashlib.sha256(segment.body).hexdigest()
    assert segment.name.hex() == digits
    assert segment.key == segment_key(segment.name) == f"segments/{digits[:2]}/{digits}.seg"
    assert segment_name(segment.key) == segment.name
    assert built(b"abc")[0] == segment


@pytest.mark.parametrize(
    "key", ["", "segments/ab/abcdef.seg", "journal/01", f"segments/00/{'ab' * 32}.seg", f"x/{'ab' * 32}.seg"]
)
def test_other_keys_name_no_segment(key: str) -> None:
    assert segment_name(key) is None


def test_compression_only_where_it_saves_a_sixteenth() -> None:
    assert encode_chunk(noise(10_000)) == b"\x00" + noise(10_000)
    assert encode_chunk(b"y") == b"\x00y"
    packed = encode_chunk(b"y" * 10_000)
    assert packed[0] == 1
    assert len(packed) < 200
    # A little compressible: zstd saves something, but less than a sixteenth.
    weak = noise(10_000) + b"y" * 400
    assert len(zstandard.ZstdCompressor(level=1).compress(weak)) < len(weak)
    assert encode_chunk(weak)[0] == 0


def test_chunks_may_be_given_as_memoryviews() -> None:
    for raw in (b"z" * 5000, noise(5000)):
        stored = encode_chunk(memoryview(raw))
        assert stored == encode_chunk(raw)
        assert decode_chunk(memoryview(stored), described(raw, stored)) == raw


def test_a_segment_of_large_chunks_is_never_too_long() -> None:
    builder = SegmentBuilder()
    count = 0
    while builder.has_room(CHUNK_MAX):
        builder.add(noise(CHUNK_MAX, seed=count))
        count += 1
    promised = builder.size
    segment = builder.finish()
    assert count == 7
    assert len(segment.body) <= promised <= SEGMENT_MAX
    assert len(parse_segment(segment.body)) == count


def test_a_segment_of_small_chunks_is_never_too_long() -> None:
    builder, noises = SegmentBuilder(), random.Random(1)
    while builder.has_room(CHUNK_MAX):
        for _ in range(200):
            builder.add(noises.randbytes(40))
    promised = builder.size
    segment = builder.finish()
    assert SEGMENT_MAX - 2 * CHUNK_MAX < len(segment.body) <= promised <= SEGMENT_MAX
    assert len(parse_segment(segment.body)) > 10_000


def test_the_same_bytes_are_in_a_segment_once() -> None:
    segment, chunks = built(b"again", b"other", b"again")
    assert chunks[0] == chunks[2]
    assert parse_segment(segment.body) == chunks[:2]
    assert built(b"again", b"other")[0] == segment


def test_one_more_byte_than_a_chunk_holds_is_a_bug_of_the_caller() -> None:
    with pytest.raises(AssertionError):
        SegmentBuilder().add(bytes(CHUNK_MAX + 1))
    with pytest.raises(AssertionError):
        SegmentBuilder().add(b"")
    with pytest.raises(AssertionError):
        SegmentBuilder().finish()


@pytest.mark.parametrize("raw", [b"text " * 200, noise(1000)], ids=["compressed", "raw"])
def test_every_changed_byte_of_a_chunk_is_noticed(raw: bytes) -> None:
    stored = encode_chunk(raw)
    chunk = described(raw, stored)
    for at in range(len(stored)):
        damaged = stored[:at] + bytes([stored[at] ^ 0x41]) + stored[at + 1 :]
        # Some bits of a zstd frame mean nothing, so that the right bytes may come out; wrong ones never may.
        try:
            assert decode_chunk(damaged, chunk) == raw
        except Corrupt:
            continue
        assert stored[0] == 1


@pytest.mark.parametrize("raw", [b"text " * 200, noise(1000)], ids=["compressed", "raw"])
def test_a_chunk_of_another_length_is_corrupt(raw: bytes) -> None:
    stored = encode_chunk(raw)
    for damaged in (b"", stored[:1], stored[:-1], stored + b"\x00"):
        with pytest.raises(Corrupt):
            decode_chunk(damaged, described(raw, stored))
        with pytest.raises(Corrupt):
            decode_chunk(damaged, described(raw, damaged))


def test_a_chunk_cannot_make_more_bytes_than_described() -> None:
    bomb = b"\x01" + zstandard.ZstdCompressor().compress(bytes(64 << 20))
    with pytest.raises(Corrupt, match="claim another length"):
        decode_chunk(bomb, Chunk(4, len(bomb), 1000, digest_of(bytes(1000))))
    silent = b"\x01" + zstandard.ZstdCompressor(write_content_size=False).compress(bytes(64 << 20))
    with pytest.raises(Corrupt):
        decode_chunk(silent, Chunk(4, len(silent), 1000, digest_of(bytes(1000))))


def test_an_unknown_codec_is_corrupt() -> None:
    with pytest.raises(Corrupt, match="codec 7"):
        decode_chunk(b"\x07abc", described(b"abc", b"\x07abc"))


@pytest.mark.parametrize("length", [0, 1, 4, 11, 12, 60, 100])
def test_a_segment_cut_short_is_corrupt(length: int) -> None:
    segment, _ = built(b"abc" * 100, noise(500))
    with pytest.raises(Corrupt):
        parse_segment(segment.body[:length])
    with pytest.raises(Corrupt):
        parse_segment(segment.body[length + 1 :])


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=200))
def test_any_bytes_are_chunks_or_corrupt(body: bytes) -> None:
    for candidate in (body, b"AFS1" + body + b"AFSI", b"AFS1" + body + len(body).to_bytes(4, "big") + b"AFSI"):
        with pytest.raises(Corrupt):
            parse_segment(candidate)


def test_an_index_that_makes_no_sense_is_corrupt() -> None:
    good = Chunk(4, 4, 3, digest_of(b"abc"))
    assert parse_segment(with_index([good], b"\x00abc")) == [good]
    bad = [
        [],
        [good, good],
        [Chunk(5, 3, 3, good.digest)],
        [Chunk(4, 3, 3, good.digest)],
        [Chunk(4, 5, 3, good.digest)],
        [Chunk(4, 4, 0, good.digest)],
        [Chunk(4, 4, CHUNK_MAX + 1, good.digest)],
        [Chunk(4, 4, 3, b"short")],
        [Chunk(4, 8, 3, good.digest), Chunk(12, -4, 3, good.digest)],
    ]
    for chunks in bad:
        with pytest.raises(Corrupt):
            parse_segment(with_index(chunks, b"\x00abc"))


def test_many_threads_may_encode_and_decode_at_once() -> None:
    raws = [bytes([seed]) * 20_000 + noise(20_000, seed) for seed in range(64)]

    def there_and_back(raw: bytes) -> bytes:
        stored = encode_chunk(raw)
        return decode_chunk(stored, described(raw, stored))

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(there_and_back, raws)) == raws
