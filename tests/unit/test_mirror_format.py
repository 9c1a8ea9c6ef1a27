"""The journal's copy in a replica: keys and bytes there and back, and what is not taken for one."""

import pytest

from agentfs.chunks.directory import DirectoryStore
from agentfs.journal.contract import Record
from agentfs.journal.mirror import MIRRORED_MIN, decode_mirrored, encode_mirrored, mirror_key, parse_mirror_key
from agentfs.model.errors import Corrupt
from agentfs.model.ids import Position
from agentfs.runtime import SystemRuntime

RUN = [Record(Position(number), b"entry %d" % number) for number in range(7, 12)]


@pytest.mark.parametrize("records", [RUN, RUN[:1], [Record(Position(1), b"")], [Record(Position(2**63 - 1), b"\0" * 70_000)]])
def test_what_is_encoded_comes_back(records: list[Record]) -> None:
    assert decode_mirrored(encode_mirrored(records)) == records


def test_the_bytes_are_as_documented() -> None:
    body = encode_mirrored([Record(Position(7), b"ab"), Record(Position(8), b"")])
    assert body.hex() == "41464d31" + "b426068f" + "0000000b" + "92" + "9207c4026162" + "9208c400"


def test_every_damage_is_seen() -> None:
    body = encode_mirrored(RUN)
    for at in range(len(body)):
        with pytest.raises(Corrupt):
            decode_mirrored(body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :])
        with pytest.raises(Corrupt):
            decode_mirrored(body[:at])


def test_frames_are_read_on_as_long_as_they_are_whole() -> None:
    first, second = encode_mirrored(RUN[:2]), encode_mirrored(RUN[2:])
    assert decode_mirrored(first + second) == RUN
    for length in range(len(second)):
        assert decode_mirrored(first + second[:length]) == RUN[:2]
    for at in range(len(second)):
        assert decode_mirrored(first + second[:at] + bytes([second[at] ^ 1]) + second[at + 1 :]) == RUN[:2]


def test_entries_that_two_added_count_once() -> None:
    frames = [encode_mirrored(RUN[:2]), encode_mirrored(RUN[2:3]), encode_mirrored(RUN[2:4]), encode_mirrored(RUN[1:])]
    assert decode_mirrored(b"".join(frames)) == RUN


def test_nothing_is_read_behind_a_gap() -> None:
    assert decode_mirrored(encode_mirrored(RUN[:2]) + encode_mirrored(RUN[3:])) == RUN[:2]


def test_an_empty_object_is_damage() -> None:
    with pytest.raises(Corrupt):
        decode_mirrored(b"")


def test_an_object_is_never_smaller_than_the_least_that_counts() -> None:
    assert len(encode_mirrored([Record(Position(1), b"")])) >= MIRRORED_MIN


def test_keys_there_and_back() -> None:
    key = mirror_key(Position(7), Position(300))
    assert key == "mirror/0000000000000007-000000000000012c"
    assert parse_mirror_key(key) == (7, 300)


@pytest.mark.parametrize(
    "key",
    [
        "segments/ab/" + "ab" * 32 + ".seg",
        "mirror/7-8",
        "mirror/0000000000000007-000000000000000G",
        "mirror/0000000000000007-000000000000012c.tmp",
        "mirror/0000000000000008-0000000000000007",
        "mirror/0000000000000000-0000000000000007",
    ],
)
def test_what_is_no_key_of_a_copy(key: str) -> None:
    assert parse_mirror_key(key) is None


def test_keys_are_in_the_order_of_positions() -> None:
    keys = [mirror_key(Position(number), Position(number)) for number in (1, 9, 16, 255, 256, 2**40)]
    assert keys == sorted(keys)


async def test_a_key_is_good_for_a_store(tmp_path: object) -> None:
    store = DirectoryStore(tmp_path, runtime=SystemRuntime())  # type: ignore[arg-type]
    await store.put(mirror_key(Position(1), Position(2)), encode_mirrored(RUN))
    assert [info.key async for info in store.list("mirror/")] == [mirror_key(Position(1), Position(2))]
