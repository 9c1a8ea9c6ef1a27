"""A store behind a marker passes the suite of every chunk store."""

import inspect
from collections.abc import AsyncIterator

import msgspec
import pytest

from agentfs.chunks.contract import Check, ChunkStore
from agentfs.chunks.memory import MemoryStore
from agentfs.cli.replica_marker import MARKER_FORMAT, MARKER_KEY, Marked, ReplicaMarker
from agentfs.cli.replica_place import Place
from tests.conformance import test_chunks

globals().update(
    {
        name: test
        for name, test in vars(test_chunks).items()
        if name.startswith("test_") and "store" in inspect.signature(test).parameters
    }
)


class MarkedStore(MemoryStore):
    """It has a marker that it does not list: the suite expects to find what it put, and nothing else."""

    async def get(self, key: str, start: int = 0, length: int | None = None, *, check: Check | None = None) -> bytes:
        if key == MARKER_KEY:
            return msgspec.json.encode(ReplicaMarker(format=MARKER_FORMAT, workspace="w-1", name="demo", replica=1))
        return await super().get(key, start, length, check=check)


@pytest.fixture
async def store() -> AsyncIterator[ChunkStore]:
    marked = Marked(Place(MarkedStore(), "memory", None), workspace="w-1", replica=1)
    yield marked
    await marked.aclose()
