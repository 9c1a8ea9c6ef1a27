"""A reader over a store that keeps account of what it is asked: for tests of what reading costs."""

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final, NamedTuple

import trio

from agentfs.chunks.cached import Cached, open_cached
from agentfs.chunks.contract import Check
from agentfs.chunks.memory import MemoryStore
from agentfs.chunks.segment import SegmentBuilder
from agentfs.model.changes import AddSegment, AnyChange, ChunkRun, Write
from agentfs.model.errors import AgentfsError
from agentfs.model.extents import CHUNK_MAX
from agentfs.model.ids import Ino, ReplicaId
from agentfs.state.tables import Tables
from agentfs.workspace.reader import Reader
from agentfs.workspace.staging import Staging
from tests.simulation.entries import make
from tests.simulation.parts import World, make_world, replayed
from tests.simulation.runtime import VirtualRuntime

MIB: Final = 1 << 20


class Asked(NamedTuple):
    """One `get`."""

    key: str
    start: int
    length: int | None


class FarStore(MemoryStore):
    """A store that takes `seconds` for a read, refuses with `error` where one is set, and writes down what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Asked] = []
        self.seconds = 0.0
        self.error: AgentfsError | None = None
        self.running = 0
        self.most_running = 0
        self.cancelled = 0

    async def get(self, key: str, start: int = 0, length: int | None = None, *, check: Check | None = None) -> bytes:
        self.asked.append(Asked(key, start, length))
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await trio.sleep(self.seconds)
            if self.error is not None:
                raise self.error
            return await super().get(key, start, length, check=check)
        except trio.Cancelled:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1


class Library:
    """A workspace whose files are written by a session elsewhere, into one far store."""

    def __init__(self) -> None:
        self.world: World = make_world(1)
        self.store = FarStore()
        self._random = Random(11)
        self._last = 2 << 32

    def names(self, *names: bytes) -> list[Ino]:
        """New, empty files."""
        inos = [Ino(self._last + number) for number in range(1, len(names) + 1)]
        self._last = inos[-1]
        self.world.foreign(2, *(make(ino, name) for ino, name in zip(inos, names, strict=True)))
        return inos

    async def write(self, pieces: Iterable[tuple[Ino, int, bytes]]) -> str:
        """Write pieces of files at their offsets, all in one segment; its key."""
        builder = SegmentBuilder()
        chunks = [(ino, offset, builder.add(raw)) for ino, offset, raw in pieces]
        segment = builder.finish()
        await self.store.put(segment.key, segment.body)
        changes: list[AnyChange] = [AddSegment(segment.name, len(segment.body), [ReplicaId(1)])]
        changes += [Write(ino, [ChunkRun(offset, segment.name, chunk)], False, 30) for ino, offset, chunk in chunks]
        self.world.foreign(2, *changes)
        return segment.key

    async def small_files(self, count: int, size: int = 5000, name: bytes = b"small") -> dict[Ino, bytes]:
        """Files that were written together."""
        inos = self.names(*(b"%s%d" % (name, number) for number in range(count)))
        bodies = {ino: self._random.randbytes(size) for ino in inos}
        await self.write((ino, 0, body) for ino, body in bodies.items())
        return bodies

    async def big_file(self, mebibytes: int, name: bytes = b"big") -> tuple[Ino, bytes]:
        """A file of chunks of 1 MiB, up to seven in a segment."""
        (ino,) = self.names(name)
        body = b"".join(self._random.randbytes(CHUNK_MAX) for _ in range(mebibytes))
        chunks = [(ino, start, body[start : start + CHUNK_MAX]) for start in range(0, len(body), CHUNK_MAX)]
        for first in range(0, len(chunks), 7):
            await self.write(chunks[first : first + 7])
        return ino, body


@dataclass(frozen=True, slots=True)
class Reading:
    """A reader, and what it reads through and from."""

    tables: Tables
    staging: Staging
    reader: Reader
    chunks: Cached
    store: FarStore

    async def all_of(self, bodies: Mapping[Ino, bytes]) -> None:
        """Read files one after the other, and find in them what they should hold."""
        for ino, body in bodies.items():
            assert await self.reader.read(ino, 0, len(body) + 1) == body


@asynccontextmanager
async def open_reading(library: Library, directory: Path, *, memory_bytes: int = 64 << 20) -> AsyncIterator[Reading]:
    """A mount that reads, without a kernel; nothing of the files is near."""
    runtime = VirtualRuntime(Random(1))
    tables, staging = replayed(library.world.log), Staging(directory, runtime.boottime)
    library.store.asked.clear()
    async with (
        open_cached(library.store, max_bytes=memory_bytes) as chunks,
        trio.open_nursery() as nursery,
    ):
        yield Reading(tables, staging, Reader(tables, staging, chunks, runtime, nursery), chunks, library.store)
        nursery.cancel_scope.cancel()
    staging.close()
    tables.close()
