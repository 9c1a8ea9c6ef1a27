"""The edge cache passes the suite of every chunk store, also where the objects are ones that it keeps."""

import inspect
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from agentfs.chunks.cached import open_cached
from agentfs.chunks.contract import Capacity, Check, ChunkStore, ObjectInfo
from agentfs.chunks.edge import EdgeCache, open_edge_cache
from agentfs.chunks.memory import MemoryStore
from agentfs.chunks.segment import segment_key
from agentfs.model.extents import digest_of
from agentfs.runtime import SystemRuntime
from tests.conformance import test_chunks

globals().update(
    {
        name: test
        for name, test in vars(test_chunks).items()
        if name.startswith("test_") and "store" in inspect.signature(test).parameters
    }
)


class AsSegments:
    """Gives every object the key of a segment, and waits until the cache has kept what there is to keep."""

    def __init__(self, edge: EdgeCache) -> None:
        self._edge = edge
        self._keys: dict[str, str] = {}

    async def put(self, key: str, body: bytes) -> None:
        await self._edge.put(self._renamed(key), body)
        await self._edge.settle()

    async def get(self, key: str, start: int = 0, length: int | None = None, *, check: Check | None = None) -> bytes:
        body = await self._edge.get(self._renamed(key), start, length, check=check)
        await self._edge.settle()
        return body

    async def size(self, key: str) -> int:
        return await self._edge.size(self._renamed(key))

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        infos = [ObjectInfo(self._keys[info.key], info.size) async for info in self._edge.list("segments/")]
        for info in sorted(infos):
            if info.key.startswith(prefix):
                yield info

    async def delete(self, key: str) -> None:
        await self._edge.delete(self._renamed(key))

    async def capacity(self) -> Capacity | None:
        return await self._edge.capacity()

    async def aclose(self) -> None:
        await self._edge.aclose()

    def _renamed(self, key: str) -> str:
        renamed = segment_key(digest_of(key.encode()))
        self._keys[renamed] = key
        return renamed


@pytest.fixture(autouse=True)
async def bound() -> AsyncIterator[None]:
    with trio.fail_after(test_chunks.BOUND_SECONDS):
        yield


@pytest.fixture(params=["edge", "edge of segments", "cached edge"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ChunkStore]:
    async with (
        open_edge_cache(MemoryStore(), tmp_path / "chunks", max_bytes=64 << 20, runtime=SystemRuntime()) as edge,
        open_cached(edge, max_bytes=1 << 20) as cached,
    ):
        yield {"edge": edge, "edge of segments": AsSegments(edge), "cached edge": cached}[request.param]
        await edge.aclose()
