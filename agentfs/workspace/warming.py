"""Warming: everything of a file or a tree is fetched into the caches, so that it can be read without a replica later."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Final

import trio

from agentfs.chunks.segment import decode_chunk, segment_key
from agentfs.model.errors import AgentfsError, Corrupt
from agentfs.model.extents import Chunk, digest_of
from agentfs.model.ids import Ino
from agentfs.model.inode import Inode
from agentfs.workspace.chunk_memory import Chunks
from agentfs.workspace.core import Core
from agentfs.workspace.paths import path_of, resolve

PARALLEL: Final = 8
"""Segments fetched at a time."""

GATHERED_MAX: Final = 1 << 16
"""Chunks that are gathered before they are fetched: up to so many, 64 GiB of big files, the totals are right from the start."""

FAILED_MAX: Final = 100
"""Files named, of those that could not be fetched."""

_LISTING_BATCH: Final = 256
_STEP: Final = 16 << 20
"""Bytes of a file that are looked at before others get their turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmProgress:
    """How far warming is: bytes as stored, of those that were not here; files, of all that were met; `failed` of them."""

    bytes_done: int
    bytes_total: int
    files_done: int
    files_total: int
    failed: int


class Warming:
    """Warms files of one mount, through its caches and into them."""

    def __init__(self, core: Core, chunks: Chunks) -> None:
        self._core = core
        self._chunks = chunks

    async def warm(self, path: bytes, report: Callable[[WarmProgress], None]) -> list[str]:
        """Fetch what is not here of the file at `path`, or of all files below it; a line each for what could not be fetched.

        What there is at this moment counts; symbolic links are not followed. It stays as long as the caches have room for it.
        Raises NotFound, NotDirectory for the path, Unavailable without the journal.
        """
        await self._core.follower.reach_tail()
        haul = _Haul(self._core, self._chunks, report)
        async with aclosing(self._files(resolve(self._core.tables, path))) as files:
            async for inode in files:
                await haul.add(inode)
        await haul.fetch()
        return haul.failures()

    async def _files(self, top: Inode) -> AsyncGenerator[Inode, None]:
        """The regular files at and below an inode."""
        if not top.is_dir:
            if top.is_file:
                yield top
            return
        tables = self._core.tables
        waiting: list[tuple[Ino, int]] = [(top.ino, 0)]
        while waiting:
            directory, after = waiting.pop()
            await trio.lowlevel.checkpoint()
            batch = tables.listing(directory, after, _LISTING_BATCH)
            if batch:
                waiting.append((directory, batch[-1].cookie))
            for dentry in batch:
                inode = tables.inode(dentry.ino)
                if inode is not None and inode.is_dir:
                    waiting.append((inode.ino, 0))
                elif inode is not None and inode.is_file:
                    yield inode


@dataclass(eq=False, slots=True)
class _File:
    """A file, how many segments are still to come for it (and one while it is being looked at), and why one did not."""

    ino: Ino
    waiting: int = 1
    reason: str = ""


@dataclass(eq=False, slots=True)
class _Part:
    """A chunk, and the files it is wanted for."""

    chunk: Chunk
    files: list[_File] = field(default_factory=list)


@dataclass(eq=False, slots=True)
class _Wanted:
    """What of a segment is to be fetched, by where it starts, and the files that wait for any of it."""

    name: bytes
    size: int
    parts: dict[int, _Part] = field(default_factory=dict)
    files: list[_File] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        """Whether so much of it is wanted that all of it is fetched."""
        return 2 * self._stored >= self.size

    @property
    def bytes(self) -> int:
        """What will be fetched."""
        return self.size if self.whole else self._stored

    @property
    def _stored(self) -> int:
        return sum(part.chunk.stored for part in self.parts.values())


