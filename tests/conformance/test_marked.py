"""A store behind a marker passes the suite of every chunk store."""

import inspect
from collections.abc import AsyncIterator

import msgspec
import pytest

from agentfs.chunks.contract import ChunkStore
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


@pytest.fixture
async def store() -> AsyncIterator[ChunkStore]:
    behind = MemoryStore()
    marker = ReplicaMarker(format=MARKER_FORMAT, workspace="w-1", name="demo", replica=1)
    await behind.put(MARKER_KEY, msgspec.json.encode(marker))
    marked = Marked(Place(behind, "memory", None), workspace="w-1", replica=1)
    await marked.check()
    await behind.delete(MARKER_KEY)  # The suite expects to find what it put, and nothing else.
    yield marked
    await marked.aclose()
