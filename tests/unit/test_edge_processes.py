"""Several processes over one edge cache: they hold the bound together, and one that is killed leaves nothing wrong behind."""

import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from agentfs.chunks.edge import open_edge_cache
from agentfs.chunks.edge_files import EdgeFiles, KeptFile
from agentfs.chunks.memory import MemoryStore
from agentfs.chunks.segment import segment_key
from agentfs.model.extents import digest_of
from agentfs.runtime import SystemRuntime

BOUND_SECONDS = 120
MIB = 1 << 20
MAX_BYTES = 64 * MIB

WRITER = """
import sys
from pathlib import Path
from random import Random
import trio
from agentfs.chunks.edge import open_edge_cache
from agentfs.chunks.memory import MemoryStore
from agentfs.chunks.segment import segment_key
from agentfs.model.extents import digest_of
from agentfs.runtime import SystemRuntime

class Nowhere(MemoryStore):
    async def put(self, key, body):
        pass

async def write(directory, seed, count, size_bytes):
    random = Random(seed)
    async with open_edge_cache(Nowhere(), Path(directory), max_bytes=64 << 20, runtime=SystemRuntime()) as edge:
        for number in range(count):
            body = random.randbytes(size_bytes)
            await edge.put(segment_key(digest_of(body)), body)
            await edge.settle()
            print(number, flush=True)

trio.run(write, sys.argv[1], *map(int, sys.argv[2:]))
"""


@pytest.fixture(autouse=True)
async def bound() -> AsyncIterator[None]:
    with trio.fail_after(BOUND_SECONDS):
        yield


def writer(directory: Path, *, seed: int, count: int, size_bytes: int) -> list[str]:
    """A process that puts so many segments, and prints a line when each is kept."""
    return [sys.executable, "-c", WRITER, str(directory), str(seed), str(count), str(size_bytes)]


def kept(directory: Path) -> list[KeptFile]:
    return [one for shard in EdgeFiles(directory).scan() for one in shard]


async def test_processes_hold_the_bound_together(tmp_path: Path) -> None:
    largest = 0
    over = trio.Event()

    async def write(seed: int) -> None:
        await trio.run_process(writer(tmp_path, seed=seed, count=40, size_bytes=4 * MIB), stdout=subprocess.DEVNULL)

    async def watch() -> None:
        nonlocal largest
        while not over.is_set():
            largest = max(largest, sum(file.size_bytes for file in kept(tmp_path)))
            await trio.sleep(0.002)

    async with trio.open_nursery() as watching:
        watching.start_soon(watch)
        async with trio.open_nursery() as writing:
            writing.start_soon(write, 1)
            writing.start_soon(write, 2)
        over.set()
    assert MAX_BYTES // 2 < largest <= MAX_BYTES
    files = EdgeFiles(tmp_path)
    assert all(file.piece is not None and files.sound(file.path, file.piece) for file in kept(tmp_path))


async def test_processes_that_keep_the_same_segments_agree(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            command = writer(tmp_path, seed=1, count=10, size_bytes=4 * MIB)
            nursery.start_soon(lambda command=command: trio.run_process(command, stdout=subprocess.DEVNULL))
    files = EdgeFiles(tmp_path)
    assert len(kept(tmp_path)) == 10
    assert all(file.piece is not None and files.sound(file.path, file.piece) for file in kept(tmp_path))


@pytest.mark.parametrize("lines", [1, 2, 3, 5, 8])
async def test_a_killed_writer_leaves_nothing_that_is_served_wrongly(tmp_path: Path, lines: int) -> None:
    async with trio.open_nursery() as nursery:
        process: trio.Process = await nursery.start(
            lambda task_status: trio.run_process(
                writer(tmp_path, seed=lines, count=1000, size_bytes=8 * MIB),
                stdout=subprocess.PIPE,
                check=False,
                task_status=task_status,
            )
        )
        assert process.stdout is not None
        received = b""
        while received.count(b"\n") < lines:
            received += await process.stdout.receive_some()
        process.send_signal(signal.SIGKILL)
        await process.wait()
    left = kept(tmp_path)
    files = EdgeFiles(tmp_path)
    whole = [file for file in left if file.piece is not None]
    assert len(whole) >= min(lines, 4)
    assert all(file.piece is not None and files.sound(file.path, file.piece) for file in whole)
    body = b"after the crash"
    async with open_edge_cache(MemoryStore(), tmp_path, max_bytes=MAX_BYTES, runtime=SystemRuntime()) as edge:
        await edge.put(segment_key(digest_of(body)), body)
        await edge.settle()
        assert edge.holds(segment_key(digest_of(body)))
        for file in whole:
            assert file.piece is not None
            if edge.holds(segment_key(file.piece.name)):
                assert digest_of(await edge.get(segment_key(file.piece.name))) == file.piece.name
