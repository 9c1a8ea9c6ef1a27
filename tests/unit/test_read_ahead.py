"""Read-ahead: sequential readers find the next chunks there, nobody else causes a fetch, and nothing stays behind."""

from pathlib import Path
from random import Random

import pytest
import trio

from agentfs.model.errors import Unavailable
from agentfs.model.ids import Ino
from agentfs.workspace.read_ahead import AHEAD_CHUNKS, AHEAD_MAX, IDLE_SECONDS, STREAMS_MAX, Stream
from tests.simulation.virtual_time import in_virtual_time
from tests.unit.reading import MIB, Library, Reading, open_reading

REQUEST = 128 << 10
"""What the kernel asks for at a time."""


async def read(reading: Reading, stream: Stream, ino: Ino, body: bytes, start: int, end: int) -> None:
    """Read a range as the kernel does for one reader."""
    for offset in range(start, min(end, len(body)), REQUEST):
        length = min(REQUEST, end - offset)
        assert await reading.reader.read(ino, offset, length, stream=stream) == body[offset : offset + length]


@in_virtual_time
async def test_a_sequential_reader_waits_for_few_of_the_chunks_and_none_is_fetched_twice(tmp_path: Path) -> None:
    library = Library()
    ino, body = await library.big_file(64)
    library.store.seconds = 0.1
    async with open_reading(library, tmp_path, memory_bytes=0) as reading:
        began = trio.current_time()
        await read(reading, Stream(), ino, body, 0, len(body))
        assert trio.current_time() - began < 1.0, "one after the other they take 6.4 s"
        assert len(reading.store.asked) == len(set(reading.store.asked)) == 64
        assert 4 <= reading.store.most_running <= AHEAD_CHUNKS + 1


@in_virtual_time
async def test_the_window_grows_with_each_chunk(tmp_path: Path) -> None:
    library = Library()
    ino, body = await library.big_file(40)
    async with open_reading(library, tmp_path) as reading:
        stream, fetched = Stream(), []
        await read(reading, stream, ino, body, 0, REQUEST)
        for end in (MIB - REQUEST, 2 * MIB - REQUEST, 3 * MIB - REQUEST, 4 * MIB - REQUEST, 5 * MIB - REQUEST):
            fetched.append(len(reading.store.asked))
            await read(reading, stream, ino, body, stream.end, end)
            await trio.testing.wait_all_tasks_blocked()
        fetched.append(len(reading.store.asked))
        assert fetched == [1, 2, 4, 7, 12, 21]


