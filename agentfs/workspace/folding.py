"""Folding: inline bodies that nobody changes any more go into segments, many together, so that State stays small.

A small body travels inline, because that saves its writer a put; from then on it would be in every mount's State for ever. So
once inline bodies are more than INLINE_ALLOWED, they are moved in the order of their inodes: what was made together stays
together, and is fetched together. To whoever reads the files nothing changes. Bodies below FOLD_MIN stay where they are: what
State keeps of a chunk is about as large.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import Final, NamedTuple

import trio

from agentfs.model.changes import AnyChange, ChunkRun, Fold
from agentfs.model.extents import SEGMENT_MAX, Extent
from agentfs.model.ids import Ino
from agentfs.model.inode import FILE_SIZE_MAX
from agentfs.runtime import Runtime
from agentfs.state.queries import foldable
from agentfs.state.tables import Tables
from agentfs.workspace.committer import Committer
from agentfs.workspace.packer import ChunkAt, Packer, Piece

INLINE_ALLOWED: Final = 4 << 20
"""Bytes of inline bodies in State that are left alone."""

FOLD_BYTES: Final = SEGMENT_MAX
"""Bytes moved at once, BODY_COST more for each body: they are in memory, and fit into one segment."""

BODY_COST: Final = 64
"""Bytes that a segment needs for a chunk besides its own."""

WORTHWHILE_BYTES: Final = 1 << 20
"""Bytes that can be moved, below which that waits for more: segments are to be few."""

COLD_SECONDS: Final = 10.0
"""How long a file must not have changed, so that a log that is being written stays in one piece."""

LOOK_EXTENTS: Final = 64
"""Extents read from State at once: at most 2 MiB, some milliseconds."""

STEP_EXTENTS: Final = 256
"""Extents in one transaction: every mount applies it in one go."""

_START: Final = (Ino(0), 0)


class _Body(NamedTuple):
    """One inline extent, and the version of its file."""

    extent: Extent
    version: int


class Folding:
    """A chore of upkeep: only one session of a workspace does it."""

    def __init__(self, committer: Committer, packer: Packer, runtime: Runtime) -> None:
        self._committer = committer
        self._packer = packer
        self._runtime = runtime
        self._after = _START

    async def run_once(self) -> bool:
        """Move up to FOLD_BYTES, if inline bodies are more than they may be; whether there is more to do.

        Raises why segments could not be put or named: then it is done again another time.
        """
        inline = self._inline_bytes
        if inline <= INLINE_ALLOWED:
            return False
        began = self._after
        bodies = await self._gather()
        if sum(body.extent.length for body in bodies) < WORTHWHILE_BYTES:
            # What is before the place where this began may be cold by now.
            self._after = _START
            return began != _START
        await self._fold(bodies)
        return INLINE_ALLOWED < self._inline_bytes < inline

    @property
    def _inline_bytes(self) -> int:
        return self._committer.tables.counters["inline"]

    async def _gather(self) -> list[_Body]:
        """The next cold bodies, up to FOLD_BYTES; it begins where it ended the last time, and at the start after the end."""
        bodies: list[_Body] = []
        room = FOLD_BYTES
        while found := foldable(self._committer.tables, self._after, LOOK_EXTENTS):
            for extent in found:
                if extent.length + BODY_COST > room:
                    return bodies
                version = cold_version(self._committer.tables, extent.ino, self._runtime.now_ns())
                if version is None:
                    # The rest of the file need not be looked at.
                    self._after = (extent.ino, FILE_SIZE_MAX)
                    break
                bodies.append(_Body(extent, version))
                room -= extent.length + BODY_COST
                self._after = (extent.ino, extent.offset)
            await trio.lowlevel.checkpoint()
        self._after = _START
        return bodies

    async def _fold(self, bodies: list[_Body]) -> None:
        found = await self._packer.place([Piece(body.extent.length, partial(bytes, body.extent.data)) for body in bodies])
        for start in range(0, len(bodies), STEP_EXTENTS):
            end = start + STEP_EXTENTS
            await self._committer.commit(list(_describe(bodies[start:end], found[start:end])))


def cold_version(tables: Tables, ino: Ino, now_ns: int) -> int | None:
    """The version of a file that has not changed for COLD_SECONDS; None for one that has."""
    inode = tables.inode(ino)
    if inode is None:
        return None
    # A stamp that lies in the future is of another host's clock, and says nothing.
    return inode.version if abs(now_ns - inode.ctime_ns) > COLD_SECONDS * 10**9 else None


def _describe(bodies: Sequence[_Body], found: Sequence[ChunkAt]) -> Iterator[AnyChange]:
    """The changes that say where the bodies are now."""
    for placement in dict.fromkeys(at.placement for at in found):
        yield placement.naming()
    pairs = zip(bodies, found, strict=True)
    for (ino, version), group in groupby(pairs, lambda pair: (pair[0].extent.ino, pair[0].version)):
        yield Fold(ino, version, [ChunkRun(body.extent.offset, at.placement.name, at.chunk) for body, at in group])
