"""What a chunk store does: keep immutable objects by key (tests/conformance/test_chunks.py holds every store to this)."""

from collections.abc import AsyncIterator, Callable
from typing import NamedTuple, Protocol

Check = Callable[[bytes], bool]
"""Whether bytes that were read are the right ones: their hash compared with the one that State holds."""


class ObjectInfo(NamedTuple):
    """One object in a listing."""

    key: str
    size: int


class Capacity(NamedTuple):
    """Bytes that a store can hold in all, and how many of them are free to this user."""

    total: int
    free: int


class ChunkStore(Protocol):
    """Immutable objects by key. Keys are of `[a-z0-9/._-]`, at most 200 characters, without `..` and empty parts.

    Errors: NotFound, Unavailable (asking again may help), NoSpace, Denied (permission: asking again does not help), Corrupt.
    """

    async def put(self, key: str, body: bytes) -> None:
        """Keep `body` under `key`; returns once it would survive a power cut. A reader sees all of it or nothing.

        An object is named by its content, so that putting the same key again is harmless and may do nothing.
        """
        ...

    async def get(self, key: str, start: int = 0, length: int | None = None, *, check: Check | None = None) -> bytes:
        """The bytes `[start, start + length)` of an object, to its end without `length`.

        Raises Corrupt if the object is shorter than asked for, or if `check` refuses the bytes.
        """
        ...

    async def size(self, key: str) -> int:
        """The object's size in bytes."""
        ...

    def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """Every object whose key starts with `prefix`, in the order of keys."""
        ...

    async def delete(self, key: str) -> None:
        """Forget an object. An unknown key is ignored."""
        ...

    async def capacity(self) -> Capacity | None:
        """How much it can hold; None if it has no bound that it knows."""
        ...

    async def aclose(self) -> None:
        """Release connections and threads."""
        ...