@in_virtual_time
async def test_random_readers_cause_no_fetch_but_their_own(tmp_path: Path) -> None:
    library = Library()
    ino, body = await library.big_file(60)
    random = Random(2)
    async with open_reading(library, tmp_path) as reading:
        stream, wanted = Stream(), set()
        for _ in range(300):
            start = random.randrange(len(body) - 4096)
            wanted |= {start // MIB, (start + 4095) // MIB}
            assert await reading.reader.read(ino, start, 4096, stream=stream) == body[start : start + 4096]
        await trio.testing.wait_all_tasks_blocked()
        assert len(set(reading.store.asked)) == len(wanted)


@in_virtual_time
async def test_records_of_a_megabyte_at_random_are_not_read_ahead(tmp_path: Path) -> None:
    library = Library()
    ino, body = await library.big_file(60)
    random = Random(2)
    async with open_reading(library, tmp_path) as reading:
        stream, wanted = Stream(), set()
        for _ in range(20):
            start = random.randrange(1, 58) * MIB + 300_000
            wanted |= {start // MIB, (start + MIB - 1) // MIB}
            await read(reading, stream, ino, body, start, start + MIB)
        await trio.testing.wait_all_tasks_blocked()
        assert len(set(reading.store.asked)) == len(wanted)


@in_virtual_time
async def test_who_goes_on_elsewhere_is_believed_after_a_while(tmp_path: Path) -> None:
    library = Library()
    ino, body = await library.big_file(60)
    library.store.seconds = 0.1
    async with open_reading(library, tmp_path) as reading:
        stream = Stream()
        await read(reading, stream, ino, body, 0, 2 * MIB)
        began = trio.current_time()
        await read(reading, stream, ino, body, 20 * MIB, 60 * MIB)
        assert trio.current_time() - began < 1.0, "one after the other they take 4 s"


@in_virtual_time
async def test_requests_that_overtake_each_other_are_still_one_reader(tmp_path: Path) -> None:
    library = Library()
    ino, body = await library.big_file(40)
    library.store.seconds = 0.1
    random = Random(3)
    offsets = list(range(0, len(body), REQUEST))
    for first in range(0, len(offsets), 4):
        some = offsets[first : first + 4]
        random.shuffle(some)
        offsets[first : first + 4] = some
    async with open_reading(library, tmp_path) as reading:
        began, stream = trio.current_time(), Stream()
        for offset in offsets:
            await reading.reader.read(ino, offset, REQUEST, stream=stream)
        assert trio.current_time() - began < 1.0
        assert len(reading.store.asked) == 40


@in_virtual_time
async def test_reading_backwards_is_not_read_ahead(tmp_path: Path) -> None:
    library = Library()
    ino, _ = await library.big_file(10)
    async with open_reading(library, tmp_path) as reading:
        stream = Stream()
        for offset in reversed(range(8 * MIB, 10 * MIB, REQUEST)):
            await reading.reader.read(ino, offset, REQUEST, stream=stream)
        await trio.testing.wait_all_tasks_blocked()
        assert len(reading.store.asked) == 2


@in_virtual_time
@pytest.mark.parametrize("close", [True, False], ids=["close", "seek"])
async def test_what_nobody_waits_for_is_cancelled(tmp_path: Path, close: bool) -> None:
    library = Library()
    ino, body = await library.big_file(40)
    async with open_reading(library, tmp_path) as reading:
        stream, got = Stream(), []
        await read(reading, stream, ino, body, 0, 3 * MIB - REQUEST)
        await trio.testing.wait_all_tasks_blocked()
        reading.store.seconds = 100.0
        await read(reading, stream, ino, body, 3 * MIB - REQUEST, 3 * MIB)
        await trio.testing.wait_all_tasks_blocked()
        ahead = reading.store.running
        assert ahead > 2
        first = next(offset for offset in range(0, len(body), MIB) if not holds(reading, offset, ino))

        async def wait_for_the_next() -> None:
            # Another handle of the same file, which needs what is on its way for the first.
            got.append(await reading.reader.read(ino, first, 1) == body[first : first + 1])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_for_the_next)
            await trio.testing.wait_all_tasks_blocked()
            if close:
                reading.reader.end(stream)
            else:
                reading.store.seconds = 0.0
                await reading.reader.read(ino, 0, 1, stream=stream)
            await trio.testing.wait_all_tasks_blocked()
            assert reading.store.running == 1
            assert reading.store.cancelled == ahead - 1
        assert got == [True]


def holds(reading: Reading, offset: int, ino: Ino) -> bool:
    """Whether the chunk at an offset is in memory."""
    (extent,) = reading.tables.extents(ino, offset, offset + 1)
    assert extent.chunk is not None
    return reading.reader.memory.kept(extent.chunk.digest) is not None


@in_virtual_time
async def test_an_error_ahead_is_met_by_the_read_that_needs_the_chunk(tmp_path: Path) -> None:
    library = Library()
    ino, body = await library.big_file(30)
    async with open_reading(library, tmp_path) as reading:
        stream = Stream()
        await read(reading, stream, ino, body, 0, 2 * MIB)
        await trio.testing.wait_all_tasks_blocked()
        near = sum(holds(reading, offset, ino) for offset in range(0, len(body), MIB))
        reading.store.error = Unavailable("down")
        await read(reading, stream, ino, body, 2 * MIB, near * MIB)
        await trio.testing.wait_all_tasks_blocked()
        asked = len(reading.store.asked)
        reads = 12
        for offset in range(near * MIB, near * MIB + reads * REQUEST, REQUEST):
            with pytest.raises(Unavailable):
                await reading.reader.read(ino, offset, REQUEST, stream=stream)
        await trio.testing.wait_all_tasks_blocked()
        assert len(reading.store.asked) == asked + reads, "a store that is down is not asked for more than somebody reads"
        reading.store.error = None
        await read(reading, stream, ino, body, near * MIB, len(body))


@in_virtual_time
async def test_streams_at_once_do_not_push_each_other_out(tmp_path: Path) -> None:
    library = Library()
    files = [await library.big_file(12, b"big%d" % number) for number in range(STREAMS_MAX)]
    library.store.seconds = 0.1
    async with open_reading(library, tmp_path, memory_bytes=0) as reading:
        streams = [Stream() for _ in files]
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for (ino, body), stream in zip(files, streams, strict=True):
                nursery.start_soon(read, reading, stream, ino, body, 0, len(body))
        assert trio.current_time() - began < 0.1 * 12
        assert len(reading.store.asked) == len(set(reading.store.asked)) == 12 * STREAMS_MAX
        assert reading.store.most_running * MIB <= AHEAD_MAX + 2 * STREAMS_MAX * MIB


@in_virtual_time
async def test_a_stream_that_rests_leaves_its_share_to_the_others(tmp_path: Path) -> None:
    library = Library()
    files = [await library.big_file(40, b"big%d" % number) for number in range(3)]
    async with open_reading(library, tmp_path) as reading:
        resting = [Stream(), Stream()]
        for stream, (ino, body) in zip(resting, files, strict=False):
            await read(reading, stream, ino, body, 0, 8 * MIB)
        await trio.sleep(IDLE_SECONDS + 1)
        ino, body = files[2]
        stream = Stream()
        await read(reading, stream, ino, body, 0, 8 * MIB)
        assert stream.planned - stream.end >= AHEAD_MAX
        # One that goes on later is read ahead again.
        ino, body = files[0]
        await read(reading, resting[0], ino, body, 8 * MIB, 20 * MIB)
        assert resting[0].planned > resting[0].end


@in_virtual_time
async def test_nothing_is_fetched_ahead_beyond_the_end_or_in_holes(tmp_path: Path) -> None:
    library = Library()
    (ino,) = library.names(b"sparse")
    piece = Random(4).randbytes(MIB)
    await library.write([(ino, 0, piece), (ino, 30 * MIB, piece[::-1])])
    body = piece + bytes(29 * MIB) + piece[::-1]
    async with open_reading(library, tmp_path) as reading:
        await read(reading, Stream(), ino, body, 0, len(body))
        await trio.testing.wait_all_tasks_blocked()
        assert len(reading.store.asked) == 2
