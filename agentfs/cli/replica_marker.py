"""A replica's marker: the object that says whose replica a place is, put there when the place becomes one."""

import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import msgspec
import trio

from agentfs.chunks.contract import Capacity, Check, ObjectInfo
from agentfs.chunks.directory import DirectoryStore
from agentfs.cli.replica_place import Place
from agentfs.model.errors import AgentfsError, Denied, Exists, Invalid, NotDirectory, NotFound, Unavailable

T = TypeVar("T")

MARKER_KEY: Final = "agentfs-replica.json"
MARKER_FORMAT: Final = 1

UNDO_SECONDS: Final = 30.0
"""How long a store is waited for that should forget a marker again."""

_NOT_CONTENT: Final = frozenset({"lost+found"})
"""What a new ext4 filesystem holds: it counts as empty."""


class ReplicaMarker(msgspec.Struct, frozen=True, kw_only=True):
    """Whose replica a place is: the workspace's UUID and name, and the replica's number in it."""

    format: int
    workspace: str
    name: str
    replica: int

    @property
    def owner(self) -> str:
        """What to call it."""
        return f"replica {self.replica} of workspace {self.name} ({self.workspace})"


async def read_marker(place: Place) -> ReplicaMarker | None:
    """The marker in a place, None without one. Raises Invalid if it is not readable or newer, and what the store says."""
    try:
        body = await place.store.get(MARKER_KEY)
    except NotFound:
        return None
    try:
        marker = msgspec.json.decode(body, type=ReplicaMarker)
    except msgspec.DecodeError as error:
        raise Invalid(f"{place.name}: its {MARKER_KEY} is not readable: {error}") from error
    if marker.format > MARKER_FORMAT:
        raise Invalid(
            f"{place.name}: {MARKER_KEY} is in format {marker.format}, this program reads {MARKER_FORMAT}: upgrade agentfs"
        )
    return marker


async def check_marker(place: Place, *, workspace: str, replica: int) -> None:
    """Raise Invalid if a place is not this replica of this workspace, and what the store says."""
    found = await read_marker(place)
    if found is None:
        raise Invalid(
            f"{place.name} is not marked as replica {replica} of this workspace: is its disk mounted, the URL right?"
            f" If what it held is lost: `agentfs replicas remove {replica}`, then add it again"
        )
    if (found.workspace, found.replica) != (workspace, replica):
        raise Invalid(f"{place.name} holds {found.owner}, not replica {replica} of this one: put the right one back")


class Marked:
    """The store of a replica that is asked for nothing before its marker was seen: a disk may be missing, or another be there.

    It looks again after the store was unavailable, refused something, or lacked it: a disk may have been unmounted since, or a
    bucket made anew. What is not ours is Denied, so that it counts as a replica that is down.
    """

    def __init__(self, place: Place, *, workspace: str, replica: int) -> None:
        self._place = place
        self._store = place.store
        self._workspace = workspace
        self._replica = replica
        self._seen = False
        self._looking = trio.Lock()

    async def check(self) -> None:
        """Look at the marker, unless it was seen. Raises Denied if it is not ours, and what the store says."""
        async with self._looking:
            if self._seen:
                return
            try:
                await check_marker(self._place, workspace=self._workspace, replica=self._replica)
            except Invalid as error:
                raise Denied(str(error)) from error
            self._seen = True

    async def put(self, key: str, body: bytes) -> None:
        await self._asked(partial(self._store.put, key, body))

    def grow(self, old: str | None, new: str, body: bytes, *, device: int) -> bool:
        """As `DirectoryStore.grow`; not while the marker is to be looked at first."""
        return self._seen and isinstance(self._store, DirectoryStore) and self._store.grow(old, new, body, device=device)

    async def get(self, key: str, start: int = 0, length: int | None = None, *, check: Check | None = None) -> bytes:
        return await self._asked(partial(self._store.get, key, start, length, check=check))

    async def size(self, key: str) -> int:
        return await self._asked(partial(self._store.size, key))

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        await self.check()
        listing = self._store.list(prefix)
        try:
            async for info in listing:
                yield info
        finally:
            if isinstance(listing, AsyncGenerator):
                await listing.aclose()

    async def delete(self, key: str) -> None:
        await self._asked(partial(self._store.delete, key))

    async def capacity(self) -> Capacity | None:
        return await self._asked(self._store.capacity)

    async def aclose(self) -> None:
        await self._store.aclose()

    async def _asked(self, ask: Callable[[], Awaitable[T]]) -> T:
        if not self._seen:
            await self.check()
        try:
            return await ask()
        except (Unavailable, Denied, NotFound):
            self._seen = False
            raise


class PreparedReplica:
    """One place while it is being made a replica; `undo` restores what was there."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._made: list[Path] = []
        self._before: ReplicaMarker | None = None
        self._marked = False

    async def prepare(self, marker: ReplicaMarker, *, retired: frozenset[int] = frozenset()) -> None:
        """Mark the place, after making the directory if that is absent.

        `retired` are the numbers of removed replicas of the same workspace: a place that was one may become a replica again.

        Raises Exists if it holds another replica or anything else, NotDirectory if it is no directory, and what the store says.
        """
        self._make()
        found = await read_marker(self._place)
        if found == marker:
            return
        if found is not None and (found.workspace != marker.workspace or found.replica not in retired):
            raise Exists(f"{self._place.name} holds {found.owner}: name another place")
        if found is None and not await self._is_empty():
            raise Exists(f"{self._place.name} is not empty: a replica needs a place of its own")
        self._before, self._marked = found, True
        await self._put(marker)
        # Reading it back shows that we may, and that nobody else was faster.
        written = await read_marker(self._place)
        if written != marker:
            self._marked = False
            raise Exists(f"{self._place.name} was taken at the same time, by {written.owner if written else 'somebody'}")

    async def undo(self) -> None:
        """Take back what `prepare` did, as far as the store lets it."""
        with trio.move_on_after(UNDO_SECONDS, shield=True):
            try:
                if self._marked and self._before is not None:
                    await self._put(self._before)
                elif self._marked:
                    await self._place.store.delete(MARKER_KEY)
            except AgentfsError:
                pass  # The failure that made us undo is the one to tell of.
        for made in reversed(self._made):
            made.rmdir()

    async def _put(self, marker: ReplicaMarker) -> None:
        # A put may take an object of the same size for the same one.
        await self._place.store.delete(MARKER_KEY)
        await self._place.store.put(MARKER_KEY, msgspec.json.encode(marker))

    async def _is_empty(self) -> bool:
        if self._place.directory is not None:
            return all(name in _NOT_CONTENT for name in os.listdir(self._place.directory))
        listing = self._place.store.list("")
        try:
            return await anext(listing, None) is None
        finally:
            if isinstance(listing, AsyncGenerator):
                await listing.aclose()

    def _make(self) -> None:
        if self._place.directory is None:
            return
        missing = []
        directory = self._place.directory
        while not os.path.lexists(directory):
            missing.append(directory)
            directory = directory.parent
        if not directory.is_dir():
            raise NotDirectory(f"{self._place.name} is not a directory")
        for made in reversed(missing):
            made.mkdir(mode=0o700)
            self._made.append(made)
