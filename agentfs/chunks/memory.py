"""A chunk store in memory: for tests, and for a simulation of the whole system."""

from collections.abc import AsyncIterator

import trio

from agentfs.chunks.contract import Capacity, Check, ObjectInfo
from agentfs.model.errors import Corrupt, NotFound


class MemoryStore:
    """Objects in a dictionary. Every operation lets other tasks run first, as a real store would."""

    def __init__(self) -> None:
        self._objects: dict[str, bytes] = {}

    async def put(self, key: str, body: bytes) -> None:
        await trio.lowlevel.checkpoint()
        if len(self._objects.get(key, b"")) != len(body) or key not in self._objects:
            self._objects[key] = bytes(body)

    async def get(self, key: str, start: int = 0, length: int | None = None, *, check: Check | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        body = self._object(key)
        end = len(body) if length is None else start + length
        if max(start, end) > len(body):
            raise Corrupt(f"{key} has {len(body)} bytes, {max(start, end)} were asked for")
        part = body[start:end]
        if check is not None and not check(part):
            raise Corrupt(f"{key}: the bytes from {start} to {end} are not what their hash says")
        return part

    async def size(self, key: str) -> int:
        await trio.lowlevel.checkpoint()
        return len(self._object(key))

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        await trio.lowlevel.checkpoint()
        infos = [ObjectInfo(key, len(body)) for key, body in sorted(self._objects.items()) if key.startswith(prefix)]
        for info in infos:
            yield info

    async def delete(self, key: str) -> None:
        await trio.lowlevel.checkpoint()
        self._objects.pop(key, None)

    async def capacity(self) -> Capacity | None:
        await trio.lowlevel.checkpoint()
        return None

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()

    def _object(self, key: str) -> bytes:
        body = self._objects.get(key)
        if body is None:
            raise NotFound(f"no object {key}")
        return body