class _Haul:
    """One warming: what is gathered, and how far it is."""

    def __init__(self, core: Core, chunks: Chunks, report: Callable[[WarmProgress], None]) -> None:
        self._core = core
        self._chunks = chunks
        self._report = report
        self._wanted: dict[bytes, _Wanted] = {}
        self._gathered = 0
        self._bytes_done = self._bytes_total = 0
        self._files_done = self._files_total = 0
        self._failed = 0
        self._reasons: list[str] = []

    async def add(self, inode: Inode) -> None:
        """Gather what a file lacks; where that makes too much, fetch it."""
        file = _File(inode.ino)
        self._files_total += 1
        for start in range(0, inode.size, _STEP):
            if start:
                await trio.lowlevel.checkpoint()
            self._gather(file, start, min(start + _STEP, inode.size))
            if self._gathered >= GATHERED_MAX:
                await self.fetch()
        self._came(file)

    def _gather(self, file: _File, start: int, end: int) -> None:
        tables = self._core.tables
        for extent in tables.extents(file.ino, start, end):
            chunk = extent.chunk
            if chunk is None:
                continue
            name = tables.segment_name(extent.segment)
            if self._chunks.holds(segment_key(name), chunk.start, chunk.stored):
                continue
            wanted = self._wanted.get(name)
            if wanted is None:
                wanted = self._wanted[name] = _Wanted(name, tables.segment_size(extent.segment))
            self._gathered += 1
            wanted.parts.setdefault(chunk.start, _Part(chunk)).files.append(file)
            if not wanted.files or wanted.files[-1] is not file:
                wanted.files.append(file)
                file.waiting += 1

    async def fetch(self) -> None:
        """Fetch what is gathered."""
        gathered, self._wanted, self._gathered = list(self._wanted.values()), {}, 0
        self._bytes_total += sum(wanted.bytes for wanted in gathered)
        self._tell()
        gathered.reverse()
        async with trio.open_nursery() as nursery:
            for _ in range(min(PARALLEL, len(gathered))):
                nursery.start_soon(self._work, gathered)

    async def _work(self, left: list[_Wanted]) -> None:
        while left:
            wanted = left.pop()
            try:
                if not wanted.whole or not await self._bring_whole(wanted):
                    await self._bring_parts(wanted)
                # A cache that cannot keep up drops things: let it finish.
                await self._chunks.settle()
            except AgentfsError as error:
                _blame(wanted.files, error)
            for file in wanted.files:
                self._came(file)
            self._tell()

    async def _bring_whole(self, wanted: _Wanted) -> bool:
        try:
            await self._chunks.get(segment_key(wanted.name), check=lambda body: digest_of(body) == wanted.name)
        except Corrupt:
            # Each copy is damaged somewhere; what is wanted may still be whole in one of them.
            return False
        self._bytes_done += wanted.bytes
        return True

    async def _bring_parts(self, wanted: _Wanted) -> None:
        for part in wanted.parts.values():
            chunk = part.chunk
            try:
                await self._chunks.get(segment_key(wanted.name), chunk.start, chunk.stored, check=_checks(chunk))
                self._bytes_done += chunk.stored
            except Corrupt as error:
                _blame(part.files, error)

    def _came(self, file: _File) -> None:
        """One of the things that a file waits for is over."""
        file.waiting -= 1
        if file.waiting:
            return
        if not file.reason:
            self._files_done += 1
            return
        self._failed += 1
        if len(self._reasons) < FAILED_MAX:
            self._reasons.append(f"{path_of(self._core.tables, file.ino)}: {file.reason}")

    def _tell(self) -> None:
        self._report(
            WarmProgress(
                bytes_done=self._bytes_done,
                bytes_total=self._bytes_total,
                files_done=self._files_done,
                files_total=self._files_total,
                failed=self._failed,
            )
        )

    def failures(self) -> list[str]:
        """What could not be fetched: a file and a reason each."""
        more = self._failed - len(self._reasons)
        return [*self._reasons, f"and {more} more files"] if more else self._reasons


def _blame(files: list[_File], error: AgentfsError) -> None:
    for file in files:
        file.reason = file.reason or str(error)


def _checks(chunk: Chunk) -> Callable[[bytes], bool]:
    def is_right(stored: bytes) -> bool:
        try:
            decode_chunk(stored, chunk)
        except Corrupt:
            return False
        return True

    return is_right
